"""Clipped layer by layer, a record moves each of L layers by at most C/√L, and the whole by at most C."""

import math
from dataclasses import replace
from math import inf, nan

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from client.dpsgd.training_steps import train
from client.gradients.mode import layers_of, trainable
from client.settings import Gradients
from privacy.errors import ArgumentError
from privacy.noise.randomness import Randomness
from privacy.run.settings import Privacy
from tests.client.models import Tied, Twice
from tests.client.specimens import (
    DEVICES,
    MODES,
    RECORDS,
    SPECIMENS,
    Scores,
    clipped_sum,
    computing,
    make_specimen,
    manifest,
    one_by_one,
)

NAMES = ("mlp", "two dimensions", "padded words", "norms", "twice", "tied", "bare", "siamese", "recurrent", "frozen")
CASES = [(name, mode) for name in NAMES for mode in MODES if mode in SPECIMENS[name].modes]
C = 0.05  # so small that every record here is clipped


def places(model: nn.Module) -> list[Tensor]:
    """Return the places of each layer's parameters in a gradient over all of them."""
    layers, start = layers_of(model), 0
    indices = [list[int]() for _ in range(max(layers) + 1)]
    for layer, parameter in zip(layers, trainable(model), strict=True):
        indices[layer] += range(start, start := start + parameter.numel())
    return [torch.tensor(positions) for positions in indices]


def by_layer(model: nn.Module, gradients: Tensor, bound: float) -> Tensor:
    """Return the sum of `(n, parameters)`, clipped layer by layer."""
    total, layers = torch.zeros(gradients.shape[1]), places(model)
    for layer in layers:
        norms = gradients[:, layer].norm(dim=1)
        factors = (bound / math.sqrt(len(layers)) / (norms + 1e-6)).clamp(max=1.0)
        total[layer] = factors @ gradients[:, layer]
    return total


def test_a_layer_is_a_module_with_parameters_and_a_shared_parameter_counts_once() -> None:
    assert layers_of(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))) == [0, 0, 1]
    assert layers_of(make_specimen("frozen")[0]) == [0, 1, 1]  # one layer's bias, and the head
    assert max(layers_of(Twice())) == 4
    assert layers_of(Tied()) == [0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_mode_gives_the_sum_of_plain_gradients_clipped_layer_by_layer(
    name: str, mode: Gradients, device: str
) -> None:
    model, records = make_specimen(name, device)
    plain = one_by_one(Scores(), model, records).cpu()
    bound = float(plain.norm(dim=1).median())  # some layers are clipped, some are not
    expected = by_layer(model, plain, bound)
    total = clipped_sum(mode, Scores(), model, records, bound, 4, clipping="per_layer").cpu()
    assert float((total - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("mode", MODES)
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["mlp", "two dimensions", "norms"]),
    scales=st.lists(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4, 1e30, inf, nan]), min_size=RECORDS, max_size=RECORDS),
    left_out=st.integers(0, RECORDS - 1),
    bound=st.sampled_from([1e-2, 1.0, 30.0]),
)
def test_no_record_moves_the_sum_by_more_than_c_nor_a_layer_by_more_than_its_share(
    mode: Gradients, name: str, scales: list[float], left_out: int, bound: float
) -> None:
    model, (inputs, targets) = make_specimen(name)
    inputs = inputs * torch.tensor(scales).view(-1, *[1] * (inputs.dim() - 1))
    kept = torch.arange(RECORDS) != left_out
    whole, others = (
        clipped_sum(mode, Scores(), model, records, bound, clipping="per_layer").double()
        for records in ((inputs, targets), (inputs[kept], targets[kept]))
    )
    layers = places(model)
    assert float((whole - others).norm()) <= bound * (1 + 1e-5)
    for layer in layers:
        assert float((whole - others)[layer].norm()) <= bound / math.sqrt(len(layers)) * (1 + 1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_record_whose_gradient_is_not_finite_in_one_layer_adds_nothing_to_any(mode: Gradients) -> None:
    model, (inputs, targets) = make_specimen("mlp")
    kept = torch.arange(RECORDS) != 3
    expected = clipped_sum(mode, Scores(), model, (inputs[kept], targets[kept]), C, clipping="per_layer")
    inputs[3] = 3e38  # the first layer's gradient has no finite norm; the saturated last one's may have
    total = clipped_sum(mode, Scores(), model, (inputs, targets), C, clipping="per_layer")
    torch.testing.assert_close(total, expected)


def test_only_runs_that_set_per_layer_clipping_are_clipped_per_layer() -> None:
    run, sums = manifest(1, 1.0, 0.0, C), dict[str, Tensor]()
    for clipping in ("flat", "per_layer"):
        model, records = make_specimen("mlp")
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        changed = replace(run.settings, privacy=replace(run.settings.privacy, clipping=clipping))
        train(Scores(), model, records, RECORDS, replace(run, settings=changed), Randomness.seeded(5),
              computing=computing("bookkeeping"))  # fmt: skip
        moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
        sums[clipping] = -moved / 0.5 * RECORDS  # the rate, and the size
    model, records = make_specimen("mlp")
    torch.testing.assert_close(
        sums["per_layer"], by_layer(model, one_by_one(Scores(), model, records), C), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(sums["flat"], sums["per_layer"], rtol=1e-2)


def test_another_way_to_clip_is_refused() -> None:
    with pytest.raises(ArgumentError, match="flat"):
        Privacy(max_grad_norm=1.0, noise_multiplier=1.0, clipping="adaptive")  # type: ignore[arg-type]  # on purpose
