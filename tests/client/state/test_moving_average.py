"""A run with `ema_decay`: its result is a moving average of the models of all rounds, the same bits at all sites."""

from dataclasses import replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest
from flwr.app import Context, Message, MessageType
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.flower import app
from client.state.checkpoint import Checkpoint
from client.state.models import Models
from privacy.codec.update import Layout, Model
from privacy.run.averaging import Averaging
from privacy.run.settings import RunSettings, Training
from simulations.engine.results import read_results
from tests.client.state.test_averaged import ROUNDS, SITE, averaging, open_all, result_of, vector_of
from tests.federations import SETTINGS, SITES, FederationMaker, models_of, restart, run_with, signed_run

RUN = "ab" * 32


def moving(decay: float, rounds: int = ROUNDS) -> RunSettings:
    training = Training(steps_per_round=1, sample_rate=1.0, learning_rate=0.1, ema_decay=decay)
    return replace(SETTINGS, rounds=rounds, training=training)


def by_hand(models: list[NDArray[np.float32]], decay: float) -> NDArray[np.float64]:
    """Return the moving average as De et al. write it: the decay of step t is min(decay, (1 + t)/(10 + t))."""
    mean = models[0].astype(np.float64)
    for step, model in enumerate(models[1:], start=1):
        kept = min(decay, (1 + step) / (10 + step))
        mean = kept * mean + (1 - kept) * model.astype(np.float64)
    return mean


def test_the_result_is_the_moving_average_at_all_sites_and_training_goes_on_from_the_last(
    make_federation: FederationMaker,
) -> None:
    plain, models = make_federation(averaging(0.0), name="plain"), list[NDArray[np.float32]]()

    def answer(message: Message, context: Context) -> Message:
        answered = app(message, context)
        if message.metadata.message_type == MessageType.EVALUATE and str(context.node_config["site"]).endswith(SITE):
            models.append(result_of(plain))
        return answered

    run_with(plain, answer)
    federation = make_federation(moving(0.3), name="moving")
    run_with(federation)
    assert len(models) == ROUNDS
    np.testing.assert_allclose(result_of(federation), by_hand(models, 0.3), rtol=1e-5, atol=1e-6)
    assert np.abs(result_of(federation) - models[-1]).max() > 1e-3
    (last,) = federation.paths[SITE].glob("outbox/*.safetensors")
    np.testing.assert_array_equal(vector_of(last), models[-1])

    assert set(models_of(federation)) == set(SITES)
    assert len(set(models_of(federation).values())) == 1
    _, manifest, run = signed_run(federation)
    expected = models_of(federation)[SITE]
    for folder in ("models", "outbox"):  # whoever lost both arrives at the same bits by the sums
        rmtree(federation.paths[SITE] / folder)
    open_all(federation)
    assert models_of(federation)[SITE] == expected
    assert restart(federation, SITE).checkpoint(manifest, run).digest == read_results(federation).model


@given(decay=st.floats(0.0, 1.0, exclude_min=True, exclude_max=True), rounds=st.integers(1, 200))
def test_the_moving_average_has_the_weights_of_de_et_al(decay: float, rounds: int) -> None:
    averaging, mean = Averaging(0.0, decay), 1.0
    for number in range(2, rounds + 1):
        mean += (number - mean) / averaging.window(number)
    models = [np.array([number], np.float32) for number in range(1, rounds + 1)]
    assert mean == pytest.approx(by_hand(models, decay)[0], rel=1e-9)
    assert all(averaging.includes(number, rounds) for number in range(1, rounds + 1))


def test_a_round_that_comes_twice_counts_once(tmp_path: Path) -> None:
    averages = []
    for numbers in ((1, 2, 4), (1, 1, 2, 2, 4, 4)):
        models = Models(tmp_path / f"{len(numbers)}" / "models", tmp_path / f"{len(numbers)}" / "outbox")
        for number in numbers:
            model = Model(np.array([number**2], np.float32), Layout((("all", (1,)),)))
            models.save(moving(0.9), Checkpoint(RUN, number, model, 1.0))
        (file,) = (tmp_path / f"{len(numbers)}" / "models").iterdir()
        averages.append(vector_of(file).tolist())
    assert averages[0] == averages[1] == pytest.approx(by_hand([np.array([n], np.float32) for n in (1, 4, 16)], 0.9))


def test_averaging_and_moving_average_exclude_each_other() -> None:
    assert Averaging.of(0.0, 0.0) is None
    with pytest.raises(ValueError, match="averaging and ema_decay are two ways"):
        Training(steps_per_round=1, sample_rate=1.0, learning_rate=0.1, ema_decay=0.9, averaging=0.5)
