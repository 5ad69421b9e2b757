"""A run with averaging: its result is the mean of its last models, the same at all sites, whatever happened between."""

from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, MessageType
from numpy.typing import NDArray

from client.flower import app, open_site
from client.round.admission import admit
from client.round.aggregate import open_sum
from client.state.checkpoint import Checkpoint
from client.state.models import Models
from privacy.codec.update import Layout, Model
from privacy.run.settings import RunSettings, Training
from simulations.engine.federation import Federation
from simulations.engine.results import read_results
from tests.federations import (
    SETTINGS,
    SITES,
    FederationMaker,
    models_of,
    own_metrics,
    restart,
    run_with,
    signed_run,
    sums_of,
)
from tests.tables import table

SITE, RUN = "north", "ab" * 32
ROUNDS, AVERAGED = 5, 3


def averaging(share: float) -> RunSettings:
    """Five rounds without noise, so that runs can be compared."""
    return replace(
        SETTINGS,
        rounds=ROUNDS,
        training=Training(steps_per_round=1, sample_rate=1.0, learning_rate=0.1, averaging=share),
    )


def vector_of(file: Path) -> NDArray[np.float32]:
    data = file.read_bytes()
    return np.frombuffer(data[8 + int.from_bytes(data[:8], "little") :], "<f4")


def result_of(federation: Federation, site: str = SITE) -> NDArray[np.float32]:
    (file,) = federation.paths[site].glob("models/*")
    return vector_of(file)


def open_all(federation: Federation, skipped: int = 0) -> None:
    """Open a run's sums at a site that was just started, those of the first rounds left out."""
    for total in sums_of(federation)[skipped:]:
        site = restart(federation, SITE)
        open_sum(admit(site, signed_run(federation)[0]), total)


@pytest.fixture
def averaged(make_federation: FederationMaker) -> Federation:
    """A federation after a run whose last three of five rounds are averaged."""
    federation = make_federation(averaging(0.5))
    run_with(federation)
    return federation


# --- What comes out -------------------------------------------------------------------------------------------------


def test_the_result_is_the_mean_of_the_last_rounds_models_and_training_goes_on_from_the_last(
    make_federation: FederationMaker,
) -> None:
    plain = make_federation(averaging(0.0), name="plain")
    models: list[NDArray[np.float32]] = []

    def answer(message: Message, context: Context) -> Message:
        answered = app(message, context)
        if message.metadata.message_type == MessageType.EVALUATE and str(context.node_config["site"]).endswith(SITE):
            models.append(result_of(plain))
        return answered

    run_with(plain, answer)
    federation = make_federation(averaging(0.5), name="averaged")
    run_with(federation)
    assert len(models) == ROUNDS
    expected = np.mean(np.array(models[-AVERAGED:], np.float64), axis=0)
    np.testing.assert_allclose(result_of(federation), expected, rtol=1e-6)
    assert np.abs(result_of(federation) - models[-1]).max() > 1e-3
    (last,) = federation.paths[SITE].glob("outbox/*.safetensors")
    np.testing.assert_array_equal(vector_of(last), models[-1])


def test_all_sites_have_the_same_result_and_agree_on_it_too(averaged: Federation) -> None:
    assert len(set(models_of(averaged).values())) == 1
    assert set(models_of(averaged)) == set(SITES)
    _, manifest, run = signed_run(averaged)
    kept = {site: restart(averaged, site).checkpoint(manifest, run) for site in SITES}
    assert {checkpoint.digest for checkpoint in kept.values()} == {read_results(averaged).model}
    assert kept[SITE].digest != kept[SITE].model.digest


def test_metrics_are_of_the_result(make_federation: FederationMaker) -> None:
    federation = make_federation(averaging(0.5))
    run_with(federation)
    _, manifest, run = signed_run(federation)
    (last,) = federation.paths[SITE].glob("outbox/*.safetensors")
    site = open_site(federation.paths[SITE])
    study, layout = site.study(manifest.settings.task), site.checkpoint(manifest, run).model.layout
    inputs, targets = table(study.held_out)
    with torch.no_grad():
        of_result, of_last = (
            float(study.task.loss(study.load_into(study.module(0), Model(vector, layout))(inputs), targets))
            for vector in (result_of(federation), vector_of(last))
        )
    assert own_metrics(federation, SITE)[-1]["metrics"]["loss"] == pytest.approx(of_result)
    assert abs(of_result - of_last) > 1e-4


