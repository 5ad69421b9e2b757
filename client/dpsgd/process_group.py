"""Several processes of one site, one per device, that train a model together: `torchrun -m cloister agent north`.

The first process is the agent: it talks to the server, holds keys and ledger, charges and encrypts. The others are
workers. They have the site's settings and records, and do only what the first process hands out, once the round is
charged.

The processes exchange sums without noise, which torch can neither encrypt nor authenticate. So all of them run on one
machine, with gloo on its loopback interface. Torchrun's own store, to which anyone who reaches its port may write,
serves only to pass the name of a folder; the processes meet in that folder, in which only this account can write.

They fail together. If anything goes wrong in one of them during a round, all end; the first process reports it in its
log and to the server. What was charged stays charged. `torchrun --max-restarts` starts them again.

    waiting   the group in which workers wait for a round, perhaps for days
    default   the group in which they train: no process waits for another for longer than `patience`
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import sys
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from stat import S_IRWXG, S_IRWXO
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from client.dpsgd.torchrun import own_place
from client.settings import Gradients, Precision
from privacy.config import STRICT
from privacy.errors import DeviceError
from privacy.run.optimizer import Optimizer, Schedule
from privacy.run.tables import Clipping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

_PATIENCE = timedelta(minutes=10)
_FOREVER = timedelta(days=3650)


@dataclass(frozen=True, config=STRICT)
class Order:
    """What workers must know about a round. They draw nothing, so it holds neither noise nor sampling rate."""

    task: str
    model_seed: int
    gradients: Gradients
    physical_batch: int
    precision: Precision
    steps: int
    learning_rate: float
    optimizer: Optimizer
    schedule: Schedule
    number: int  # of the round, from 1
    augmentation_multiplicity: int
    rounds: int
    steps_per_round: int  # of the run; `steps` may be fewer
    max_grad_norm: float
    clipping: Clipping
    expected_batch_size: float  # of all processes together
    proximal: float = 0.0  # factor μ: each step's gradient gets μ · (w − w₀)
    offset: bool = False  # whether it also gets a vector, which the first process hands out
    local_steps: int = 0  # the first steps, which train only what stays at the site; the others only what is shared

    @property
    def phases(self) -> list[range]:
        """The round's steps, from 1, in one or two phases."""
        if not self.local_steps:
            return [range(1, self.steps + 1)]
        return [range(1, self.local_steps + 1), range(self.local_steps + 1, self.steps + 1)]

    def rate(self, step: int) -> float:
        """Return the learning rate of one of the round's steps, from 1."""
        before = (self.number - 1) * self.steps_per_round
        return self.learning_rate * self.schedule.fraction(before + step, self.steps_per_round, self.rounds)


