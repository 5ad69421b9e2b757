"""Several processes of one site, a device each, that train a model together: `torchrun -m cloister agent north`.

The first process is the agent as ever: it speaks with the server, holds keys and ledger, charges and encrypts. The
others are workers. They have the site's settings and records, and do nothing but what the first one hands out, once the
round is charged.

What the processes tell each other are sums without noise, and nothing that torch offers encrypts them or asks who is
there. So all of them run on one machine, with gloo on its loopback. Torchrun's own store, which anyone may write to who
reaches its port, gives the name of a folder and no more; in there, where only this account can write, they meet.

They fail together. Whatever goes wrong in one of them during a round, all end: the first one says so in its log and to
the server. What was charged stays charged. `torchrun --max-restarts` starts them anew.

    waiting   group in which workers wait for a round, which may be days off
    default   group in which they train: whoever keeps the others waiting for longer than `patience` is given up
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import socket
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from stat import S_IRWXG, S_IRWXO
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from client.dpsgd.torchrun import own_place
from privacy.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from client.settings import Gradients, Precision

_PATIENCE = timedelta(minutes=10)
_FOREVER = timedelta(days=3650)


@dataclass(frozen=True)
class Order:
    """What workers have to know of a round. Neither the noise nor the sampling rate: they draw nothing."""

    task: str
    model_seed: int
    gradients: Gradients
    physical_batch: int
    precision: Precision
    steps: int
    learning_rate: float
    max_grad_norm: float
    expected_batch_size: float  # of all processes together
    proximal: float = 0.0  # what is added to each step's gradient, times the way from the start
    offset: bool = False  # whether a vector is added as well, which the first process hands out


class ProcessGroup:
    """This process among those that train together."""

    def __init__(self, waiting: distributed.ProcessGroup, when_lost: Callable[[], None]) -> None:
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.lost = False
        self._waiting, self._when_lost = waiting, when_lost

    def compare(self, digest: bytes) -> None:
        """See that all processes have read the same records, however long that takes them.

        Args:
            digest: of the records that this one read, 32 bytes.

        Raises:
            DeviceError: if they have not, or one has ended.
        """
        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self.talking():
            distributed.all_gather(found, own, group=self._waiting)
        if any(not torch.equal(each, own) for each in found):
            msg = "this site's processes have not read the same records; do not change the file, and start them again"
            raise DeviceError(msg)

    def hand_out(self, order: Order | None) -> None:
        """Tell the workers to take part in a round, or to end."""
        data = json.dumps(asdict(order)).encode() if order else b""
        with self.talking():
            distributed.broadcast(torch.tensor(len(data)), 0, group=self._waiting)
            if data:
                distributed.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0, group=self._waiting)

    def await_order(self) -> Order | None:
        """Return what a worker is to do next, or None if it is to end.

        Raises:
            DeviceError: if the first process has ended without a word.
        """
        length = torch.tensor(0)
        with self.talking():
            distributed.broadcast(length, 0, group=self._waiting)
            data = torch.empty(int(length), dtype=torch.uint8)
            if len(data):
                distributed.broadcast(data, 0, group=self._waiting)
        return Order(**json.loads(data.numpy().tobytes())) if len(data) else None

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values, of whatever type."""
        with self.talking():
            for tensor in tensors:
                values = tensor.detach().contiguous().view(-1).view(torch.uint8)
                distributed.broadcast(values, 0)
                tensor.copy_(values.view(tensor.dtype).view(tensor.shape))

    def own_part(self, draw: Callable[[int], Tensor], count: int) -> Tensor:
        """Have the first process draw a step's sample; return which records of it are this one's: every size-th.

        A record has one process and no other, so that it is added once whatever the others are told.

        Args:
            draw: returns which of so many records are in the batch, `(n,)` booleans; a worker does not call it.
            count: n.
        """
        sample = draw(count) if self.rank == 0 else torch.empty(count, dtype=torch.bool)
        with self.talking():
            distributed.broadcast(sample.view(torch.uint8), 0)
        chosen = sample.nonzero().squeeze(1)
        return chosen[chosen % self.size == self.rank]

    def meet(self) -> None:
        """Wait until all processes have come so far. Devices could not be called back from waiting for each other."""
        with self.talking():
            distributed.all_reduce(torch.zeros(1))

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Say in our words that others could not be reached.

        Raises:
            DeviceError: if so.
        """
        try:
            yield
        except RuntimeError as error:  # all that torch.distributed raises
            self.lose()
            reason = str(error).strip().partition("\n")[0].partition(". ")[0][:200]
            msg = (
                f"process {self.rank} of {self.size} has lost another one ({reason}); what was charged stays charged. "
                "See what the other one said, and start them all again"
            )
            raise DeviceError(msg) from error

    @contextmanager
    def round(self) -> Iterator[None]:
        """Give the group up if anything goes wrong: the others would wait for what does not come."""
        try:
            yield
        except BaseException:
            self.lose()
            raise

    def lose(self) -> None:
        """Give the group up."""
        self.lost = True
        self._when_lost()


@contextmanager
def gather(
    device: torch.device, when_lost: Callable[[], None] = lambda: None, patience: timedelta = _PATIENCE
) -> Iterator[ProcessGroup | None]:
    """Meet this site's other processes, if there are any; when the first one leaves, the others end.

    Args:
        device: that this process trains on.
        when_lost: called once the group cannot train any more.
        patience: how long to wait for others within a step.

    Raises:
        DeviceError: if one does not come.
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
            msg = f"this site's processes have not found each other ({error}); start them all with one torchrun command"
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
    """End with status 1, at once: gloo's threads may abort an interpreter that goes on after one has lost its peer."""
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
    store.wait([str(each) for each in range(size)], _PATIENCE)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    waiting: Any = distributed.new_group(backend="gloo", timeout=_FOREVER)  # torch's types allow for other returns
    return ProcessGroup(waiting, when_lost)


def private(folder: Path) -> Path:
    """Return a folder in which only this account can write.

    Raises:
        DeviceError: if it is another's as well.
    """
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & (S_IRWXG | S_IRWXO):
        msg = f"torchrun's store names {folder}, which is not this account's alone; does somebody else reach its port?"
        raise DeviceError(msg)
    return folder
