"""50 random networks, 200 under soak: every mode that takes one clips each record to C, and sums as autograd does."""

import pytest
import torch
from torch import Tensor, nn

from client.gradients.choice import make_mode
from client.gradients.comparison import Expected
from client.gradients.layers import unknown
from client.gradients.loss import RecordLoss
from client.gradients.mode import quiet, trainable
from client.settings import Gradients
from tests.client.networks import network
from tests.client.specimens import MODES, Scores, clipped_sum, one_by_one

TASK = Scores()
NETWORKS, ALL = range(50, 100), range(200)


def can_be_used(mode: Gradients, model: nn.Module, expected: Expected) -> bool:
    """Return whether a mode is chosen for a network if it is asked for."""
    if mode == "bookkeeping" and unknown(model) is not None:
        return False
    try:
        wrapped = make_mode(mode, Expected.copy(model), RecordLoss(TASK), expected.bound, torch.float32)
    except Exception:  # noqa: BLE001 - Opacus's modes refuse models in many ways
        return False
    try:
        return expected.wrong(wrapped) is None
    except Exception:
        if mode in {"bookkeeping", "vmap"}:  # which take all that they know
            raise
        return False


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=() if seed in NETWORKS else pytest.mark.soak) for seed in ALL]
)
def test_every_mode_sums_as_autograd_does_and_no_record_moves_the_sum_by_more_than_c(seed: int) -> None:
    model, inputs = network(seed)
    targets = torch.arange(len(inputs)) % 2
    with quiet():
        expected = Expected.of(model, RecordLoss(TASK), (inputs, targets))
        modes: list[Gradients] = [mode for mode in MODES if can_be_used(mode, model, expected)]
    assert "vmap" in modes
    assert ("bookkeeping" in modes) == (unknown(model) is None)
    single = one_by_one(TASK, model, (inputs, targets))
    norms: Tensor = single.norm(dim=1)
    bound = float(norms.median())  # some are clipped, some are not
    right = (bound / (norms + 1e-6)).clamp(max=1.0) @ single
    other = inputs.clone()
    other[1] = inputs[1] * 1e4 if inputs.is_floating_point() else inputs[1].flip(0)
    kept = torch.arange(len(inputs)) != 1
    for mode in modes:
        whole, parts, changed, without = (
            clipped_sum(mode, TASK, model, records, bound, size)
            for records, size in (
                ((inputs, targets), 5),
                ((inputs, targets), 2),
                ((other, targets), 5),
                ((inputs[kept], targets[kept]), 4),
            )
        )
        assert float((whole - right).norm()) <= 1e-5 * max(bound, float(right.norm()))
        assert float((parts - right).norm()) <= 1e-5 * max(bound, float(right.norm()))
        for neighbour in (whole, parts, changed):
            assert float((neighbour - without).norm()) <= bound * (1 + 1e-4)


def test_networks_are_of_every_kind_and_many_are_frozen_shared_or_known_to_book_keeping() -> None:
    kinds: set[str] = set()
    frozen = shared = known = 0
    for seed in NETWORKS:
        model, _ = network(seed)
        kinds |= {type(part).__name__ for part in model.modules()}
        frozen += len(trainable(model)) < len(list(model.parameters()))
        names = list(model.named_parameters(remove_duplicate=False))
        shared += len(names) > len({id(parameter) for _, parameter in names})
        known += unknown(model) is None
    wanted = "Conv1d Conv2d Conv3d Embedding LayerNorm RMSNorm GroupNorm MultiheadAttention DPLSTM DPGRU LSTM Words"
    assert set(wanted.split()) <= kinds
    assert min(frozen, shared, known) > len(NETWORKS) / 10
