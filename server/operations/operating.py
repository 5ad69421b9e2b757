"""Show a server to its operators while it runs: the port of `[operations]`, and the reports of `[report]`."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from privacy.errors import CloisterError
from server.operations.state import ServerState
from server.store.watching import StoreWatch
from transport.pki import read_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.service.service import Service
    from server.settings import ServerFolder

log = logging.getLogger("cloister.server")


class Operating:
    """What is shown: a server that waits to lead, until it has a service."""

    def __init__(self, place: ServerFolder, store: StoreWatch) -> None:
        self._place, self._store = place, store
        self.service: Service | None = None

    def state(self) -> ServerState:
        """Return the server's state at the moment."""
        look, service = self._store.look(), self.service
        troubles = [look.trouble] if look.trouble else []
        if service is None:
            return ServerState(leading=False, troubles=tuple(troubles), runs=dict(look.runs), ends=self._ends())
        status = service.status()
        if status.roster is None and self._place.settings.joining is None:
            troubles.append("no site is in the roster, so agents cannot connect")
        troubles += [f"run {run[:8]} cannot go on: {why}" for run, why in status.paused.items()]
        return ServerState(
            leading=service.leads,
            troubles=tuple(troubles),
            members=frozenset(status.members),
            online=frozenset(status.online),
            runs=dict(look.runs),
            ends=self._ends(),
        )

    def works(self) -> None:
        """Return, unless the service hangs. Does not wait for the store."""
        if self.service:
            self.service.roster()

    def _ends(self) -> dict[str, float]:
        ends = dict[str, float]()
        with suppress(CloisterError, OSError):
            ends["certificate"] = read_certificate(self._place.tls.certificate).not_valid_after_utc.timestamp()
        with suppress(CloisterError, OSError):
            ends["roster"] = self._place.roster().expires
        return ends


@contextmanager
def operating(place: ServerFolder) -> Iterator[Operating]:
    """Show the server, as its settings say, while this context lasts.

    Raises:
        UnreachableError: if the port cannot be opened.
        ConfigError: if `[report]` needs packages that are not installed.
    """
    with ExitStack() as stack:
        store = StoreWatch(place)
        stack.callback(store.close)
        shown = Operating(place, store)
        if place.settings.report:
            from server.operations.report import ReportedRuns  # noqa: PLC0415

            stack.enter_context(ReportedRuns(place.settings.report, place.folder))
        if place.settings.operations:
            from server.operations.port import OperationsPort  # noqa: PLC0415 - loads a web server

            port = OperationsPort(place.settings.operations.listen, shown.state, shown.works)
            stack.callback(port.stop)
            log.info("for operators: /livez, /readyz and /metrics at port %d", port.port)
        yield shown
