"""Watch an agent, and open the port for its operators if `site.toml` has one."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from client.watch import Watch
from privacy.errors import UnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.settings import SiteFolder

log = logging.getLogger("cloister.agent")


@contextmanager
def watched(place: SiteFolder) -> Iterator[Watch]:
    """Yield what watches the agent of this site. Without the port, the agent goes on: its work needs none."""
    watch, port = Watch(), None
    if operations := place.settings.operations:
        from client.operations.port import open_port  # noqa: PLC0415 - loads a web server

        try:
            port = open_port(operations.listen, place, watch)
            log.info("for operators: /livez, /readyz and /metrics at port %d", port.port)
        except UnreachableError as error:
            log.warning("%s; the agent goes on without a port for operators", error)
    try:
        yield watch
    finally:
        if port:
            port.stop()
