"""Run the server's process: open the ports, run one manifest, close the ports."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict

from privacy.folder_locks import folder_in_use
from server.app import app
from server.hub.grid import GrpcGrid
from server.hub.hub import Hub
from server.hub.listening import check_free
from server.hub.mailboxes import Mailboxes
from server.joining.listener import JoiningPort
from server.joining.renewals import Renewals
from server.joining.requests import Requests
from server.protection import kept_server
from server.roster_watch import NewRosters, RosterWatch
from server.settings import read_consortium, read_run
from transport.address import read_address
from transport.flower import SERVER_NODE, quieten
from transport.memory import return_memory
from transport.pki import check_server_certificate

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from privacy.run.roster import Roster
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
    with ExitStack() as stack:
        stack.enter_context(folder_in_use(place.folder))
        port = open_joining_port(place, stack)
        if port is not None:
            say(f"sites may join at port {port}")
        agents = AgentsPort(place, say)
        stack.callback(agents.stop)
        watch = RosterWatch(place, agents.take)
        watch.look()
        stack.callback(watch.stop)
        watch.start()
        ended.wait()


def _ready(consortium: Path) -> ServerFolder:
    place = read_consortium(consortium)
    kept_server(place).ready()
    return place


class AgentsPort:
    """The port for agents without a run: it opens with the first roster, which the first site's joining makes."""

    def __init__(self, place: ServerFolder, say: Callable[[str], None]) -> None:
        self._place, self._say = place, say
        self._renewals = Renewals(place)
        self._hub: Hub | None = None

    def take(self, roster: Roster, roster_file: bytes) -> None:
        """Serve a roster's members, and nobody else, from now on.

        Raises:
            CloisterError: if the port cannot be opened.
        """
        if self._hub is not None:
            self._hub.admit(roster)
            self._hub.offer(roster.version, roster_file)
            return
        settings = self._place.settings
        mailboxes = Mailboxes({member.node_id for member in roster.members})
        hub = Hub(roster, mailboxes, settings.max_update_megabytes << 20, roster_file, self._renewals.certificate)
        self._say(f"agents may connect at port {hub.start(settings.listen, self._place.tls)}")
        self._hub = hub
        self._renewals.start()

    def stop(self) -> None:
        """Close the port."""
        self._renewals.stop()
        if self._hub is not None:
            self._hub.stop()


def open_joining_port(place: ServerFolder, stack: ExitStack) -> int | None:
    """Open the port at which sites ask to join until the stack ends; return it, or None if there is to be none."""
    if place.settings.joining is None:
        return None
    joining = JoiningPort(Requests(place), place.tls)
    stack.callback(joining.stop)
    return joining.start(place.settings.joining.listen)
