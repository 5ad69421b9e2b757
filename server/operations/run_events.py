"""Count what happens in runs, from their events as they are logged."""

from __future__ import annotations

import logging
import time
from threading import Lock
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Gauge, Histogram
from typing_extensions import override

from privacy.log_fields import fields
from server.operations.reasons import Reason, reason_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_LOGGER = "cloister.run"
_SECONDS = (0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 86_400)
_BEGINNING, _ENDING = {"started", "resumed"}, {"finished", "failed", "stopped"}


class RunEvents(logging.Handler):
    """Counts the events of all runs of this process, for as long as it is attached."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._rounds = Counter(
            "cloister_rounds", "Rounds that ended, by whether their sum was released", ["outcome"], registry=registry
        )
        for outcome in ("released", "unreleased"):
            self._rounds.labels(outcome)
        self._seconds = Histogram("cloister_round_seconds", "Seconds a round took", buckets=_SECONDS, registry=registry)
        self._bytes = Counter(
            "cloister_round_bytes", "Bytes of updates (up) and sums (down)", ["direction"], registry=registry
        )
        for direction in ("up", "down"):
            self._bytes.labels(direction)
        self._refusals = Counter(
            "cloister_refusals",
            f"Rounds in which a site took no part, or not to its end, by site and reason ({', '.join(Reason)})",
            ["site", "reason"],
            registry=registry,
        )
        self._epsilon = Gauge(
            "cloister_site_epsilon_spent",
            "ε that a site has spent over all runs, as it last reported it; sites that do not disclose it are missing",
            ["site"],
            registry=registry,
        )
        self._lock = Lock()
        self._open = dict[str, tuple[float, int]]()  # runs going on: when last something ended, and the sites needed
        self._sites = set[str]()  # that signed runs name: no other text becomes a label

    def attach(self) -> None:
        """Begin to count."""
        logger = logging.getLogger(_LOGGER)
        logger.setLevel(logging.INFO)  # otherwise nobody is told of events
        logger.addHandler(self)

    def detach(self) -> None:
        """Count no more."""
        logging.getLogger(_LOGGER).removeHandler(self)

    @property
    def age(self) -> float:
        """Seconds since the run that has waited longest last ended a round, or began; 0 without a run."""
        with self._lock:
            return max((time.monotonic() - since for since, _ in self._open.values()), default=0.0)

    @property
    def needed(self) -> int:
        """The most sites that a run going on needs; 0 without a run."""
        with self._lock:
            return max((minimum for _, minimum in self._open.values()), default=0)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Count the event that a log record carries."""
        entry: dict[str, Any] | None = getattr(record, "entry", None)
        if entry is None:
            return
        run = str(entry.get("run") or fields().get("run", ""))
        with self._lock:
            if entry["event"] in _ENDING:
                self._open.pop(run, None)
            elif entry["event"] in _BEGINNING:
                self._open[run] = time.monotonic(), int(entry.get("minimum", 0))
                self._sites.update(entry["sites"])
            elif entry["event"] == "round" and run in self._open:
                self._open[run] = time.monotonic(), self._open[run][1]
        if entry["event"] == "round":
            self._count(entry)

    def _count(self, entry: dict[str, Any]) -> None:
        self._rounds.labels("released" if entry["released"] else "unreleased").inc()
        self._seconds.observe(entry["seconds"])
        self._bytes.labels("up").inc(entry["bytes_up"])
        self._bytes.labels("down").inc(entry["bytes_down"])
        for site in self._sites & entry["problems"].keys():
            self._refusals.labels(site, reason_of(entry["problems"][site])).inc()
        for site in self._sites & entry["epsilon"].keys():
            self._epsilon.labels(site).set(entry["epsilon"][site])
