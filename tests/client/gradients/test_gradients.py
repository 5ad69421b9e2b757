"""Every mode computes the clipped sum that plain autograd gives, record by record, for all models that it claims."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from client.gradients import record_gradients
from client.gradients.choice import choose
from client.settings import Gradients
from tests.client.specimens import (
    DEVICES,
    MODES,
    RECORDS,
    SPECIMENS,
    Scores,
    clipped_sum,
    computing,
    make_specimen,
    one_by_one,
)

CASES = [(name, mode) for name, specimen in SPECIMENS.items() for mode in MODES if mode in specimen.modes]
OTHERS = [(name, mode) for name, specimen in SPECIMENS.items() for mode in MODES if mode not in specimen.modes]


def clipped(gradients: Tensor, bound: float) -> Tensor:
    """Return the sum of `(n, parameters)`, each clipped."""
    norms: Tensor = gradients.norm(dim=1)
    return (bound / (norms + 1e-6)).clamp(max=1.0) @ gradients


def apart(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("physical_batch", [RECORDS, 4, 1])
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_mode_gives_the_clipped_sum_of_plain_autograd_whole_and_in_parts(
    name: str, mode: Gradients, physical_batch: int, device: str
) -> None:
    model, records = make_specimen(name, device)
    expected = one_by_one(Scores(), model, records)
    bound = float(expected.norm(dim=1).median())  # some are clipped, some are not
    total = clipped_sum(mode, Scores(), model, records, bound, physical_batch)
    assert apart(total, clipped(expected, bound)) < 1e-5


@pytest.mark.parametrize("name", ["mlp", "two dimensions", "one dimension", "norms"])
def test_book_keeping_equals_opacus(name: str) -> None:
    model, records = make_specimen(name)
    total = clipped_sum("bookkeeping", Scores(), model, records, 0.3)
    wrapped = GradSampleModule(model, loss_reduction="mean")
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=0.3,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    optimizer.zero_grad()
    Scores().loss(wrapped(records[0]), records[1]).backward()
    optimizer.pre_step()
    assert (
        apart(
            total,
            torch.cat([parameter.grad.flatten() for parameter in wrapped.parameters() if parameter.grad is not None]),
        )
        < 1e-5
    )


@pytest.mark.parametrize(("name", "mode"), OTHERS)
def test_a_mode_with_wrong_gradients_is_refused(name: str, mode: Gradients) -> None:
    model, records = make_specimen(name)
    with pytest.raises(Exception, match=f"gradients = '{mode}' cannot be used for this model"):
        choose(Scores(), model, records, computing(mode))


@pytest.mark.parametrize("name", SPECIMENS)
def test_auto_chooses_book_keeping_where_it_is_correct_and_vmap_elsewhere_and_logs_why(name: str) -> None:
    model, records = make_specimen(name)
    choice = choose(Scores(), model, records, computing("auto"))
    right = "bookkeeping" in SPECIMENS[name].modes
    assert choice.gradients == ("bookkeeping" if right else "vmap")
    assert ("not bookkeeping" in choice.reason) != right


@pytest.mark.parametrize("name", ["mlp", "attention"])
def test_choosing_leaves_the_model_as_it_was(name: str) -> None:
    model, records = make_specimen(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for mode in ("auto", *SPECIMENS[name].modes):
        choose(Scores(), model, records, computing(mode))  # type: ignore[arg-type]  # a mode's name
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(part._forward_hooks or part._backward_hooks for part in model.modules())


def test_gradients_too_large_to_keep_are_written_out_some_records_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, records = make_specimen("two dimensions")
    whole = clipped_sum("bookkeeping", Scores(), model, records, 0.1)
    monkeypatch.setattr(record_gradients, "KEPT", 200)
    assert apart(clipped_sum("bookkeeping", Scores(), model, records, 0.1), whole) < 1e-5


def test_a_dropout_does_not_keep_book_keeping_from_being_chosen() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    records = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    assert choose(Scores(), model, records, computing("auto")).gradients == "bookkeeping"
    assert model[1].p == 0.5


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_convolutions_of_any_geometry_are_as_autograd_has_them(data: st.DataObject) -> None:
    spatial = data.draw(st.sampled_from([1, 2]))
    groups, stride, dilation = (data.draw(st.integers(1, 3)) for _ in range(3))
    kernel = tuple(data.draw(st.integers(1, 3)) for _ in range(spatial))
    padding = data.draw(st.sampled_from(["same", "valid", 0, 1, 2]) if stride == 1 else st.integers(0, 2))
    kind: Any = (nn.Conv1d, nn.Conv2d)[spatial - 1]
    torch.manual_seed(0)
    layer = kind(
        2 * groups,
        groups,
        kernel if spatial == 2 else kernel[0],
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=data.draw(st.booleans()),
        padding_mode=data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    model = nn.Sequential(layer, nn.Flatten(), nn.Tanh())
    records = torch.randn(3, 2 * groups, *([9, 8][:spatial])), torch.zeros(3, dtype=torch.long)
    expected = one_by_one(Scores(), model, records)
    bound = float(expected.norm(dim=1).median()) + 1e-3
    total = clipped_sum("bookkeeping", Scores(), model, records, bound)
    assert float((total - clipped(expected, bound)).norm()) <= 1e-5 * bound


@settings(deadline=None, max_examples=60)
@given(
    words=st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=1, max_size=5),
    padding=st.none() | st.integers(0, 4),
)
def test_words_looked_up_again_and_padding_count_as_autograd_has_them(
    words: list[list[int]], padding: int | None
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 2, padding_idx=padding), nn.Flatten(), nn.Linear(8, 2))
    records = torch.tensor(words), torch.zeros(len(words), dtype=torch.long)
    expected = one_by_one(Scores(), model, records)
    for mode in MODES:
        assert apart(clipped_sum(mode, Scores(), model, records, 0.2), clipped(expected, 0.2)) < 1e-5
