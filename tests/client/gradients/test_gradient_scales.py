"""One record adds at most C whatever the scale of its numbers: tiny, huge, subnormal, cancelling, rounded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.gradients import record_gradients
from client.gradients.clipping import add_clipped
from client.gradients.record_gradients import Outer, Places, Product, RecordGradients, Rows
from client.settings import Gradients
from tests.client.specimens import MODES, RECORDS, Scores, clipped_sum, make_specimen

C = 0.5
MOST = 1 + 1e-4
EXPONENTS = st.integers(-46, 38)


def clipped(*parts: tuple[RecordGradients, Tensor], records: int = 1, bound: float = C) -> Tensor:
    """Return the clipped sum over parameters of these shapes, `(parameters,)`, float64."""
    parameters: list[Any] = [nn.Parameter(shape) for _, shape in parts]
    for parameter in parameters:
        parameter.summed_grad = None  # as Opacus's optimizer does
    add_clipped(parameters, [share for share, _ in parts], records, bound)
    return torch.cat([parameter.summed_grad.double().flatten() for parameter in parameters])


def added(*parts: tuple[RecordGradients, Tensor], bound: float = C) -> float:
    """Return the norm of what one record adds, in units of C."""
    return float(clipped(*parts, bound=bound).norm()) / bound


def numbers(generator: torch.Generator, exponent: int, *shape: int) -> Tensor:
    return (torch.randn(*shape, generator=generator).double() * 10.0**exponent).float()


@settings(deadline=None, max_examples=300)
@given(inputs=EXPONENTS, gradients=EXPONENTS, bias=EXPONENTS, seed=st.integers(0, 999))
def test_a_product_of_numbers_of_any_two_scales_is_clipped(inputs: int, gradients: int, bias: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    into, back = numbers(draw, inputs, 1, 5), numbers(draw, gradients, 1, 4)
    rows, backs = numbers(draw, inputs, 1, 1, 5, 3), numbers(draw, gradients, 1, 1, 4, 3)
    other = (Rows(numbers(draw, bias, 1, 4)), torch.zeros(4))
    places = Places.looked_up(torch.tensor([[0, 2, 2]]), backs[0].transpose(1, 2).contiguous(), 3)
    for bound in (C, 1e-4):
        assert added((Outer(into, back), torch.zeros(4, 5)), other, bound=bound) <= MOST
        assert added((Product(rows, backs), torch.zeros(4, 5)), other, bound=bound) <= MOST
        assert added((places, torch.zeros(3, 4)), other, bound=bound) <= MOST


def test_inputs_of_1e_23_and_gradients_of_1e19_are_clipped_although_their_squares_are_lost() -> None:
    for inputs, gradients in ((1e-23, 1e17), (1e17, 1e-23), (2e-23, 1e17), (1e-20, 1e14)):
        into, back = torch.full((1, 1000), inputs), torch.full((1, 1000), gradients)
        assert added((Outer(into, back), torch.zeros(1000, 1000)), bound=1e-4) <= MOST


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3])
@pytest.mark.parametrize("size", [10_000_000, 1_000_001])
def test_the_norm_of_ten_million_equal_numbers_is_exact(size: int, value: float) -> None:
    rows = torch.full((1, size), value)
    assert float(Rows(rows).squares()) == pytest.approx(size * float(rows[0, 0]) ** 2, rel=1e-5)


def test_cancelling_gradients_are_summed_in_the_same_way_as_their_norms() -> None:
    back, places = torch.tensor([[[1e6, -1e6, 1e6, -1e6 + 0.0625]]]).unsqueeze(0), torch.zeros(1, 4, dtype=torch.long)
    small = 1e-3 * torch.randn(3, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    backs = torch.cat([small, back])  # the last one's gradient is but what rounding leaves
    for parts in (
        Places.looked_up(places.expand(4, 4), backs[:, 0].transpose(1, 2).contiguous(), 1),
        Product(torch.ones(4, 1, 1, 4), backs),
    ):
        whole = clipped((parts, torch.zeros(1, 1)), records=4, bound=1e-3)
        rest = parts.of(torch.tensor([True, True, True, False]))
        without = clipped((rest, torch.zeros(1, 1)), records=3, bound=1e-3)
        assert float((whole - without).norm()) <= 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize("kept", [1 << 24, 1])
def test_gradients_that_cancel_are_clipped_whether_they_are_kept_or_not(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_gradients, "KEPT", kept)
    draw = torch.Generator().manual_seed(0)
    into, back = torch.randn(8, 2, 6, 50, generator=draw), torch.randn(8, 2, 4, 50, generator=draw)
    into, back = (torch.cat([weight, weight * sign + 1e-7], 3) for weight, sign in ((into, 1), (back, -1)))
    for number in range(8):
        one = torch.arange(8) == number
        assert added((Product(1e4 * into, back).of(one), torch.zeros(2, 4, 6))) <= MOST


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_a_task_that_lets_torch_round_products_does_not_get_past_clipping(precision: str) -> None:
    draw, before = torch.Generator().manual_seed(0), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        into, back = torch.randn(64, 64, generator=draw), torch.randn(64, 64, generator=draw)
        single = torch.einsum("ni,nj->nij", back.double(), into.double()).flatten(1)
        exact = (C / (single.norm(dim=1) + 1e-6)).clamp(max=1.0) @ single
        for share in (Outer(into, back), Rows(single.float())):
            total = clipped((share, torch.zeros(64, 64)), records=64)
            assert float((total - exact).norm()) < 1e-5 * float(exact.norm())
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


class Scaled(Scores):
    """Its loss has gradients of any scale."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs.tanh(), targets) * self._scale


NAMES = ("mlp", "two dimensions", "one dimension", "rows of rows", "norms", "twice", "bare", "around")
LONG: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda tensor: tensor * 1e-44,
    lambda tensor: tensor * 1e-23,
    lambda tensor: tensor * 1e4,
    lambda tensor: tensor.sign() * 1e19,
    lambda tensor: tensor.sign() * 3e38,
    lambda tensor: tensor * 10.0 ** torch.linspace(-44, 30, tensor.numel()).view_as(tensor),
)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_a_record_of_any_scale_moves_the_sum_by_no_more_than_c(
    name: str, mode: Gradients, precision: torch.dtype
) -> None:
    model, (inputs, targets) = make_specimen(name)
    kept = torch.arange(RECORDS) != 2
    for number, change in enumerate(LONG):
        task = Scaled(10.0 ** (-30, 0, 19, 37)[number % 4])
        others = inputs.clone()
        if inputs.is_floating_point():
            others[2] = change(inputs[2])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_((1e-12, 1.0, 1e3)[number % 3])
        whole = clipped_sum(mode, task, model, (others, targets), C, precision=precision)
        without = clipped_sum(mode, task, model, (inputs[kept], targets[kept]), C, precision=precision)
        assert float((whole.double() - without.double()).norm()) <= C * MOST
