"""A simulation whose process is killed goes on after its last whole round, with the same result."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from cloister import CloisterError, EarlyStop, SitePrivacy, simulate
from privacy.folder_locks import folder_alone
from tests.forked import Forked
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cloister import Result

CALL: dict[str, Any] = {
    "sites": 5, "dropout": 0.1, "site_seconds": "exponential:30", "deadline": 90.0, "processes": 2, "progress": False,
    "keep_models": True,
}  # fmt: skip


class StopError(Exception):
    """Interrupts a simulation."""


def play(folder: Path | None, /, **changed: Any) -> Result:  # noqa: ANN401 - whatever `simulate` takes
    """Simulate, with some arguments changed."""
    given: dict[str, Any] = {"task": Sign, "records": (INPUTS, TARGETS), "run": PLAIN} | CALL | changed
    task, records, run = (given.pop(name) for name in ("task", "records", "run"))
    return simulate(task, records, run, checkpoint=folder, **given)


def until_killed(folder: str, engine: str) -> None:
    """Simulate until this process is killed, after the second round."""

    def kill(row: Mapping[str, Any]) -> None:
        if row["round"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    play(Path(folder), engine=engine, callbacks=[kill])


def interrupted(folder: Path, **changed: Any) -> None:  # noqa: ANN401 - as for `play`
    """Simulate until an exception after the second round."""

    def stop(row: Mapping[str, Any]) -> None:
        if row["round"] == 2:
            raise StopError

    with pytest.raises(StopError):
        play(folder, callbacks=[stop], **changed)


def _told(result: Result) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in {"seconds", "bytes"}} for row in result.rows]


@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("engine", ["vectorised", "inline", "processes"])
def test_a_killed_simulation_goes_on_and_gives_the_same_result(engine: str, tmp_path: Path) -> None:
    killed = Forked(tmp_path / "log", until_killed, str(tmp_path / "here"), engine, env={})
    assert killed.wait(100) == -signal.SIGKILL, killed.log.read_text(encoding="utf-8")
    rows: list[Any] = []
    resumed, whole = play(tmp_path / "here", engine=engine, callbacks=[rows.append]), play(None, engine=engine)
    assert resumed.digest == whole.digest
    assert _told(resumed) == _told(whole)
    assert rows == list(resumed.rows)
    for one, other in zip(resumed.models, whole.models, strict=True):
        for name, values in one.state_dict().items():
            assert values.equal(other.state_dict()[name])
    again = play(tmp_path / "here", engine=engine)  # nothing is left to do
    assert again.rows == resumed.rows
    assert again.digest == whole.digest


@pytest.mark.parametrize("strategy", ["scaffold", "fedadam"])
def test_what_algorithms_keep_is_in_the_checkpoint(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.vectorised.kept_vectors._AT_ONCE", 50)  # bytes: some sites to a part
    run = PLAIN | {"strategy": {"name": strategy}}
    interrupted(tmp_path / "here", engine="vectorised", run=run)
    assert (
        play(tmp_path / "here", engine="vectorised", run=run).digest == play(None, engine="vectorised", run=run).digest
    )


def test_stateful_callbacks_see_the_earlier_rows(tmp_path: Path) -> None:
    def stop() -> EarlyStop:
        return EarlyStop("accuracy", patience=3, larger_is_better=False)

    run = PLAIN | {"rounds": 9}
    whole = play(None, engine="vectorised", run=run, callbacks=[stop()])
    interrupted(tmp_path / "here", engine="vectorised", run=run)
    resumed = play(tmp_path / "here", engine="vectorised", run=run, callbacks=[stop()])
    assert resumed.stopped == whole.stopped != ""
    assert _told(resumed) == _told(whole)


def test_private_simulations_go_on_with_their_noise_and_spending(tmp_path: Path) -> None:
    changed: dict[str, Any] = {
        "run": {"rounds": 4}, "sites": 40, "participation": "poisson:0.2", "engine": "vectorised",
        "site_privacy": SitePrivacy(1.0, noise_multiplier=1.0),
    }  # fmt: skip
    interrupted(tmp_path / "here", **changed)
    resumed = play(tmp_path / "here", **changed)
    assert len(resumed.rows) == 4
    assert resumed.site_epsilon == play(None, **changed).site_epsilon
    assert resumed.epsilon == max(resumed.epsilons.values()) > 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a simulation that has ended."""
    folder = tmp_path_factory.mktemp("finished") / "here"
    play(folder, engine="vectorised")
    return folder


@pytest.mark.parametrize(
    "changed",
    [
        {"run": PLAIN | {"rounds": 4}},
        {"sites": 4},
        {"seed": 1},
        {"dropout": 0.2},
        {"deadline": 80.0},
        {"records": (INPUTS, 1 - TARGETS)},
        {"keep_models": False},
        {"measure_every": 2},
        {"engine": "inline"},
    ],
)
def test_another_simulation_does_not_go_on_from_there(changed: dict[str, Any], finished: Path) -> None:
    with pytest.raises(CloisterError, match="another simulation"):
        play(finished, **({"engine": "vectorised"} | changed))


def test_what_is_wrong_with_a_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CloisterError, match="is a file"):
        play(tmp_path / "file")
    with pytest.raises(CloisterError, match="is not empty"):
        play(tmp_path)
    with pytest.raises(CloisterError, match="leave folder out"):
        play(tmp_path / "here", folder=tmp_path / "there")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ".study.json.1.new").touch()  # of a process that was killed as it began
    interrupted(tmp_path / "here", engine="vectorised")
    with folder_alone(tmp_path / "here"), pytest.raises(CloisterError, match="another process"):
        play(tmp_path / "here", engine="vectorised")
    (tmp_path / "here" / "new").mkdir()  # of a process that was killed while it wrote
    (tmp_path / "here" / "new" / "state.safetensors").write_bytes(b"cut off")
    assert len(play(tmp_path / "here", engine="vectorised").rows) == 3
    (tmp_path / "here" / "round-3" / "state.safetensors").write_bytes(b"cut off")
    with pytest.raises(CloisterError, match="is damaged"):
        play(tmp_path / "here", engine="vectorised")


def _without_a_part(folder: Path) -> None:
    next(folder.glob("round-*/residual-*.safetensors")).unlink()


def _of_another_model(folder: Path) -> None:
    path = next(folder.glob("round-*/state.safetensors"))
    path.write_bytes(save(load(path.read_bytes()) | {"model": np.zeros(1, np.float32)}))


def _with_nothing(folder: Path) -> None:
    next(folder.glob("round-*/state.safetensors")).write_bytes(save({"other": np.zeros(1)}))


def _with_odd_rows(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("[]\n{}\n1\n", encoding="utf-8")


@pytest.mark.parametrize("damage", [_without_a_part, _of_another_model, _with_nothing, _with_odd_rows])
def test_a_checkpoint_of_which_something_is_missing_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    interrupted(tmp_path / "here", engine="vectorised")
    damage(tmp_path / "here")
    with pytest.raises(CloisterError, match="is damaged"):
        play(tmp_path / "here", engine="vectorised")


def test_rows_with_infinite_numbers_come_back(tmp_path: Path) -> None:
    first = play(tmp_path / "here", engine="vectorised")
    assert np.isinf(first.epsilon)
    assert play(tmp_path / "here", engine="vectorised").rows == first.rows
