"""Opacus's optimizer, with noise from a cipher and clipped sums from one of Cloister's modes.

A logical batch, the accountant's unit, is computed in physical parts by Opacus's convention: every part but the last is
announced with `signal_skip_step`, so that sums gather in `p.summed_grad` and noise is added once.
"""

from __future__ import annotations

import logging
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from opacus.optimizers import DPOptimizer
from typing_extensions import override

from client.gradients.memory import NoMemoryLeft, running_out
from privacy.errors import TaskError

if TYPE_CHECKING:
    from torch import Tensor

    from client.data.site_records import Records
    from client.gradients.mode import GradientMode
    from privacy.noise.randomness import Randomness


log = logging.getLogger("cloister.agent")


def usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class CipherOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus is untyped
    """Adds noise to the clipped sums that a mode has left in `p.summed_grad`, and takes the step."""

    def __init__(self, *args: Any, randomness: Randomness, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(*args, **kwargs)
        self._randomness = randomness
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self._ahead: Future[None] | None = None

    def draw_ahead(self) -> None:
        """Start drawing the next step's noise, if that does not take a core from those that compute the gradients.

        Nobody else may draw from the randomness until the step is taken.
        """
        if self._scale > 0 and self._draws_ahead:
            self._ahead = self._thread.submit(self._draw, self._noise)

    def close(self) -> None:
        """Wait for the thread, and end it."""
        self._thread.shutdown()

    @cached_property
    @override
    def params(self) -> list[Any]:  # pyright: ignore[reportIncompatibleMethodOverride] - a property of Opacus
        """The trained parameters, to which Opacus adds attributes; collected once, as a pass may freeze some."""
        return [parameter for group in self.param_groups for parameter in group["params"] if parameter.requires_grad]

    @cached_property
    def _draws_ahead(self) -> bool:
        """Whether another device computes the gradients, or torch leaves this process a core."""
        return usable_cores() > torch.get_num_threads() or any(
            parameter.device.type != "cpu" for parameter in self.params
        )

    @property
    def _scale(self) -> float:
        """σC."""
        return float(self.noise_multiplier * self.max_grad_norm)

    @property
    def _share(self) -> float:
        """The public number by which sums are multiplied: one over the expected batch size, or 1."""
        expected: Any = self.expected_batch_size  # optional in Opacus, always set here
        return 1.0 / float(expected) if self.loss_reduction == "mean" else 1.0

    @cached_property
    def _noise(self) -> Tensor:
        """The noise of all parameters, `(values,)`, written anew in every step."""
        double = any(parameter.dtype is torch.float64 for parameter in self.params)
        size = sum(parameter.numel() for parameter in self.params)
        return torch.empty(size, dtype=torch.float64 if double else torch.float32)

    @cached_property
    def _parts(self) -> list[Tensor]:
        """The same memory, shaped as the parameters."""
        parts = self._noise.split([parameter.numel() for parameter in self.params])
        return [part.view(parameter.shape) for part, parameter in zip(parts, self.params, strict=True)]

    def _drawn(self, sums: list[Tensor]) -> list[Tensor]:
        """Return the noise, shaped as the sums. To another device it is copied as one: every copy makes both wait."""
        device = sums[0].device
        if device.type == "cpu":
            return self._parts
        parts = self._noise.to(device).split([total.numel() for total in sums])
        return [part.view(total.shape) for part, total in zip(parts, sums, strict=True)]

    def _draw(self, room: Tensor) -> None:
        self._randomness.fill_gaussian(room.numpy(), self._scale * self._share)

    def take(self, mode: GradientMode, records: Records, chosen: Tensor, physical_batch: int) -> None:
        """Take one step on the chosen records, in parts. An empty batch gets noise too.

        Args:
            mode: fills `p.summed_grad`.
            records: the records `(n, ...)`, on the model's device.
            chosen: the logical batch, `(k,)` indices of records.
            physical_batch: the number of records computed at a time, or of their augmented copies.

        Raises:
            DataError: if a record cannot be read.
            TaskError: if gradients are not those of single records; clipping would not bound a record's influence.
        """
        size, whole = mode.at_once(physical_batch), chosen.shape[0]
        for number, (inputs, targets) in enumerate(records.parts(chosen, size), start=1):
            self.signal_skip_step(number * size < whole)
            self.zero_grad(set_to_none=True)
            with running_out():
                mode.fill(inputs, targets)
            self.step()

    def take_what_fits(self, mode: GradientMode, records: Records, chosen: Tensor, physical_batch: int) -> int:
        """Take one step; start it again with smaller parts if memory runs out before its gradients are computed.

        The step has the same records and the same noise. Arguments and errors are those of `take`.

        Returns:
            The number of records computed at a time.

        Raises:
            NoMemoryLeft: if there is too little memory for a single record.
        """
        dropped = mode.dropped
        while True:
            try:
                self.take(mode, records, chosen, physical_batch)
            except NoMemoryLeft:
                if mode.at_once(physical_batch) <= 1:
                    raise
            else:
                return physical_batch
            mode.dropped = dropped
            self._forget()
            physical_batch = max(1, physical_batch // 2)
            log.warning("memory ran out in a step: it starts again with %d records at a time", physical_batch)

    def _forget(self) -> None:
        """Forget the sums of a batch that was not completed, and free their memory."""
        self._check_skip_next_step()  # was announced for the part that failed
        self._is_last_step_skipped = False
        self.zero_grad(set_to_none=True)
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    @override
    def zero_grad(self, set_to_none: bool = False) -> None:
        """Forget gradients; sums too, unless a part of a batch has left them. They are set to None in any case."""
        del set_to_none
        for parameter in self.params:
            parameter.grad = parameter.grad_sample = None
            if not self._is_last_step_skipped:
                parameter.summed_grad = None

    @override
    def clip_and_accumulate(self) -> None:
        """Check that the mode has clipped and summed the gradients of every parameter.

        Raises:
            TaskError: if a parameter has no sum.
        """
        if any(getattr(parameter, "summed_grad", None) is None for parameter in self.params):
            msg = "a trained parameter of the model has no gradient; this is a bug in Cloister, please report it"
            raise TaskError(msg)

    @override
    def pre_step(self, closure: Any = None) -> bool:
        """If the batch is complete, add noise and divide by a public number."""
        self.clip_and_accumulate()
        self._is_last_step_skipped = bool(self._check_skip_next_step())
        if self._is_last_step_skipped:
            return False
        self.add_noise()
        return True

    @override
    def add_noise(self) -> None:
        """Set every gradient to the clipped sum plus N(0, (σC)²), divided by the public expected batch size.

        The noise is drawn in double precision, and rounded to the parameters' precision. If the reduction is the sum,
        nothing is divided.
        """
        parameters, share, noisy = self.params, self._share, self._scale > 0
        sums: list[Tensor] = [parameter.summed_grad for parameter in parameters]
        if noisy:
            if self._ahead:
                self._ahead.result()
                self._ahead = None
            else:
                self._draw(self._noise)
            for noise, total in zip(self._drawn(sums), sums, strict=True):
                torch.add(noise.to(total), total, alpha=share, out=total)
        for parameter, total in zip(parameters, sums, strict=True):
            if not noisy:
                total.mul_(share)
            parameter.grad, parameter.summed_grad = total, None
