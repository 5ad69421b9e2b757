"""A site that is killed in the middle of a round, and goes on from the steps that it kept: in a process of its own.

The same run twice, with the server's part in this process. In one of them, every order to train is answered by children
that end by SIGKILL, at a line of our code that is drawn from all that the answer passes; then another child gets the
same order, as a restarted agent would. Every process draws other noise, unless it goes on from kept steps; noise apart
from that is the same everywhere. Prints, as JSON, whether both runs led to the same models, and what was charged.
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

import pytest
import torch
from flwr.app import Context, Message, MessageType

from client.dpsgd.training_steps import _take_steps
from client.flower import app, open_site
from client.round.admission import Round
from client.state.partial_rounds import FOLDER
from privacy.noise.randomness import Randomness
from simulations.engine.federation import Federation
from tests.client.killed import OURS, VICTIM
from tests.federations import SITES, charges_of, models_of, node_of, run_with
from transport.parcel import decode_reply, encode


class Killer:
    """Answers as the nodes' app does; the victim's orders to train by children that die."""

    def __init__(self, federation: Federation, kills: int, seed: int) -> None:
        self.federation, self.kills = federation, kills
        self.rng = random.Random(seed)  # noqa: S311 - guards nothing
        self.lines = self.resumed = self.deaths = 0
        self.charges: list[int] = []

    @property
    def kept(self) -> list[Path]:
        """The files with kept steps."""
        return list((self.federation.paths[VICTIM] / FOLDER).glob("*.steps"))

    def __call__(self, message: Message, context: Context) -> Message:
        if context.node_id != node_of(self.federation, VICTIM) or message.metadata.message_type != MessageType.TRAIN:
            return app(message, context)
        self.lines = self.lines or self._rehearse(message, context)
        for _ in range(self.kills):
            data = self._child(message, context, self.rng.randrange(1, self.lines))
            if data:
                break
            self.deaths += 1
            self.resumed += bool(self.kept)
            self.charges.append(charges_of(self.federation, VICTIM))
        data = self._child(message, context, None)  # asked once more in any case
        assert not self.kept  # before the update left
        return decode_reply(data, message)

    def _rehearse(self, message: Message, context: Context) -> int:
        """Return how many lines an answer passes from its first step on; nobody gets it, and the folder is a copy."""
        copy = self.federation.folder / "rehearsal"
        copytree(self.federation.paths[VICTIM], copy)
        elsewhere = Context(0, context.node_id, {"site": str(copy)}, context.state, {})
        lines = int(self._child(message, elsewhere, 1 << 40))
        rmtree(copy)
        return lines

    def _child(self, message: Message, context: Context, line: int | None) -> bytes:
        ours, theirs = os.pipe()
        if not (child := os.fork()):
            os.close(ours)
            try:
                open_site.cache_clear()
                noise("anew", self.federation)
                lines = Lines(line)
                if line is not None:
                    sys.settrace(lines.trace)
                data = b"".join(encode(app(message, context)))
                sys.settrace(None)
                with os.fdopen(theirs, "wb") as pipe:
                    pipe.write(data if line is None or line < 1 << 40 else str(lines.passed).encode())
            finally:
                os._exit(0)
        os.close(theirs)
        with os.fdopen(ours, "rb") as pipe:
            data = pipe.read()
        os.waitpid(child, 0)
        return data


class Lines:
    """Counts the lines of our code from a round's first step on, and ends the process at one of them."""

    def __init__(self, most: int | None) -> None:
        self.most, self.passed = most, 0

    def trace(self, frame: FrameType, event: str, _: object) -> Any:  # noqa: ANN401 - returns itself
        """Be called by Python at every line."""
        if event == "call" and not frame.f_code.co_filename.startswith(OURS):
            return None
        if self.passed or frame.f_code is _take_steps.__code__:
            self.passed += 1
        if self.passed == self.most:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.trace


def noise(name: str, federation: Federation) -> None:
    """Let a process draw the noise of this name, and the same as every other once the victim has kept steps."""
    kept = any((federation.paths[VICTIM] / FOLDER).glob("*.steps"))

    def of_round(self: Round, use: str) -> Randomness:
        mine = self.site.name == VICTIM and use == "training" and kept
        what = (self.site.name, self.plan.round, use, name if mine else "")
        return Randomness(sha256(repr(what).encode()).digest())

    pytest.MonkeyPatch().setattr(Round, "randomness", of_round)


def main(folder: str, kills: str, seed: str) -> None:
    """Run the signed run in both federations of a folder; print what came of it."""
    torch.set_num_threads(1)  # so that a child may be forked
    weights, killers = list[dict[str, str]](), list[Killer]()
    for name, often in (("undisturbed", 0), ("disturbed", int(kills))):
        federation = Federation(Path(folder) / name, SITES)
        noise("", federation)
        killers.append(Killer(federation, often, int(seed)))
        run_with(federation, killers[-1])
        weights.append({site: sha256(data).hexdigest() for site, data in models_of(federation).items()})
    print(json.dumps({  # noqa: T201
        "same": weights[0] == weights[1] and len(set(weights[0].values())) == 1,
        "deaths": killers[1].deaths, "resumed": killers[1].resumed, "charges": killers[1].charges,
        "charged": charges_of(killers[1].federation, VICTIM),
    }))  # fmt: skip
