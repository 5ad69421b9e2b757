"""The last signed update of every run, kept until its round is over.

A retry sends the same bytes again. Training again would be a new release, and cost privacy again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.codec.envelope import SignedUpdate
from privacy.errors import KeyFileError, MalformedError, ProtocolError
from privacy.run.plan import read_plan
from privacy.storage import open_file, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.run.plan import RoundPlan


@dataclass(frozen=True)
class Made:
    """An update that this site made, with its plan and, if it is masked, the seed of the site's own mask."""

    plan: RoundPlan
    update: SignedUpdate
    mask: bytes


class Outbox:
    """Signed updates on disk, one per run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def last(self, run: str) -> Made | None:
        """Return the last update of a run, if there was one."""
        path = self._path(run)
        if not path.exists():
            return None
        try:
            with open_file(path) as file:
                note = json.loads(file.readline())
                sizes = [int(size) for size in note["chunks"]]
                if not 0 <= min(sizes, default=0) <= sum(sizes) <= path.stat().st_size:
                    raise _cut_off()
                chunks = tuple(file.read(size) for size in sizes)
                if [len(chunk) for chunk in chunks] != sizes or file.read(1):
                    raise _cut_off()
            signature, commitments = (bytes.fromhex(note[name]) for name in ("signature", "commitments"))
            update = SignedUpdate(note["header"].encode(), signature, chunks, commitments)
            return Made(read_plan(note["plan"].encode()), update, bytes.fromhex(note["mask"]))
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            RecursionError,
            MalformedError,
        ) as error:
            msg = f"{path}: this file is damaged; restore it, or move it aside: the site is back in the next round"
            raise KeyFileError(msg) from error

    def find(self, plan: RoundPlan) -> SignedUpdate | None:
        """Return the update already made for this plan, if there is one.

        Raises:
            ProtocolError: if the server asks for the same attempt with another plan, or for an older attempt.
        """
        last = self.last(plan.run)
        if last is None:
            return None
        made, asked = (last.plan.round, last.plan.attempt), (plan.round, plan.attempt)
        if made > asked:
            msg = f"the server asks for round {plan.round}, attempt {plan.attempt}, after a later one; it is refused"
            raise ProtocolError(msg)
        if made != asked:
            return None
        if last.plan != plan:
            msg = f"the server asks for round {plan.round} twice, with different plans; the second is refused"
            raise ProtocolError(msg)
        return last.update

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

    def _path(self, run: str) -> Path:
        return self._folder / f"{run[:16]}.update"


def _cut_off() -> MalformedError:
    return MalformedError("it is not as long as it says")
