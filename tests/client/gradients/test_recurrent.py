"""Torch's recurrent layers under vmap, and packed sequences: what each record adds is what autograd gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from typing_extensions import override

from tests.client.specimens import Scores, clipped_sum, one_by_one

if TYPE_CHECKING:
    from client.settings import Gradients

HIDDEN = 4


class Over(nn.Module):
    """A recurrent layer, called in any way there is, and a linear one."""

    def __init__(self, layer: nn.Module, width: int, *, start: str = "", packed: bool = False) -> None:
        super().__init__()
        self.layer: Any = layer
        self.out = nn.Linear(width, 2)
        self._start, self._packed = start, packed

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        layer = self.layer
        lengths = (inputs[:, :, 0] > -1).sum(1).clamp(min=1)
        inputs = inputs if layer.batch_first else inputs.transpose(0, 1)
        ones = torch.ones(layer.num_layers * (1 + layer.bidirectional), len(lengths), HIDDEN)
        state = (ones, ones) if isinstance(layer, nn.LSTM) else ones
        sequence: Any = inputs
        if self._packed:
            sequence = pack_padded_sequence(inputs, lengths, batch_first=layer.batch_first, enforce_sorted=False)
        if not self._start:
            outputs = layer(sequence)[1]
        else:
            outputs = layer(sequence, state)[1] if self._start == "by place" else layer(input=sequence, hx=state)[1]
        last = outputs[0] if isinstance(layer, nn.LSTM) else outputs
        scores: Tensor = self.out(last.transpose(0, 1).flatten(1))
        return scores


def off(mode: Gradients, model: nn.Module, records: tuple[Tensor, Tensor], bound: float = 0.2) -> float:
    """How far a mode's clipped sum is from that of plain autograd, in units of C."""
    expected = one_by_one(Scores(), model, records)
    clipped = (bound / (expected.norm(dim=1) + 1e-6)).clamp(max=1.0) @ expected
    return float((clipped_sum(mode, Scores(), model, records, bound) - clipped).norm()) / bound


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]),
    layers=st.integers(1, 2),
    both=st.booleans(),
    first=st.booleans(),
    bias=st.booleans(),
    start=st.sampled_from(["", "by place", "by name"]),
)
def test_a_recurrent_layer_called_in_any_way_is_as_autograd_has_it(
    kind: Any,  # noqa: ANN401 - a class
    layers: int,
    *,
    both: bool,
    first: bool,
    bias: bool,
    start: str,
) -> None:
    torch.manual_seed(0)
    layer = kind(3, HIDDEN, num_layers=layers, bidirectional=both, batch_first=first, bias=bias)
    model = Over(layer, HIDDEN * layers * (1 + both), start=start)
    records = torch.randn(5, 4, 3), torch.arange(5) % 2
    assert off("vmap", model, records) < 1e-5
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences_in_any_order_are_as_autograd_has_them(kind: Any) -> None:  # noqa: ANN401 - a class
    torch.manual_seed(0)
    model = Over(kind(3, HIDDEN, batch_first=True), HIDDEN, packed=True)
    inputs = torch.rand(5, 4, 3)
    for record, length in enumerate((2, 4, 1, 3, 4)):
        inputs[record, length:] = -2
    assert off("autograd", model, (inputs, torch.arange(5) % 2)) < 1e-5


@pytest.mark.parametrize("kind", [nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("stateful", [True, False])
def test_a_cell_called_step_by_step_is_as_autograd_has_it(kind: Any, *, stateful: bool) -> None:  # noqa: ANN401 - a class
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.out = kind(3, HIDDEN), nn.Linear(HIDDEN, 2)

        @override
        def forward(self, inputs: Tensor) -> Tensor:
            state = torch.ones(len(inputs), HIDDEN) if stateful else None
            for step in inputs.unbind(1):
                state = self.cell(step, state)
            outputs: Tensor = self.out(state)
            return outputs

    torch.manual_seed(0)
    assert off("vmap", Steps(), (torch.randn(5, 4, 3), torch.arange(5) % 2)) < 1e-5
