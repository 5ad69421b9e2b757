"""What differs in float32 is compared again in double precision: rounding passes, interactions do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.dpsgd.torch_draws import seed_cpu
from client.task.double_precision import in_double
from client.task.guard import check_task
from client.task.probe import Probe
from privacy.errors import TaskError
from simulations.tasks.recommendation import LocalTaste, Recommendation
from tests.probes import CLASSES, WIDTH, Through, Toy, complaint

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.task.task import Task


LARGE = 100.0


class Amplified(nn.Module):
    """Solves equations whose condition grows with the square of `scale`, then does whatever a test adds."""

    def __init__(self, scale: float, added: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.factors = nn.Parameter(scale * torch.randn(WIDTH, 3))
        self.head = nn.Linear(WIDTH, CLASSES)
        self._added = [added]  # no layer

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        weights = inputs.square()
        squares = torch.einsum("ia,ib->iab", self.factors, self.factors).flatten(1)
        gram = (weights @ squares).unflatten(1, (3, 3)) + torch.eye(3)
        solved = torch.linalg.inv(gram) @ (inputs @ self.factors).unsqueeze(2)
        own = weights * (torch.linalg.inv(gram).flatten(1) @ squares.T)
        outputs: Tensor = self.head(self._added[0]((solved.squeeze(2) @ self.factors.T - own * inputs) / (1.001 - own)))
        return outputs


def amplified(scale: float, added: Callable[[Tensor], Tensor] = lambda rows: rows) -> Task:
    return Toy(lambda: Amplified(scale, added))


def scaled(task: type[Recommendation], factor: float) -> Task:
    class Scaled(task):  # type: ignore[misc, valid-type]  # mypy knows no base that is an argument
        @override
        def model(self) -> nn.Module:
            model: nn.Module = super().model()
            with torch.no_grad():
                model.get_parameter("films").mul_(factor)
            return model

    return Scaled()


@pytest.mark.parametrize(("task", "factor"), [(Recommendation, 10.0), (LocalTaste, 100.0)])
def test_a_sound_task_with_large_factors_is_taken(task: type[Recommendation], factor: float) -> None:
    check_task(scaled(task, factor), "package:Class")


def test_amplified_rounding_is_no_interaction() -> None:
    check_task(amplified(LARGE), "package:Class")


class MeanOnTheWayBack(torch.autograd.Function):
    """Nothing on the way there; the batch's mean on the way back."""

    @staticmethod
    def forward(ctx: object, rows: Tensor) -> Tensor:
        del ctx
        return rows.clone()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        del ctx
        return gradients[0] + 0.01 * gradients[0].mean(0)


class InFloat32Alone(MeanOnTheWayBack):
    """The batch's mean on the way back, but not in double precision."""

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        del ctx
        mean = gradients[0].mean(0)
        return gradients[0] + 0.01 * mean if mean.dtype is torch.float32 else gradients[0].clone()


def attention(rows: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(rows, rows, rows)  # over the batch


def sometimes(rows: Tensor) -> Tensor:
    return rows + rows.mean(0) if torch.rand(()) < 1 / 8 else rows


def with_one_scale(rows: Tensor) -> Tensor:
    step = rows.detach().abs().max() / 127
    return (rows / step).round().to(torch.int8) * step + rows


def by_hand(rows: Tensor) -> Tensor:
    return (rows - rows.mean(0)) / (rows.var(0) + 1e-5).sqrt()


def in_brief(rows: Tensor) -> Tensor:
    """Rounds to 16 bits what it divides by the batch's largest value."""
    largest = rows.abs().max() * 3
    return (rows / largest).bfloat16().float() * largest


def shifted(rows: Tensor) -> Tensor:
    """Shares, stable as long as no record is far below the batch's largest: then they vanish in float32 alone."""
    scaled = 100 * rows
    powers = (scaled - scaled.detach().max()).exp()
    total = powers.sum(1, keepdim=True)
    return torch.where(total > 0, powers / total.clamp(min=1e-45), 1 / WIDTH)


def overflowing(rows: Tensor) -> Tensor:
    """Replaces what overflows by the mean of what does not."""
    powers = (20 * rows).exp()
    fits = powers.isfinite()
    return torch.where(fits, rows, rows[fits].mean())


MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "norm by hand": by_hand,
    "batch norm": lambda rows: functional.batch_norm(rows, None, None, training=True),
    "a thousandth of the mean": lambda rows: rows + 1e-3 * rows.mean(0),
    "on the way back": MeanOnTheWayBack.apply,
    "attention": attention,
    "sometimes": sometimes,
    "one scale": with_one_scale,
    "in brief": in_brief,
    "shares": shifted,
    "overflow": overflowing,
}


