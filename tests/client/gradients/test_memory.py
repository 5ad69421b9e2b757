"""A step that does not fit in memory is computed in smaller parts: the same records, the same noise."""

import logging
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typing_extensions import override

from client.dpsgd.additivity import memory_of
from client.dpsgd.training_steps import train, way_to_train
from client.gradients.memory import NoMemoryLeft, peak, rows_within
from client.settings import Computing, Gradients
from privacy.noise.randomness import Randomness
from tests.client.specimens import DEVICES, MODES, RECORDS, Scores, computing, make_specimen, manifest

TOO_MUCH = 1 << 50  # values


class Large(Scores):
    """Its loss asks for more memory than there is, the first time after it is armed."""

    calls = -1

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.calls > 0:
            self.calls -= 1
        if self.calls == 0:
            try:
                torch.empty(TOO_MUCH)
            except RuntimeError as error:
                self.calls = -1 if "memory" in str(error) else 0
                raise
        return super().loss(outputs, targets)


class Limited(nn.Module):
    """Cannot compute more than so many records at a time, once it is told."""

    most = RECORDS

    def __init__(self) -> None:
        super().__init__()
        self.layers, _ = make_specimen("mlp")

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.most:
            torch.empty(TOO_MUCH)
        outputs: Tensor = self.layers(inputs)
        return outputs


class OfLimited(Scores):
    @override
    def model(self) -> nn.Module:
        return Limited()


def vector(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def trained(task: Scores, model: nn.Module, how: Computing) -> Tensor:
    _, records = make_specimen("mlp")
    train(task, model, records, RECORDS, manifest(5, 0.7, 1.0), Randomness.seeded(5), computing=how)
    return vector(model)


@pytest.mark.parametrize("calls", [1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_a_step_in_which_memory_runs_out_starts_again_with_the_same_records_and_noise(
    mode: Gradients, calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = trained(Scores(), make_specimen("mlp")[0], computing(mode, 4))
    task, (model, _) = Large(), make_specimen("mlp")
    way_to_train(task, model, computing(mode, 4))
    task.calls = calls
    with caplog.at_level(logging.WARNING, "cloister.agent"):
        torch.testing.assert_close(trained(task, model, computing(mode, 4)), expected)
    assert [record.getMessage() for record in caplog.records] == [
        "memory ran out in a step: it starts again with 2 records at a time"
    ]
    assert way_to_train(task, model, computing(mode, 4)).physical_batch == 2  # the next round starts with that


@pytest.mark.parametrize("most", [3, 1])
@pytest.mark.parametrize("mode", ["bookkeeping", "hooks"])
def test_parts_shrink_until_they_fit(mode: Gradients, most: int) -> None:
    expected = trained(Scores(), make_specimen("mlp")[0], computing(mode, RECORDS))
    task, model = OfLimited(), Limited()
    way_to_train(task, model, computing(mode, RECORDS))
    model.most = most
    torch.testing.assert_close(trained(task, model, computing(mode, RECORDS)), expected)


def test_a_record_that_was_dropped_before_memory_ran_out_counts_once(caplog: pytest.LogCaptureFixture) -> None:
    task, (model, (inputs, targets)), how = Large(), make_specimen("mlp"), computing("bookkeeping", 4)
    inputs[0] = torch.nan
    way_to_train(task, model, how)
    task.calls = 2  # in the second part of the first step
    with caplog.at_level(logging.WARNING, "cloister.agent"):
        train(task, model, (inputs, targets), RECORDS, manifest(3, 1.0, 0.0), Randomness.seeded(5), computing=how)
    assert [record.getMessage()[:7] for record in caplog.records] == ["memory ", "3 times"]


def test_a_record_that_does_not_fit_alone_fails_and_so_does_any_other_error() -> None:
    task, (model, records), how = Large(), make_specimen("mlp"), computing("bookkeeping", 1)
    way_to_train(task, model, how)
    task.calls = 1
    with pytest.raises(NoMemoryLeft, match="memory"):
        trained(task, model, how)

    class Wrong(Scores):
        armed = False

        @override
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            if self.armed:
                msg = "another error"
                raise RuntimeError(msg)
            return super().loss(outputs, targets)

    other = Wrong()
    way_to_train(other, model, how)
    other.armed = True
    with pytest.raises(RuntimeError, match="another error"):
        train(other, model, records, RECORDS, manifest(1, 1.0, 0.0), Randomness.fresh(), computing=how)


def test_a_mode_is_tried_with_fewer_records_if_memory_runs_out_before_any_round() -> None:
    task, model = OfLimited(), Limited()
    model.most = 4
    choice = way_to_train(task, model, Computing(gradients="auto", physical_batch=RECORDS))
    assert (choice.gradients, choice.physical_batch) == ("bookkeeping", 3)


# --- How much is used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_the_peak_is_the_most_at_any_time(device: str, capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        first = torch.empty(250_000, device=device)
        del first
        second, third = (torch.empty(250_000, device=device) for _ in range(2))
        del second, third

    assert 2_000_000 <= peak(torch.device(device), run) <= 2_100_000
    assert capfd.readouterr().err == ""  # libraries say nothing


@given(
    fixed=st.integers(0, 10**9), per_row=st.integers(1, 10**8), limit=st.integers(1, 10**12), most=st.integers(1, 256)
)
def test_the_number_of_rows_is_the_largest_that_fits(fixed: int, per_row: int, limit: int, most: int) -> None:
    rows = rows_within(limit, (2, fixed + 2 * per_row), (10, fixed + 10 * per_row), most)
    assert 1 <= rows <= most
    assert rows == 1 or fixed + rows * per_row <= limit
    assert rows == most or fixed + (rows + 1) * per_row > limit


@pytest.mark.parametrize("mode", ["bookkeeping", "vmap", "hooks"])
def test_the_site_bounds_the_memory_of_a_batch(mode: Gradients) -> None:
    class Wide(Scores):
        @override
        def model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(3, 500), nn.ReLU(), nn.Linear(500, 100), nn.ReLU(), nn.Linear(100, 2))

    task = Wide()
    model, (_, records) = task.model(), make_specimen("mlp")
    choices = dict[int, Any]()
    for limit in (4, 16):
        how = Computing(gradients=mode, memory_mb=limit)
        choices[limit] = choice = way_to_train(task, model, how)
        used = memory_of(task, model, records, choice, how.precision, choice.physical_batch)
        assert used <= 1.1 * limit * 1_000_000 or choice.physical_batch == 1
    if mode == "bookkeeping":  # a linear layer's gradients are not written out
        assert choices[4].physical_batch == choices[16].physical_batch
    else:
        assert 1 < choices[4].physical_batch < choices[16].physical_batch


def test_a_sites_setting_for_records_takes_precedence_over_memory(caplog: pytest.LogCaptureFixture) -> None:
    model, _ = make_specimen("mlp")
    assert way_to_train(Scores(), model, Computing(physical_batch=7, memory_mb=1)).physical_batch == 7
    with caplog.at_level(logging.WARNING, "cloister.agent"):
        task = Scores("two dimensions")
        big = nn.Sequential(nn.Flatten(), nn.Linear(162, 10_000), nn.Linear(10_000, 2))
        assert way_to_train(task, big, Computing(gradients="vmap", memory_mb=1)).physical_batch == 1
    assert any("take more than memory_mb = 1" in record.getMessage() for record in caplog.records)
