"""Measure time and memory of training with different ways to compute gradients.

The timed code is a site's, `client.dpsgd.training_steps.train`: Poisson batches, clipping, a cipher's noise, steps.
`plain` is the same model on the same batches without privacy: torch's mean loss, one backward pass, plain SGD.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from client.dpsgd.training_steps import train
from client.gradients.choice import Choice, choose
from client.settings import Computing, Gradients
from cloister.benchmarks.zoo import SPECIMENS, Classify
from privacy.noise.randomness import Randomness
from privacy.run.manifest import Manifest
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from client.task.task import Task

Mode = Literal["plain", "auto", "hooks", "functorch"]
MODES: tuple[Mode, ...] = ("plain", "auto", "hooks", "functorch")
_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Course:
    """A model and a batch size, ready to be trained for one epoch in any mode."""

    specimen: str
    batch: int

    @property
    def steps(self) -> int:
        """Steps per epoch, in which every record is used about once."""
        return round(1 / self.sample_rate)

    @property
    def sample_rate(self) -> float:
        """The probability that a record is in a step's batch."""
        return self.batch / SPECIMENS[self.specimen].records

    @cached_property
    def _task(self) -> Classify:
        return Classify(SPECIMENS[self.specimen])

    @cached_property
    def _model(self) -> nn.Module:
        torch.manual_seed(0)
        return self._task.model()

    @cached_property
    def _records(self) -> tuple[Tensor, Tensor]:
        return self._task.load(Path())

    @cached_property
    def _batches(self) -> list[Tensor]:
        """The batches that `train` draws from the randomness below."""
        randomness, batches = self._randomness(), []
        noise = np.empty(sum(parameter.numel() for parameter in self._model.parameters()), np.float32)
        for _ in range(self.steps):
            batches.append(
                (torch.from_numpy(randomness.uniform(len(self._records[0]))) < self.sample_rate).nonzero()[:, 0]
            )
            randomness.fill_gaussian(noise)
        return batches

    @staticmethod
    def _randomness() -> Randomness:
        return Randomness.seeded(0)

    @cached_property
    def _manifest(self) -> Manifest:
        return manifest_of(Classify, SPECIMENS[self.specimen].records, self.steps, self.sample_rate)

    def chosen(self) -> Choice:
        """Return what `auto` chooses."""
        return choose(self._task, self._model, self._records, Computing())

    def refused(self, mode: Mode) -> str:
        """Return why a mode cannot train this model; empty if it can.

        This first epoch also fills caches, before anything is timed.
        """
        try:
            self.seconds(mode)
        except Exception as error:  # noqa: BLE001 - Opacus's modes refuse models in many ways
            return str(error)
        return ""

    def seconds(self, mode: Mode, clock: Callable[[], float] = time.process_time) -> float:
        """Train for an epoch and return the time that it took, in seconds; by default, the processor's."""
        batches, manifest, records = self._batches, self._manifest, self._records
        start = clock()
        if mode == "plain":
            self._train_plain(batches)
        else:
            train(
                self._task,
                self._model,
                records,
                len(records[0]),
                manifest,
                self._randomness(),
                computing=self._settings(mode),
            )
        return clock() - start

    def peak_bytes(self, mode: Mode) -> int:
        """Return the peak of additional memory during training, in bytes. Call it in a fresh process."""
        batches, _ = self._batches, self._manifest  # create them before measuring
        self._train_plain(batches[:1])
        before = peak_memory(begin_anew=True)
        self.seconds(mode)
        return peak_memory() - before

    def _settings(self, mode: Gradients | Literal["plain"]) -> Computing:
        if mode == "auto" or mode == "plain":  # noqa: PLR1714 - narrows the type
            return Computing()
        return Computing(gradients=mode, physical_batch=len(self._records[0]))  # whole batches, as in Opacus

    def _train_plain(self, batches: list[Tensor]) -> None:
        inputs, targets = self._records
        optimizer = torch.optim.SGD(self._model.parameters(), lr=_LEARNING_RATE)
        for batch in batches:
            optimizer.zero_grad()
            self._task.loss(self._model(inputs[batch]), targets[batch]).backward()
            optimizer.step()


def manifest_of(task: type[Task], count: int, steps: int, sample_rate: float) -> Manifest:
    """Return a run of one round of DP-SGD, with σ = 1, for sites with `count` records each."""
    settings = RunSettings(
        name="times",
        task=f"{task.__module__}:{task.__name__}",
        rounds=1,
        training=Training(steps_per_round=steps, sample_rate=sample_rate, learning_rate=_LEARNING_RATE),
        privacy=Privacy(max_grad_norm=1.0, noise_multiplier=1.0),
        encryption=Encryption(update_bound=1.0, collusion_resistant=False),
        cohort=Cohort(dict.fromkeys(("one", "two", "three"), count)),
    )
    return Manifest(settings, 1.0, roster_version=1, nonce="0" * 16, created="", expires=0.0)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Limit torch to one thread within this context."""
    with _on_threads(1):
        yield


@contextmanager
def _on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def on_cores(count: int, threads: int = 1) -> Iterator[None]:
    """Limit torch to so many threads within this context and, on Linux, all threads that start in it to so many cores.

    Where torch leaves a core, a site draws the noise on it.
    """
    with _on_threads(threads):
        if sys.platform != "linux":
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(before)[:count])
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)


def peak_memory(process: int | None = None, *, begin_anew: bool = False) -> int:
    """Return a process's peak memory, in bytes; on Linux, since the last call with `begin_anew`.

    Args:
        process: its number, on Linux; None: this process.
        begin_anew: forget the peak so far.
    """
    folder = Path(f"/proc/{process or 'self'}")
    if not folder.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if begin_anew:
        (folder / "clear_refs").write_text("5", encoding="ascii")  # see proc(5)
    status = (folder / "status").read_text(encoding="utf-8")
    (line,) = [text for text in status.splitlines() if text.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
