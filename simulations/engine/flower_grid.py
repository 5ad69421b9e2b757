"""Flower's own grid, over the sites that its engine simulates on Ray, lent to the server's app in this process."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from queue import Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, cast

from flwr.serverapp import Grid, ServerApp
from typing_extensions import override

from privacy.errors import RunError
from transport.grid import StreamingGrid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

    from simulations.engine.ray_cluster import Cluster
    from transport.flower import App

_END = 60.0  # seconds for Flower to end its processes


@contextmanager
def flower_grid(app: App, sites: int, cluster: Cluster) -> Iterator[Grid]:
    """Have Flower simulate nodes on the Ray to which this process is connected, and yield its grid.

    Args:
        app: of all sites, which can be pickled; in its `Context`, `partition-id` counts the nodes.
        sites: how many nodes there are.
        cluster: what each of them gets while it works.
    """
    simulation = _Simulation(app, sites, cluster)
    simulation.start()
    flower = logging.getLogger("flwr")
    level = flower.level
    flower.setLevel(logging.ERROR)  # it calls the one way to run an app that is not in a package outdated
    try:
        yield _WatchedGrid(simulation.lent.get() or _ended(simulation), simulation)
    finally:
        simulation.over.set()
        simulation.join(_END)
        flower.setLevel(level)


class _Simulation(Thread):
    """Runs Flower's simulation, whose server lends its grid until it is told that the run is over."""

    def __init__(self, app: App, sites: int, cluster: Cluster) -> None:
        super().__init__(daemon=True, name="Flower's engine")
        self._app, self._sites, self._cluster = app, sites, cluster
        self.lent, self.over, self.error = Queue[Grid | None](), Event(), ""

    @override
    def run(self) -> None:
        from flwr.simulation import run_simulation  # noqa: PLC0415 - loads what only this engine needs

        server = ServerApp()

        @server.main()
        def lend(grid: Grid, context: Context) -> None:
            del context
            self.lent.put(grid)
            self.over.wait()

        resources: dict[str, Any] = {"num_cpus": self._cluster.cpus, "num_gpus": self._cluster.gpus}
        try:
            run_simulation(
                server, cast("ClientApp", self._app), self._sites, backend_config={"client_resources": resources}
            )
        except BaseException as error:  # noqa: BLE001 - raised where the grid is used
            self.error = str(error.__cause__ or error)
        finally:
            self.over.set()
            self.lent.put(None)


class _WatchedGrid(StreamingGrid):
    """A grid that raises once nobody will answer any more."""

    def __init__(self, grid: Grid, simulation: _Simulation) -> None:
        super().__init__(grid)
        self._simulation = simulation

    @override
    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have already arrived.

        Raises:
            RunError: if the simulation has ended.
        """
        if not self._simulation.is_alive():
            _ended(self._simulation)
        return super().pull_messages(message_ids)


def _ended(simulation: _Simulation) -> Grid:
    msg = f"Flower's engine has ended before the run: {simulation.error or 'it did not say why'}"
    raise RunError(msg)
