"""Whatever a member says beside its updates, the run goes on, and what is shown and kept of it is short and plain."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf, nan
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from sqlalchemy import select

from cloister.views.run import RoundTable
from privacy.untrusted_text import MOST
from server.store.store import Store
from server.store.tables import EVENTS
from simulations.engine.federation import Federation
from simulations.engine.results import read_events
from strategies.event_log import EventLog
from strategies.metrics import averaged
from tests.federations import NOISY, SETTINGS, SITES, FederationMaker, run_with
from tests.server.store.stores import place_in, run_named
from tests.strategies.hostile import EVALUATE, HONEST, HOSTILE, QUERY, TRAIN, answering
from transport.flower import reply
from transport.run_messages import pack_readiness, read_readiness

ROW = "\r\n    9    4/4  0.001   1.000     0.01                   1 kB   0.01 s"
SCREAM = "\x1b[2J\x1b[31m\x1b]0;owned\x07\u202eyltsenoh\u2066[red]:pile_of_poo:" + ROW

Lie = Callable[[RecordDict], RecordDict | Error]


def _beside(name: str, record: ArrayRecord | ConfigRecord | MetricRecord) -> Lie:
    def lie(content: RecordDict) -> RecordDict:
        content[name] = record
        return content

    return lie


def _says(reason: str) -> Lie:
    return lambda _: Error(100, reason)


def _reads_as(**fields: Any) -> Lie:  # noqa: ANN401 - of a readiness
    return lambda content: pack_readiness(replace(read_readiness(content), **fields))


# By the kind of message that is answered; with whether the site's update of that round, or its readiness, counts.
LIES: dict[str, list[tuple[str, Lie, bool]]] = {
    QUERY: [
        ("a reason of 3 MB", _says(SCREAM * 30_000), False),
        ("another's name", _reads_as(site=SCREAM * 1000), False),
        ("a layout that is none", _reads_as(layout=SCREAM * 1000), False),
        ("keys that are none", _reads_as(epoch=1, keys=SCREAM), False),
        ("a head that is none", _beside("ledger", MetricRecord({"head": 0.0})), True),
    ],
    TRAIN: [
        ("a reason of 3 MB", _says(SCREAM * 30_000), False),
        ("no reason", _says(""), False),
        ("an ε that is no number", _beside("report", MetricRecord({"epsilon": nan})), True),
        ("an infinite ε", _beside("report", MetricRecord({"epsilon": inf})), True),
        ("an ε below 0", _beside("report", MetricRecord({"epsilon": -3.0})), True),
        ("an ε of 1e300", _beside("report", MetricRecord({"epsilon": 1e300, SCREAM: 0.0})), True),
        ("a report of another kind", _beside("report", ArrayRecord()), True),
        ("a head that is none", _beside("ledger", ConfigRecord({"head": SCREAM, "signature": b""})), True),
    ],
    EVALUATE: [
        ("a reason of 3 MB", _says(SCREAM * 30_000), True),
        ("5,000 metrics", _beside("metrics", MetricRecord({f"{SCREAM}{i}": 1e300 for i in range(5000)})), True),
        ("metrics that are no numbers", _beside("metrics", MetricRecord({"loss": nan, "accuracy": -inf})), True),
        ("huge metrics", _beside("metrics", MetricRecord({"loss": 3e39, "accuracy": -3e38})), True),
        ("metrics of another kind", _beside("metrics", ConfigRecord({"loss": SCREAM})), True),
        ("a digest that is none", _beside("opened", ConfigRecord({"model": SCREAM * 1000})), True),
    ],
}


def _strict(line: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    event: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return event


def _printed(federation: Federation) -> str:
    """What a terminal gets of the run."""
    console = Console(file=io.StringIO(), force_terminal=True, width=80, highlight=False, color_system=None)
    table = RoundTable(console)
    for event in read_events(federation):
        table.show(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("kind", LIES)
def test_false_data_beside_updates_neither_stops_a_run_nor_fills_a_disk(
    make_federation: FederationMaker, kind: str
) -> None:
    lies = LIES[kind]
    federation, left = make_federation(replace(NOISY, rounds=len(lies))), iter(lies)

    def lying(message: Message, genuine: Message) -> Message:
        _, lie, _ = next(left)
        return reply(lie(genuine.content), message)

    events = run_with(federation, answering(federation, kind, HOSTILE, lying))
    for (name, _, counts), event in zip(lies, events, strict=True):
        assert event["released"], name
        assert sorted(event["sites"]) == sorted(SITES if counts else HONEST), name
        assert set(event["problems"]) == ({HOSTILE} if kind != QUERY or not counts else set()), name
        assert set(event["epsilon"]) - {HOSTILE} == set(HONEST), name
    assert all(abs(value) < 4e38 for event in events for value in event["metrics"].values())

    kept = list(map(json.dumps, read_events(federation)))
    assert max(map(len, kept)) < 4096
    for line in kept:
        for text in _strict(line).get("problems", {}).values():
            assert text.isprintable()
            assert len(text) <= MOST + 2
    printed = _printed(federation)
    assert not {"\x1b", "\x07", "\r", "\u202e", "\u2066", "💩"} & set(printed)
    rows = [line for line in printed.splitlines() if line.startswith("    ") and "/4" in line[:15]]
    assert len(rows) == len(lies)
    assert all(len(row) <= 80 for row in rows)


@given(
    reports=st.dictionaries(st.sampled_from(SITES), st.dictionaries(st.text(max_size=3), st.floats(-3.4e38, 3.4e38)))
)
def test_an_average_is_between_the_values_that_the_sites_reported(reports: dict[str, dict[str, float]]) -> None:
    sizes = SETTINGS.cohort.sizes
    for name, value in averaged(reports, sizes).items():
        of = [metrics[name] for metrics in reports.values() if name in metrics]
        slack = 1e-9 * max(map(abs, of))
        assert min(of) - slack <= value <= max(of) + slack


def test_if_there_are_too_many_metrics_those_reported_by_most_sites_are_averaged() -> None:
    reports = {
        "north": {f"n{i}": 1.0 for i in range(16)} | {"loss": 1.0},
        "south": {"loss": 3.0},
        "stranger": {"loss": 9.0},
    }
    means = averaged(reports, {"north": 10, "south": 10})
    assert len(means) == 16
    assert means["loss"] == 2.0


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(place_in(tmp_path_factory.mktemp("server"))) as opened:
        yield opened


@settings(max_examples=30)
@given(details=st.dictionaries(st.sampled_from("abc"), values))
def test_every_event_is_one_line_of_strict_json(store: Store, details: dict[str, Any]) -> None:
    event_log = EventLog(store.record(store.submit(run_named()).digest))
    event_log.record("one", **details)
    event_log.record("two")
    newest = select(EVENTS.c.value).order_by(EVENTS.c.number.desc()).limit(2)
    two, one = (value.decode("ascii") for value in store.database.read(lambda connection: connection.scalars(newest)))
    assert "\n" not in one + two
    assert [_strict(one)["event"], _strict(two)["event"]] == ["one", "two"]
