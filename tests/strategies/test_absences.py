"""A round says for which sites it waits that are not online, once for each time that they go."""

from types import SimpleNamespace
from typing import Any

import pytest

from strategies.absences import Absences
from strategies.event_lines import line_of
from strategies.waiting_events import Waiting


class Log:
    """Takes events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def record(self, event: str, **details: Any) -> None:  # noqa: ANN401
        self.events.append({"event": event, **details})


class Round:
    """A round of three sites, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number, self.online, self.log = 1, {1, 2, 3}, Log()
        self.names = {1: "north", 2: "south", 3: "east"}
        self.clock = 1_800_000_000.0
        monkeypatch.setattr("strategies.absences.time", self)
        self.absences = Absences(self.log, lambda: self.online, lambda: (self.number, self.names))  # type: ignore[arg-type]

    def time(self) -> float:
        return self.clock

    monotonic = time

    def look(self, *awaited: int, seconds: float) -> None:
        """Look once a second."""
        for _ in range(int(seconds)):
            self.clock += 1.0
            self.absences.look(set(awaited), 600.0)


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> Round:
    return Round(monkeypatch)


def test_a_site_that_goes_and_comes_back_is_reported_once_each(current: Round) -> None:
    current.look(1, 2, seconds=10)
    current.online = {1, 3}
    left = current.clock + 1
    current.look(1, 2, seconds=100)
    (away,) = current.log.events
    assert away == {"event": "away", "round": 1, "sites": ["south"], "since": left, "until": left + 5 + 600}
    assert line_of(away) == (
        "round 1 waits for south, which is not online (since 2027-01-15 08:00:11 UTC), until 2027-01-15 08:10:16 UTC"
    )
    current.online = {1, 2, 3}
    current.look(1, seconds=10)  # it has answered already
    assert current.log.events[1:] == [{"event": "back", "round": 1, "sites": ["south"]}]
    assert line_of(current.log.events[1]) == "round 1: south is online again"


def test_who_reconnects_or_is_not_awaited_is_not_reported(current: Round) -> None:
    current.online = {1}
    current.look(1, 2, seconds=4)
    current.online = {1, 2}
    current.look(1, 2, seconds=1)
    current.online = {1}
    current.look(1, 2, seconds=4)
    current.look(1, seconds=20)
    assert current.log.events == []


def test_a_site_that_keeps_coming_back_is_reported_ever_more_rarely(current: Round) -> None:
    for _ in range(1000):  # it is away for 7 s at a time
        current.online = {1, 3}
        current.look(2, seconds=7)
        current.online = {1, 2, 3}
        current.look(2, seconds=1)
    assert [event["event"] for event in current.log.events] == ["away", "back"]
    for hours in range(24 * 30):  # and then for up to a month
        current.online = {1, 3}
        current.look(2, seconds=1)
        current.clock += 60.0 * hours
        current.absences.look({2}, 600.0)
        current.online = {1, 2, 3}
        current.clock += 1.0
        current.absences.look({2}, 600.0)
    assert 2 < len(current.log.events) < 50
    current.number = 2
    current.online = {1, 3}
    current.look(2, seconds=10)
    assert current.log.events[-1]["round"] == 2


def test_reasons_that_keep_changing_are_reported_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    log, clock = Log(), SimpleNamespace(now=1000.0)
    monkeypatch.setattr("strategies.waiting_events.time", SimpleNamespace(monotonic=lambda: clock.now))
    waiting = Waiting(log, clock.now)  # type: ignore[arg-type]
    for second in range(24 * 3600):
        clock.now += 1.0
        waiting.say(["north"], 3, {"south": f"it has {second} records"}, {"east": "it is not online"})
    assert [event["problems"]["south"] for event in log.events[:3]] == [f"it has {n} records" for n in (0, 1, 2)]
    assert len(log.events) < 200


def test_each_round_reports_anew_and_several_sites_together(current: Round) -> None:
    current.online = set()
    current.look(2, 3, seconds=20)
    current.number = 2
    current.look(2, 3, seconds=20)
    assert [(event["event"], event["round"], event["sites"]) for event in current.log.events] == [
        ("away", 1, ["east", "south"]), ("away", 2, ["east", "south"])
    ]  # fmt: skip
    assert "which are not online" in line_of(current.log.events[0])
