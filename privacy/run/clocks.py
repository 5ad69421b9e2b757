"""Whether two machines' clocks agree: a round's deadline is a time of day, by the server's clock."""

from __future__ import annotations

from datetime import UTC, datetime

from privacy.errors import ProtocolError

LATEST = 1e11  # seconds since 1970: in the year 5138; a later time is none that can be shown
_MOST = 300.0  # seconds, as Kerberos allows (RFC 4120, section 1.6)


def tolerance(deadline_seconds: float) -> float:
    """Return by how many seconds two clocks may differ in a run whose rounds take so long at most.

    >>> tolerance(600.0), tolerance(20.0)
    (300.0, 10.0)
    """
    return min(_MOST, deadline_seconds / 2)


def check_clock(site: str, there: float, sent: float, received: float, allowed: float) -> None:
    """Hold a site's clock against the server's.

    Args:
        site: its name.
        there: what its clock showed, in seconds since 1970.
        sent: what the server's showed before that.
        received: what the server's showed after that, at the latest.
        allowed: how many seconds they may be apart.

    Raises:
        ProtocolError: if they are further apart, whatever time the messages took; with both times.
    """
    if sent - allowed <= there <= received + allowed:
        return
    way = f"{abs(there - sent):.0f} s {'behind' if there < sent else 'ahead of'}"
    msg = (
        f"{site}'s clock is {way} the server's: it shows {_shown(there)} there, {_shown(sent)} at the server; "
        "set both by one time server (NTP)"
    )
    raise ProtocolError(msg)


def _shown(seconds: float) -> str:
    return datetime.fromtimestamp(min(max(seconds, 0.0), LATEST), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
