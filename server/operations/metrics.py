"""The server's metrics, computed when somebody asks for them, in a registry of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from server.operations.run_events import RunEvents
from server.store.store import STATUSES
from transport.operations.days import days_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

    from server.operations.state import ServerState


class _States(Collector):
    """Metrics of the state at the moment."""

    def __init__(self, state: Callable[[], ServerState], events: RunEvents, version: str) -> None:
        self._state, self._events, self._version = state, events, version

    @override
    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        state = self._state()
        yield InfoMetricFamily("cloister_build", "The version that runs", value={"version": self._version})
        yield _gauge("server_leading", "Whether this process leads (1) or waits to take over (0)", state.leading)
        yield _gauge("server_ready", "Whether /readyz says yes", not state.unready)
        yield _gauge("sites_members", "Sites in the roster", len(state.members))
        yield _gauge("sites_online", "Sites whose agents are connected", len(state.members & state.online))
        yield _gauge("sites_needed", "The most sites that a run going on needs; 0 without one", self._events.needed)
        online = GaugeMetricFamily("cloister_site_online", "Whether a site's agent is connected", labels=["site"])
        for site in sorted(state.members):
            online.add_metric([site], float(site in state.online))
        yield online
        runs = GaugeMetricFamily("cloister_runs", "Runs that the server knows, by status", labels=["status"])
        for status in STATUSES:  # also those of no run: an alert cannot compare with what is missing
            runs.add_metric([status], state.runs.get(status, 0))
        yield runs
        text = "Seconds since the run that has waited longest last ended a round, or began; 0 without a run"
        yield _gauge("round_age_seconds", text, self._events.age)
        yield from days_left(state.ends)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cloister_{name}", text, value=float(value))


def make_registry(state: Callable[[], ServerState], version: str) -> tuple[CollectorRegistry, RunEvents]:
    """Return the server's metrics, and what counts the events of its runs, once it is attached."""
    registry = CollectorRegistry(auto_describe=False)
    events = RunEvents(registry)
    registry.register(_States(state, events, version))
    ProcessCollector(registry=registry)
    return registry, events
