"""A plan has one form and one digest; a site trains only under one that fits what was signed."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.crypto.signing import digest
from privacy.errors import MalformedError, ProtocolError
from privacy.run.clocks import tolerance
from privacy.run.plan import check_plan, read_plan
from tests.privacy.consortium import KEYS, SITES, make_manifest, make_plan, plan_with, relaxed, run_settings

RUN = "ab" * 32
PLAN = make_plan(RUN, deadline=2_000_000_000.25)
CANONICAL = (
    b'{"attempt":1,"base_model":"%s","cohort":["north","south","west"],"deadline":2000000000.25,"epoch":2,"keys":"%s",'
    b'"minimum_cohort":3,"roster_version":3,"round":1,"run":"%s"}'
    % (PLAN.base_model.encode(), KEYS.encode(), RUN.encode())
)


def test_a_plan_has_one_form() -> None:
    assert PLAN.to_bytes() == CANONICAL
    assert read_plan(CANONICAL) == PLAN
    assert PLAN.digest == digest("plan", CANONICAL)


@relaxed
@given(deadline=st.floats(allow_nan=False, allow_infinity=False), number=st.integers(1), cohort=st.permutations(SITES))
def test_every_plan_comes_back_from_its_bytes(deadline: float, number: int, cohort: list[str]) -> None:
    plan = make_plan(RUN, number=number, deadline=deadline, cohort=tuple(cohort))
    assert read_plan(plan.to_bytes()) == plan


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(CANONICAL.replace(b":", b": "), id="spaces"),
        pytest.param(CANONICAL + b"\n", id="a line end"),
        pytest.param(CANONICAL.replace(b"2000000000.25", b"2.00000000025e9"), id="another form of a number"),
        pytest.param(CANONICAL.replace(b'"round":1', b'"round":9,"round":1'), id="a key twice"),
        pytest.param(CANONICAL.replace(b"north", b"\\u006eorth"), id="escapes"),
        pytest.param(
            json.dumps(dict(reversed(json.loads(CANONICAL).items())), separators=(",", ":")).encode(), id="order"
        ),
    ],
)
def test_any_other_form_of_the_same_plan_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError, match="the round's plan is not in canonical form"):
        read_plan(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "ab"},
        {"run": "AB" * 32},
        {"round": 0},
        {"round": -1},
        {"round": 1.0},
        {"attempt": 0},
        {"cohort": []},
        {"cohort": ["North"]},
        {"cohort": "north"},
        {"minimum_cohort": 2.5},
        {"deadline": "soon"},
        {"deadline": float("nan")},
        {"deadline": float("inf")},
        {"base_model": ""},
        {"noise_multiplier": 0.0},
        {"epoch": None},
        {"epoch": 0},
        {"keys": "none"},
    ],
    ids=repr,
)
def test_anything_but_a_plan_is_malformed(changes: dict[str, object]) -> None:
    data = json.dumps(asdict(PLAN) | changes, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(MalformedError, match="the round's plan is malformed"):
        read_plan(data)


@relaxed
@given(st.binary(max_size=100) | st.text(max_size=60).map(str.encode) | st.just(b"[" * 10_000))
def test_arbitrary_bytes_are_not_a_plan(data: bytes) -> None:
    with pytest.raises(MalformedError):
        read_plan(data)


@relaxed
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_makes_another_plan_or_none(where: float, bit: int) -> None:
    data = bytearray(CANONICAL)
    data[int(where * len(data))] ^= 1 << bit
    with contextlib.suppress(MalformedError):
        assert read_plan(bytes(data)).digest != PLAN.digest


MANIFEST, SIGNED_RUN = make_manifest(run_settings(rounds=10))
FITTING = make_plan(SIGNED_RUN)


@pytest.mark.parametrize("changes", [{}, {"round": 10}, {"cohort": SITES[::-1]}])
def test_a_plan_that_fits_is_accepted(changes: dict[str, object]) -> None:
    for site in SITES:
        check_plan(plan_with(make_plan(SIGNED_RUN), **changes), MANIFEST, SIGNED_RUN, site)


BEYOND = "round 11 is beyond the 10 rounds of the manifest"
SMALL = "its cohort may be smaller than the 3 sites of the manifest"
NAMES = "its cohort names a site twice, or a site that the manifest does not name"
ROSTER = "its roster version is not the manifest's"


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"run": "f" * 64}, "it is for another run"),
        ({"round": 11}, BEYOND),
        ({"attempt": 2}, "it is a second attempt, which only a masked round may need"),
        ({"cohort": ("south", "west")}, "north is not in its cohort"),
        ({"cohort": ("north", "north", "south", "west")}, NAMES),
        ({"cohort": (*SITES, "east")}, NAMES),
        ({"minimum_cohort": 2}, SMALL),
        ({"minimum_cohort": 0}, SMALL),
        ({"minimum_cohort": -3}, SMALL),
        ({"cohort": ("north", "south")}, SMALL),
        ({"minimum_cohort": 4}, SMALL),
        ({"roster_version": 2}, ROSTER),
        ({"roster_version": 4}, ROSTER),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_with_the_reason(changes: dict[str, object], wrong: str) -> None:
    plan = plan_with(FITTING, **changes)
    with pytest.raises(ProtocolError) as caught:
        check_plan(plan, MANIFEST, SIGNED_RUN, "north")
    assert str(caught.value) == f"north refuses the plan of round {plan.round}: {wrong}"


def test_a_plan_whose_deadline_is_further_away_than_signed_is_refused() -> None:
    seconds = MANIFEST.settings.cohort.round_deadline_seconds
    check_plan(plan_with(FITTING, deadline=time.time() + seconds), MANIFEST, FITTING.run, "north")
    far = plan_with(FITTING, deadline=time.time() + seconds + tolerance(seconds) + 60)
    with pytest.raises(ProtocolError, match=r"more than the signed 600 s away"):
        check_plan(far, MANIFEST, FITTING.run, "north")


def test_a_plan_whose_deadline_has_passed_is_refused() -> None:
    late = plan_with(FITTING, deadline=time.time() - 0.01)
    with pytest.raises(ProtocolError, match=r"its deadline has passed, or the clocks disagree"):
        check_plan(late, MANIFEST, SIGNED_RUN, "north")
