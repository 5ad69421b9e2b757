"""What comparing with autograd finds: gradients lost later, rows in another order, layers that draw at random."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from client.data.inputs import Inputs
from client.data.site_records import InMemory
from client.gradients.choice import choose, make_mode
from client.gradients.comparison import Expected
from client.gradients.loss import RecordLoss
from client.gradients.mode import quiet
from client.gradients.noisy_optimizer import CipherOptimizer
from client.gradients.record_gradients import Rows
from client.gradients.vmap import Vmap
from client.settings import Gradients
from privacy.errors import TaskError
from privacy.noise.randomness import Randomness
from tests.client.models import Packed
from tests.client.specimens import MODES, SPECIMENS, Scores, clipped_sum, computing, make_specimen, one_by_one


class Drawing(nn.Module):
    """Draws at random between two layers; has a parameter of its own if asked."""

    def __init__(self, draw: Callable[[Tensor], Tensor], *, bare: bool) -> None:
        super().__init__()
        self.first, self.second, self._draw = nn.Linear(3, 20), nn.Linear(20, 2), draw
        self.scale: Tensor = nn.Parameter(torch.ones(20)) if bare else torch.ones(20)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.second(self._draw(self.first(inputs)).tanh() * self.scale)
        return outputs


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda hidden: functional.dropout(hidden, 0.3),
    "noise": lambda hidden: hidden + 0.3 * torch.randn_like(hidden),
    "paths": lambda hidden: hidden * (torch.rand(len(hidden), 1) < 0.7),
}


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", DRAWS)
def test_a_model_that_draws_at_random_is_compared_and_the_generator_is_as_before(name: str, *, bare: bool) -> None:
    model, records = Drawing(DRAWS[name], bare=bare), make_specimen("mlp")[1]
    before = torch.get_rng_state()
    assert choose(Scores(), model, records, computing("auto")).gradients == ("vmap" if bare else "bookkeeping")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loss_that_torch_maps_slowly_is_taken_without_a_warning() -> None:
    class Divergence(Scores):
        @override
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            labels = functional.one_hot(targets, 2).float()
            return functional.kl_div(outputs.log_softmax(1), labels, reduction="batchmean")

    assert choose(Divergence(), *make_specimen("mlp"), computing("auto")).gradients == "bookkeeping"


def test_dropout_is_the_same_in_a_model_and_in_the_loss_that_is_computed_record_by_record() -> None:
    class Branching(Scores):
        @override
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs, targets) * (2.0 if float(outputs.detach().sum()) > 0 else 1.0)

    model = Drawing(DRAWS["dropout"], bare=True)
    assert choose(Branching(), model, make_specimen("mlp")[1], computing("vmap")).gradients == "vmap"


class Forgetful(Vmap):
    """Is right for some parts, and then gives gradients to nobody."""

    def __init__(self, model: nn.Module, parts: int) -> None:
        super().__init__(model)
        self._parts = parts

    @override
    def per_record(self, inputs: Inputs, targets: Tensor) -> list[Rows]:
        self._parts -= 1
        gradients = super().per_record(inputs, targets)
        return gradients if self._parts >= 0 else [*gradients[:-1], Rows(torch.zeros_like(gradients[-1].rows))]


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_a_mode_that_loses_gradients_after_some_parts_is_found(parts: int) -> None:
    model, records = make_specimen("mlp")
    expected = Expected.of(model, RecordLoss(Scores()), records)
    mode = Forgetful(Expected.copy(model), parts)
    right = make_mode("vmap", mode._module, RecordLoss(Scores()), expected.bound, torch.float32)
    mode.loss, mode.max_grad_norm, mode.trained = right.loss, right.max_grad_norm, right.trained
    assert (expected.wrong(mode) is None) == (parts == 4)


def test_a_mode_without_the_gradients_of_a_parameter_is_an_error() -> None:
    class Lacking(Vmap):
        @override
        def per_record(self, inputs: Inputs, targets: Tensor) -> list[Rows]:
            return super().per_record(inputs, targets)[:-1]

    model, records = make_specimen("mlp")
    mode, right = Lacking(model), make_mode("vmap", model, RecordLoss(Scores()), 1.0, torch.float32)
    mode.loss, mode.max_grad_norm, mode.trained = right.loss, 1.0, right.trained
    with pytest.raises(TaskError, match="only 2 of the model's 3 parameters have gradients"):
        mode.fill(*records)


@pytest.mark.parametrize("left_out", [0, 2])
def test_a_step_without_the_sum_of_a_parameter_is_an_error(left_out: int) -> None:
    model, records = make_specimen("mlp")
    mode = make_mode("vmap", model, RecordLoss(Scores()), 1.0, torch.float32)
    optimizer = CipherOptimizer(
        torch.optim.SGD(mode.trained, lr=1.0),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=1,
        randomness=Randomness.fresh(),
    )
    mode.trained = [parameter for number, parameter in enumerate(mode.trained) if number != left_out]
    with pytest.raises(TaskError, match=r"the model replaces its parameters"):
        optimizer.take(mode, InMemory(*records), torch.arange(6), 6)
    with pytest.raises(TaskError, match="a trained parameter of the model has no gradient"):
        optimizer.take(mode, InMemory(*records), torch.arange(0), 6)
    optimizer.close()


def test_parameters_are_unchanged_after_every_part() -> None:
    for name in ("thrice", "siamese", "tied"):
        model, records = make_specimen(name)
        mode = make_mode("vmap", model, RecordLoss(Scores(name)), 1.0, torch.float32)
        before = [(key, id(parameter)) for key, parameter in model.named_parameters(remove_duplicate=False)]
        with quiet():
            for _ in range(2):
                mode.per_record(*records)
        assert [(key, id(parameter)) for key, parameter in model.named_parameters(remove_duplicate=False)] == before
        assert all(type(parameter) is nn.Parameter for parameter in model.parameters())


def test_state_left_by_hooks_is_not_added_to_the_next_batch() -> None:
    class Maybe(nn.Module):
        """Calls a layer again in vain if the first record says so."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            if inputs[0, 0] > 9:
                self.layer(inputs)
            outputs: Tensor = self.layer(inputs)
            return outputs

    model, (inputs, targets) = Maybe(), make_specimen("mlp")[1]
    mode = make_mode("hooks", model, RecordLoss(Scores()), 1.0, torch.float32)
    first = sizes(mode.per_record(inputs, targets))
    other = inputs.clone()
    other[0, 0] = 10.0
    with quiet(), pytest.raises(TaskError, match="to a call on which the outputs do not depend"):
        mode.per_record(other, targets)
    torch.testing.assert_close(sizes(mode.per_record(inputs, targets)), first)


