"""The `inline` engine: server and sites in this process, with the same Flower apps and the same bytes.

Every message is encoded and decoded as for the network, so that what works here works there.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import nullcontext
from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict

from client.app import make_app
from client.settings import read_site
from client.site import Site
from privacy.errors import ProtocolError
from server.app import app as server_app
from server.settings import read_consortium, read_run
from transport.flower import SERVER_NODE, answer, quieten
from transport.grid import ReplyGrid
from transport.parcel import decode_instruction, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Set as AbstractSet
    from contextlib import AbstractContextManager

    from flwr.app import Message
    from flwr.serverapp import Grid

    from simulations.engine.federation import Federation
    from transport.flower import App


class InlineGrid(ReplyGrid):
    """Answers each message when its reply is awaited, by calling the node's app."""

    def __init__(self, run_id: int, nodes: Mapping[int, Context], app: App) -> None:
        super().__init__(run_id)
        self._nodes, self._app = nodes, app
        self._sent: OrderedDict[str, Message] = OrderedDict()

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes: they are always online."""
        return sorted(self._nodes)

    def _send(self, message: Message) -> None:
        if message.metadata.dst_node_id not in self._nodes:
            msg = f"node {message.metadata.dst_node_id} is not in this federation; only its sites get messages"
            raise ProtocolError(msg)
        self._sent[message.metadata.message_id] = message

    def _next(self, waiting: AbstractSet[str], seconds: float) -> Message | None:
        message_id = next((known_id for known_id in self._sent if known_id in waiting), None)
        if message_id is None or seconds < 0:
            return None
        message, started = self._sent.pop(message_id), time.monotonic()
        context = self._nodes[message.metadata.dst_node_id]
        data = b"".join(encode(answer(self._app, decode_instruction(b"".join(encode(message))), context)))
        if 0 < seconds < time.monotonic() - started:
            return None  # a call in this process cannot be interrupted, but its reply is too late
        return self._read(data, message)

    def _withdraw(self, message_ids: AbstractSet[str]) -> None:
        for message_id in message_ids:
            self._sent.pop(message_id, None)


def run_inline(federation: Federation, kinds: Mapping[str, type[Site]] | None = None) -> str:
    """Run the federation's signed manifest in this process; return the run's name.

    Args:
        federation: a federation with a signed run.
        kinds: subclasses of `Site` for some sites, by name.

    Raises:
        CloisterError: if the run failed.
    """
    roster = read_consortium(federation.server).roster()
    sites = {
        roster.member(name).node_id: (kinds or {}).get(name, Site)(read_site(path))
        for name, path in federation.paths.items()
    }
    for site in sites.values():
        site.check_records()
    return serve_inline(federation, sites, make_app(lambda context: sites[context.node_id]))


def serve_inline(federation: Federation, nodes: Iterable[int], app: App) -> str:
    """Run the federation's signed manifest over these nodes, with one app for all; return the run's name.

    Raises:
        CloisterError: if the run failed.
    """
    return serve_over(federation, lambda run_id: nullcontext(InlineGrid(run_id, contexts_of(run_id, nodes), app)))


def contexts_of(run_id: int, nodes: Iterable[int]) -> dict[int, Context]:
    """Return Flower's context of each node in a run."""
    return {node: Context(run_id, node, {}, RecordDict(), {}) for node in nodes}


def serve_over(federation: Federation, grid: Callable[[int], AbstractContextManager[Grid]]) -> str:
    """Run the federation's signed manifest over a grid, made for the run's number; return the run's name.

    Raises:
        CloisterError: if the run failed.
    """
    quieten()
    run = read_run(federation.manifest, read_consortium(federation.server).roster()).digest
    run_id = int(run[:15], 16)
    config: dict[str, bool | float | int | str] = {
        "consortium": str(federation.server), "manifest": str(federation.manifest), "unattended": True
    }  # fmt: skip
    with grid(run_id) as opened:
        server_app(opened, Context(run_id, SERVER_NODE, {}, RecordDict(), config))
    return run
