"""A run starts from a model that every site has already, named by what it holds; any other is refused in a sentence."""

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.flower import open_site
from client.state.initial_model import find_model
from privacy.codec.update import Layout, Model
from privacy.errors import RefusedError, RunError
from privacy.run.settings import RunSettings, Training
from privacy.run.tables import Start
from simulations.engine.federation import Federation
from tests import studies
from tests.federations import (
    SETTINGS,
    SITES,
    FederationMaker,
    models_of,
    run_with,
    signed_run,
    task_name,
    with_deadline,
)

LAYOUT = Layout((("weight", (1, 2)), ("bias", (1,))))
UNTRAINED = Model(np.zeros(3, np.float32), LAYOUT)
TENSORS = {"weight": np.array([[1.5, -2.0]], np.float32), "bias": np.array([0.25], np.float32)}
WANTED = [1.5, -2.0, 0.25]


def file_of(tensors: Mapping[str, NDArray[Any]], kind: str = "F32", **notes: str) -> bytes:
    """A safetensors file with these tensors in this order, as anybody may write it."""
    header: dict[str, Any] = {"__metadata__": notes} if notes else {}
    start = 0
    for name, values in tensors.items():
        header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [start, start + values.nbytes]}
        start += values.nbytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(values.tobytes() for values in tensors.values())


def find(folder: Path, data: bytes) -> list[float]:
    """What is read of a file that lies somewhere in the folder."""
    (folder / "public").mkdir(exist_ok=True)
    (folder / "public" / "some.safetensors").write_bytes(data)
    values: list[float] = find_model(folder, sha256(data).hexdigest(), UNTRAINED, "north").vector.tolist()
    return values


def named(federation: Federation, digest: str, settings: RunSettings = SETTINGS) -> None:
    """Sign a run that starts from this model."""
    federation.sign(replace(settings, name="second", start=Start(digest)))


# --- End to end -----------------------------------------------------------------------------------------------------


def test_a_second_run_goes_on_from_the_firsts_model(make_federation: FederationMaker) -> None:
    whole = make_federation(replace(SETTINGS, rounds=4), name="whole")
    run_with(whole)
    federation = make_federation(replace(SETTINGS, rounds=2), name="parts")
    run_with(federation)
    (first,) = set(models_of(federation).values())
    named(federation, sha256(first).hexdigest(), replace(SETTINGS, rounds=2))
    _, manifest, run = signed_run(federation)
    start = open_site(federation.paths["north"]).checkpoint(manifest, run)
    assert (start.round, start.model.vector.tobytes()) == (0, first[-12:])
    assert all(event["released"] for event in run_with(federation))
    (second,) = {path.read_bytes() for path in federation.folder.glob("*/models/second-*")}
    np.testing.assert_allclose(values_of(second), values_of(next(iter(models_of(whole).values()))), atol=1e-4)


def values_of(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data[8 + int.from_bytes(data[:8], "little") :], "<f4")


def test_the_mean_of_a_run_with_averaging_is_what_the_next_one_starts_from(make_federation: FederationMaker) -> None:
    federation = make_federation(
        replace(
            SETTINGS, rounds=4, training=Training(steps_per_round=1, sample_rate=1.0, learning_rate=0.1, averaging=1.0)
        )
    )
    run_with(federation)
    (mean,) = set(models_of(federation).values())
    named(federation, sha256(mean).hexdigest())
    _, manifest, run = signed_run(federation)
    model = open_site(federation.paths["north"]).checkpoint(manifest, run).model
    assert model.vector.tobytes() == values_of(mean).tobytes()


def test_a_site_without_the_initial_model_names_it_and_the_others_go_on(make_federation: FederationMaker) -> None:
    federation = make_federation()
    data = file_of(TENSORS)
    for site in SITES[:3]:
        (federation.paths[site] / "models" / "public").mkdir(parents=True)
        (federation.paths[site] / "models" / "public" / "model.safetensors").write_bytes(data)
    named(federation, sha256(data).hexdigest(), SETTINGS)
    (event,) = run_with(federation)
    assert event["released"]
    assert sha256(data).hexdigest() in event["problems"]["west"]
    assert "models/public" in event["problems"]["west"]


