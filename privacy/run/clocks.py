"""Check that two machines' clocks agree: a round's deadline is an absolute time by the server's clock."""

from __future__ import annotations

from datetime import UTC, datetime

from privacy.errors import ProtocolError

LATEST = 1e11  # seconds since 1970: in the year 5138; the latest time that is displayed

MOST_APART = 300.0
"""Seconds by which two clocks may differ in any run, as Kerberos allows (RFC 4120, section 1.6)."""


def tolerance(deadline_seconds: float) -> float:
    """Return by how many seconds two clocks may differ in a run with this deadline per round.

    >>> tolerance(600.0), tolerance(20.0)
    (300.0, 10.0)
    """
    return min(MOST_APART, deadline_seconds / 2)


def check_clock(site: str, there: float, sent: float, received: float, allowed: float, *, waited: bool = False) -> None:
    """Check a site's clock against the server's.

    Args:
        site: the site's name.
        there: the site's clock, in seconds since 1970.
        sent: the server's clock before that reading.
        received: the server's clock after that reading.
        allowed: how many seconds the clocks may differ.
        waited: whether the site may have read its clock long after the message came, because it was at work.

    Raises:
        ProtocolError: if they differ by more, however long the messages took; it shows both times.
    """
    if sent - allowed <= there <= received + allowed:
        return
    way = f"{abs(there - sent):.0f} s {'behind' if there < sent else 'ahead of'}"
    msg = (
        f"{site}'s clock is {way} the server's: it shows {_utc(there)}, the server's {_utc(sent)}; set both "
        "by the same time server (NTP)"
    )
    if waited and there > sent:
        msg += (
            ". If they agree, the question waited for this site to finish its work: sign runs with a longer "
            "round_deadline_seconds"
        )
    raise ProtocolError(msg)


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(min(max(seconds, 0.0), LATEST), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
