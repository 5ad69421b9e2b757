"""Which masks a site has revealed: its own record, so that it never opens two sums of one round."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from privacy.errors import ProtocolError

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.plan import RoundPlan


class Reveals:
    """For which attempt of each round this site has revealed its seed, on disk before it is revealed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, plan: RoundPlan) -> None:
        """Note that the seed for this plan is about to leave. The same plan again changes nothing.

        Raises:
            ProtocolError: if the seed for another attempt at this round, or for a later round, has left before.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{plan.run[:16]}.revealed"
        with open(path, "a+b", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)  # a line that was cut off: nothing left after it
            for line in data.split(b"\n")[:-1]:
                number, _, digest = line.decode().partition(" ")
                if (number, digest) == (str(plan.round), plan.digest):
                    return
                if int(number) > plan.round or (int(number) == plan.round and digest != plan.digest):
                    msg = f"the seed of one attempt at round {number} was revealed already; no other is"
                    raise ProtocolError(msg)
            file.write(f"{plan.round} {plan.digest}\n".encode())
            file.flush()
            os.fsync(file.fileno())
