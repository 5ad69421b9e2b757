"""`bookkeeping`: clipped gradients from one forward and one backward pass.

After Bu et al., 2022, "Differentially Private Optimization on Large Model at Small Cost".
During the pass, parameters need no gradients, so torch computes none for them. Hooks keep every layer's input, and the
backward pass computes only the gradients of the layers' outputs. These two give every record's norm, then its clipping
factor, then the sum of clipped gradients, at about the cost of torch's unclipped sum.

A layer's outputs are kept as edges of autograd's graph, so that later operations may change them in place. Its input
cannot change later: autograd, with which every mode is compared, refuses a model that changes it.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from typing_extensions import override

from client.data.inputs import mapped
from client.gradients.layers import KNOWN, Call
from client.gradients.mode import GradientMode, check_rows, own, refuse_packed
from privacy.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from client.data.inputs import Inputs
    from client.gradients.record_gradients import RecordGradients


class _Start(torch.autograd.Function):
    """The start of autograd's graph: the output of a layer whose input has no gradient."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:  # noqa: ANN401 - torch's
        """Return the output unchanged, but dependent on the anchor."""
        del anchor
        ctx.mark_dirty(output)  # no copy; later operations may change it in place
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's
        """Stop here: the gradient is read from the edge that leads here."""
        del ctx
        return gradients[0], None


@dataclass
class _Pass:
    """What is noted in a forward pass. Not of the mode itself: torch makes setting a module's attributes slow."""

    running: bool = False
    taking_notes: bool = False
    noted: list[tuple[nn.Module, Tensor, Any]] = field(default_factory=list)  # layer, input, edge of its output


class BookKeeping(GradientMode):
    """Computes gradients from layers' inputs and the gradients of their outputs; see `layers`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, loss_reduction="sum")
        self._pass = _Pass()
        self._anchor = torch.zeros(0, requires_grad=True)
        parts = [part for part in model.modules() if own(part) and type(part) in KNOWN]
        self._hooks = [part.register_forward_hook(self._note) for part in parts]
        self._hooks += refuse_packed(model)

    @override
    def remove_hooks(self) -> None:
        """Restore the layers."""
        for hook in self._hooks:
            hook.remove()

    @override
    def per_record(self, inputs: Inputs, targets: Tensor) -> list[RecordGradients | None]:
        called = self._run(inputs, targets)
        with torch.no_grad():
            gradients = {
                id(parameter): gradient
                for layer in called
                for parameter, gradient in KNOWN[type(layer)](layer, called[layer])
            }
        return [gradients.get(id(parameter)) for parameter in self.trained]  # None: the outputs do not depend on it

    def _run(self, inputs: Inputs, targets: Tensor) -> dict[nn.Module, list[Call]]:
        """Run the model forward and backward; return every layer's calls, in float32."""
        now = self._pass
        try:
            with self._without_gradients():
                now.taking_notes = True
                outputs = self.outputs(mapped(Tensor.detach, inputs))
                now.taking_notes = False
                noted = now.noted
                start, gradients = self.loss.known_sum(outputs, targets), None
                if start is None:
                    start, gradients = outputs, self.loss.gradients(outputs, targets).to(outputs.dtype)
                back: Sequence[Tensor | None] = torch.autograd.grad(
                    start, [edge for *_, edge in noted], gradients, allow_unused=True
                )
        finally:
            now.noted, now.taking_notes = [], False
        calls, records = defaultdict(list), targets.shape[0]
        for (layer, into, _), gradient in zip(noted, back, strict=True):
            if gradient is None:  # the outputs do not depend on it
                continue
            check_rows(into.shape[0], records)
            check_rows(gradient.shape[0], records)
            calls[layer].append((into.float() if into.is_floating_point() else into, gradient.float()))
        return calls

    @contextmanager
    def _without_gradients(self) -> Iterator[None]:
        """Switch off parameters' gradients; in the backward pass too, where checkpointing runs layers again."""
        self._pass.running = True
        for parameter in self.trained:
            parameter.requires_grad_(False)  # noqa: FBT003 - torch's stubs know no name for it
        try:
            yield
        finally:
            self._pass.running = False
            for parameter in self.trained:
                parameter.requires_grad_()

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        now = self._pass
        if not now.running or not torch.is_grad_enabled():
            return None
        if len(inputs) != 1:
            msg = f"the model does not call {type(layer).__name__} with a single input"
            raise TaskError(msg)
        started = None
        if not output.requires_grad:
            output = started = _Start.apply(output, self._anchor)  # type: ignore[no-untyped-call]  # torch's
        if now.taking_notes:
            now.noted.append((layer, inputs[0].detach(), get_gradient_edge(output)))
        return started