@pytest.mark.parametrize("mixing", MIXING.values(), ids=MIXING)
def test_records_that_interact_are_refused_however_large_the_rounding(mixing: Callable[[Tensor], Tensor]) -> None:
    words = complaint(amplified(LARGE, mixing))
    assert "batch" in words or "random" in words


def test_in_double_precision_numbers_have_the_range_of_float32() -> None:
    probe = Probe(amplified(1.0), amplified(1.0).model())
    with in_double(probe):
        large, small = torch.tensor([3e38, -3e38, 1.0]), torch.tensor([1e-30, -1.0])
        assert (large * 10).tolist() == [torch.inf, -torch.inf, 10.0]
        assert (small * small).tolist() == [0.0, 1.0]
        held = small.clone()
        held.mul_(1e-30)
        assert held.tolist() == [0.0, -1e-30]
        lowest = torch.finfo(large.double().dtype).min
        assert (large.masked_fill(large > 0, lowest).softmax(0)).isfinite().all()  # a usual mask


def test_a_kernel_that_mixes_in_float32_alone_is_found() -> None:
    assert "batch" in complaint(amplified(1.0, InFloat32Alone.apply))
    assert "batch" in complaint(
        Toy(lambda: nn.Sequential(nn.Linear(WIDTH, 9), Through(InFloat32Alone.apply), nn.Linear(9, CLASSES)))
    )


def network(hidden: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, hidden), nn.GroupNorm(1, hidden), nn.Dropout(0.5), nn.GELU(), nn.Linear(hidden, CLASSES)
    )


@given(hidden=st.integers(2, 9), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99), count=st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_in_double_precision_a_model_is_the_same_function(hidden: int, scale: float, seed: int, count: int) -> None:
    seed_cpu(seed)
    module, inputs = network(hidden).train(), scale * torch.randn(count, WIDTH)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    task = Toy(lambda: module)
    single = Probe(task, module).outputs(inputs, seed)
    with in_double(Probe(task, module)) as probe:
        double = probe.outputs(inputs, seed)
        probe.backward(double, torch.ones(count, CLASSES))
        assert all(parameter.grad is not None for parameter in module.parameters())
        assert all(
            parameter.grad.dtype is torch.float64 for parameter in module.parameters() if parameter.grad is not None
        )
    assert double.dtype is torch.float64
    assert torch.allclose(single.double(), double, atol=1e-4)  # with the same mask
    assert all(
        tensor.dtype is torch.float32 and torch.equal(tensor, before[name])
        for name, tensor in module.state_dict().items()
    )


HELD = torch.zeros(WIDTH)


@pytest.mark.parametrize(
    "added",
    [
        lambda rows: rows.bfloat16().float(),
        lambda rows: rows + rows.detach().view(torch.int32)[:, :WIDTH].float(),
        lambda rows: rows + HELD.copy_(rows.detach()[0]),
    ],
    ids=["16 bits", "bits of numbers", "a tensor of one's own"],
)
def test_what_cannot_be_repeated_is_an_error_and_leaves_the_weights(added: Callable[[Tensor], Tensor]) -> None:
    task = amplified(1.0, added)
    module = task.model()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with pytest.raises(TaskError, match="its model fails"), in_double(Probe(task, module)) as probe:
        probe.outputs(torch.ones(4, WIDTH))
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))


def test_numbers_that_a_model_makes_itself_are_of_double_precision() -> None:
    def added(rows: Tensor) -> Tensor:
        found = torch.zeros(len(rows), WIDTH).index_add_(0, torch.arange(len(rows)), rows.float())
        return found.to(torch.float32) + torch.full((WIDTH,), 1 / 3, dtype=torch.float32) + torch.rand(())

    task = amplified(1.0, added)
    with in_double(Probe(task, task.model())) as probe:
        assert probe.outputs(torch.ones(4, WIDTH)).dtype is torch.float64
