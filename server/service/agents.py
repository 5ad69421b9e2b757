"""The ports that agents dial: they open with the first roster, which the first site's joining may make."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from server.hub.grid import GRACE, GrpcGrid
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.hub.ports import STRANGERS, Port, Ports
from server.hub.sessions import Sessions
from server.joining.renewals import Renewals
from server.joining.service import JoiningService
from server.roster_watch import NewRosters
from strategies.key_turns import KeyTurns
from transport.channel import credentials_without_clients

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from privacy.run.manifest import SignedRun
    from privacy.run.roster import Roster
    from server.joining.requests import Requests
    from server.settings import ServerFolder
    from strategies.interruption import Interruption

log = logging.getLogger("cloister.server")


class Agents:
    """The sites' agents, behind the hub. Runs send their messages through it."""

    def __init__(
        self, place: ServerFolder, requests: Requests | None, say: Callable[[str], None], turns: KeyTurns | None = None
    ) -> None:
        """Take the server's folder, where requests to join go, what tells people about ports, and the runs' turns."""
        self._place, self._say, self._signature = place, say, place.settings.signature
        self._joining: list[grpc.GenericRpcHandler] = [JoiningService(requests, place.tls).handlers] if requests else []
        self._renewals = Renewals(place)
        self._turns = turns or KeyTurns()
        self._strangers: Ports | None = None  # before there is a roster, sites may join where others will sign in
        self._mailboxes = Mailboxes(set())
        self._hub: Hub | None = None
        self._rosters: NewRosters | None = None

    def let_strangers_join(self) -> None:
        """Let sites whose TLS is ended on the way join, if there is no roster yet, and thus nobody who could sign in.

        Raises:
            CloisterError: if the port cannot be opened.
        """
        if self._signature and self._hub is None:
            self._strangers = Ports("joining", self._place.settings.connections_per_address)
            credentials = credentials_without_clients(self._place.tls)
            (number,) = self._strangers.start(Port(self._signature.listen, credentials, self._joining, STRANGERS))
            log.info("sites whose TLS is ended on the way may join at port %d", number)

    @property
    def roster(self) -> Roster | None:
        """The newest roster; None before the first."""
        return self._rosters.newest if self._rosters else None

    def take(self, roster: Roster, roster_file: bytes) -> None:
        """Serve a roster's members, and nobody else, from now on.

        Raises:
            CloisterError: if the port cannot be opened.
        """
        if self._rosters is not None:
            self._rosters.take(roster, roster_file)
            return
        self._mailboxes.admit({member.node_id for member in roster.members})
        self._hub, port = self._open(roster, roster_file)
        self._renewals.start()
        self._rosters = NewRosters(self._hub, roster, self._turns)
        self._say(f"agents may connect at port {port}")

    def _open(self, roster: Roster, roster_file: bytes) -> tuple[Hub, int]:
        """Open the port for agents, and that for sites that sign in; return also the first's number."""
        place, signature = self._place, None if self._strangers else self._signature
        sessions = Sessions(place.tls, roster) if signature else None
        largest = place.settings.max_update_megabytes << 20
        hub = Hub(
            roster, self._mailboxes, largest, roster_file, self._renewals.certificate, sessions,
            from_one=place.settings.connections_per_address,
        )  # fmt: skip
        port = hub.start(place.settings.listen, place.tls, signature.listen if signature else None, self._joining)
        if signature:
            log.info("sites may sign in at port %d", hub.signature_port)
        if self._strangers:
            log.info("sites whose TLS is ended on the way may sign in once this server is started again")
        return hub, port

    def offer_roster(self) -> None:
        """Have the agents take the newest roster, unless a run is in a round: it sees to that before its next one."""
        if self._rosters:
            self._rosters.offer()

    def online(self) -> set[str]:
        """Return the members that are online."""
        roster, nodes = self.roster, self._mailboxes.online(GRACE)
        return {member.site for member in roster.members if member.node_id in nodes} if roster else set()

    def grid(self, run: SignedRun, roster: Roster, interruption: Interruption) -> GrpcGrid:
        """Return a grid that reaches a run's sites, and tells it of rosters newer than this one."""
        assert self._rosters is not None  # noqa: S101 - there is a roster
        sites, rosters, taken = run.manifest.settings.cohort.sizes, self._rosters, [roster]
        nodes = {member.node_id for member in roster.members if member.site in sites}

        def newer() -> Roster | None:
            newest = rosters.after(taken[-1].version, interruption.check)
            taken[:] = [newest or taken[-1]]
            return newest

        return GrpcGrid(int(run.digest[:15], 16), self._mailboxes, nodes, newer, interruption)

    def stop(self) -> None:
        """Close the ports."""
        self._renewals.stop()
        if self._strangers is not None:
            self._strangers.stop()
        if self._hub is not None:
            self._hub.stop()
