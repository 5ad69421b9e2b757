"""A clock is wrong only if no time that the messages may have taken explains what it shows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import ProtocolError
from privacy.run.clocks import LATEST, check_clock, tolerance

times = st.floats(0, 2e9)
spans = st.floats(0, 1e6)


@given(sent=times, took=spans, allowed=st.floats(1, 300), part=st.floats(0, 1), off=st.floats(-1, 1))
def test_a_clock_within_the_tolerance_passes_however_long_the_answer_took(
    sent: float, took: float, allowed: float, part: float, off: float
) -> None:
    check_clock("north", sent + part * took + 0.99 * off * allowed, sent, sent + took, allowed)


@given(sent=times, took=spans, allowed=st.floats(1, 300), more=st.floats(1, LATEST))
def test_a_clock_beyond_the_tolerance_is_refused_with_both_times(
    sent: float, took: float, allowed: float, more: float
) -> None:
    with pytest.raises(ProtocolError, match=r"ahead of the server's: it shows .* UTC, the server's .* UTC"):
        check_clock("north", sent + took + allowed + more, sent, sent + took, allowed)
    with pytest.raises(ProtocolError, match=r"behind the server's: it shows .* UTC, the server's .* UTC"):
        check_clock("north", sent - allowed - more, sent, sent + took, allowed)


def test_a_question_that_waited_for_a_busy_site_is_no_proof_of_a_wrong_clock() -> None:
    with pytest.raises(ProtocolError, match=r"\(NTP\)\. If they agree, .* a longer round_deadline_seconds$"):
        check_clock("north", 1e9 + 60, 1e9, 1e9 + 1, 0.5, waited=True)
    with pytest.raises(ProtocolError, match=r"behind the server's: .* \(NTP\)$"):
        check_clock("north", 1e9 - 60, 1e9, 1e9 + 1, 0.5, waited=True)


def test_clocks_may_differ_by_half_a_round_and_five_minutes_at_most() -> None:
    assert [tolerance(seconds) for seconds in (4.0, 100.0, 600.0, 86400.0)] == [2.0, 50.0, 300.0, 300.0]