def test_before_its_rounds_the_result_is_the_last_model(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(averaging(0.1), rounds=2))
    run_with(federation)
    (last,) = federation.paths[SITE].glob("outbox/*.safetensors")
    np.testing.assert_array_equal(vector_of(last), result_of(federation))


def test_without_averaging_there_is_one_file(make_federation: FederationMaker) -> None:
    federation = make_federation(averaging(0.0))
    run_with(federation)
    assert [*federation.paths[SITE].glob("outbox/*.safetensors")] == []


# --- Whatever happened between --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [("models", "outbox"), ("models",), ("outbox",)], ids=" and ".join)
def test_a_site_that_lost_its_models_rebuilds_the_same_bits_from_the_sums(
    averaged: Federation, lost: tuple[str, ...]
) -> None:
    expected = models_of(averaged)[SITE]
    for folder in lost:
        rmtree(averaged.paths[SITE] / folder)
    _, manifest, run = signed_run(averaged)
    assert restart(averaged, SITE).checkpoint(manifest, run).round == 0
    open_all(averaged)
    assert models_of(averaged)[SITE] == expected


@pytest.mark.parametrize("crashed", range(1, ROUNDS + 1))
def test_a_crash_between_the_two_files_changes_nothing(averaged: Federation, crashed: int) -> None:
    expected, folder = models_of(averaged)[SITE], averaged.paths[SITE]
    for name in ("models", "outbox"):
        rmtree(folder / name)
    _, manifest, run = signed_run(averaged)
    for number, total in enumerate(sums_of(averaged), start=1):
        last = folder / "outbox" / f"study-{run[:8]}.safetensors"
        before = last.read_bytes() if last.exists() else None
        site = restart(averaged, SITE)
        open_sum(admit(site, signed_run(averaged)[0]), total)
        if number == crashed:
            last.unlink()  # as if the process had ended before this file was written
            if before is not None:
                last.write_bytes(before)
            assert restart(averaged, SITE).checkpoint(manifest, run).round == number - 1
            open_sum(admit(site, signed_run(averaged)[0]), total)
    assert models_of(averaged)[SITE] == expected
    assert restart(averaged, SITE).checkpoint(manifest, run).digest == read_results(averaged).model


def test_an_older_last_model_beside_a_newer_mean_counts_as_lost(tmp_path: Path) -> None:
    models, settings = Models(tmp_path / "models", tmp_path / "outbox"), averaging(1.0)
    layout = Layout((("all", (2,)),))

    def opened(number: int) -> Checkpoint:
        return Checkpoint(RUN, number, Model(np.array([number, 1], np.float32), layout), 1.0)

    models.save(settings, opened(1))
    older = (tmp_path / "outbox" / f"study-{RUN[:8]}.safetensors").read_bytes()
    for number in (2, 3):
        models.save(settings, opened(number))
    _, file = models.save(settings, opened(3))
    expected = file.read_bytes()
    assert vector_of(file).tolist() == [2.0, 1.0]
    (tmp_path / "outbox" / f"study-{RUN[:8]}.safetensors").write_bytes(older)
    assert models.load(settings, RUN, layout) is None
    for number in (1, 2, 3):
        models.save(settings, opened(number))
    assert file.read_bytes() == expected


def test_a_round_that_released_nothing_is_not_in_the_mean(tmp_path: Path) -> None:
    models, settings = Models(tmp_path / "models", tmp_path / "outbox"), averaging(0.5)
    for number in (1, 4, 5):
        model = Model(np.array([number], np.float32), Layout((("all", (1,)),)))
        models.save(settings, Checkpoint(RUN, number, model, 1.0))
    (file,) = (tmp_path / "models").iterdir()
    assert vector_of(file).tolist() == [4.5]


def test_another_mean_is_another_digest() -> None:
    model = Model(np.zeros(1, np.float32), Layout((("all", (1,)),)))
    digests = {Checkpoint(RUN, 1, model, 1.0, average=average).digest for average in ("", "00" * 32, "01" * 32)}
    assert len(digests) == 3
    assert model.digest in digests
