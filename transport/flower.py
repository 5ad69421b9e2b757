"""The one place that touches Flower's internals: docs/internals.md lists them.

A `Message` reads run and node from the process-wide `TaskIdentity` when it is made, and gets its id by a write to
its metadata; a grid describes its run as Flower's `Run`. Everything else in Cloister uses Flower's public API;
tests/test_internals.py holds these facts, and pyproject.toml pins Flower to a range of minor versions.
"""

from __future__ import annotations

import logging
import os
import uuid
from typing import TYPE_CHECKING

# Nobody who runs a hospital's agent expects it to call home; this must stand before flwr is imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Error, Message, RecordDict
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.app import Context

    App = Callable[[Message, Context], Message]

SERVER_NODE = 1
REFUSED = 100  # code of the error reply of a site that says no
FAILED = 101  # code of the error reply that stands for an exception in a node's app
ENDED = 102  # code of the error reply of an agent that ends with it; the next one may do better

log = logging.getLogger("cloister.agent")


def adopt_identity(run_id: int, node_id: int) -> None:
    """Set on whose behalf this process makes messages, unless Flower's own engine has done so."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id


def describe_run(run_id: int) -> Run:
    """Return a description of a run in Flower's words, of which only its number is filled in."""
    return Run.create_empty(run_id)


def stamp(message: Message, message_id: str | None = None) -> str:
    """Give a message its id, a new one unless told, and return it."""
    chosen = message_id or uuid.uuid4().hex
    message.metadata.__dict__["_message_id"] = chosen
    return chosen


def instruction(content: RecordDict, *, kind: str, node: int, run_id: int, group: str, ttl: float) -> Message:
    """Make a message from the server to a node."""
    adopt_identity(run_id, SERVER_NODE)
    return Message(content, node, kind, ttl=ttl, group_id=group)


def reply(content: RecordDict | Error, to: Message) -> Message:
    """Make the reply to a message."""
    if isinstance(content, RecordDict):
        return Message(content, reply_to=to)
    return Message(content, reply_to=to)


def answer(app: App, message: Message, context: Context) -> Message:
    """Return an app's reply to a message; if it raises, an error that says only that, as Flower's engines do."""
    try:
        return app(message, context)
    except Exception:  # whatever it is, the node goes on
        log.exception("%s failed", message.metadata.message_type)
        return reply(Error(FAILED, "the site's agent met an unexpected error; the site's own log has it"), message)


def quieten() -> None:
    """Keep Flower's own progress log out of what Cloister shows; its warnings still come through."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
