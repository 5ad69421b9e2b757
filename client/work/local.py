"""Run an algorithm's local half at a site: it gets a function that trains, and no access to records.

It may call `train` once per round, for no more steps than the ledger was charged for. The result already has its noise;
with shared noise, which is added later, the algorithm has no local half.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from client.task.user_code import foreign
from privacy.codec.update import Update
from privacy.errors import TaskError
from strategies.algorithm import LocalRound, LocalSolver, Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from client.round.admission import AdmittedRun, Round
    from client.state.checkpoint import Checkpoint
    from strategies.algorithm import Algorithm, Values


def local_round(admitted: AdmittedRun, checkpoint: Checkpoint) -> LocalRound:
    """Return what an algorithm may know at a site before it trains."""
    return LocalRound(
        run=Run.of(admitted.settings),
        site=admitted.site.name,
        model=checkpoint.model.vector,
        state=checkpoint.state.vectors,
        own=admitted.site.own.load(checkpoint.run, admitted.algorithm.own, checkpoint.model.layout.size),
    )


def train_locally(name: str, algorithm: Algorithm, at: LocalRound, train: Callable[[LocalSolver], Update]) -> Update:
    """Return the update that an algorithm sends after one training.

    Args:
        name: the algorithm's name, for messages.
        algorithm: the run's algorithm.
        at: what the algorithm may know.
        train: makes the update, with its noise.

    Raises:
        TaskError: if the algorithm trains twice, takes more steps than were charged, or returns a vector of another
            size than the model's.
        MalformedError: if a value is not finite.
    """
    trained, failed, updates = False, list[BaseException](), list[Update]()

    def once(solver: LocalSolver) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        nonlocal trained
        if trained or (solver.steps is not None and not 0 <= solver.steps <= at.run.steps):
            msg = f"the strategy {name} trains more often in a round than the run is charged for; call train once"
            raise TaskError(msg)
        trained = True
        try:
            updates.append(train(solver))
            return updates[0].vector
        except BaseException as error:
            failed.append(error)
            raise

    with _blaming(failed), foreign(name, "local()"):
        vector = np.require(algorithm.local(at, once), np.float32, ["C", "W", "O"])  # later changed in place
    if vector.shape != at.model.shape:
        msg = (
            f"the strategy {name} sends values of shape {vector.shape}, but the model has shape {at.model.shape}; "
            "correct its local()"
        )
        raise TaskError(msg)
    return Update(vector, updates[0].local if updates else {})  # the algorithm does not see what stays at the site


@contextmanager
def _blaming(failed: list[BaseException]) -> Iterator[None]:
    """Raise training's own error unchanged, even if the algorithm caught it: the algorithm is not to blame."""
    try:
        yield
    except TaskError:
        if not failed:
            raise
    if failed:
        raise failed[0]


def keep_own(current: Round, at: LocalRound, sent: Values) -> None:
    """Keep an algorithm's new vectors, which count if the update `(n,)` that it sent becomes part of the sum.

    Raises:
        TaskError: if the algorithm returns other vectors than it declares.
    """
    algorithm, name = current.algorithm, str(current.settings.strategy["name"])
    with foreign(name, "keep()"):
        kept = {key: np.asarray(values, np.float64) for key, values in algorithm.keep(at, sent).items()}
    if set(kept) != set(algorithm.own) or any(value.shape != sent.shape for value in kept.values()):
        msg = f"the strategy {name} keeps vectors other than those in its `own`; correct its keep()"
        raise TaskError(msg)
    current.site.own.keep(current.plan, kept)