def test_no_run_begins_with_a_model_of_another_task(make_federation: FederationMaker) -> None:
    federation = make_federation()
    run_with(federation)
    digest = sha256(next(iter(models_of(federation).values()))).hexdigest()
    wide = replace(with_deadline(SETTINGS, 0.2), task=task_name(studies.Wide))
    named(federation, digest, wide)
    for site in SITES:
        text = (federation.paths[site] / "site.toml").read_text().replace(SETTINGS.task, wide.task)
        (federation.paths[site] / "site.toml").write_text(text)
    open_site.cache_clear()
    with pytest.raises(RunError, match="no round had enough sites"):
        run_with(federation)
    _, manifest, run = signed_run(federation)
    with pytest.raises(RefusedError, match="does not have the tensors of this run's task"):
        open_site(federation.paths["north"]).checkpoint(manifest, run)


# --- Files ----------------------------------------------------------------------------------------------------------


def test_tensors_are_found_by_name_in_any_order(tmp_path: Path) -> None:
    assert find(tmp_path, file_of(TENSORS)) == WANTED
    assert find(tmp_path, file_of(dict(reversed(TENSORS.items())), made="elsewhere")) == WANTED


def test_unreadable_files_are_skipped(tmp_path: Path) -> None:
    public = tmp_path / "public"
    (public / "a folder.safetensors").mkdir(parents=True)
    (public / "broken.safetensors").symlink_to(tmp_path / "nowhere")
    os.mkfifo(public / "fifo.safetensors")
    assert find(tmp_path, file_of(TENSORS)) == WANTED


def test_a_file_that_changed_is_another(tmp_path: Path) -> None:
    find(tmp_path, data := file_of(TENSORS))
    (tmp_path / "public" / "some.safetensors").write_bytes(data[:-1] + b"\x01")
    with pytest.raises(RefusedError, match="does not have the initial model"):
        find_model(tmp_path, sha256(data).hexdigest(), UNTRAINED, "north")


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": TENSORS["weight"]},
        TENSORS | {"more": TENSORS["bias"]},
        TENSORS | {"weight": TENSORS["weight"].reshape(2, 1)},
        {"weight": TENSORS["weight"], "offset": TENSORS["bias"]},
    ],
    ids=["too few", "too many", "another shape", "another name"],
)
def test_other_tensors_are_refused(tmp_path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    with pytest.raises(RefusedError, match="does not have the tensors of this run's task"):
        find(tmp_path, file_of(tensors))


def test_other_numbers_than_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="does not have the tensors"):
        find(tmp_path, file_of({name: values.astype(np.float64) for name, values in TENSORS.items()}, kind="F64"))
    with pytest.raises(RefusedError, match="not finite"):
        find(tmp_path, file_of(TENSORS | {"bias": np.array([np.nan], np.float32)}))


GOOD = file_of(TENSORS)


def changed(old: bytes, new: bytes) -> bytes:
    """The good file with something else in its header."""
    end = 8 + int.from_bytes(GOOD[:8], "little")
    header = GOOD[8:end].replace(old, new)
    return len(header).to_bytes(8, "little") + header + GOOD[end:]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:-1],
        GOOD[:20],
        changed(b"[0, 8]", b"[4, 8]"),
        changed(b"[0, 8]", b"[-8, 0]"),
        changed(b"[0, 8]", b"[0.0, 8]"),
        changed(b"[8, 12]", b"[80, 84]"),
        changed(b'"dtype"', b'"atype"'),
        b"\xff" * 8 + GOOD[8:],
        len(b"[]").to_bytes(8, "little") + b"[]",
        pickle.dumps(TENSORS),
    ],
)
def test_an_incomplete_safetensors_file_is_refused_and_never_unpickled(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(RefusedError, match="not a complete safetensors file"):
        find(tmp_path, data)
