"""Opacus's optimizer, with noise from a cipher and sums that every way of computing them can add to.

A logical batch, which the accountant knows of, is computed in physical parts by Opacus's own convention: every part but
the last is announced with `signal_skip_step`, so that sums gather in `p.summed_grad` and noise is added once.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from opacus.optimizers import DPOptimizer
from typing_extensions import override

from client.gradients.clipping import clip_factors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from privacy.randomness import Randomness


class CipherOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus is untyped
    """Clips what stands in `p.grad_sample`, or takes `p.summed_grad` as it is; adds noise; takes the step."""

    def __init__(self, *args: Any, randomness: Randomness, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        super().__init__(*args, **kwargs)
        self._randomness = randomness
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="noise")
        # On a busy machine, waiting for each other takes two threads longer than one thread takes for both.
        self._core_is_free = os.getloadavg()[0] < (os.cpu_count() or 1)
        self._ahead: Future[NDArray[np.float64]] | None = None
        self.dropped = 0  # records whose gradients were not finite

    def draw_ahead(self) -> None:
        """Begin to draw the next step's noise beside the computation of its gradients.

        Until then, nobody else may draw from the randomness.
        """
        if self._scale > 0 and self._core_is_free:
            self._ahead = self._thread.submit(self._draw, self._size)

    def close(self) -> None:
        """Wait for the thread, and end it."""
        self._thread.shutdown()

    @property
    def _scale(self) -> float:
        """σC."""
        return float(self.noise_multiplier * self.max_grad_norm)

    @property
    def _size(self) -> int:
        """How many values a step's noise has. Not to be asked beside a pass, during which parameters may be frozen."""
        return sum(parameter.numel() for parameter in self.params)

    def _draw(self, size: int) -> NDArray[np.float64]:
        drawn = self._randomness.gaussian(size)
        drawn *= self._scale
        return drawn

    @property
    def accumulated_iterations(self) -> int:
        """One: parts of a batch are added up before they count."""
        return 1

    @override
    def clip_and_accumulate(self) -> None:
        """Add the clipped sum of `p.grad_sample` `(n, *p.shape)` to every parameter's `p.summed_grad`."""
        parameters: list[Any] = self.params  # to which Opacus adds attributes
        samples = [parameter.grad_sample for parameter in parameters]
        if any(each is None for each in samples):
            return  # the sums are there already
        rows = [each.float().flatten(1) for each in samples]
        squares = torch.stack([torch.linalg.vector_norm(each, dim=1).square() for each in rows]).sum(0)
        factors, finite = clip_factors(squares, self.max_grad_norm)
        if not finite.all():
            self.dropped += int((~finite).sum())
            rows, factors = [each[finite] for each in rows], factors[finite]
        for parameter, each in zip(parameters, rows, strict=True):
            add_to_sum(parameter, factors @ each)

    @override
    def pre_step(self, closure: Any = None) -> bool:
        """Clip; if the batch is complete, add noise and divide by what is public."""
        self.clip_and_accumulate()
        self._is_last_step_skipped = bool(self._check_skip_next_step())
        if self._is_last_step_skipped:
            return False
        self.add_noise()
        self.scale_grad()
        return True

    @override
    def scale_grad(self) -> None:
        """Divide by the batch that is expected in public, unless the sum is asked for."""
        if self.loss_reduction == "mean":
            expected: Any = self.expected_batch_size  # which Opacus leaves open, and `train` does not
            for parameter in self.params:
                parameter.grad /= expected

    @override
    def add_noise(self) -> None:
        """Set every gradient to the clipped sum plus N(0, (σC)²), in double precision until it is added."""
        drawn = None
        if self._scale > 0:
            drawn, self._ahead = torch.from_numpy(self._ahead.result() if self._ahead else self._draw(self._size)), None
        start, parameters = 0, list[Any](self.params)
        for parameter in parameters:
            total: Tensor = torch.zeros_like(parameter) if parameter.summed_grad is None else parameter.summed_grad
            if drawn is not None:
                part = drawn[start : (start := start + parameter.numel())]
                total += part.to(device=total.device, dtype=total.dtype).view_as(total)
            parameter.grad, parameter.summed_grad = total, None


def add_to_sum(parameter: Any, part: Tensor) -> None:  # noqa: ANN401 - Opacus adds attributes to parameters
    """Add a part of the clipped sum to what a parameter has."""
    part = part.detach().to(parameter.dtype).view_as(parameter)
    parameter.summed_grad = part if parameter.summed_grad is None else parameter.summed_grad.add_(part)
