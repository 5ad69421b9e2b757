"""Keep a run's state in its record, and take it over from a process that was killed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from privacy.errors import MalformedError, ProtocolError, RunError
from privacy.failpoints import failpoint
from privacy.run.plan import is_under_way, read_plan
from strategies.masking import next_attempt
from strategies.run_state import ADVICE, RunState, state_from, state_to_bytes

if TYPE_CHECKING:
    from collections.abc import Collection

    from privacy.crypto.summation import EncryptedSum
    from privacy.run.plan import RoundPlan
    from strategies.event_log import EventLog
    from strategies.membership import Membership
    from strategies.open_round import OpenRound
    from strategies.selection import Selection

_UNKNOWN = "the server was restarted after it had added up this sum, and no longer knows why"


class RunMemory:
    """Keeps the state of one run in its record; takes over what an earlier process left there."""

    def __init__(self, run: str, members: Membership, event_log: EventLog, selection: Selection) -> None:
        """Restore members, event log and selection, if the run was begun before.

        Raises:
            RunError: if the state, or a sum that belongs to it, is damaged or lost.
        """
        self._run, self._members, self._event_log, self._selection = run, members, event_log, selection
        self._kept = event_log.kept
        self.ended = self.released = 0  # the last round that an earlier process ended; how many released a sum
        self._planned = 0  # the last round that had a plan: one without may be begun again
        self.open: RoundPlan | None = None  # the plan that was open when the earlier process ended, until it is taken
        self.asked: tuple[str, ...] = ()  # the contributors whom that process had asked to sign that they are the set
        self._updates: dict[str, str] = {}  # that process's, of the open plan
        if (state := self._kept.state()) is not None:
            try:
                self._restore(state_from(state, run, self._kept.place))
            except (MalformedError, ProtocolError) as error:
                msg = f"{self._kept.place}: a vote or a sum that this run stored is damaged ({error}); {ADVICE}"
                raise RunError(msg) from error
        elif self._kept.holds_sums:
            msg = f"{self._kept.place}: the run's state is lost, though it has released sums; {ADVICE}"
            raise RunError(msg)
        self.resumed = bool(self.ended or self.open)  # whether an earlier process began this run

    def reopen(
        self, current: OpenRound, present: Collection[str], seconds: float, *, masked: bool
    ) -> EncryptedSum | None:
        """Go on with the open plan in the current round, unless too few of its sites are present: it then stays open.

        If a masked plan is too old for sites to train or reveal seeds, another attempt takes its place.

        Returns:
            The plan's sum, if the earlier process stored it: all that is left is to deliver it.
        """
        assert self.open is not None  # noqa: S101 - the caller looked
        plan, stored = self.open, self._event_log.of_plan(self.open)
        current.started, current.number = time.monotonic(), plan.round
        current.problems |= self._members.absent | self._members.problems
        sites = [site for site in plan.cohort if site in present]
        if not stored and len(sites) < plan.minimum_cohort:
            return None
        current.plan, current.resumed, self.open = plan, True, None
        current.updates.update(self._updates)
        if stored:
            total, current.contributors = stored
            current.released, self.asked = True, ()
            lacking = set(plan.cohort) - set(current.contributors) - current.problems.keys()
            current.problems |= dict.fromkeys(lacking, _UNKNOWN)
            return total
        if masked and plan.deadline < time.time() and not (self.asked and is_under_way(plan, seconds)):
            current.plan, self.asked = next_attempt(plan, sites, seconds), ()
        return None

    def keep(self, current: OpenRound, released: int, *, is_open: bool, asked: tuple[str, ...] = ()) -> None:
        """Write the state, with the open round's plan if `is_open`."""
        members = self._members
        sums, undone = self._event_log.released()
        self._planned = current.number if current.plan else self._planned
        plan = current.plan if is_open else self.open
        state = RunState(
            run=self._run,
            round=self._planned,
            plan=plan.to_bytes().decode() if plan else "",
            asked=self.asked if self.open else asked,
            updates=self._updates if self.open else current.updates if is_open else {},
            released=released,
            model=members.model,
            update_bound=members.update_bound,
            expelled=dict(members.expelled),
            sums=sums,
            undone=undone,
            conduct=self._selection.conduct(),
        )
        self._kept.write_state(state_to_bytes(state), released)
        failpoint("state-kept")

    def _restore(self, state: RunState) -> None:
        plan = read_plan(state.plan.encode()) if state.plan else None
        self.ended, self.released = state.round - (plan is not None), state.released
        self.open, self.asked, self._planned = plan, state.asked, state.round
        self._updates = dict(state.updates)
        self._members.model, self._members.update_bound = state.model, state.update_bound
        self._members.expel(state.expelled)
        self._members.begun = True
        self._event_log.restore(self._run, state.sums, state.undone, plan)
        self._selection.restore(state.conduct)
