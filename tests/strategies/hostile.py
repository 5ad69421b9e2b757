"""Nodes that answer something else than the real app did, with everything that their site has: keys, records, word."""

import json
from collections.abc import Callable

from flwr.app import Context, Error, Message, MessageType

from client.flower import app as client_app
from client.flower import open_site
from privacy.codec.envelope import SignedUpdate
from simulations.attacks.spoilers import resigned_by
from simulations.engine.federation import Federation
from tests.federations import (
    Answer,
    node_of,
)
from transport.flower import reply
from transport.run_messages import (
    pack_update,
    read_update,
)

TRAIN, EVALUATE, QUERY = MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY
HOSTILE = "west"
HONEST = ["east", "north", "south"]
NOWHERE = "0" * 64

Change = Callable[[Federation, SignedUpdate], SignedUpdate]


def answering(federation: Federation, kind: str, site: str, change: Callable[[Message, Message], Message]) -> Answer:
    """Let one site's node change what the real app answered to messages of one kind."""
    node = node_of(federation, site)

    def answer(message: Message, context: Context) -> Message:
        genuine = client_app(message, context)
        if (message.metadata.dst_node_id, message.metadata.message_type) == (node, kind):
            return change(message, genuine)
        return genuine

    return answer


def sending(federation: Federation, change: Change, site: str = HOSTILE) -> Answer:
    """Let one site's node change its updates."""

    def changed(message: Message, genuine: Message) -> Message:
        update, report = read_update(genuine.content)
        return reply(pack_update(change(federation, update), report.numbers), message)

    return answering(federation, TRAIN, site, changed)


def lost(message: Message, genuine: Message) -> Message:
    """Put an error in the place of an answer, as when the line breaks after the work was done."""
    del genuine
    return reply(Error(1, "the line broke"), message)


def resigned(federation: Federation, update: SignedUpdate, *chunks: bytes, **header: object) -> SignedUpdate:
    """Change an update's header or chunks, and sign it as its own site does."""
    site = open_site(federation.paths[json.loads(update.header)["site"]])
    return resigned_by(site, update, *chunks, **header)
