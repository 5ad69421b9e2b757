"""The agents of several sites in one process, which share the memory of its libraries.

Each site keeps its own connection, keys, folder, lock and thread, and its errors end nobody else. But torch has one
generator of random numbers per process, and tasks need not be thread-safe: so the sites answer messages in turn, one at
a time, and wait for messages side by side.
"""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from client.agent import attend_site
from client.dpsgd.torchrun import own_place
from client.protection import ready
from client.settings import read_site
from privacy.errors import ConfigError
from privacy.failures import sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from threading import Event

    from client.settings import SiteFolder

log = logging.getLogger("cloister.agent")


def attend_all(paths: Iterable[Path], stop: Event, started: Callable[[], None] = lambda: None) -> None:
    """Serve as the agents of these sites until `stop` is set, each in a daemon thread that is named after its site.

    Calls `started` once for each site that could take part. A site that cannot start, or not go on, is logged, and the
    others go on.

    Raises:
        ConfigError: if the sites cannot share a process, or none of them is left.
    """
    if own_place().size > 1:
        msg = "torchrun starts all its processes for one site; name one site, or start the agents without torchrun"
        raise ConfigError(msg)
    turns = threading.Lock()
    threading.main_thread().name = "cloister"  # as logs name it
    agents = [
        threading.Thread(target=_attend, args=(place, stop, turns, started), name=place.settings.site, daemon=True)
        for place in _places(paths)
    ]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join()
    if not stop.is_set():
        msg = "none of these sites' agents could go on; the log says why"
        raise ConfigError(msg)


def _places(paths: Iterable[Path]) -> Iterator[SiteFolder]:
    """Open the sites, one after the other, as one may ask for a passphrase; log those that cannot be opened."""
    known = dict[Path, Path]()
    for path in paths:
        try:
            place = _place(path)
        except Exception as error:  # noqa: BLE001 - the other sites go on
            _complain(error)
            continue
        if place.folder in known:
            log.error("%s and %s are one site; the second is left out", known[place.folder], path)
            continue
        known[place.folder] = path
        yield place


def _place(path: Path) -> SiteFolder:
    before = list(sys.path)
    place = read_site(path)
    if sys.path != before:
        sys.path[:] = before  # otherwise another site would import this one's file in place of its own
        msg = (
            f"{place.folder}: a task of this site is a file beside its site.toml, which other sites in this process "
            "could import; install it as a package, or start this site's agent by itself"
        )
        raise ConfigError(msg)
    ready(place)
    return place


def _attend(place: SiteFolder, stop: Event, turns: threading.Lock, started: Callable[[], None]) -> None:
    try:
        attend_site(place, stop, turns, started)
    except Exception as error:  # noqa: BLE001 - the other sites go on
        _complain(error)


def _complain(error: Exception) -> None:
    log.error("%s", sentence(error), exc_info=error if log.isEnabledFor(logging.DEBUG) else None)
