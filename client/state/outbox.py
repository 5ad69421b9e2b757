"""The last signed update of every run, kept until its round is over.

A retry sends the same bytes again. Training again would be a new release, and cost privacy again.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.codec.envelope import SignedUpdate
from privacy.errors import KeyFileError, MalformedError, ProtocolError
from privacy.run.plan import read_plan
from privacy.storage import open_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from privacy.run.plan import RoundPlan


@dataclass(frozen=True)
class OutboxEntry:
    """An update that this site made, with its plan and, if it is masked, the seed of the site's own mask."""

    plan: RoundPlan
    update: SignedUpdate
    mask: bytes


class Outbox:
    """Signed updates on disk, one per run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def last(self, run: str) -> OutboxEntry | None:
        """Return the last update of a run, if there was one."""
        with self._note(run) as note:
            return note.read() if note else None

    def find(self, plan: RoundPlan) -> SignedUpdate | None:
        """Return the update already made for this plan, if there is one.

        Raises:
            ProtocolError: if the server asks for the same attempt with another plan, or for an older attempt.
        """
        with self._note(plan.run) as note:
            if note is None:
                return None
            noted, wanted = (note.plan.round, note.plan.attempt), (plan.round, plan.attempt)
            if noted == wanted and note.plan == plan:
                return note.read().update
        if noted > wanted:
            msg = (
                f"the server asks for round {plan.round}, attempt {plan.attempt}, after a later attempt; the plan is "
                "refused"
            )
            raise ProtocolError(msg)
        if noted == wanted:
            msg = f"the server asks twice for round {plan.round}, with different plans; the second plan is refused"
            raise ProtocolError(msg)
        return None

    def masked(self, plan: RoundPlan) -> tuple[bytes, bytes] | None:
        """Return the header and the mask's seed of the masked update made for this plan, if there is one."""
        with self._note(plan.run) as note:
            return (note.header, note.mask) if note and note.mask and note.plan == plan else None

    def keep(self, plan: RoundPlan, update: SignedUpdate, mask: bytes) -> None:
        """Store an update before it is sent."""
        note = {
            "plan": plan.to_bytes().decode(),
            "header": update.header.decode(),
            "signature": update.signature.hex(),
            "mask": mask.hex(),
            "commitments": update.commitments.hex(),
            "chunks": [len(chunk) for chunk in update.chunks],
        }
        write_atomically(self._path(plan.run), json.dumps(note).encode() + b"\n", *update.chunks)

    @contextmanager
    def _note(self, run: str) -> Iterator[_Note | None]:
        """Open the file of a run's last update, if there is one, and read its first line."""
        path = self._path(run)
        if not path.exists():
            yield None
            return
        try:
            with open_file(path) as file:
                yield _Note(file, run)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            MalformedError,
        ) as error:
            msg = (
                f"{path}: this file is damaged; restore it, or move it aside: the site then takes part again from "
                "the next round"
            )
            raise KeyFileError(msg) from error

    def _path(self, run: str) -> Path:
        return self._folder / f"{run[:16]}.update"


class _Note:
    """The first line of an update's file; the update's chunks follow it, and are read only if they are needed."""

    def __init__(self, file: BinaryIO, run: str) -> None:
        self._file, self._values = file, json.loads(file.readline())
        self._sizes = [int(size) for size in self._values["chunks"]]
        if not 0 <= min(self._sizes, default=0) <= sum(self._sizes) == _rest(file):
            msg = "its length differs from the length it states"
            raise MalformedError(msg)
        self.plan = read_plan(self._values["plan"].encode())
        if self.plan.run != run:  # the file's name has only a part of the run's
            msg = "it is of another run"
            raise MalformedError(msg)
        self.header = self._values["header"].encode()
        self.mask = bytes.fromhex(self._values["mask"])

    def read(self) -> OutboxEntry:
        """Read the update."""
        chunks = tuple(self._file.read(size) for size in self._sizes)
        signature, commitments = (bytes.fromhex(self._values[name]) for name in ("signature", "commitments"))
        return OutboxEntry(self.plan, SignedUpdate(self.header, signature, chunks, commitments), self.mask)


def _rest(file: BinaryIO) -> int:
    """Return how many bytes follow."""
    place = file.tell()
    rest = file.seek(0, os.SEEK_END) - place
    file.seek(place)
    return rest
