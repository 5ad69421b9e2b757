"""The server's metrics: what runs do to them, and that no text from outside becomes a label."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from time import time
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from privacy import errors
from privacy.log_fields import about
from server.operations.port import OperationsPort
from server.operations.reasons import Reason, reason_of
from server.operations.state import ServerState
from strategies.adding import _LATE
from strategies.judging import _FALSE_SEED, _SLANDER, _WRONG
from strategies.masking import _DISPUTE
from strategies.membership import APART, UNDECIDED, UNOPENED
from strategies.selection import _DISPUTES, _FOUND, _LEFT_OUT, _SUSPECTED
from transport.flower import GONE

DAY = 86_400.0
SITES = ["north", "south", "east"]
ROUND: dict[str, Any] = {
    "event": "round", "round": 1, "released": True, "sites": SITES, "problems": {}, "epsilon": {"north": 0.5},
    "bytes_up": 3000, "bytes_down": 1000, "seconds": 2.0,
}  # fmt: skip


class Server:
    """A port, and the state that it shows."""

    def __init__(self) -> None:
        self.state = ServerState(leading=True, members=frozenset(SITES), online=frozenset({"north", "south"}))
        self.port = OperationsPort("localhost:0", lambda: self.state)

    def ask(self, path: str) -> httpx.Response:
        return httpx.get(f"http://localhost:{self.port.port}{path}", timeout=10, trust_env=False)

    def metrics(self) -> dict[tuple[str, str], float]:
        return samples(self.ask("/metrics").text)


def samples(text: str) -> dict[tuple[str, str], float]:
    """Every sample by its name and the values of its labels, by their names."""
    return {
        (sample.name, ",".join(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.port.stop()


def log(run: str, entry: dict[str, Any]) -> None:
    with about(run=run):
        logging.getLogger("cloister.run").info("%s", entry["event"], extra={"entry": entry})


def start(run: str, minimum: int = 2) -> None:
    log(run, {"event": "started", "run": run, "sites": SITES, "minimum": minimum})


def test_a_server_is_ready_when_it_leads_and_nothing_is_wrong(server: Server) -> None:
    assert server.ask("/readyz").text == "ok\n"
    server.state = replace(server.state, leading=False, troubles=("the store cannot be written: disk full",))
    answer = server.ask("/readyz")
    assert (answer.status_code, answer.text) == (503, "the store cannot be written: disk full\n")
    assert server.ask("/livez").status_code == 200
    assert server.metrics()["cloister_server_ready", ""] == server.metrics()["cloister_server_leading", ""] == 0


def test_sites_runs_and_dates_are_those_of_the_moment(server: Server) -> None:
    server.state = replace(
        server.state, online=frozenset({"north", "gone"}), runs={"running": 1, "failed": 2},
        ends={"certificate": time() + 20 * DAY, "roster": time() - DAY},
    )  # fmt: skip
    metrics = server.metrics()
    assert metrics["cloister_sites_members", ""] == 3
    assert metrics["cloister_sites_online", ""] == 1
    assert [metrics["cloister_site_online", site] for site in SITES] == [1, 0, 0]
    assert ("cloister_site_online", "gone") not in metrics
    assert metrics["cloister_runs", "failed"] == 2
    assert metrics["cloister_runs", "waiting"] == 0
    assert metrics["cloister_certificate_days_left", ""] == pytest.approx(20, abs=0.01)
    assert metrics["cloister_roster_days_left", ""] == pytest.approx(-1, abs=0.01)
    assert metrics["process_resident_memory_bytes", ""] > 1 << 20


def test_rounds_are_counted_over_all_runs(server: Server) -> None:
    start("aa")
    start("bb", minimum=3)
    assert server.metrics()["cloister_sites_needed", ""] == 3
    log("aa", ROUND)
    log("bb", {**ROUND, "released": False, "epsilon": {"north": 0.75},
               "problems": {"south": "it is not online", "east": "“no such task (policy: tasks)”"}})  # fmt: skip
    metrics = server.metrics()
    assert metrics["cloister_rounds_total", "released"] == metrics["cloister_rounds_total", "unreleased"] == 1
    assert metrics["cloister_round_bytes_total", "up"] == 6000
    assert metrics["cloister_round_seconds_sum", ""] == 4
    assert metrics["cloister_site_epsilon_spent", "north"] == 0.75
    assert metrics["cloister_refusals_total", "offline,south"] == metrics["cloister_refusals_total", "policy,east"] == 1


def test_a_rounds_age_is_that_of_the_run_that_has_waited_longest(server: Server) -> None:
    assert server.metrics()["cloister_round_age_seconds", ""] == 0
    start("aa")
    start("bb")
    log("bb", ROUND)
    first = server.metrics()["cloister_round_age_seconds", ""]
    assert server.metrics()["cloister_round_age_seconds", ""] > first > 0
    for run, ending in (("aa", "finished"), ("bb", "failed")):
        log(run, {"event": ending})
    assert server.metrics()["cloister_round_age_seconds", ""] == server.metrics()["cloister_sites_needed", ""] == 0


def test_nothing_but_names_of_sites_and_fixed_words_becomes_a_label(server: Server) -> None:
    start("aa")
    outside = 'x"} 1\ncloister_evil 1'
    for _ in range(3):
        log("aa", {**ROUND, "problems": {outside: outside, "node 7": outside, "north": outside},
                   "epsilon": {outside: 1.0}})  # fmt: skip
    labels = {label for name, label in server.metrics() if name.startswith("cloister_refusals")}
    assert labels == {"other,north"}
    assert "evil" not in server.ask("/metrics").text


def test_a_port_that_was_closed_counts_no_more(server: Server) -> None:
    server.port.stop()
    assert server.port._events not in logging.getLogger("cloister.run").handlers


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("“the run asks for minimum 2 (policy: cohort)”", Reason.POLICY),
        (errors.BudgetError("ε 3 of 2").public, Reason.BUDGET),
        (errors.LedgerError("x").public, Reason.LEDGER),
        (errors.DataError("x").public, Reason.DATA),
        (errors.TaskError("x").public, Reason.TASK),
        (errors.DeviceError("x").public, Reason.DEVICE),
        (errors.StorageError("x").public, Reason.STORAGE),
        (errors.KeyFileError("x").public, Reason.KEYS),
        (errors.VaultError("x").public, Reason.KEYS),
        ("it is not online", Reason.OFFLINE),
        ("it has not answered whether it takes part", Reason.OFFLINE),
        ("no update by the round's deadline", Reason.LATE),
        (_LATE, Reason.LATE),
        (GONE, Reason.LEFT),
        (APART, Reason.MODEL),
        (UNDECIDED, Reason.OTHER),
        *((text, Reason.EXCLUDED) for text in (_FALSE_SEED, _SLANDER, _WRONG, _DISPUTE, UNOPENED)),
        *((text, Reason.EXCLUDED) for text in (_DISPUTES, _FOUND, _LEFT_OUT, _SUSPECTED)),
        ("the site's agent failed with an unexpected error; see the site's own log", Reason.UNEXPECTED),
        ("anything else", Reason.OTHER),
    ],
)  # fmt: skip
def test_every_problem_of_a_round_is_of_one_kind(text: str, reason: Reason) -> None:
    assert reason_of(text) is reason
