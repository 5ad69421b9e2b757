"""Run the server's process: open the port, run one manifest, close the port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict

from server.app import app
from server.hub.grid import GrpcGrid
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium, read_run
from transport.flower import SERVER_NODE, quieten
from transport.memory import return_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def serve(consortium: Path, manifest: Path, listening: Callable[[int], None], *, new_epoch: bool = False) -> None:
    """Serve one run to its end; call `listening` with the port.

    Raises:
        CloisterError: if settings, keys or manifest are wrong, or the run fails.
    """
    quieten()
    return_memory()
    place = read_consortium(consortium)
    roster = place.roster()
    run_id = int(read_run(manifest, roster).digest[:15], 16)
    mailboxes = Mailboxes({member.node_id for member in roster.members})
    hub = Hub(roster, mailboxes, place.settings.max_update_megabytes << 20)
    listening(hub.start(place.settings.listen, place.tls))
    try:
        context = Context(
            run_id=run_id,
            node_id=SERVER_NODE,
            node_config={},
            state=RecordDict(),
            run_config={"consortium": str(consortium), "manifest": str(manifest), "new-epoch": new_epoch},
        )
        app(GrpcGrid(run_id, mailboxes), context)
    finally:
        hub.stop()