def sizes(gradients: Sequence[object]) -> Tensor:
    return torch.stack([share.squares() for share in gradients if isinstance(share, Rows)])


@pytest.mark.parametrize("mode", MODES)
def test_packed_sequences_are_refused_where_rows_would_be_other_records(mode: Gradients) -> None:
    records = SPECIMENS["tied"].inputs(), torch.arange(6) % 2
    if mode == "autograd":  # whose rows are single records
        choose(Scores(), Packed(), records, computing(mode))
        return
    with pytest.raises(TaskError, match="packed sequences, which it sorts" if mode != "vmap" else "RuntimeError"):
        choose(Scores(), Packed(), records, computing(mode))


def test_a_model_that_replaces_its_parameters_is_refused() -> None:
    class Replacing(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] - another name
            outputs = super().forward(inputs)
            self.weight = nn.Parameter(self.weight.detach().clone())
            return outputs

    with pytest.raises(TaskError):
        choose(Scores(), Replacing(3, 2), make_specimen("mlp")[1], computing("auto"))


def test_a_checkpoint_that_runs_layers_again_is_taken_by_book_keeping() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.out = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 5)), nn.Linear(5, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            outputs: Tensor = self.out(checkpoint(self.part, inputs, use_reentrant=False))
            return outputs

    assert choose(Scores(), Checkpointed(), make_specimen("mlp")[1], computing("auto")).gradients == "bookkeeping"


def with_computed_weights() -> nn.Module:
    """Its weight is computed before each pass, and stays with the layer until the next."""
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 5)), nn.Tanh(), nn.Linear(5, 2))


class Remembering(nn.Module):
    """Keeps its gate's outputs to look at, with the graph that computed them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out, self.seen = nn.Linear(3, 3), nn.Linear(3, 2), dict[str, list[Tensor]]()

    def forward(self, inputs: Tensor) -> Tensor:
        gate = self.gate(inputs).softmax(1)
        self.seen["gate"] = [gate]
        outputs: Tensor = self.out(gate * inputs)
        return outputs


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(("make", "mode"), [(with_computed_weights, "vmap"), (Remembering, "bookkeeping")])
def test_a_model_that_keeps_computed_tensors_is_compared_and_summed_as_autograd_does(
    make: Callable[[], nn.Module], mode: Gradients
) -> None:
    torch.manual_seed(0)
    model, records = make(), make_specimen("mlp")[1]
    for _ in range(2):  # the second time, there are tensors of the first
        assert choose(Scores(), model, records, computing("auto")).gradients == mode
        gradients = one_by_one(Scores(), model, records)
        bound = float(gradients.norm(dim=1).median())
        expected = (bound / (gradients.norm(dim=1) + 1e-6)).clamp(max=1.0) @ gradients
        for tried in (mode, "autograd"):
            total = clipped_sum(tried, Scores(), model, records, bound)
            torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)


def test_a_model_without_trained_parameters_is_refused() -> None:
    model, records = make_specimen("mlp")
    model.requires_grad_(False)  # noqa: FBT003 - torch's stubs know no name for it
    with pytest.raises(TaskError, match="every parameter of the model is frozen"):
        choose(Scores(), model, records, computing("auto"))
