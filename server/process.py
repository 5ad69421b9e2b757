"""Run the server's process: open the ports, run one manifest, close the ports."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict

from privacy.errors import ConfigError
from server.app import app
from server.hub.grid import GrpcGrid
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.hub.ports import STRANGERS, Port, Ports
from server.hub.sessions import Sessions
from server.joining.listener import JoiningPort
from server.joining.renewals import Renewals
from server.joining.requests import Requests
from server.joining.service import JoiningService
from server.roster_watch import NewRosters, RosterWatch
from server.settings import read_consortium, read_run
from transport.channel import credentials_without_clients
from transport.flower import SERVER_NODE, quieten
from transport.memory import return_memory

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    import grpc

    from server.settings import ServerFolder

log = logging.getLogger("cloister.server")


def serve(consortium: Path, manifest: Path, listening: Callable[[int], None], *, new_epoch: bool = False) -> None:
    """Serve one run to its end; call `listening` with the port. Meanwhile sites may join and leave.

    Raises:
        CloisterError: if settings, keys or manifest are wrong, or the run fails.
    """
    quieten()
    return_memory()
    place = read_consortium(consortium)
    roster, roster_file = place.signed_roster()
    run_id = int(read_run(manifest, roster).digest[:15], 16)
    nodes = {member.node_id for member in roster.members}
    mailboxes = Mailboxes(nodes)
    renewals, signature = Renewals(place), place.settings.signature
    sessions = Sessions(place.tls, roster) if signature else None
    megabytes = place.settings.max_update_megabytes
    hub = Hub(roster, mailboxes, megabytes << 20, roster_file, renewals.certificate, sessions)
    with ExitStack() as stack:
        stack.callback(hub.stop)
        requests = Requests(place) if place.settings.joining else None
        services = _joining_services(place, requests)
        port = hub.start(place.settings.listen, place.tls, signature.listen if signature else None, services)
        if signature:
            log.info("sites may sign in at port %d", hub.signature_port)
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
            run_config={"consortium": str(consortium), "manifest": str(manifest), "new-epoch": new_epoch},
        )
        app(GrpcGrid(run_id, mailboxes, nodes, rosters.next), context)


def let_join(consortium: Path, listening: Callable[[int], None], ended: threading.Event) -> None:
    """Let invited sites join, without a run, until `ended` is set; call `listening` with the port.

    Raises:
        ConfigError: if the settings have no `[joining]`.
        CloisterError: if settings or keys are wrong, or the port cannot be opened.
    """
    place = read_consortium(consortium)
    requests = Requests(place) if place.settings.joining else None
    with ExitStack() as stack:
        port = open_joining_port(place, stack, requests)
        if port is None:
            msg = f"{place.folder / 'consortium.toml'} has no [joining]; add it, or name a signed run to serve"
            raise ConfigError(msg)
        if place.settings.signature:
            ports = Ports("joining")
            stack.callback(ports.stop)
            listen, credentials = place.settings.signature.listen, credentials_without_clients(place.tls)
            (number,) = ports.start(Port(listen, credentials, _joining_services(place, requests), STRANGERS))
            log.info("sites whose TLS is ended on the way may join at port %d", number)
        listening(port)
        ended.wait()


def open_joining_port(place: ServerFolder, stack: ExitStack, requests: Requests | None = None) -> int | None:
    """Open the port at which sites ask to join until the stack ends; return it, or None if there is to be none."""
    if place.settings.joining is None:
        return None
    joining = JoiningPort(requests or Requests(place), place.tls)
    stack.callback(joining.stop)
    return joining.start(place.settings.joining.listen)


def _joining_services(place: ServerFolder, requests: Requests | None) -> list[grpc.GenericRpcHandler]:
    return [JoiningService(requests, place.tls).handlers] if requests else []
