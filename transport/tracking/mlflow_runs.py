"""Log runs to an MLflow tracking server, each once, however often a process starts again."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

# Nothing here calls home; and a tracking server that does not answer is given up soon. Set before mlflow is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient
from typing_extensions import override

from transport.tracking.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Mapping

_TAG = "cloister.run"


class MlflowRuns(Tracker):
    """Runs of one experiment, found again by the digest in their tag."""

    def __init__(self, uri: str, experiment: str) -> None:
        self._client, self._experiment = MlflowClient(tracking_uri=uri), experiment
        self._ids = dict[str, str]()

    @override
    def begin(self, run: str, name: str, settings: Mapping[str, str]) -> None:
        params = [Param(key, value) for key, value in settings.items()]
        self._client.log_batch(self._id(run, name), params=params)

    @override
    def log(self, run: str, name: str, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._id(run, name), metrics=metrics)

    @override
    def end(self, run: str, *, well: bool) -> None:
        if known := self._ids.pop(run, None):
            self._client.set_terminated(known, status="FINISHED" if well else "FAILED")

    @override
    def close(self) -> None:
        """Do nothing: runs that go on are found again."""

    def _id(self, run: str, name: str) -> str:
        if run not in self._ids:
            found = self._client.get_experiment_by_name(self._experiment)
            experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
            earlier = self._client.search_runs([experiment], filter_string=f"tags.`{_TAG}` = '{run}'", max_results=1)
            if earlier:
                self._client.update_run(earlier[0].info.run_id, status="RUNNING")
            made = earlier[0] if earlier else self._client.create_run(experiment, run_name=name, tags={_TAG: run})
            self._ids[run] = made.info.run_id
        return self._ids[run]
