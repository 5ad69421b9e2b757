"""A site's models: each run's result so far and, in a run that averages, the model on which training continues.

Without averaging both are one file in `models/`. With `averaging` or `ema_decay`, training continues from the last
round's model, in `outbox/`, while `models/` holds the mean of the rounds' models. The mean is written first. A crash
between the two writes leaves a mean that is one round ahead; when the round's sum comes again, it is kept. If the mean
is lost, the last model counts as lost too: the run's sums restore both.

The algorithm's state (`client.state.algorithm_states`) is in `outbox/`, and the checkpoint names it.

In a run with votes, which has no averaging, `outbox/` keeps the model before the last round, which may be undone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from client.state.algorithm_states import States
from client.state.checkpoint import CheckpointStore
from privacy.codec.update import Model
from strategies.advance import State
from strategies.averaging import include

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from client.state.checkpoint import Checkpoint
    from privacy.codec.update import Layout
    from privacy.run.averaging import Averaging
    from privacy.run.settings import RunSettings


class Models:
    """The models of one site, kept on disk only, since a model may take much of the memory."""

    def __init__(self, results: Path, unfinished: Path) -> None:
        self._results, self._unfinished = CheckpointStore(results), CheckpointStore(unfinished)
        self._states = States(unfinished)

    def load(self, settings: RunSettings, run: str, layout: Layout, state: Sequence[str] = ()) -> Checkpoint | None:
        """Return the checkpoint from which a run continues; None before its first round, or if a part is lost.

        Args:
            settings: the run's settings.
            run: digest of its manifest.
            layout: the model's layout.
            state: names of the vectors in its algorithm's state.

        Raises:
            KeyFileError: if a file is damaged or of another model.
        """
        if settings.kind.mean is None:
            return self._whole(self._results.load(settings.name, run, layout), state)
        latest = self._whole(self._unfinished.load(settings.name, run, layout), state)
        mean = self._results.peek(settings.name, run)
        if latest is None or mean is None:
            return None
        number, digest, before, _ = mean
        fits = digest == latest.average if number == latest.round else before == latest.average
        return latest if fits and number >= latest.round else None

    def before(self, settings: RunSettings, run: str, layout: Layout, state: Sequence[str] = ()) -> Checkpoint | None:
        """Return the checkpoint before the last round of a run with votes; None if that was its first round.

        Raises:
            KeyFileError: if a file is damaged or of another model.
        """
        return self._whole(self._unfinished.load(settings.name, run, layout), state)

    def save(self, settings: RunSettings, latest: Checkpoint) -> tuple[Checkpoint, Path]:
        """Keep an opened round's model; return its checkpoint, and the file with the run's result so far."""
        self._states.save(latest.run, latest.state)
        kept = {latest.state.digest}
        if settings.vote:
            self._results.keep(settings.name, latest.run, self._unfinished)
            before = self._unfinished.peek(settings.name, latest.run)
            kept |= {before[-1]} if before else set()
        saved = self._save(settings, latest)
        self._states.forget(latest.run, kept)
        return saved

    def _save(self, settings: RunSettings, latest: Checkpoint) -> tuple[Checkpoint, Path]:
        averaging = settings.kind.mean
        if averaging is None:
            return latest, self._results.save(settings.name, latest)
        mean = self._mean(settings, latest)
        if mean is None or mean.round != latest.round:
            mean = _next(mean, latest, averaging, averaged=averaging.includes(latest.round, settings.rounds))
            self._results.save(settings.name, mean)
        latest = replace(latest, average=mean.model.digest)
        self._unfinished.save(settings.name, latest)
        return latest, self._results.path(settings.name, latest.run)

    def go_back(self, settings: RunSettings, undone: Checkpoint) -> None:
        """Restore the model before the last round, for the run to continue from."""
        self._results.save(settings.name, undone)

    def result(self, settings: RunSettings, latest: Checkpoint) -> Model:
        """Return a run's result so far: the mean, if there is one, else the latest model."""
        if not latest.average:
            return latest.model
        mean = self._mean(settings, latest)
        return mean.model if mean else latest.model

    def _mean(self, settings: RunSettings, latest: Checkpoint) -> Checkpoint | None:
        averaged = self._results.load(settings.name, latest.run, latest.model.layout)
        return averaged[0] if averaged else None

    def _whole(self, saved: tuple[Checkpoint, str] | None, names: Sequence[str]) -> Checkpoint | None:
        """Return a checkpoint with its state; None if either is missing."""
        if saved is None:
            return None
        checkpoint, digest = saved
        state = self._states.load(checkpoint.run, digest, names, checkpoint.model.layout.size)
        return replace(checkpoint, state=state) if state is not None else None


def _next(mean: Checkpoint | None, latest: Checkpoint, averaging: Averaging, *, averaged: bool) -> Checkpoint:
    """Return the mean after one more round; before averaging starts, that round's model itself."""
    if not averaged or mean is None or not mean.averaged or mean.round > latest.round:
        before = mean.model.digest if mean and mean.round < latest.round else ""
        return replace(latest, average=before, averaged=int(averaged), state=State())
    before, vector = mean.model.digest, mean.model.vector
    include(vector, latest.model.vector, averaging.window(mean.averaged + 1))
    model = Model(vector, latest.model.layout)
    return replace(latest, model=model, average=before, averaged=mean.averaged + 1, state=State())
