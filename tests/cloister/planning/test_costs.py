"""A plan: bytes by the codec, measured figures continued to the whole run, its terms, and what would be cheaper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cloister.planning.costs import Rates, bytes_of, cohorts, plan
from cloister.planning.measuring import Measured
from cloister.views.plan import lines
from privacy.run.new_manifest import make_manifest
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training

SIZES = {"north": 400, "south": 200, "east": 100}
SETTINGS = RunSettings(
    name="lungs", task="lungs:Lungs", rounds=20, cohort=Cohort(SIZES, 3),
    privacy=Privacy(epsilon=3.0, max_grad_norm=1.0, delta=1e-5),
    training=Training(sample_rate=0.1, steps_per_round=10, learning_rate=0.1),
    encryption=Encryption(update_bound=1.0),
)  # fmt: skip


def _measured(settings: RunSettings, per_record: float = 0.001, per_site: float = 0.01) -> Measured:
    sizes = settings.cohort.sizes
    training = {site: per_record * size + 0.1 for site, size in sizes.items()}
    busy = {site: seconds + 0.2 + per_site * len(sizes) for site, seconds in training.items()}
    up, down = bytes_of(make_manifest(settings, roster_version=1), 30_000)
    memory = dict.fromkeys(sizes, 400_000_000) | {"server": 100_000_000 + 1_000_000 * len(sizes)}
    return Measured(
        settings, 8, 1.5 * len(sizes), {site: seconds + 1 for site, seconds in busy.items()},
        busy | {"server": 0.05 * len(sizes)}, training, len(sizes) * (up + 700), len(sizes) * (down + 50), memory,
    )  # fmt: skip


def _report(settings: RunSettings = SETTINGS, rates: Rates | None = None) -> dict[str, Any]:
    chosen = cohorts(settings.cohort.sizes, settings.colluding_sites)
    measured = [_measured(replace(settings, cohort=Cohort(sizes, 3))) for sizes in chosen]
    return plan(settings, measured, 30_000, rates or Rates())


def test_bytes_are_those_of_the_codec_and_what_was_seen_beside_it() -> None:
    count = make_manifest(SETTINGS, roster_version=1).packing.ciphertexts(30_000)
    assert count == 3
    report = _report()
    assert report["bytes_up"] == count * 30_792 + 700
    assert report["bytes_down"] == count * (30_720 + 8 + 3 * 64) + 50
    assert report["each_site"]["north"]["sent"] == 20 * report["bytes_up"]
    assert report["server"]["received"] == 3 * report["each_site"]["north"]["sent"]
    assert report["bytes"] == 20 * 3 * (report["bytes_up"] + report["bytes_down"])


def test_a_few_sites_are_those_measured_and_the_first_round_counts_once() -> None:
    report = _report()
    assert report["measured"] == [{"sites": 3, "rounds": 8}]
    assert report["each_site"]["north"]["seconds"] == pytest.approx(20 * (0.5 + 0.23) + 1)
    assert report["server"]["seconds"] == pytest.approx(20 * 0.15)
    assert report["seconds"] == pytest.approx(20 * (0.5 + 0.23 + 0.15 + report["phases"]["transfer"]["round"]) + 1)
    terms = report["terms"]
    assert terms["seconds"] == pytest.approx(
        3 * 20 * (terms["download_and_compute_seconds"] + terms["upload_and_server_seconds"])
    )


def test_many_sites_lie_on_the_line_through_two_small_cohorts() -> None:
    sizes = {f"site-{number:02}": 100 + 10 * number for number in range(40)}
    report = _report(replace(SETTINGS, cohort=Cohort(sizes, 3)))
    assert [each["sites"] for each in report["measured"]] == [3, 5]
    assert report["phases"]["training"]["round"] == pytest.approx(0.001 * 490 + 0.1)
    assert report["phases"]["encryption"]["round"] == pytest.approx(0.2 + 0.01 * 40)
    assert report["server"]["seconds"] == pytest.approx(20 * 0.05 * 40)
    assert report["server"]["memory"] == 140_000_000
    assert report["each_site"]["site-00"]["seconds"] == pytest.approx(20 * (0.2 + 0.2 + 0.4) + 1)
    count = make_manifest(replace(SETTINGS, cohort=Cohort(sizes, 3)), roster_version=1).packing.ciphertexts(30_000)
    assert report["bytes_down"] == count * (2 * 30_720 + 8) + 50  # the server expands the seeds of so many sites


def test_money_is_processor_time_and_what_is_sent() -> None:
    assert _report()["money"] is None
    report = _report(rates=Rates(cpu_hour=3600.0, gigabyte=1e9))
    north = report["each_site"]["north"]
    assert north["money"] == pytest.approx(north["seconds"] + north["sent"])
    parties = [*report["each_site"].values(), report["server"]]
    assert report["money"] == pytest.approx(sum(party["money"] for party in parties))


def test_the_servers_network_counts_for_all_sites() -> None:
    fast, slow = (_report(rates=Rates(link=100, server_link=link))["phases"]["transfer"] for link in (1000, 10))
    assert slow["round"] == pytest.approx(30 * fast["round"])


def test_a_plan_is_read_in_80_columns_or_little_more_and_says_what_would_be_cheaper() -> None:
    report = _report(rates=Rates(cpu_hour=0.05))
    text = "\n".join(lines(report, 100, 1000))
    assert "C × T × (D + S)" in text
    assert "ε 3.00 at δ 1e-05" in text
    assert 'profile = "dense" in [encryption]: 33% fewer bytes' in text
    assert "rounds = 10: half of everything, and with the same noise ε" in text
    assert "half as many steps a round" in text
    assert max(map(len, text.splitlines())) <= 120
