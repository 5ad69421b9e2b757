"""Open the port for operators, and count what happens until it is closed."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from server.operations.metrics import make_registry
from transport.operations.listener import serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.operations.state import ServerState


class OperationsPort:
    """The open port for a server's operators, with `.port` and `.stop()`."""

    def __init__(
        self, address: str, state: Callable[[], ServerState], works: Callable[[], object] = lambda: None
    ) -> None:
        """Listen, and count events from now on.

        Args:
            address: host:port; port 0 means any free port.
            state: returns the server's state at the moment; called in other threads. May wait for the store.
            works: called there, too, to see whether the process works. If it hangs, `/livez` gives no answer, and
                whoever watches the process starts it again; so it must not wait for the store.

        Raises:
            UnreachableError: if the address cannot be listened on.
        """
        registry, self._events = make_registry(state, version("cloister"))

        def alive() -> tuple[str, ...]:
            works()
            return ()

        self._listener = serve(address, alive, lambda: state().unready, registry)
        self.port = self._listener.port
        self._events.attach()

    def stop(self) -> None:
        """Close the port. Safe to call more than once."""
        self._events.detach()
        self._listener.stop()
