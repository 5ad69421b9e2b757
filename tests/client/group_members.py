"""What each process of a process group runs: `run(WHAT, FOLDER)`, once with each RANK in its environment.

What it found, it writes to FOLDER, named by its rank.
"""

import json
import os
import signal
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector
from typing_extensions import override

from client.dpsgd.process_group import Order, ProcessGroup, gather
from client.dpsgd.training_steps import take_part, train
from client.settings import Gradients
from privacy.errors import DeviceError
from privacy.noise.randomness import Randomness
from privacy.run.manifest import Manifest
from privacy.run.optimizer import AdamW, Cosine
from privacy.run.tables import Clipping
from strategies.algorithm import PLAIN, LocalSolver
from tests.client.specimens import RECORDS, Scores, computing, make_specimen, manifest
from tests.studies import takes_steps

PATIENCE = timedelta(seconds=10)
MISHAP = 9  # exit code of a process that dies


@dataclass(frozen=True)
class Case:
    """A round of training that comes out the same however many processes train."""

    run: Manifest
    mode: Gradients = "bookkeeping"
    model: str = "mlp"
    records: int = RECORDS
    physical_batch: int = 0
    corrected: bool = False  # as by an algorithm that changes each step
    number: int = 1  # of the round

    @property
    def task(self) -> Scores:
        training = self.run.settings.training
        return (Mirrored if training and training.augmentation_multiplicity else Scores)(self.model)

    def train(self, group: ProcessGroup | None = None, randomness: Randomness | None = None) -> Tensor:
        """Train as one process or as the first one; return the parameters."""
        model, records = self.prepared()
        drawn, how = randomness or Randomness.seeded(5), computing(self.mode, self.physical_batch)
        solver = PLAIN
        if self.corrected:
            size = sum(parameter.numel() for parameter in model.parameters())
            solver = LocalSolver(proximal=0.3, offset=np.linspace(-1, 1, size), steps=3)
        train(self.task, model, records, RECORDS, self.run, drawn, solver=solver, computing=how, group=group,
              number=self.number)  # fmt: skip
        return parameters_to_vector(model.parameters()).detach()

    def take_part(self, order: Order, group: ProcessGroup) -> Tensor:
        """Train as a worker, whose model has other parameters and buffers at first; return the parameters."""
        model, records = self.prepared()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.add_(1)
        take_part(self.task, model, records, order, group)
        return parameters_to_vector(model.parameters()).detach()

    def prepared(self) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        model, (inputs, targets) = make_specimen(self.model)
        return model, (inputs[: self.records], targets[: self.records])


def scheduled() -> Manifest:
    """Return a run of three rounds with another optimizer, whose learning rate changes from step to step."""
    run = manifest(4, 0.6, 1.0)
    assert run.settings.training is not None
    training = replace(run.settings.training, optimizer=AdamW(weight_decay=0.1), schedule=Cosine(warm_up=0.5))
    return replace(run, settings=replace(run.settings, rounds=3, training=training))


def changed(run: Manifest, *, copies: int = 0, clipping: Clipping = "flat") -> Manifest:
    """Return a run that augments records, or clips in another way."""
    assert run.settings.training is not None
    training = replace(run.settings.training, augmentation_multiplicity=copies)
    privacy = replace(run.settings.privacy, clipping=clipping)
    return replace(run, settings=replace(run.settings, training=training, privacy=privacy))


class Mirrored(Scores):
    """Its augmentation draws nothing, so that processes can be compared."""

    @override
    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        del generator
        return 0.5 * inputs.flip(-1)


