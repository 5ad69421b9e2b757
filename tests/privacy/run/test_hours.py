"""The hours in which a site trains: in local time, over midnight too, and with the time at which they start next."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from pydantic import TypeAdapter, ValidationError

from privacy.errors import PolicyError
from privacy.run.hours import Hours
from privacy.run.policy import Policy, check_hours

POLICY = Policy(tasks=("a:B",), maximum_epsilon=1.0)
MIDNIGHT = datetime(2026, 3, 4).astimezone()


def at(clock: str) -> datetime:
    hours, minutes = clock.split(":")
    return MIDNIGHT + timedelta(hours=int(hours), minutes=int(minutes))


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("08:00-17:30", ("08:00", "12:00", "17:29"), ("07:59", "17:30", "00:00", "23:59")),
        ("20:00-06:00", ("20:00", "23:59", "00:00", "05:59"), ("06:00", "12:00", "19:59")),
        ("00:00-23:59", ("00:00", "23:58"), ("23:59",)),
    ],
)
def test_hours_begin_with_their_start_and_end_before_their_end(
    hours: str, inside: tuple[str, ...], outside: tuple[str, ...]
) -> None:
    assert all(Hours.read(hours).include(at(clock)) for clock in inside)
    assert not any(Hours.read(hours).include(at(clock)) for clock in outside)


def test_a_refusal_says_when_the_site_trains_next() -> None:
    policy = replace(POLICY, hours="20:00-06:00")
    check_hours(policy, "north", at("21:00"))
    with pytest.raises(PolicyError, match=r"north does not train now: .*from 2026-03-04 20:00 UTC.*\(policy: hours\)"):
        check_hours(policy, "north", at("06:00"))
    with pytest.raises(PolicyError, match="from 2026-03-05 08:00"):
        check_hours(replace(POLICY, hours="08:00-09:00"), "north", at("09:00"))
    check_hours(POLICY, "north", at("06:00"))  # no hours: at any time


@pytest.mark.parametrize("hours", ["8:00-17:00", "08:00", "24:00-06:00", "20:00-20:00", "20:00 - 06:00", ""])
def test_what_is_not_hours_is_refused(hours: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Policy).validate_python({"tasks": ["a:B"], "maximum_epsilon": 1.0, "hours": hours}, strict=False)


def test_a_digest_is_of_a_listed_task() -> None:
    with pytest.raises(ValidationError, match="task_digests names c:D, which is not in tasks"):
        replace(POLICY, task_digests={"c:D": "0" * 64})
