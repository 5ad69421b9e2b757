"""The malicious server: its tries are real ones, sites refuse them, and the benchmark would notice if they did not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cloister.benchmarks import adversary
from cloister.cli import app
from privacy.crypto.mac import MacKey
from privacy.crypto.tag import TagKey
from privacy.errors import AuthenticityError, ProtocolError
from simulations.attacks.attack_suite import ATTACKS, prepare_attacks, quiet_agents
from simulations.attacks.liars import LIARS
from strategies.judging import LiarFinder
from transport.messages import LEAD, QUERY, Query

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from privacy.codec.ciphertext import SummedCiphertexts

LEFT_OUT = "an update left out"


@pytest.fixture(scope="module", params=["here", pytest.param("in processes", marks=pytest.mark.soak)])
def report(request: pytest.FixtureRequest) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "here":
            _here(patch)
        return adversary.measure(len(ATTACKS) + len(LIARS), 5, seed=1)


def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Play in this process: in others, nothing is patched, and each of them takes seconds to load torch."""
    monkeypatch.setattr(adversary, "in_processes", lambda *_, **__: map)


def _pass_all(self: TagKey, total: Iterable[Any], plan: object, sites: object) -> Iterable[Any]:
    del self, plan, sites
    return total


def _pass_chunks(self: MacKey, total: SummedCiphertexts, plan: object, sites: object) -> Iterable[Any]:
    del self, plan, sites
    return total.chunks()


def _refuse_all(self: object, total: object, plan: object, sites: object) -> Iterable[Any]:
    del self, total, plan, sites
    raise AuthenticityError


def test_every_site_refuses_every_attack_and_no_honest_round_and_liars_are_blamed(report: dict[str, Any]) -> None:
    assert report["rows"] == [{"attack": name, "tries": 1, "refused": 1} for name in ATTACKS]
    assert report["lies"] == [{"lie": name, "tries": 1, "blamed": 1, "others_blamed": 0} for name in LIARS]
    assert (report["honest_rounds"], report["false_alarms"]) == (5, 0)
    assert adversary.held(report)


def test_the_table_has_every_attack_and_a_sentence_in_80_columns(report: dict[str, Any]) -> None:
    lines = adversary.table(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(name) for line in lines) for name in (*ATTACKS, *LIARS))
    assert lines[-2:] == [
        f"✓ every site refused all {len(ATTACKS)} attacks, and none of 5 honest rounds",
        f"✓ each of {len(LIARS)} false messages was blamed on its sender, and on no other member",
    ]


def test_without_code_and_tag_false_updates_pass_are_counted_and_the_command_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _here(monkeypatch)
    monkeypatch.setattr(adversary, "_ATTACKS", (LEFT_OUT,))
    monkeypatch.setattr(adversary, "_LIES", ())
    monkeypatch.setattr(TagKey, "check", _pass_all)
    assert adversary.held(adversary.measure(4, 0, seed=5))  # the code alone refuses as well
    monkeypatch.setattr(MacKey, "check", _pass_chunks)
    arguments = ["bench", "adversary", "--tries", "4", "--rounds", "1", "--seed", "5", "--json"]
    done = CliRunner().invoke(app, arguments)
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.exit_code == 1
    assert result["rows"][0]["attack"] == LEFT_OUT
    assert result["rows"][0]["refused"] < result["rows"][0]["tries"] == 4
    assert result["false_alarms"] == 0
    assert "succeeded" in adversary.table(result)


def test_an_attempt_counts_as_refused_only_if_all_sites_refuse_without_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with quiet_agents():
        server = prepare_attacks(tmp_path, np.random.default_rng(1))
        state = server.state()
        refusals = server.ask_all(LEAD, server.epoch)  # an epoch that there is already
        agreed = server.ask_all(QUERY, Query(server.runs["few"].document))
        assert server.refused(refusals, state)
        assert not server.refused(refusals | {"north": agreed["north"]}, state)
        assert not server.refused(refusals, {})
        assert not server.refused({}, state)
        monkeypatch.setattr("client.app.accept_letter", _crash)
        assert not ATTACKS["keys of the server's own"](server)


def _crash(*anything: object) -> None:
    raise RuntimeError(anything)


def test_sites_that_refuse_honest_rounds_are_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    _here(monkeypatch)
    monkeypatch.setattr(TagKey, "check", _refuse_all)
    result = adversary.measure(0, 3, seed=1)
    assert result["false_alarms"] == 3
    assert not adversary.held(result)
    with pytest.raises(ProtocolError, match="does not open"):  # and tries against such sites say nothing
        adversary.measure(1, 0, seed=1)


def _accuse_the_first(*arguments: Any) -> dict[str, str]:  # noqa: ANN401
    _court, _grid, _plan, _bodies, sites, _refusals = arguments
    return {sites[0]: "whoever it is"}


def test_wrong_and_missing_blame_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _here(monkeypatch)
    monkeypatch.setattr(adversary, "_ATTACKS", ())
    monkeypatch.setattr(adversary, "_LIES", ("a wrong code",))
    monkeypatch.setattr(LiarFinder, "liars", _accuse_the_first)
    report = adversary.measure(6, 0, seed=2)
    (row,) = report["lies"]
    assert row["blamed"] < row["tries"]
    assert row["others_blamed"]
    assert not adversary.held(report)
    assert "were not blamed on their sender" in adversary.table(report).splitlines()[-1]