MODES: tuple[Gradients, ...] = ("bookkeeping", "vmap", "hooks", "functorch", "autograd")
CASES = {
    **{f"{mode}, parts of {size}": Case(manifest(4, 0.6, 1.0), mode, physical_batch=size)
       for mode in MODES for size in (RECORDS, 1)},
    "two dimensions": Case(manifest(3, 0.6, 1.0), model="two dimensions"),
    "tied weights": Case(manifest(3, 0.6, 1.0), "vmap", "tied"),
    "constants": Case(manifest(3, 0.6, 1.0), "vmap", "constants"),
    "without noise": Case(manifest(4, 0.6, 0.0)),
    "corrected": Case(manifest(4, 0.6, 1.0), corrected=True),
    "adam in the second round of a schedule": Case(scheduled(), corrected=True, number=2),
    **{f"augmented, and clipped layer by layer, {mode}":
       Case(changed(manifest(4, 0.6, 1.0), copies=2, clipping="per_layer"), mode, physical_batch=4) for mode in MODES},
    "one record, of the first process": Case(manifest(3, 1.0, 1.0), records=1),
    "two records, now one, now the other": Case(manifest(12, 0.5, 1.0), records=2),
    "empty batches": Case(manifest(3, 1e-9, 1.0)),
    "no records": Case(manifest(3, 1.0, 1.0), "hooks", records=0),
}  # fmt: skip


class Mishap(Scores):
    """Its worker fails in training, after some steps."""

    def __init__(self, signal_number: signal.Signals | None) -> None:
        super().__init__()
        self._signal, self._left = signal_number, 3

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs.sum()  # so that it is called with the records: see `known_losses`
        self._left -= takes_steps()
        if self._left <= 0 and self._signal:
            os.kill(os.getpid(), self._signal)
        if self._left <= 0:
            msg = "a bug of the task's"
            raise ValueError(msg)
        return super().loss(outputs, targets)


def all_cases(group: ProcessGroup, out: Path) -> None:
    arrays = {}
    for name, case in CASES.items():
        if group.rank == 0:
            arrays[name] = case.train(group).numpy()
        elif order := group.await_order():
            arrays[name] = case.take_part(order, group).numpy()
    np.savez(out, **arrays)  # type: ignore[arg-type]  # numpy's stubs take names for options


def noise(group: ProcessGroup, out: Path) -> None:
    """Nothing but noise, from a new key."""
    case = Case(manifest(1, 1e-9, 1.0), model="two dimensions")
    updates = []
    for _ in range(30):
        if group.rank == 0:
            updates.append(case.train(group, Randomness.fresh()))
        elif order := group.await_order():
            updates.append(case.take_part(order, group))
    np.savez(out, noise=torch.stack(updates).numpy())


def listening() -> set[str]:
    """Return the addresses at which this process listens, as Linux writes them."""
    own = {link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.is_symlink()}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in own}


def unlucky(group: ProcessGroup, out: Path, who: int, mishap: signal.Signals | None) -> None:
    model, records = make_specimen("mlp")
    task, how, run = (
        Mishap(mishap) if group.rank == who else Scores(),
        computing("bookkeeping", 1),
        manifest(9, 1.0, 1.0),
    )
    try:
        if group.rank == 0:
            train(task, model, records, RECORDS, run, Randomness.fresh(), computing=how, group=group)
        elif order := group.await_order():
            take_part(task, model, records, order, group)
    finally:
        error = sys.exception()
        out.with_suffix(".json").write_text(json.dumps({"error": repr(error), "lost": group.lost}), encoding="utf-8")


def main(action: str, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    with gather(torch.device("cpu"), patience=PATIENCE) as group:
        assert group is not None
        match action:
            case "all cases":
                all_cases(group, folder / f"{rank}.npz")
                noise(group, folder / f"noise-{rank}.npz")
                (folder / f"listening-{rank}").write_text(" ".join(listening()), encoding="utf-8")
                assert not rank or group.await_order() is None
            case "worker dies" | "worker stops" | "worker fails" | "first fails":
                mishap = {"dies": signal.SIGKILL, "stops": signal.SIGSTOP}.get(action.split()[1])
                unlucky(group, folder / str(rank), int(action.startswith("worker")), mishap)
            case "first dies":
                group.compare(bytes(32))  # until both have joined
                if rank == 0:
                    os._exit(MISHAP)
                group.await_order()
            case "other records":
                group.compare(bytes([rank]) * 32)


def run(action: str, folder: str) -> None:
    """Do it; say why the process group broke."""
    try:
        main(action, Path(folder))
    except DeviceError as error:
        sys.stdout.write(f"{error}\n")
        sys.exit(1)
