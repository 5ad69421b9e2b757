"""Run the server's process: open the ports, run one manifest, close the ports."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict

from privacy.folder_locks import folder_in_use
from server.app import app
from server.hub.grid import GrpcGrid
from server.hub.hub import Hub
from server.hub.listening import check_free
from server.hub.mailboxes import Mailboxes
from server.hub.ports import STRANGERS, Port, Ports
from server.hub.sessions import Sessions
from server.joining.listener import JoiningPort
from server.joining.renewals import Renewals
from server.joining.requests import Requests
from server.joining.service import JoiningService
from server.protection import kept_server
from server.roster_watch import NewRosters, RosterWatch
from server.settings import read_consortium, read_run
from transport.address import read_address
from transport.channel import credentials_without_clients
from transport.flower import SERVER_NODE, quieten
from transport.memory import return_memory
from transport.pki import check_server_certificate

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    import grpc

    from privacy.run.roster import Roster
    from server.settings import ServerFolder, Signature

log = logging.getLogger("cloister.server")


def serve(consortium: Path, manifest: Path, listening: Callable[[int], None], *, new_epoch: bool = False,
          retry: bool = False) -> None:  # fmt: skip
    """Serve one run to its end; call `listening` with the port. Meanwhile sites may join and leave.

    Raises:
        CloisterError: if settings, keys or manifest are wrong, or the run fails.
    """
    quieten()
    return_memory()
    place = _ready(consortium)
    signed = place.signed_roster()
    roster = signed[0]
    run_id = int(read_run(manifest, roster).digest[:15], 16)
    nodes = {member.node_id for member in roster.members}
    mailboxes = Mailboxes(nodes)
    renewals = Renewals(place)
    with ExitStack() as stack:
        stack.enter_context(folder_in_use(place.folder))
        requests = Requests(place) if place.settings.joining else None
        services = _joining_services(place, requests)
        hub, port = _open_hub(place, signed, mailboxes, renewals, place.settings.signature, services)
        stack.callback(hub.stop)
        open_joining_port(place, stack, requests)
        stack.callback(renewals.stop)
        renewals.start()
        rosters = NewRosters(hub)
        watch = RosterWatch(place, rosters.take, roster.version)
        stack.callback(watch.stop)
        watch.start()
        listening(port)
        context = Context(
            run_id=run_id,
            node_id=SERVER_NODE,
            node_config={},
            state=RecordDict(),
            run_config={
                "consortium": str(consortium),
                "manifest": str(manifest),
                "new-epoch": new_epoch,
                "retry": retry,
            },
        )
        app(GrpcGrid(run_id, mailboxes, nodes, rosters.next), context)


def wait_for_run(consortium: Path, say: Callable[[str], None], ended: threading.Event) -> None:
    """Let invited sites join and agents connect, without a run, until `ended` is set; call `say` for each port.

    Agents get no work, but take a newer roster, renew their certificates, and can be checked.

    Raises:
        CloisterError: if settings or keys are wrong, or a port cannot be opened.
    """
    quieten()
    place = _ready(consortium)
    check_server_certificate(place.tls.certificate, place.tls.authority)
    check_free(read_address(place.settings.listen, listening=True))
    requests = Requests(place) if place.settings.joining else None
    with ExitStack() as stack:
        stack.enter_context(folder_in_use(place.folder))
        port = open_joining_port(place, stack, requests)
        agents = AgentsPort(place, requests, say)
        stack.callback(agents.stop)
        watch = RosterWatch(place, agents.take)
        watch.look()
        agents.let_strangers_join()
        if port is not None:
            say(f"sites may join at port {port}")
        stack.callback(watch.stop)
        watch.start()
        ended.wait()


def _ready(consortium: Path) -> ServerFolder:
    place = read_consortium(consortium)
    kept_server(place).ready()
    return place


class AgentsPort:
    """The ports for agents without a run: they open with the first roster, which the first site's joining makes."""

    def __init__(self, place: ServerFolder, requests: Requests | None, say: Callable[[str], None]) -> None:
        self._place, self._say, self._signature = place, say, place.settings.signature
        self._joining = _joining_services(place, requests)
        self._renewals = Renewals(place)
        self._strangers: Ports | None = None  # before there is a roster, sites may join where others will sign in
        self._hub: Hub | None = None

    def let_strangers_join(self) -> None:
        """Let sites whose TLS is ended on the way join, if there is no roster yet, and thus nobody who could sign in.

        Raises:
            CloisterError: if the port cannot be opened.
        """
        if self._signature and self._hub is None:
            self._strangers = Ports("joining")
            credentials = credentials_without_clients(self._place.tls)
            (number,) = self._strangers.start(Port(self._signature.listen, credentials, self._joining, STRANGERS))
            log.info("sites whose TLS is ended on the way may join at port %d", number)

    def take(self, roster: Roster, roster_file: bytes) -> None:
        """Serve a roster's members, and nobody else, from now on.

        Raises:
            CloisterError: if the port cannot be opened.
        """
        if self._hub is not None:
            self._hub.admit(roster)
            self._hub.offer(roster.version, roster_file)
            return
        signature = None if self._strangers else self._signature
        mailboxes = Mailboxes({member.node_id for member in roster.members})
        self._hub, port = _open_hub(
            self._place, (roster, roster_file), mailboxes, self._renewals, signature, self._joining
        )
        self._say(f"agents may connect at port {port}")
        if self._strangers:
            log.info("sites whose TLS is ended on the way may sign in once this server is started again")
        self._renewals.start()

    def stop(self) -> None:
        """Close the ports."""
        self._renewals.stop()
        if self._strangers is not None:
            self._strangers.stop()
        if self._hub is not None:
            self._hub.stop()


def _open_hub(
    place: ServerFolder,
    signed: tuple[Roster, bytes],
    mailboxes: Mailboxes,
    renewals: Renewals,
    signature: Signature | None,
    services: list[grpc.GenericRpcHandler],
) -> tuple[Hub, int]:
    """Open the port for agents and, with `signature`, that for sites that sign in; return also the first's number."""
    roster, roster_file = signed
    sessions = Sessions(place.tls, roster) if signature else None
    largest = place.settings.max_update_megabytes << 20
    hub = Hub(roster, mailboxes, largest, roster_file, renewals.certificate, sessions)
    port = hub.start(place.settings.listen, place.tls, signature.listen if signature else None, services)
    if signature:
        log.info("sites may sign in at port %d", hub.signature_port)
    return hub, port


def open_joining_port(place: ServerFolder, stack: ExitStack, requests: Requests | None = None) -> int | None:
    """Open the port at which sites ask to join until the stack ends; return it, or None if there is to be none."""
    if place.settings.joining is None:
        return None
    joining = JoiningPort(requests or Requests(place), place.tls)
    stack.callback(joining.stop)
    return joining.start(place.settings.joining.listen)


def _joining_services(place: ServerFolder, requests: Requests | None) -> list[grpc.GenericRpcHandler]:
    return [JoiningService(requests, place.tls).handlers] if requests else []
