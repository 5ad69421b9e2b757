"""`cloister bench personal` judges each record by its own site's models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from cloister.benchmarks import algorithms, personal
from cloister.cli import app

if TYPE_CHECKING:
    import pytest


def test_rows_say_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algorithms, "_ROUNDS", {None: (2, 2), 8.0: (2, 1)})
    result = CliRunner().invoke(app, ["bench", "personal", "--seeds", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert [(row["model"], row["epsilon"]) for row in report["rows"]] == [
        (kind, epsilon) for epsilon in (None, 8.0) for kind in personal.KINDS
    ]
    right = {(row["model"], row["epsilon"]): row["accuracy_mean"] for row in report["rows"]}
    assert all(0.05 < accuracy <= 1 for accuracy in right.values())
    assert right["ditto", 8.0] > right["shared", 8.0]
    assert right["alone", None] == right["alone", 8.0]  # it knows nothing of the others
    assert max(map(len, personal.table(report).splitlines())) <= 105
