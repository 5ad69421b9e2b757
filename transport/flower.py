"""Wrap Flower's internals, which no other module touches; docs/internals.md lists them.

A `Message` reads run and node from the process-wide `TaskIdentity` when it is created, and gets its id, and the run of
the grid that sends it, by writes to its metadata; a grid describes its run as Flower's `Run`. Everything else in
Cloister uses Flower's public API. tests/test_internals.py checks these facts, and pyproject.toml pins Flower to a range
of minor versions.
"""

from __future__ import annotations

import logging
import os
import uuid
from typing import TYPE_CHECKING

# A hospital's agent must not call home; set this before flwr is imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Error, Message, RecordDict
from flwr.supercore import telemetry
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.app import Context

    App = Callable[[Message, Context], Message]

telemetry.FLWR_TELEMETRY_ENABLED = os.environ["FLWR_TELEMETRY_ENABLED"]  # others may have imported flwr before

SERVER_NODE = 1
REFUSED = 100  # error code of a site that refuses
FAILED = 101  # error code of an exception in a node's app
ENDED = 102  # error code of an agent that exits after this reply; its successor may succeed
MALFORMED = 103  # error code in place of a reply that could not be read
LEFT = 104  # error code in place of the reply of a site that is no longer in the roster
GONE = "it is no longer in the roster"

log = logging.getLogger("cloister.agent")


def adopt_identity(run_id: int, node_id: int) -> None:
    """Set the run and node for which this process creates messages."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id


def describe_run(run_id: int) -> Run:
    """Return Flower's description of a run with only its id filled in."""
    return Run.create_empty(run_id)


def stamp(message: Message, message_id: str | None = None, run_id: int | None = None) -> str:
    """Set a message's id, by default a new one, and return it; with `run_id`, set its run, too."""
    chosen = message_id or uuid.uuid4().hex
    message.metadata.__dict__["_message_id"] = chosen
    if run_id is not None:  # this process may serve several runs
        message.metadata.__dict__["_run_id"] = run_id
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
    """Return an app's reply to a message; if it raises, an error reply without details, as Flower's engines do."""
    try:
        return app(message, context)
    except Exception:  # whatever happened, the node goes on
        log.exception("%s failed", message.metadata.message_type)
        return reply(Error(FAILED, "the site's agent failed with an unexpected error; see the site's own log"), message)


def quieten() -> None:
    """Hide Flower's own progress log, but not its warnings."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
