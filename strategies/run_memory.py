"""Keep a run's state on the server's disk, and take it over from a process that was killed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.run.plan import read_plan
from strategies.run_state import RunState, read_state, write_state

if TYPE_CHECKING:
    from privacy.run.plan import RoundPlan
    from strategies.event_log import EventLog
    from strategies.membership import Membership
    from strategies.open_round import OpenRound
    from strategies.selection import Selection

STATE = "state.json"


class RunMemory:
    """Keeps the state of one run in its folder; takes over what an earlier process left there."""

    def __init__(self, run: str, members: Membership, event_log: EventLog, selection: Selection) -> None:
        """Restore members, event log and selection, if the run was begun before.

        Raises:
            RunError: if the state is damaged.
        """
        self._run, self._members, self._event_log, self._selection = run, members, event_log, selection
        self._path = event_log.folder / STATE
        self.ended = self.released = 0  # the last round that an earlier process ended; how many released a sum
        self._planned = 0  # the last round that had a plan: one without may be begun again
        self.asked: tuple[str, ...] = ()
        self._open: RoundPlan | None = None
        if state := read_state(self._path, run):
            self._restore(state)

    @property
    def resumed(self) -> bool:
        """Whether an earlier process began this run."""
        return bool(self.ended or self._open)

    def take_open(self) -> RoundPlan | None:
        """Return the plan that was open when the earlier process ended, once; None if there was none."""
        plan, self._open = self._open, None
        return plan

    def keep(self, current: OpenRound, released: int, *, is_open: bool, asked: tuple[str, ...] = ()) -> None:
        """Write the state to disk, with the open round's plan if `is_open`."""
        members = self._members
        sums, undone = self._event_log.released()
        self._planned = current.number if current.plan else self._planned
        state = RunState(
            run=self._run,
            round=self._planned,
            plan=current.plan.to_bytes().decode() if current.plan and is_open else "",
            asked=asked,
            released=released,
            model=members.model,
            update_bound=members.update_bound,
            expelled=dict(members.expelled),
            sums=sums,
            undone=undone,
            conduct=self._selection.conduct(),
        )
        write_state(self._path, state)

    def _restore(self, state: RunState) -> None:
        plan = read_plan(state.plan.encode()) if state.plan else None
        self.ended, self.released = state.round - (plan is not None), state.released
        self._open, self.asked, self._planned = plan, state.asked, state.round
        self._members.model, self._members.update_bound = state.model, state.update_bound
        self._members.expelled = dict(state.expelled)
        self._members.begun = True
        self._event_log.restore(self._run, state.sums, state.undone, plan)
        self._selection.restore(state.conduct)
