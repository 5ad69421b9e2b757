"""Run the server's process: open the ports, run one manifest, close the ports."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict

from privacy.errors import ConfigError
from privacy.folder_locks import folder_in_use
from server.app import app
from server.hub.grid import GrpcGrid
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.joining.listener import JoiningPort
from server.joining.renewals import Renewals
from server.joining.requests import Requests
from server.protection import kept_server
from server.roster_watch import NewRosters, RosterWatch
from server.settings import read_consortium, read_run
from transport.flower import SERVER_NODE, quieten
from transport.memory import return_memory

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from server.settings import ServerFolder


def serve(consortium: Path, manifest: Path, listening: Callable[[int], None], *, new_epoch: bool = False) -> None:
    """Serve one run to its end; call `listening` with the port. Meanwhile sites may join and leave.

    Raises:
        CloisterError: if settings, keys or manifest are wrong, or the run fails.
    """
    quieten()
    return_memory()
    place = _ready(consortium)
    roster, roster_file = place.signed_roster()
    run_id = int(read_run(manifest, roster).digest[:15], 16)
    nodes = {member.node_id for member in roster.members}
    mailboxes = Mailboxes(nodes)
    renewals = Renewals(place)
    hub = Hub(roster, mailboxes, place.settings.max_update_megabytes << 20, roster_file, renewals.certificate)
    with ExitStack() as stack:
        stack.enter_context(folder_in_use(place.folder))
        stack.callback(hub.stop)
        port = hub.start(place.settings.listen, place.tls)
        open_joining_port(place, stack)
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
    place = _ready(consortium)
    with ExitStack() as stack:
        stack.enter_context(folder_in_use(place.folder))
        port = open_joining_port(place, stack)
        if port is None:
            msg = f"{place.folder / 'consortium.toml'} has no [joining]; add it, or name a signed run to serve"
            raise ConfigError(msg)
        listening(port)
        ended.wait()


def _ready(consortium: Path) -> ServerFolder:
    place = read_consortium(consortium)
    kept_server(place).ready()
    return place


def open_joining_port(place: ServerFolder, stack: ExitStack) -> int | None:
    """Open the port at which sites ask to join until the stack ends; return it, or None if there is to be none."""
    if place.settings.joining is None:
        return None
    joining = JoiningPort(Requests(place), place.tls)
    stack.callback(joining.stop)
    return joining.start(place.settings.joining.listen)
