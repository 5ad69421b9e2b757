"""The port for an agent's operators. What it says stays at the site: ε and rounds, but nothing of records or models."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from client.settings import HELD_OUT
from privacy.errors import CloisterError
from transport.operations.days import days_left
from transport.operations.listener import Listener, serve
from transport.pki import read_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from client.settings import SiteFolder
    from client.watch import Watch
    from privacy.ledger.ledger import Ledger


class _Agent(Collector):
    """Metrics of an agent at the moment."""

    def __init__(self, place: SiteFolder, watch: Watch) -> None:
        self._place, self._watch = place, watch
        settings, lineage = place.settings, place.settings.data.lineage
        self._accounts = (  # with ledgers of their own: the agent's are its thread's
            ("training", place.ledger_of(lineage), settings.limit.epsilon),
            ("held_out", place.ledger_of(lineage + HELD_OUT), settings.held_out_limit.epsilon),
        )
        self._spent, self._lock = dict[str, tuple[object, float]](), Lock()

    @override
    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; leave out those that cannot be computed."""
        watch = self._watch
        yield InfoMetricFamily("cloister_build", "The version that runs", value={"version": version("cloister")})
        yield _gauge("agent_online", "Whether the agent is connected to the server", not watch.trouble)
        yield _gauge("agent_last_round", "The round of the last update, of whichever run; 0 before the first",
                     watch.round)  # fmt: skip
        yield _gauge("agent_last_round_timestamp_seconds", "When that update was made; 0 before the first",
                     watch.trained_at)  # fmt: skip
        yield CounterMetricFamily("cloister_agent_rounds", "Updates that the agent has made", value=watch.trained)
        refusals = CounterMetricFamily(
            "cloister_agent_refusals", "Messages that the agent answered with an error, by kind of error",
            labels=["error"],
        )  # fmt: skip
        for kind, count in sorted(watch.refusals.copy().items()):
            refusals.add_metric([kind], count)
        yield refusals
        yield from self._epsilon()
        with suppress(CloisterError, OSError):
            certificate = read_certificate(self._place.tls.certificate)
            ends = {"certificate": certificate.not_valid_after_utc.timestamp(), "roster": self._place.roster().expires}
            yield from days_left(ends)

    def _epsilon(self) -> Iterator[Metric]:
        texts = {"spent": "that is spent", "budget": "that may be spent", "left": "that is left"}
        found = {
            name: GaugeMetricFamily(f"cloister_epsilon_{name}", f"ε {text}, over all runs", labels=["account"])
            for name, text in texts.items()
        }
        for account, ledger, budget in self._accounts:
            with suppress(CloisterError, OSError):
                spent = self._of(account, ledger)
                for name, value in (("spent", spent), ("budget", budget), ("left", max(0.0, budget - spent))):
                    found[name].add_metric([account], value)
        yield from found.values()

    def _of(self, account: str, ledger: Ledger) -> float:
        """Return the ε spent; computed again only once something was charged."""
        with self._lock:
            mechanisms = ledger.mechanisms()
            if self._spent.get(account, (None, 0.0))[0] != mechanisms:
                self._spent[account] = mechanisms, ledger.spent(self._place.settings.budget.delta)
            return self._spent[account][1]


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cloister_{name}", text, value=float(value))


def make_registry(place: SiteFolder, watch: Watch) -> CollectorRegistry:
    """Return the agent's metrics."""
    registry = CollectorRegistry()
    registry.register(_Agent(place, watch))
    ProcessCollector(registry=registry)
    return registry


def open_port(address: str, place: SiteFolder, watch: Watch) -> Listener:
    """Open the port.

    Raises:
        UnreachableError: if the address cannot be listened on.
    """
    registry = make_registry(place, watch)
    return serve(address, tuple, lambda: (watch.trouble,) if watch.trouble else (), registry)
