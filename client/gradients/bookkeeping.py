"""`bookkeeping`: one forward and one backward pass.

After Bu et al., 2022, "Differentially Private Optimization on Large Model at Small Cost".
During the pass, parameters need no gradients, so that torch computes none for them. Hooks keep every layer's input, and
the backward pass asks for the gradients of the layers' outputs alone. From the two come every record's norm, then its
clipping factor, and then the sum of clipped gradients, for about what torch would have spent on the unclipped sum.

A layer's outputs are kept as edges of autograd's graph, so that what follows may change them in place. Its input cannot
change later: autograd, with which every mode is compared, refuses a model that does so.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from typing_extensions import override

from client.gradients.clipping import clip_factors
from client.gradients.layers import KNOWN, Call
from client.gradients.mode import GradientMode, check_rows
from client.gradients.optimizer import add_to_sum
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from client.gradients.loss import RecordLoss


class _Start(torch.autograd.Function):
    """Where autograd's graph begins if the inputs are integers: the output of a layer whose input has no gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        """Return the output as it is, as something that depends on the anchor."""
        del anchor
        ctx.mark_dirty(output)  # no copy, and it may be changed in place later
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's
        """Stop here: the gradient is taken from the edge that leads here."""
        del ctx
        return gradients[0], None


class BookKeeping(GradientMode):
    """Adds to `p.summed_grad`."""

    def __init__(self, model: nn.Module, loss: RecordLoss, max_grad_norm: float) -> None:
        super().__init__(model, loss_reduction="sum")
        self.loss, self.max_grad_norm = loss, max_grad_norm
        self._noted: list[tuple[nn.Module, Tensor, Any]] = []  # layer, input, edge of its output
        self._taking_notes = False
        self._parameters_of_model = list(model.parameters())
        self._anchor = torch.zeros(0, requires_grad=True)
        self._values = 0
        self._hooks = [part.register_forward_hook(self._note) for part in model.modules() if type(part) in KNOWN]

    @property
    @override
    def values_a_record(self) -> int:
        """What the last records took."""
        return self._values

    @override
    def remove_hooks(self) -> None:
        """Give the layers back as they were."""
        for hook in self._hooks:
            hook.remove()

    @override
    def fill(self, inputs: Tensor, targets: Tensor) -> None:
        calls = self._run(inputs, targets)
        with torch.no_grad():
            shares = [share for layer in calls for share in KNOWN[type(layer)](layer, calls[layer])]
            factors, finite = clip_factors(
                torch.stack([share.squares() for _, share in shares]).sum(0), self.max_grad_norm
            )
            self._values = sum(share.values for _, share in shares) // len(inputs)
            if not finite.all():
                self.dropped += int((~finite).sum())
                factors, shares = factors[finite], [(parameter, share.of(finite)) for parameter, share in shares]
            for parameter, share in shares:
                add_to_sum(parameter, share.summed(factors))

    def _run(self, inputs: Tensor, targets: Tensor) -> dict[nn.Module, list[Call]]:
        """Run the model forward and backward; return every layer's calls, in float32."""
        try:
            with self._notes():  # inputs that ask for gradients begin autograd's graph; nobody computes them
                outputs = self.outputs(inputs.detach().requires_grad_(inputs.is_floating_point()))
            noted = self._noted
            back: Sequence[Tensor | None] = torch.autograd.grad(
                outputs,
                [edge for *_, edge in noted],
                self.loss.gradients(outputs, targets).to(outputs.dtype),
                allow_unused=True,
            )
        finally:
            self._noted = []
        calls = defaultdict(list)
        for (layer, into, _), gradient in zip(noted, back, strict=True):
            if gradient is None:  # the outputs do not depend on it
                continue
            check_rows(len(into), len(inputs))
            check_rows(len(gradient), len(inputs))
            calls[layer].append((into.float() if into.is_floating_point() else into, gradient.float()))
        return calls

    @contextmanager
    def _notes(self) -> Iterator[None]:
        """Have layers noted, and parameters without gradients."""
        self._taking_notes = True
        for parameter in self._parameters_of_model:
            parameter.requires_grad_(False)  # noqa: FBT003 - torch's stubs know no name for it
        try:
            yield
        finally:
            self._taking_notes = False
            for parameter in self._parameters_of_model:
                parameter.requires_grad_()

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self._taking_notes:
            return None
        if len(inputs) != 1:
            msg = f"the model calls {type(layer).__name__} in another way than with its one input"
            raise TaskError(msg)
        started = None
        if not output.requires_grad:
            output = started = _Start.apply(output, self._anchor)  # type: ignore[no-untyped-call]  # torch's
        self._noted.append((layer, inputs[0].detach(), get_gradient_edge(output)))
        return started
