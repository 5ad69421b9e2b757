"""What a site can set about its gradients, and what it logs: precision, parts, the choice and its reason."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from client.dpsgd.training_steps import train
from client.gradients.choice import choose
from client.settings import Computing, Gradients, SiteSettings
from privacy.config import read_toml
from privacy.errors import ConfigError, TaskError
from privacy.noise.randomness import Randomness
from tests.client.specimens import (
    DEVICES,
    MODES,
    RECORDS,
    Scores,
    clipped_sum,
    computing,
    make_specimen,
    manifest,
    one_by_one,
)

everywhere = pytest.mark.parametrize("mode", MODES)
on_every_device = pytest.mark.parametrize("device", DEVICES)
C = 0.05  # so small that every record here is clipped


@on_every_device
@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in ("mlp", "two dimensions", "norms") for mode in MODES],
)
def test_in_bfloat16_no_record_adds_more_than_its_bound_in_float32(name: str, mode: Gradients, device: str) -> None:
    model, (inputs, targets) = make_specimen(name, device)
    exact = one_by_one(Scores(), model, (inputs, targets))
    for number in range(RECORDS):
        one = inputs[number : number + 1], targets[number : number + 1]
        total = clipped_sum(mode, Scores(), model, one, C, precision=torch.bfloat16)
        assert total.dtype == torch.float32
        assert float(total.double().norm()) <= C * (1 + 1e-6)
        assert float(total @ exact[number] / (total.norm() * exact[number].norm())) > 0.95


def test_modes_that_fail_in_bfloat16_are_not_chosen_for_it() -> None:
    class Length(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return torch.complex(inputs, -inputs).abs()

    model, records = nn.Sequential(nn.Linear(3, 2), Length()), make_specimen("mlp")[1]
    choose(Scores(), model, records, Computing(gradients="bookkeeping"))
    with pytest.raises(TaskError, match="cannot be used for this model: RuntimeError"):
        choose(Scores(), model, records, Computing(gradients="bookkeeping", precision="bfloat16"))


@everywhere
def test_layers_that_mix_records_are_refused(mode: Gradients) -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.layer(inputs.reshape(-1, 3))
            return outputs.reshape(len(inputs), -1)[:, :2]

    records = torch.randn(4, 6), torch.tensor([0, 1, 0, 1])
    if mode in {"vmap", "autograd"}:  # which take the model as a whole
        choose(Scores(), Mixing(), records, computing(mode))
    else:
        with pytest.raises(TaskError, match="cannot be used for this model"):
            choose(Scores(), Mixing(), records, computing(mode))


def test_the_chosen_mode_is_logged_once_per_task_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    task = Scores("attention")
    with caplog.at_level(logging.INFO, "cloister.agent"):
        for _ in range(3):
            model, records = make_specimen("attention")
            train(task, model, records, RECORDS, manifest(1, 1.0, 1.0), Randomness.fresh())
    (line,) = [record.getMessage() for record in caplog.records]
    assert "gradients by vmap" in line
    assert "not bookkeeping: it does not support parameters of MultiheadAttention" in line


def test_a_sites_settings_choose_how_gradients_are_computed(tmp_path: Path) -> None:
    text = """
site = "north"
server = "localhost:1"
[data]
file = "records.csv"
lineage = "people"
[budget]
epsilon = 1.0
delta = 1e-5
[policy]
tasks = ["tests.studies:Tiny"]
maximum_epsilon = 1.0
"""
    file = tmp_path / "site.toml"
    file.write_text(text)
    assert read_toml(file, SiteSettings).training == Computing("auto", 0, "float32")
    file.write_text(text + '[training]\ngradients = "vmap"\nphysical_batch = 8\nprecision = "bfloat16"\n')
    assert read_toml(file, SiteSettings).training == Computing("vmap", 8, "bfloat16")
    file.write_text(text + '[training]\ngradients = "fast"\n')
    with pytest.raises(ConfigError):
        read_toml(file, SiteSettings)
