"""Models that are no chains of layers: they are mapped over records, or, if torch cannot, play the whole protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from cloister import CloisterError, simulate
from simulations.vectorised.gradients import unmappable
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign

if TYPE_CHECKING:
    from pathlib import Path

    from cloister import Result


class Forgetful(Sign):
    """With dropout."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 1))


class Branching(nn.Module):
    """Looks at a parameter, which `torch.func.vmap` cannot map."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs if self.layer.bias.item() < 1e9 else outputs * 2


class Branches(Sign):
    def model(self) -> nn.Module:
        return Branching()


def play(task: type[Sign], **changed: Any) -> Result:  # noqa: ANN401 - whatever `simulate` takes
    return simulate(task, (INPUTS, TARGETS), PLAIN, sites=6, progress=False, **changed)


def test_dropout_is_drawn_for_each_record_and_repeated_with_the_runs_seed(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    one, other = play(Forgetful), play(Forgetful, checkpoint=tmp_path / "here", measure_every=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.engine == "vectorised"
    assert one.digest == other.digest
    seed = {"seed": 2}
    assert simulate(Forgetful, (INPUTS, TARGETS), PLAIN | seed, sites=6, progress=False).digest != one.digest


def test_attention_with_dropout_says_what_to_change_so_that_it_is_mapped() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
            self.head = nn.Linear(4, 1)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.head(self.layer(inputs.unsqueeze(1))[:, 0])
            return outputs

    module = Attending().train()
    said = unmappable(Sign(), module)
    assert said is not None
    assert "write layer.self_attn.dropout = 0.0 for its model in model()" in said
    module.layer.self_attn.dropout = 0.0
    assert unmappable(Sign(), module) is None


def test_a_model_that_cannot_be_mapped_plays_the_whole_protocol() -> None:
    result = play(Branches, processes=1)
    assert result.engine == "inline"
    assert "torch.func.vmap cannot map its model over records (RuntimeError: It looks like" in result.why
    assert "write this operation otherwise" in result.why
    with pytest.raises(CloisterError, match=r"vectorised cannot play this run: torch\.func\.vmap cannot map its model"):
        play(Branches, engine="vectorised")
