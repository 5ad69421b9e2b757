"""Keep a run's events and its encrypted sums in its record.

The record reveals no update: sums are ciphertexts, and events hold only what sites chose to report, as plain text. A
site that missed a round gets the missing sums from here.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from privacy.crypto.summation import claimed_site
from privacy.failpoints import failpoint
from privacy.run.plan import read_plan
from privacy.run.votes import Question, Vote
from privacy.untrusted_text import plain
from strategies.event_lines import line_of
from strategies.run_state import ReleasedSum, UndoneSum
from transport.parcel import decode_arrays, encode_arrays
from transport.run_messages import sum_from_arrays, sum_to_arrays

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from privacy.crypto.summation import EncryptedSum
    from privacy.run.manifest import SignedRun
    from privacy.run.plan import RoundPlan
    from strategies.run_record import RunRecord

log = logging.getLogger("cloister.run")  # displays of a run listen here

NO_UPDATE = "no update by the round's deadline"
"""The problem of a site that was asked for an update, and sent none in time."""

_LONGEST = 2000  # characters of one text


def label_of(run: SignedRun) -> str:
    """Return the short name by which people tell a run from others, as its model's file is called."""
    return f"{run.manifest.settings.name}-{run.digest[:8]}"


class Undone(NamedTuple):
    """A sum whose model was rejected: the question, the votes, and the range of updates before it."""

    question: Question
    votes: dict[str, Vote]
    update_bound: float


class EventLog:
    """The events of one run, and its sums: which of them count, and which were undone."""

    def __init__(self, kept: RunRecord, label: str = "") -> None:
        """Take the run's record, and how displays of several runs call it."""
        self.kept, self._label = kept, label
        self._steps: list[ReleasedSum] = []
        self._undone: dict[str, Undone] = {}  # by the resulting model
        self.late = set[str]()  # sites that sent no update in time, in any round since this process began

    def together(self) -> AbstractContextManager[None]:
        """Record what is recorded within this context as one, or nothing of it."""
        return self.kept.together()

    def record(self, event: str, **details: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        """Append an event as strict JSON, with all text made plain. A number that is not finite becomes null."""
        entry: dict[str, Any] = _kept({"event": event, "time": round(time.time(), 3), **details})
        self.kept.append(entry)
        self.late |= {site for site, problem in details.get("problems", {}).items() if problem == NO_UPDATE}
        log.info("%s", ": ".join(filter(None, (self._label, line_of(entry)))), extra={"entry": entry})

    def check_room(self, size: int) -> None:
        """Check that there is room for `size` bytes of sums and updates, before sites are charged.

        Raises:
            StorageError: if there is not.
        """
        self.kept.check_room(size)

    def release(self, total: EncryptedSum) -> None:
        """Store a sum durably, before any site gets it."""
        plan = read_plan(total.plan)
        failpoint("sum-added-up")
        self.kept.write_sum(plan.round, encode_arrays(sum_to_arrays(total)))
        failpoint("sum-stored")
        self._steps.append(ReleasedSum(plan.round, plan.base_model, None))

    def withdraw(self) -> None:
        """Forget the last sum: no site has opened it or will."""
        self.kept.remove_sum(self._steps.pop().round)

    def undo(self, undone: Undone) -> None:
        """Remove the last sum from those that sites need: its model was rejected."""
        self._undone[undone.question.after] = undone
        self._steps.pop()

    def undone(self, model: str) -> Undone | None:
        """Return the undone sum that led to this model, whose sites must go back; None if there is none."""
        return self._undone.get(model)

    def confirm(self, model: str) -> None:
        """Note the model that resulted from the last sum."""
        self._steps[-1] = replace(self._steps[-1], model=model)

    @property
    def started(self) -> bool:
        """Whether any sum has been released."""
        return bool(self._steps or self._undone)

    @property
    def unconfirmed(self) -> bool:
        """Whether the last sum was released but its resulting model is not confirmed."""
        return bool(self._steps) and self._steps[-1].model is None

    def behind(self, model: str) -> int | None:
        """Return how many sums a site with this model lacks; None if this run never had such a model.

        A site whose model was undone goes back first; count from the model before.
        """
        if model in self._undone:
            return self.behind(self._undone[model].question.before) or 0
        if self._steps and self._steps[-1].model == model:
            return 0
        bases = [step.base for step in self._steps]
        return len(bases) - bases.index(model) if model in bases else None

    def missing(self, model: str) -> list[EncryptedSum]:
        """Return the sums that bring a site with this model up to date."""
        lacking = self._steps[len(self._steps) - (self.behind(model) or 0) :]
        return [self._read(step.round) for step in lacking]

    def released(self) -> tuple[tuple[ReleasedSum, ...], tuple[UndoneSum, ...]]:
        """Return the sums that count, and those that were undone, to keep in a run's state."""
        undone = (
            UndoneSum(
                round=at.round,
                base=at.before,
                model=at.after,
                votes={site: vote.to_bytes().hex() for site, vote in votes.items()},
                update_bound=bound,
            )
            for at, votes, bound in self._undone.values()
        )
        return tuple(self._steps), tuple(undone)

    def restore(
        self, run: str, sums: Sequence[ReleasedSum], undone: Sequence[UndoneSum], plan: RoundPlan | None
    ) -> None:
        """Take over the sums of an earlier process.

        Args:
            run: the run's digest.
            sums: those that count.
            undone: those that were undone.
            plan: the plan that was open when it ended. Its sum counts too, if it was stored.
        """
        self._steps = list(sums)
        for one in undone:
            votes = {site: Vote.from_bytes(bytes.fromhex(vote)) for site, vote in one.votes.items()}
            self._undone[one.model] = Undone(Question(run, one.round, one.base, one.model), votes, one.update_bound)
        if plan and self.of_plan(plan):
            self._steps.append(ReleasedSum(plan.round, plan.base_model, None))

    def of_plan(self, plan: RoundPlan) -> tuple[EncryptedSum, tuple[str, ...]] | None:
        """Return the stored sum of a plan and its contributors; None if no sum of it was stored."""
        if not self.kept.has_sum(plan.round):
            return None
        total = self._read(plan.round)
        if total.plan != plan.to_bytes():
            return None
        return total, tuple(claimed_site(part.header, plan) for part in total.contributions)

    def _read(self, number: int) -> EncryptedSum:
        return sum_from_arrays(decode_arrays(self.kept.read_sum(number)))


def _kept(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return a value as it is stored. Text from others was made plain when read; this covers all other text."""
    if isinstance(value, str):
        return plain(value, _LONGEST)
    if isinstance(value, dict):
        return {plain(str(name)): _kept(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_kept(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
