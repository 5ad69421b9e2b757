"""A site that is killed, over and over, at any line of our code: in a process of its own, since it forks.

A run, with the server's part in this process. Every message to the victim is answered in a child that ends by SIGKILL
at a line which is drawn from all those that the answer to such a message takes; then another child gets the same
message, as a restarted agent would. Some replies are lost on their way, and asked for again. Prints, as JSON, what had
left the site and what stood in its ledger after every child, and where the children died.
"""

import json
import os
import random
import signal
import sys
from hashlib import sha256
from pathlib import Path
from shutil import copytree, rmtree
from types import FrameType
from typing import Any

import torch
from flwr.app import Context, Message, MessageType

from client.flower import app, open_site
from simulations.engine.federation import Federation
from tests.federations import SITES, charges_of, node_of, run_with, signed_run
from transport.parcel import decode_reply, encode
from transport.run_messages import read_update

VICTIM = "north"
ROOT = Path(__file__).parents[2]
OURS = tuple(f"{ROOT / room}{os.sep}" for room in ("client", "privacy", "transport", "strategies"))
CALM, LOST = 0.05, 0.3  # how often a child is left in peace, and how often its reply does not arrive

Place = tuple[str, int]


class Killer:
    """Answers as the nodes' app does, the victim's messages by children that die."""

    def __init__(self, federation: Federation, kills: int, seed: int) -> None:
        self.federation, self.kills = federation, kills
        self.most = kills // signed_run(federation)[1].settings.rounds  # for one message: others have their turn, too
        self.rng = random.Random(seed)  # noqa: S311 - guards nothing
        self.places: dict[str, list[Place]] = {}
        self.left: dict[str, set[str]] = {}  # by message: digests of the updates that left in answer to it
        self.seen: list[tuple[int, int]] = []  # after every child: updates that had left, charges
        self.deaths: list[tuple[str, *Place]] = []  # with the kind of message

    def __call__(self, message: Message, context: Context) -> Message:
        if context.node_id != node_of(self.federation, VICTIM):
            return app(message, context)
        kind = message.metadata.message_type
        if kind not in self.places:
            self.places[kind] = self._rehearse(message, context)
        until = min(self.kills, len(self.deaths) + self.most)
        while True:
            calm = len(self.deaths) >= until or self.rng.random() < CALM
            place = None if calm else self.rng.choice(self.places[kind])
            data, died = in_child(message, context, place)
            if data and kind == MessageType.TRAIN:
                update, _ = read_update(decode_reply(data, message).content)
                self.left.setdefault(message.metadata.message_id, set()).add(sha256(repr(update).encode()).hexdigest())
            self.seen.append((len(self.left), charges_of(self.federation, VICTIM)))
            if died and place:
                self.deaths.append((kind, *place))
            if data and not died and self.rng.random() > LOST:
                return decode_reply(data, message)

    def _rehearse(self, message: Message, context: Context) -> list[Place]:
        """Return the lines that the answer takes; nobody gets it, and the site's folder is a copy."""
        copy = self.federation.folder / "rehearsal"
        copytree(self.federation.paths[VICTIM], copy)
        data, _ = in_child(
            message, Context(0, context.node_id, {"site": str(copy)}, context.state, {}), None, listing=True
        )
        rmtree(copy)
        return [(file, line) for file, line in json.loads(data)]


def in_child(message: Message, context: Context, place: Place | None, *, listing: bool = False) -> tuple[bytes, bool]:
    """Answer a message in a child that dies at a place, or tells which places it passed; return what it wrote."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        os.close(ours)
        try:
            open_site.cache_clear()
            places: dict[Place, None] = {}
            sys.settrace(tracer(place, places))
            data = b"".join(encode(app(message, context)))
            sys.settrace(None)
            with os.fdopen(theirs, "wb") as pipe:
                pipe.write(json.dumps(list(places)).encode() if listing else data)
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        data = pipe.read()
    status = os.waitpid(child, 0)[1]
    return data, os.WIFSIGNALED(status)


def tracer(place: Place | None, places: dict[Place, None]) -> Any:  # noqa: ANN401 - calls itself
    """Return what Python calls at every line of our code: it notes the line, and kills the process at one of them."""

    def at_line(frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401
        if event == "call" and not frame.f_code.co_filename.startswith(OURS):
            return None
        here = frame.f_code.co_filename, frame.f_lineno
        if here == place:
            os.kill(os.getpid(), signal.SIGKILL)
        places[here] = None
        return at_line

    return at_line


def main(folder: str, kills: str, seed: str) -> None:
    """Run the signed run in a federation's folder; print what was seen."""
    torch.set_num_threads(1)  # so that a child may be forked
    killer = Killer(Federation(Path(folder), SITES), int(kills), int(seed))
    rounds = run_with(killer.federation, killer)
    print(json.dumps({  # noqa: T201
        "rounds": [event["contributors"] for event in rounds if event.get("contributors")],
        "left": [len(digests) for digests in killer.left.values()],
        "seen": killer.seen,
        "deaths": killer.deaths,
    }))  # fmt: skip
