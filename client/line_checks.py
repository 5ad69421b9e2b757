"""Measure a site's line to its server, and how far their clocks are apart: `cloister check SITE`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from client.exchange import Exchange
from client.joining import check_offered
from privacy.errors import UnreachableError
from privacy.run.clocks import MOST_APART, check_clock
from transport.diagnosis import Worrying
from transport.framing import FRAME_BYTES

if TYPE_CHECKING:
    from client.settings import SiteFolder

_FIRST_SECONDS = 4.0  # for a short message
_PACKETS = 16 << 10  # bytes that no single packet holds
_TIMES = 5  # round trips, of which the fastest counts
_SECONDS = 1.0  # for each direction
_MOST = 16  # frames in each direction
_SLOW = 0.125  # megabytes per second
_WORRYING = 10.0  # seconds between the clocks
_OLD = "the server's version cannot measure this; install the same version of Cloister at both ends"


@dataclass(frozen=True)
class Measured:
    """A line, as measured."""

    round_trip: float  # seconds
    up: float  # megabytes per second, to the server
    down: float  # megabytes per second, to the site
    here: float  # the site's clock in the middle of the fastest round trip, in seconds since 1970
    there: float  # the server's clock in it


class LineChecks:
    """Checks that need a connection to the server, as this site."""

    def __init__(self, place: SiteFolder) -> None:
        self._place = place

    def signature(self) -> str:
        """Sign in, and say that both ends proved who they are.

        Raises:
            CloisterError: if the server does not prove it, does not let sites sign in, or refuses this site.
        """
        with self._exchange() as exchange:
            exchange.sign_in()
        return "behind it, server and site accept each other's signatures"

    def speed(self) -> str:
        """Say how long a round trip takes, and how much passes in each direction.

        Raises:
            Worrying: if that is little, or the server's version cannot measure it.
            CloisterError: if the server does not answer, or refuses this site.
        """
        measured = self._measured
        if measured is None:
            raise Worrying(_OLD)
        text = (
            f"a round trip takes {1000 * measured.round_trip:.1f} ms; {measured.up:.1f} MB/s to the server, "
            f"{measured.down:.1f} MB/s from it"
        )
        if min(measured.up, measured.down) < _SLOW:
            msg = f"{text}; ask your network team whether the line is throttled, as every round moves a whole model"
            raise Worrying(msg)
        return text

    def clock(self) -> str:
        """Compare the clocks of site and server.

        Raises:
            ProtocolError: if they differ by more than any run allows.
            Worrying: if they differ by more than a run with short rounds allows.
        """
        measured = self._measured
        if measured is None:
            raise Worrying(_OLD)
        return compare_clocks(self._place.settings.site, measured.here, measured.there, measured.round_trip / 2)

    def roster(self) -> str:
        """Compare the server's roster with the site's.

        Raises:
            AuthenticityError: if the server's is older, or cannot be taken.
        """
        place, keys = self._place, self._place.settings.keys
        own = place.roster().version
        with self._exchange() as exchange:
            data = exchange.roster(0)
        if data is None:
            return f"the server has none to offer; this site goes on with roster {own}"
        theirs = check_offered(place.folder, keys, place.settings.site, data).version
        if theirs > own:
            return f"the server has roster {theirs}, which the agent takes when it starts"
        return f"site and server have roster {own}"

    def _exchange(self) -> Exchange:
        place = self._place
        return Exchange(place.settings.server, place.tls, place.proxy, place.signer)

    @cached_property
    def _measured(self) -> Measured | None:
        with self._exchange() as exchange:
            if exchange.measure(seconds=_FIRST_SECONDS) is None:  # which also connects
                return None
            _check_size(exchange, self._place.settings.server)
            fastest, here, at = float("inf"), 0.0, 0.0
            for _ in range(_TIMES):
                sent = time.time()
                there, seconds = exchange.measure() or (0.0, fastest)
                if seconds < fastest:
                    fastest, here, at = seconds, sent + seconds / 2, there
            up, down = (_rate(exchange, fastest, *way) for way in ((FRAME_BYTES, 0), (0, FRAME_BYTES)))
            return Measured(fastest, up, down, here, at)


def compare_clocks(site: str, here: float, there: float, error: float) -> str:
    """Compare a site's clock with the server's, both in seconds since 1970, read at the same time but for `error`.

    Raises:
        ProtocolError: if they differ by more than any run allows.
        Worrying: if they differ by more than a run with short rounds allows.
    """
    check_clock(site, here, there - error, there + error, MOST_APART)
    apart = here - there
    text = f"this clock is {abs(apart):.1f} s {'ahead of' if apart > 0 else 'behind'} the server's"
    if abs(apart) > _WORRYING:
        msg = (
            f"{text}; a run whose round_deadline_seconds is below {2 * abs(apart):.0f} is refused: set both by the "
            "same time server (NTP)"
        )
        raise Worrying(msg)
    return text


def _check_size(exchange: Exchange, server: str) -> None:
    """Check that more passes than fits into one packet.

    Raises:
        UnreachableError: if it does not.
    """
    try:
        exchange.measure(_PACKETS, _PACKETS, _FIRST_SECONDS)
    except UnreachableError as error:
        msg = (
            f"short messages reach {server}, but {_PACKETS >> 10} kB do not within {_FIRST_SECONDS:g} s: ask your "
            "network team whether large packets are dropped on the way (path MTU: ICMP “fragmentation needed”), or the "
            "line is throttled"
        )
        raise UnreachableError(msg) from error


def _rate(exchange: Exchange, round_trip: float, send: int, receive: int) -> float:
    """Return megabytes per second in one direction, without the round trips that the measuring itself takes."""
    total, frames = 0.0, 0
    while frames < _MOST and total < _SECONDS:
        _, seconds = exchange.measure(send, receive) or (0.0, 0.0)
        total += max(seconds - round_trip, 1e-6)
        frames += 1
    return frames * (send + receive) / total / 1e6