class ProcessGroup:
    """The processes that train together, as seen from this one."""

    def __init__(self, waiting: distributed.ProcessGroup, when_lost: Callable[[], None]) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.lost = False
        self._waiting, self._when_lost = waiting, when_lost

    def compare(self, digest: bytes) -> None:
        """Check that all processes have read the same records, however long that takes.

        Args:
            digest: digest of the records that this process read, 32 bytes.

        Raises:
            DeviceError: if they have not, or a process has ended.
        """
        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        digests = [torch.empty_like(own) for _ in range(self.size)]
        with self.talking():
            distributed.all_gather(digests, own, group=self._waiting)
        if any(not torch.equal(other, own) for other in digests):
            msg = (
                "this site's processes read different records; start them again, and leave the file unchanged while "
                "they run"
            )
            raise DeviceError(msg)

    def hand_out(self, order: Order | None) -> None:
        """Tell the workers to take part in a round, or to end."""
        data = json.dumps(asdict(order)).encode() if order else b""
        with self.talking():
            distributed.broadcast(torch.tensor(len(data)), 0, group=self._waiting)
            if data:
                distributed.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, group=self._waiting)

    def await_order(self) -> Order | None:
        """Return a worker's next order, or None if it is to end.

        Raises:
            DeviceError: if the first process has ended without notice.
        """
        length = torch.tensor(0)
        with self.talking():
            distributed.broadcast(length, 0, group=self._waiting)
            data = torch.empty(int(length), dtype=torch.uint8)
            if len(data):
                distributed.broadcast(data, 0, group=self._waiting)
        return TypeAdapter(Order).validate_json(data.numpy().tobytes()) if len(data) else None

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's values, of any type, to all processes."""
        with self.talking():
            for tensor in tensors:
                values = tensor.detach().contiguous().view(-1).view(torch.uint8)
                distributed.broadcast(values, 0)
                tensor.copy_(values.view(tensor.dtype).view(tensor.shape))

    def own_part(self, draw: Callable[[int], Tensor], count: int) -> Tensor:
        """Have the first process draw a step's sample, and return the indices of this process's records in it.

        Record i belongs to process i mod size, so it is added only once, whatever other processes receive.

        Args:
            draw: draws the batch from n records, `(n,)` booleans; a worker does not call it.
            count: n.
        """
        sample = draw(count) if self.rank == 0 else torch.empty(count, dtype=torch.bool)
        with self.talking():
            distributed.broadcast(sample.view(torch.uint8), 0)
        chosen = sample.nonzero().squeeze(1)
        return chosen[chosen % self.size == self.rank]

    def meet(self) -> None:
        """Wait until all processes reach this point. Devices that wait for each other could not be interrupted."""
        with self.talking():
            distributed.all_reduce(torch.zeros(1))

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Turn torch's errors into one of Cloister's.

        Raises:
            DeviceError: if other processes cannot be reached.
        """
        try:
            yield
        except RuntimeError as error:  # the base of all torch.distributed errors
            self.lose()
            reason = str(error).strip().partition("\n")[0].partition(". ")[0][:200]
            msg = (
                f"process {self.rank} of {self.size} lost another process ({reason}); what was charged stays "
                "charged. Read the log of the other process, and start them all again"
            )
            raise DeviceError(msg) from error

    @contextmanager
    def round(self) -> Iterator[None]:
        """Abandon the group if anything goes wrong, since the others would wait in vain."""
        try:
            yield
        except BaseException:
            self.lose()
            raise

    def lose(self) -> None:
        """Mark the group as lost, and call `when_lost`."""
        self.lost = True
        self._when_lost()


@contextmanager
def gather(
    device: torch.device, when_lost: Callable[[], None] = lambda: None, patience: timedelta = _PATIENCE
) -> Iterator[ProcessGroup | None]:
    """Meet this site's other processes, if there are any; when the first process leaves, the others end.

    Args:
        device: the device on which this process trains.
        when_lost: called once the group cannot train any more.
        patience: how long to wait for others within a step.

    Raises:
        DeviceError: if a process does not join.
    """
    if own_place().size == 1:
        yield None
        return
    if loopback := next((name for _, name in socket.if_nameindex() if name in {"lo", "lo0"}), None):
        os.environ["GLOO_SOCKET_IFNAME"] = loopback  # gloo reads it
    with TemporaryDirectory(prefix="cloister-") as folder:
        try:
            group = _meet(Path(folder), device, when_lost, patience)
        except (RuntimeError, OSError) as error:
            msg = f"this site's processes did not find each other ({error}); start them all with one torchrun command"
            raise DeviceError(msg) from error
        try:
            yield group
            if group.rank == 0 and not group.lost:
                group.hand_out(None)
        finally:
            if group.lost:
                atexit.register(_end_now)
            else:
                distributed.destroy_process_group()


def _end_now() -> None:
    """Exit at once with status 1: after a lost peer, gloo's threads may abort an interpreter that goes on."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _meet(folder: Path, device: torch.device, when_lost: Callable[[], None], patience: timedelta) -> ProcessGroup:
    known, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
    if rank == 0:
        known.set("folder", str(folder))
    folder = private(Path(known.get("folder").decode()))
    store = distributed.FileStore(str(folder / "store"), size)  # type: ignore[attr-defined]  # torch's list lacks it
    store.set(str(rank), "here")
    store.wait([str(number) for number in range(size)], _PATIENCE)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    waiting: Any = distributed.new_group(backend="gloo", timeout=_FOREVER)  # torch's types allow other return values
    return ProcessGroup(waiting, when_lost)


def private(folder: Path) -> Path:
    """Return the folder, having checked that only this account has access.

    Raises:
        DeviceError: if other accounts have access too.
    """
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & (S_IRWXG | S_IRWXO):
        msg = f"torchrun's store names {folder}, to which other accounts have access; check who can reach its port"
        raise DeviceError(msg)
    return folder
