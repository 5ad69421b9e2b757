"""The benchmarks measure what they say: bytes and errors are right, the federation is a real one. Never times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cloister.benchmarks import accuracy, encryption, norm
from cloister.benchmarks import round as rounds
from cloister.benchmarks.comparison import NVFLARE, STEPS
from cloister.benchmarks.pipelines import UPDATE_BOUND, Cloister
from privacy.accounting.accounting import Mechanism
from privacy.codec.ciphertext import C0_BYTES, CIPHERTEXT_BYTES, CODE_BYTES, SEED_BYTES
from privacy.codec.packing import Packing, Profile
from privacy.errors import AuthenticityError, ConfigError, RunError
from privacy.ledger.ledger import Budget, Ledger, Release
from simulations.engine.results import Results
from simulations.tasks.idle import PARAMETERS, Idle
from tests.forked import ForkedAgents
from tests.privacy.consortium import signing_key

if TYPE_CHECKING:
    from pathlib import Path

SITES = 3
WEIGHTS = [1.0, 0.75, 0.5]
PROFILES: tuple[Profile, ...] = ("compact", "precise", "dense")
SYMMETRIC = "ckks-symmetric"
DIGEST_BYTES = 64
CKKS_BYTES = 240_000  # about: two polynomials of 8,192 coefficients, modulo 60 and 40 bits, in 64 bits each, compressed


@pytest.fixture(scope="module", params=[14, 20_000])
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    parameters: int = request.param
    return encryption.measure(parameters, SITES)


def _row(report: dict[str, Any], pipeline: str) -> dict[str, Any]:
    return next(row for row in report["rows"] if row["pipeline"] == pipeline)


def test_every_pipeline_gets_a_row_of_plain_numbers(report: dict[str, Any]) -> None:
    assert [row["pipeline"] for row in report["rows"]] == [*PROFILES, NVFLARE, SYMMETRIC]
    assert json.loads(json.dumps(report)) == report
    assert report["repetitions"] >= 3
    for row in report["rows"]:
        assert row["sites"] == SITES
        assert all(row[step] > 0 for step in STEPS)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_bytes_per_update_are_those_of_the_ciphertexts_and_one_digest(
    report: dict[str, Any], profile: Profile
) -> None:
    row = _row(report, profile)
    packing = Packing.of(profile, cohort=SITES, update_bound=UPDATE_BOUND, max_weight=1.0)
    count = packing.ciphertexts(row["parameters"])
    assert row["bytes_up"] * row["parameters"] == pytest.approx(count * CIPHERTEXT_BYTES + DIGEST_BYTES)
    assert row["bytes_down"] * row["parameters"] == pytest.approx(count * (C0_BYTES + SITES * SEED_BYTES + CODE_BYTES))


@pytest.mark.parametrize("profile", PROFILES)
def test_our_error_is_within_what_the_packing_promises(report: dict[str, Any], profile: Profile) -> None:
    packing = Packing.of(profile, cohort=SITES, update_bound=UPDATE_BOUND, max_weight=1.0)
    rounding_to_float32 = UPDATE_BOUND * 2**-23
    assert 0 < _row(report, profile)["max_error"] <= packing.max_error(WEIGHTS) + rounding_to_float32


def test_the_ckks_settings_are_those_of_nvflare(report: dict[str, Any]) -> None:
    row = _row(report, NVFLARE)
    count = -(-row["parameters"] // 4096)
    assert row["bytes_up"] * row["parameters"] == pytest.approx(count * CKKS_BYTES, rel=0.03)
    # The server's division has dropped one of two moduli.
    assert row["bytes_down"] / row["bytes_up"] == pytest.approx(0.56, abs=0.02)
    assert 0 < row["max_error"] < 1e-5


def test_the_table_holds_every_row_and_ratio_in_80_columns(report: dict[str, Any]) -> None:
    lines = encryption.table(report).splitlines()
    assert max(map(len, lines)) <= 80
    named = [line.split()[0] for line in lines if line.startswith((*PROFILES, NVFLARE, SYMMETRIC))]
    # Figures, then "NVFLARE takes this many times as much" and ratios.
    assert named == [*PROFILES, NVFLARE, SYMMETRIC, NVFLARE, *PROFILES, SYMMETRIC]
    ratio = _row(report, NVFLARE)["bytes_up"] / _row(report, "compact")["bytes_up"]
    assert f"{ratio:.1f}" in next(line for line in reversed(lines) if line.startswith("compact")).split()


def test_the_server_notices_an_update_that_changed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", "north", "nobody", signing_key("north"))
    charge = ledger.reserve(Release("0" * 64, 1, 1), Mechanism(1.0, 0.5, 0), Budget(1.0, 1e-5))
    pipeline = Cloister("compact", 14, WEIGHTS, charge)
    body, digest = pipeline.encrypt(np.zeros(14, dtype=np.float32), 1.0)
    with pytest.raises(AuthenticityError, match="changed"):
        pipeline.add([body[:-1] + bytes([body[-1] ^ 1]), digest])


def test_more_sites_than_fields_have_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="use `precise`"):
        encryption.measure(14, 5000)


def test_json_is_alone_on_standard_output_whatever_tenseal_prints() -> None:
    arguments = ("--parameters", "9000", "--sites", "2", "--json")
    command = [sys.executable, "-m", "cloister", "bench", "encryption", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert [row["parameters"] for row in json.loads(done.stdout)["rows"]] == [9000] * 5
    assert "5 pipelines, 15 rounds of each: 9,000 parameters, 2 sites" in done.stderr


def test_the_idle_model_has_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARAMETERS, "14")
    assert sum(parameter.numel() for parameter in Idle().model().parameters()) == 14


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sites", [3, pytest.param(10, marks=pytest.mark.soak)])
def test_rounds_are_those_of_a_real_federation_also_of_ten_agents_on_few_cores(
    monkeypatch: pytest.MonkeyPatch, sites: int
) -> None:
    monkeypatch.setattr(rounds, "Processes", ForkedAgents)
    monkeypatch.setenv(PARAMETERS, "5")  # of somebody who uses it, too
    report = rounds.measure(14, 1, sites)
    assert os.environ[PARAMETERS] == "5"
    assert (report["rounds"], report["warm_up"]) == (1, rounds.WARM_UP)
    assert (report["parameters"], report["sites"]) == (14, sites)
    assert report["masked_to_unmasked"] == pytest.approx(report["median_ms"] / report["unmasked_median_ms"], abs=1e-3)
    assert 0 < report["min_ms"] <= report["median_ms"] <= report["p95_ms"]
    assert CIPHERTEXT_BYTES < report["bytes_up"] < CIPHERTEXT_BYTES + 2000  # no site is lost: a round without one fails
    assert 0 < report["server_peak_bytes"] < report["site_peak_bytes"]
    assert report["bytes_down"] == C0_BYTES + sites * SEED_BYTES + CODE_BYTES
    assert len(report["model"]) == 64
    assert max(map(len, rounds.table(report).splitlines())) <= 80


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.timeout(300)
def test_encryption_at_rest_is_measured_beside_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "Processes", ForkedAgents)
    report = rounds.measure_at_rest(14, 1, 3)
    assert "CLOISTER_KEY_FILE" not in os.environ
    assert report["encrypted_to_clear"] == pytest.approx(report["median_ms"] / report["clear_median_ms"], abs=1e-3)
    text = rounds.table(report)
    assert "in the clear" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("seeds", [1, pytest.param(5, marks=pytest.mark.soak)])
def test_packing_into_few_bits_costs_no_accuracy(seeds: int) -> None:
    """Every profile within 0.3 points of float32 on average; carrying what is left over keeps the models close."""
    report = accuracy.measure(seeds)
    rows = {row["codec"]: row for row in report["rows"]}
    assert rows["float32"]["accuracy_mean"] > 0.9
    assert all(abs(row["points_lost"]) <= 0.3 for row in rows.values())
    assert rows["precise"]["model_error"] < rows["compact"]["model_error"] < rows["dense"]["model_error"]
    least = 2.0 if seeds > 1 else 1.2  # a single seed's factor is between 1.7 and 3.2
    assert least * rows["dense"]["model_error"] < rows["dense, no error feedback"]["model_error"]
    assert max(map(len, accuracy.table(report).splitlines())) <= 80


def _results(sites: list[str], models: dict[str, str]) -> Results:
    event = {"event": "round", "round": 1, "released": True, "sites": sites, "problems": {"east": "it was asleep"}}
    return Results("run", 1, "model", [event | {"seconds": 0.1, "bytes_up": 3, "bytes_down": 3}], {}, models)


@pytest.mark.parametrize(
    ("sites", "models", "complaint"),
    [
        pytest.param(["north", "south"], ["a", "a", "a"], "asleep", id="a site was missing"),
        pytest.param(["north", "south", "east"], ["a", "a", "b"], "same model", id="a model differs"),
        pytest.param(["north", "south", "east"], ["a", "a"], "same model", id="a model is missing"),
    ],
)
def test_rounds_with_absent_sites_or_different_models_are_an_error(
    sites: list[str], models: list[str], complaint: str
) -> None:
    held: dict[str, str] = dict(zip(("north", "south", "east"), models, strict=False))
    with pytest.raises(RunError, match=complaint):
        rounds._summarise([_results(sites, held)], ("north", "south", "east"), 14)


def test_the_cost_of_proofs_is_measured_on_real_proofs() -> None:
    report = norm.parts(300, SITES)
    assert all(report[f"{step}_ms"] > 0 for step in norm.STEPS)
    # Six points, answers to 128 projections, 128 masks and the bits of the limit, three blindings; 128 masked sums.
    assert 32 * (6 + 128 + 128 + 40 + 3) + 15 * 128 < report["proof_bytes"] < 16_000
    figures = {"parameters": 300, "sites": 3, "median_ms": 20.0, "plain_median_ms": 10.0, "ratio": 2.0}
    text = norm.table(report | figures | {"refused_though_short": 8e-10, "caught_from": 2.3})
    assert "2.3 times the limit passes" in text
    assert max(map(len, text.splitlines())) <= 80
