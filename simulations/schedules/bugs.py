"""Bugs put in on purpose: a line of the protocol's own code is replaced, and schedules must find that.

Most of the code that a bug disables has a second line of defence; where that alone would hide the bug, both are out.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack, contextmanager
from textwrap import dedent
from typing import TYPE_CHECKING, NamedTuple

from client.round import train_round
from client.state.outbox import Outbox
from privacy import files, storage
from privacy.codec import envelope, header
from privacy.crypto import summation
from privacy.ledger.ledger import Ledger
from simulations.schedules.clock import replaced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FunctionType, ModuleType


class Edit(NamedTuple):
    """One change to a function's or method's source."""

    home: ModuleType | type  # where it is defined
    name: str
    old: str
    new: str


_RETRAINING = (
    Edit(train_round, "train_round", "update is None and ledger.has_left(current.release)", "False"),
    Edit(Ledger, "leaves", "elif before != update:", "elif False:"),
)
BUGS: dict[str, tuple[Edit, ...]] = {
    "a lost fsync, of the ledger": (
        Edit(storage, "append", "os.fsync(descriptor)", "pass"),
    ),
    "a lost fsync, of replaced files": (
        Edit(files, "replace_file", "os.fsync(file.fileno())", "pass"),
    ),
    "a retry that trains again": (
        Edit(train_round, "train_round", "update = site.outbox.find(plan)", "update = None"),
        *_RETRAINING,
    ),
    "another attempt that trains again": (
        Edit(train_round, "_make_update", "packed, whole = recover(current), None", "packed, whole = None, None"),
    ),
    "a missing attempt check, at the sites": (
        Edit(Outbox, "find", "if noted == wanted:", "if False:"),
        *_RETRAINING,
    ),
    "a missing attempt check, at the server": (
        Edit(header, "verify_header", "if getattr(header, name) != value:",
             'if name in {"site", "weight"} and getattr(header, name) != value:'),
        Edit(summation.RunningSum, "add", "header.plan != self.plan.digest", "False"),
    ),
    "a quorum off by one, at the server": (
        Edit(summation.RunningSum, "close", "< self.plan.minimum_cohort:", "< self.plan.minimum_cohort - 1:"),
    ),
    "a quorum off by one, at the sites": (
        Edit(summation, "check_contributions", "< manifest.settings.cohort.minimum:",
             "< manifest.settings.cohort.minimum - 1:"),
    ),
    "an unverified digest": (
        Edit(envelope, "verify_update",
             "(ciphertexts.digest, seeds_digest(ciphertexts.seeds)) != (header.ciphertexts, header.seeds)", "False"),
    ),
}  # fmt: skip
"""The bugs, by name."""


@contextmanager
def put_in(bug: str) -> Iterator[None]:
    """Have this process run with a bug within this context.

    Raises:
        ValueError: if the source is no longer what the bug replaces.
    """
    sources: dict[FunctionType, str] = {}
    for home, name, old, new in BUGS[bug]:
        function = vars(home)[name]
        source = sources.get(function) or dedent(inspect.getsource(function))
        if source.count(old) != 1:
            msg = f"the source of {name} does not have {old!r} once; change the bug {bug!r}"
            raise ValueError(msg)
        sources[function] = source.replace(old, new)
    with ExitStack() as stack:
        for function, source in sources.items():
            made: dict[str, FunctionType] = {}
            exec(f"from __future__ import annotations\n{source}", {}, made)  # noqa: S102 - our own code
            code = made[function.__name__].__code__
            stack.enter_context(replaced(function, "__code__", code))  # wherever it was imported
        yield
