"""Gradient inversion: a record can be read back from a plain update, and neither from ours nor from its bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typer.testing import CliRunner

from cloister.audit.gradient_inversion import attacks
from cloister.cli import app
from simulations.tasks.digits import digits

if TYPE_CHECKING:
    from pathlib import Path


def test_a_plain_update_of_one_record_is_that_record(tmp_path: Path) -> None:
    truth, (plain, batch, *_) = attacks(tmp_path, row=3, batch=4, epsilon=8.0)
    assert truth == pytest.approx(digits()[0][3] / 16)
    assert plain.image == pytest.approx(truth, abs=1e-5)
    assert plain.correlation > 0.9999
    assert batch.correlation > 0.8


def test_neither_a_private_nor_an_encrypted_update_reveals_the_record(tmp_path: Path) -> None:
    results = [attacks(tmp_path / str(row), row, 2, 1.0)[1][2:] for row in range(5)]
    private, encrypted = (np.mean([images[place].correlation for images in results]) for place in (0, 1))
    # Chance alone makes ±0.06 of the mean of five: 64 pixels each.
    assert abs(private) < 0.35
    assert abs(encrypted) < 0.35


def test_the_command_draws_a_picture_and_reports_every_correlation(tmp_path: Path) -> None:
    out = tmp_path / "inversion.png"
    result = CliRunner().invoke(app, ["audit", "inversion", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert [row["update"] for row in report["rows"]] == [
        "plain update", "plain update of 4 records", "DP-SGD, ε = 8", "encrypted update",
    ]  # fmt: skip
    assert report["rows"][0]["correlation"] == 1.0
    assert out.read_bytes().startswith(b"\x89PNG")
