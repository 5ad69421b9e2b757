"""Runs in TensorBoard and MLflow: what was reported is there, once, and no run waits for it or fails with it."""

import logging
import subprocess
import sys
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import ValidationError

from privacy.errors import ConfigError
from tests.ports import unused_port
from transport.tracking.settings import Report
from transport.tracking.tracking import Tracking

RUN = "1a2b3c4d" + 56 * "0"
pytestmark = [
    pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra tracking is not installed"),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # mlflow's tables
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would draw of a run, by tag: steps and values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    found = defaultdict[str, list[tuple[int, float]]](list)
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    for tag in accumulator.Tags()["scalars"]:
        found[tag] = [(event.step, round(event.value, 6)) for event in accumulator.Scalars(tag)]
    return dict(found)


def test_tensorboard_reads_what_was_reported_also_after_a_restart(tmp_path: Path) -> None:
    for number in (1, 2):
        with Tracking(Report(tensorboard=Path("board")), tmp_path) as tracking:
            tracking.begin(RUN, "lungs", {"rounds": 2})
            values = {"metrics/loss": 1 / number, "epsilon/north": 0.5 * number, "odd": float("nan"), "none": None}
            tracking.log(RUN, "lungs", number, values)
    assert scalars(tmp_path / "board" / "lungs-1a2b3c4d") == {
        "metrics/loss": [(1, 1.0), (2, 0.5)],
        "epsilon/north": [(1, 0.5), (2, 1.0)],
    }


def test_mlflow_has_a_run_once_however_often_the_process_starts(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415 - takes a second, which every collection would

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for number in (1, 2):
        with Tracking(Report(mlflow=uri, experiment="lungs"), tmp_path) as tracking:
            tracking.begin(RUN, "lungs", {"rounds": 2, "profile": "compact"})
            tracking.log(RUN, "lungs", number, {"metrics/loss": 1 / number})
            if number == 2:
                tracking.end(RUN, well=True)
    client = MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'lungs'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name, run.data.tags["cloister.run"]) == ("FINISHED", "lungs", RUN)
    assert run.data.params == {"rounds": "2", "profile": "compact"}
    history = client.get_metric_history(run.info.run_id, "metrics/loss")
    assert [(one.step, one.value) for one in history] == [(1, 1.0), (2, 0.5)]


def test_a_tracking_server_that_cannot_be_reached_is_named_once_and_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = time.monotonic()
    settings = Report(tensorboard=Path("board"), mlflow=f"http://127.0.0.1:{unused_port()}")
    with caplog.at_level(logging.WARNING, "cloister.report"):
        tracking = Tracking(settings, tmp_path)
        for number in range(3):
            tracking.log(RUN, "lungs", number, {"loss": 1.0})
        assert time.monotonic() - begun < 30  # importing mlflow takes most of it
        tracking._trackers.pop()  # do not wait for its tries
        tracking.close()
    assert "loss" in scalars(tmp_path / "board" / "lungs-1a2b3c4d")


def test_a_folder_that_cannot_be_written_is_named_once_and_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "board").write_text("a file", encoding="utf-8")
    with (
        caplog.at_level(logging.WARNING, "cloister.report"),
        Tracking(Report(tensorboard=Path("board")), tmp_path) as it,
    ):
        for number in range(3):
            it.log(RUN, "lungs", number, {"loss": 1.0})
    (said,) = caplog.messages
    assert said.startswith("EventFiles cannot be written to, and the run goes on without: ")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "names neither tensorboard nor mlflow"),
        ({"mlflow": "mlruns"}, "is neither"),
        ({"mlflow": "file:///srv/mlruns"}, "is neither"),
        ({"mlflow": "https://ana:secret@mlflow.example.org"}, "contains a password"),
        ({"mlflow": "https://mlflow.example.org", "experiment": ""}, "at least 1 character"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        Report(**settings)  # type: ignore[arg-type]
    assert "secret" not in str(refused.value.errors(include_input=False))


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "transport.tracking.event_files", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    with pytest.raises(ConfigError, match=r"pip install 'cloister\[tracking\]'"):
        Tracking(Report(tensorboard=tmp_path), tmp_path)


def test_reporting_loads_no_torch_and_not_reporting_loads_nothing() -> None:
    code = """
import sys
from pathlib import Path
from transport.tracking.tracking import Tracking
Tracking(None, Path()).close()
assert not {"mlflow", "tensorboard"} & sys.modules.keys()
import transport.tracking.event_files, transport.tracking.mlflow_runs
loaded = {"torch", "tensorflow", "tenseal"} & sys.modules.keys()
assert not loaded, loaded
import os
assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
