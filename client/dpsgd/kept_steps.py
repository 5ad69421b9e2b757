"""Keep what a round has come to, every few steps, so that an agent that is killed goes on from there.

A round that starts again takes its steps anew. One that goes on takes the steps that are left as it would have taken
them, with the same samples and the same noise, and so makes the same update under the same charge. For that it keeps:

    parameters   all that are trained
    optimizer    its momentum or moments
    two keys     under which sampling, noise and torch's draws go on

With the keys, the noise of all later steps can be computed, and with it what the records alone add to the model. So
the file is as secret as the records, and is deleted before the update leaves. Both streams go on under new keys, each
drawn from its stream, whenever steps are kept: the file says nothing about the noise of earlier steps, without which
the parameters in it are as private as those of a released model.

The file counts only for the same run, round, base model, charge, records and settings. The charge is one under which
nothing has left (`Ledger.reserve`), so that of any two things made from one noise, at most one leaves. A file that is
missing, damaged, or for something else is left unused: the round then starts again, with new noise, under its charge.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from privacy.errors import CloisterError, MalformedError
from privacy.failures import sentence
from privacy.storage import read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from client.dpsgd.process_group import Order
    from client.dpsgd.sampling import Chance

log = logging.getLogger("cloister.agent")

_DIGEST_BYTES = 32
_CHOSEN = {"gradients", "physical_batch"}  # how a step is computed, not what


@dataclass(frozen=True)
class StepsFile:
    """Where a round's steps are kept.

    Args:
        path: the file.
        every: after how many steps.
        charge: the head of the round's charge.
        purpose: digest of all else that the file must belong to.
        expires: when the run does, in seconds since 1970.
    """

    path: Path
    every: int
    charge: str
    purpose: bytes
    expires: float

    def of(self, order: Order, start: Sequence[Tensor], offset: Tensor | None) -> KeptSteps:
        """Return the steps of an order, on from the trained parameters with which the round starts."""
        what = {name: value for name, value in asdict(order).items() if name not in _CHOSEN}
        digest = sha256(self.purpose + json.dumps(what, sort_keys=True).encode())
        for tensor in (*start, *([] if offset is None else [offset])):
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return KeptSteps(self, digest.hexdigest())


class KeptSteps:
    """The steps of one round that are kept; those of an earlier process, if there are any."""

    def __init__(self, file: StepsFile, purpose: str) -> None:
        self._file, self._purpose = file, purpose
        self._note: dict[str, Any] = {"step": 0}
        self._tensors: dict[str, Tensor] = {}
        try:
            note, tensors = _read(file.path)
        except FileNotFoundError:
            return
        except (CloisterError, OSError) as error:
            log.warning("this round starts with its first step, as the kept ones cannot be used: %s", sentence(error))
            return
        if (note["charge"], note["purpose"]) != (file.charge, purpose):
            log.warning("%s: kept for another charge, model, setting, or other records; not used", file.path)
            return
        self._note, self._tensors = note, tensors

    @property
    def step(self) -> int:
        """The last of the kept steps; 0 if there are none."""
        return int(self._note["step"])

    def fitted(self, physical_batch: int) -> int:
        """Return how many records were computed at a time."""
        return int(self._note.get("fitted", physical_batch))

    def restore(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, chance: Chance) -> None:
        """Set all trained parameters, the optimizer and both streams as they were after the last of the kept steps."""
        with torch.no_grad():
            for number, parameter in enumerate(parameters):
                parameter.copy_(self._tensors[f"parameter.{number}"])
        for name, tensor in self._tensors.items():
            kind, place, key = name.split(".", 2) if name.startswith("optimizer.") else ("", "", "")
            if kind:
                of = optimizer.param_groups[0]["params"][int(place)]
                optimizer.state[of][key] = tensor if tensor.dim() == 0 else tensor.to(of.device)
        chance.randomness.restart(bytes.fromhex(self._note["noise"]))
        chance.by_torch.restart(bytes.fromhex(self._note["by_torch"]))

    def is_due(self, step: int, steps: range) -> bool:
        """Return whether to keep the steps up to this one; not after the last of a phase, whose optimizer ends."""
        return step % self._file.every == 0 and step != steps[-1]

    def keep(
        self, step: int, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, chance: Chance, fitted: int
    ) -> None:
        """Let both streams go on under new keys, and keep all that the next steps need.

        If the disk does not take it, training goes on: the steps kept before stay.
        """
        keys = {"noise": chance.randomness.renew().hex(), "by_torch": chance.by_torch.renew().hex()}
        tensors = {f"parameter.{number}": parameter for number, parameter in enumerate(parameters)}
        for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
            for name, value in optimizer.state[parameter].items():
                if value is not None:
                    tensors[f"optimizer.{number}.{name}"] = value
        file = self._file
        note = {"charge": file.charge, "purpose": self._purpose, "expires": file.expires, "step": step,
                "fitted": fitted, **keys}  # fmt: skip
        try:
            _write(self._file.path, note, tensors)
        except (CloisterError, OSError) as error:
            log.warning("the steps up to %d could not be kept: %s", step, sentence(error))


class KeptFor(NamedTuple):
    """What a file was kept for: the head of a charge, and when its run expires, in seconds since 1970."""

    charge: str
    expires: float


def kept_for(path: Path) -> KeptFor | None:
    """Return what a file was kept for; None if the file cannot be read."""
    try:
        note = _read(path)[0]
        return KeptFor(str(note["charge"]), float(note["expires"]))
    except (CloisterError, OSError, KeyError, ValueError, TypeError):
        return None


def _write(path: Path, note: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    line = json.dumps(note).encode() + b"\n"
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    digest = sha256(line)
    digest.update(data)
    write_atomically(path, digest.digest(), line, data)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file.

    Raises:
        MalformedError: if it is damaged.
        OSError, VaultError: if it cannot be read.
    """
    data = read_file(path)
    digest, kept = data[:_DIGEST_BYTES], memoryview(data)[_DIGEST_BYTES:]
    if sha256(kept).digest() != digest:
        msg = f"{path} is damaged"
        raise MalformedError(msg)
    try:
        end = data.index(b"\n", _DIGEST_BYTES) + 1
        note: dict[str, Any] = json.loads(data[_DIGEST_BYTES:end])
        return note, load(data[end:])
    except (ValueError, SafetensorError) as error:  # another version's
        msg = f"{path} has another form"
        raise MalformedError(msg) from error
