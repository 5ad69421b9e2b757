"""Read `[report]`, of a server's or a site's settings."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, File

_KINDS = {"http", "https", "sqlite", "postgresql", "databricks"}


def _checked(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.scheme not in _KINDS:
        msg = (
            f"mlflow is the URI of a tracking server, https://mlflow.example.org, or of a database: {uri!r} is neither"
        )
        raise ValueError(msg)
    if parts.password is not None:
        msg = "mlflow contains a password; remove it, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise ValueError(msg)
    return uri


@dataclass(frozen=True, config=STRICT)
class Report:
    """`[report]`: where runs are shown besides. Both need the extra `tracking`.

    Raises:
        ValueError: if it names neither.
    """

    tensorboard: File | None = None  # the folder for event files, one folder for each run in it
    mlflow: Annotated[str, AfterValidator(_checked)] | None = None  # the URI of a tracking server
    experiment: Annotated[str, Field(min_length=1, max_length=200)] = "cloister"  # in MLflow

    def __post_init__(self) -> None:
        """Check that there is anywhere to report to."""
        if self.tensorboard is None and self.mlflow is None:
            msg = "[report] names neither tensorboard nor mlflow; name one, or remove it"
            raise ValueError(msg)
