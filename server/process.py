"""Run the server's process: lead, open the ports, serve the queue, close the ports."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from privacy.errors import CloisterError, RunError, StorageError
from privacy.failures import sentence
from privacy.folder_locks import folder_in_use
from server.app import check_failure, shared_by_runs
from server.hub.listening import check_free
from server.joining.listener import JoiningPort
from server.joining.requests import Requests
from server.open_files import allow_many_files
from server.operations.operating import operating
from server.protection import kept_server
from server.roster_watch import RosterWatch
from server.service.agents import Agents
from server.service.service import Service
from server.settings import read_consortium, read_run
from server.store.database import is_away
from server.store.store import Store
from transport.address import read_address
from transport.flower import quieten
from transport.memory import return_memory
from transport.pki import check_server_certificate

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from privacy.run.manifest import SignedRun
    from privacy.run.roster import Roster
    from server.settings import ServerFolder
    from strategies.shared import Shared

log = logging.getLogger("cloister.server")

_LOOK = 0.5  # seconds between looks whether this process still leads
_AWAY = 2.0  # seconds between tries to reach a database that is away


def serve(consortium: Path, say: Callable[[str], None], ended: threading.Event) -> None:
    """Serve the queue of runs until `ended` is set; meanwhile sites may join and leave. Call `say` for each port.

    Without runs, agents get no work, but take a newer roster, renew their certificates, and can be checked. While
    another server leads on the same PostgreSQL, or that cannot be reached, this one waits.

    Raises:
        CloisterError: if settings or keys are wrong, a port cannot be opened, or another server uses the SQLite file.
    """
    place = read_consortium(consortium)
    while not ended.is_set():
        try:
            with open_service(place, say, ended) as service:
                while service.leads and not ended.wait(_LOOK):
                    pass
            if not ended.is_set():
                say("this server leads no longer, and waits to lead again")
        except StorageError as error:
            if not is_away(error):
                raise
            _await_store(place, say, ended, str(error))


def _await_store(place: ServerFolder, say: Callable[[str], None], ended: threading.Event, why: str) -> None:
    """Wait until the database can be reached, or `ended` is set; meanwhile, operators see that this process lives."""
    say(f"{why}; this server waits for it")
    with operating(place):
        while not ended.wait(_AWAY):
            try:
                Store.open(place).close()
            except StorageError as error:
                if not is_away(error):
                    raise
            else:
                return


def serve_one(
    consortium: Path, manifest: Path, say: Callable[[str], None], ended: threading.Event, *, new_epoch: bool = False,
    retry: bool = False,
) -> None:  # fmt: skip
    """Submit a run, and serve it and no other until it has ended, or `ended` is set.

    Args:
        consortium: the server's folder.
        manifest: the signed run.
        say: is called for each port.
        ended: ends this before the run does.
        new_epoch: have the sites make new keys first.
        retry: go on with a run that failed or was stopped.

    Raises:
        CloisterError: if the run fails, or as `serve` does.
    """
    place = read_consortium(consortium)
    kept_server(place).ready()
    run = read_run(manifest, place.roster())
    with open_service(place, say, ended, run, retry=retry, new_epoch=new_epoch) as service:
        while not ended.is_set():
            if (stored := service.outcome(_LOOK)) is None:
                continue
            if stored.status != "finished":
                raise RunError(stored.reason)
            return


@contextmanager
def open_service(
    place: ServerFolder, say: Callable[[str], None], ended: threading.Event, run: SignedRun | None = None, *,
    retry: bool = False, new_epoch: bool = False,
) -> Iterator[Service]:  # fmt: skip
    """Lead, open the ports, and serve the queue, or one run alone, while this context lasts.

    Raises:
        CloisterError: if settings or keys are wrong, a port cannot be opened, or another server leads.
    """
    quieten()
    return_memory()
    allow_many_files()
    kept_server(place).ready()
    check_server_certificate(place.tls.certificate, place.tls.authority)

    waiting = list[str]()

    def give_up() -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        if not waiting:
            waiting.append("another server leads; this one waits to take over")
            say(waiting[0])

    with ExitStack() as stack:
        stack.enter_context(folder_in_use(place.folder))
        kept_server(place).sweep()
        store = stack.enter_context(Store.open(place))
        shown = stack.enter_context(operating(place))
        if place.settings.joining:
            Requests(place)  # so that a server that waits to lead says now, not then, what it lacks
        leadership = stack.enter_context(store.lead(give_up))
        check_free(read_address(place.settings.listen, listening=True))
        if run is not None:
            check_failure(place, store, run, retry=retry)
            store.mark(run.digest, "waiting")
        shared = shared_by_runs(place)
        agents = _open_ports(stack, place, say, shared, store)
        service = Service(place, store, agents, shared, leadership, only=run.digest if run else None)
        if run and new_epoch:
            service.new_epoch.add(run.digest)
        _open_api(stack, place, say, service)
        stack.callback(service.end)
        shown.service = service
        service.start()
        yield service


def _open_ports(
    stack: ExitStack, place: ServerFolder, say: Callable[[str], None], shared: Shared, store: Store
) -> Agents:
    """Let sites join, and agents connect, until the stack ends; end the sessions of people whom a roster omits."""
    requests = Requests(place) if place.settings.joining else None
    port = open_joining_port(place, stack, requests)
    agents = Agents(place, requests, say, shared.turns)
    stack.callback(agents.stop)

    def take(roster: Roster, roster_file: bytes) -> None:
        agents.take(roster, roster_file)
        try:
            store.sessions.keep({person.name: person.signing_key for person in roster.people})
        except (CloisterError, OSError) as error:  # they are refused nonetheless, unless they are listed again soon
            log.warning("sessions of people who left the roster could not be ended: %s", sentence(error))

    watch = RosterWatch(place, take)
    watch.look()
    agents.let_strangers_join()
    if port is not None:
        say(f"sites may join at port {port}")
    stack.callback(watch.stop)
    watch.start()
    return agents


def _open_api(stack: ExitStack, place: ServerFolder, say: Callable[[str], None], service: Service) -> None:
    """Let people submit and follow runs until the stack ends, if the settings have `[api]`."""
    if place.settings.api:
        from server.api.listening import start  # noqa: PLC0415 - loads a web server

        api = start(place, service)
        stack.callback(api.stop)
        say(f"people may sign in at port {api.port}")


def open_joining_port(place: ServerFolder, stack: ExitStack, requests: Requests | None = None) -> int | None:
    """Open the port at which sites ask to join until the stack ends; return it, or None if there is to be none."""
    if place.settings.joining is None:
        return None
    joining = JoiningPort(requests or Requests(place), place.tls)
    stack.callback(joining.stop)
    return joining.start(place.settings.joining.listen)
