"""The metrics that server and agent export; run as a program, it prints the table of docs/deployment.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.operations.port import make_registry as of_agent
from client.watch import Watch
from server.operations.metrics import make_registry as of_server
from server.operations.state import ServerState

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from client.settings import SiteFolder

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",), "gauge": ("",)}
ENDS = {"certificate": 0.0, "roster": 0.0}


def exported(site: SiteFolder) -> dict[str, list[Metric]]:
    """Every metric of a server and of a site's agent."""
    server, _ = of_server(lambda: ServerState(leading=True, members=frozenset({"north"}), ends=ENDS), "0")
    registries: dict[str, CollectorRegistry] = {"server": server, "agent": of_agent(site, Watch())}
    return {name: list(registry.collect()) for name, registry in registries.items()}


def names(metrics: dict[str, list[Metric]]) -> set[str]:
    """The names of the samples."""
    return {
        metric.name + suffix for family in metrics.values() for metric in family for suffix in SUFFIXES[metric.type]
    }


def table(metrics: dict[str, list[Metric]]) -> str:
    """The table of the documentation."""
    rows = ["| metric | of | kind | meaning |", "|---|---|---|---|"]
    whose = {metric.name: [name for name, family in metrics.items() if metric.name in {one.name for one in family}]
             for family in metrics.values() for metric in family}  # fmt: skip
    known = {metric.name: metric for family in metrics.values() for metric in family}
    for name in sorted(known):
        if name.startswith("cloister_"):
            metric = known[name]
            suffix = SUFFIXES[metric.type][0] if metric.type in {"counter", "info"} else ""
            rows.append(f"| `{name}{suffix}` | {', '.join(whose[name])} | {metric.type} | {metric.documentation} |")
    return "\n".join(rows)
