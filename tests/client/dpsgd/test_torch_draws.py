"""What dropout draws is drawn afresh in every round, under a seed that nobody knows, on every device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.dpsgd.torch_draws import Draws, check_draws, forked
from client.task.probe import make_model
from privacy.errors import TaskError
from tests.client.specimens import DEVICES
from tests.probes import WIDTH, Toy, complaint, head, vectors
from tests.trainings import signed, summed

if TYPE_CHECKING:
    from collections.abc import Callable


class Device:
    """An accelerator's generator, which torch seeds by the hooks that it has for that; see `torch.manual_seed`."""

    def __init__(self) -> None:
        self.generator = torch.Generator()
        self.seeds: list[int] = []

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)
        self.generator.manual_seed(seed)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    fake = Device()
    monkeypatch.setattr("torch.cuda.manual_seed_all", fake.seed)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.get_rng_state_all", lambda: [fake.generator.get_state()])
    return fake


class Dropping(nn.Module):
    """Drops records' values by the masks that a generator draws, and notes the masks."""

    def __init__(self, generator: torch.Generator | None, masks: list[Tensor]) -> None:
        super().__init__()
        self.layer, self._generator, self._masks = head(), generator, masks

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        mask = torch.bernoulli(torch.full((len(inputs), WIDTH), 0.5), generator=self._generator)
        self._masks.append(torch.func.debug_unwrap(mask))  # that of all records, where torch maps over single ones
        outputs: Tensor = self.layer(inputs * mask)
        return outputs


class Seeding(Toy):
    """Sets torch's seed whenever it makes its model."""

    @override
    def model(self) -> nn.Module:
        torch.manual_seed(7)
        return super().model()


def masks_of(kind: type[Toy], generator: torch.Generator | None, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The masks of three rounds of ten steps, which all records are in."""
    monkeypatch.setattr("client.dpsgd.training_steps._look", lambda *_: None)  # draws masks again on purpose
    # Modes are compared under one seed of torch's own generators, which the one that stands for a device's is not.
    monkeypatch.setattr("client.gradients.comparison.Expected.wrong", lambda *_: None)
    masks: list[Tensor] = []
    task = kind(lambda: Dropping(generator, masks))
    summed(task, vectors(), signed(steps=1))  # in which a mode is chosen
    rounds: list[Tensor] = []
    for _ in range(3):
        masks.clear()
        summed(task, vectors(), signed(steps=10))
        rounds.append(torch.stack([mask for mask in masks if len(mask) > 1]))
    return rounds


@pytest.mark.parametrize("kind", [Toy, Seeding])
def test_dropout_masks_differ_in_every_step_and_round(
    monkeypatch: pytest.MonkeyPatch, device: Device, kind: type[Toy]
) -> None:
    for generator in (None, device.generator):
        rounds = masks_of(kind, generator, monkeypatch)
        masks = [tuple(mask.flatten().tolist()) for drawn_masks in rounds for mask in drawn_masks]
        assert len(set(masks)) == len(masks) >= 30


def test_making_a_model_seeds_no_device(device: Device) -> None:
    make_model(Toy(), 11)
    assert device.seeds == []


def test_masks_never_follow_from_the_models_public_seed(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, *_) = masks_of(Toy, device.generator, monkeypatch)
    assert len(device.seeds) > len(set(device.seeds) & set(range(1000)))
    for seed in (0, 1):  # the run's, and any that a trial sets
        known = torch.Generator().manual_seed(seed)
        drawn = [torch.bernoulli(torch.full(first[0].shape, 0.5), generator=known) for _ in range(100)]
        assert not any(torch.equal(mask, one) for mask in first for one in drawn)


@pytest.mark.parametrize("where", DEVICES)
def test_generators_are_restored(where: str) -> None:
    on = torch.device(where)
    torch.rand(3, device=on)  # it is in use
    states = torch.get_rng_state(), torch.cuda.get_rng_state() if on.type == "cuda" else None
    with forked():
        torch.manual_seed(3)
        torch.rand(3, device=on)
    assert torch.equal(states[0], torch.get_rng_state())
    if states[1] is not None:
        assert torch.equal(states[1], torch.cuda.get_rng_state())


def test_a_round_leaves_torch_as_it_was() -> None:
    task, records = Toy(lambda: nn.Sequential(nn.Dropout(), head())), vectors()
    summed(task, records, signed(steps=3))
    before = torch.get_rng_state()
    summed(task, records, signed(steps=3))
    assert torch.equal(before, torch.get_rng_state())


DRAWS: dict[str, Callable[[], Tensor]] = {
    "dropout": lambda: functional.dropout(torch.ones(50)),
    "uniform": lambda: torch.rand(50),
    "normal": lambda: torch.randn_like(torch.ones(50)),
    "bernoulli": lambda: torch.bernoulli(torch.full((50,), 0.5)),
    "integers": lambda: torch.randint(3, (50,)),
    "normal around means": lambda: torch.normal(torch.ones(50), torch.ones(50)),
    "one of some": lambda: torch.multinomial(torch.ones(50, 3), 1)[:, 0],
    "in place": lambda: torch.empty(50).uniform_(2, 3),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
def test_draws_can_be_held_fixed_and_are_detected(draw: Callable[[], Tensor]) -> None:
    torch.manual_seed(1)
    with Draws(still=True) as still:
        values = draw(), draw()
    assert len(still.states) == 2
    assert len(torch.unique(torch.cat(values))) == 1
    assert torch.initial_seed() == 1
    with Draws() as watched:
        values = draw(), draw()
    assert len(set(watched.states)) == 2
    assert not torch.equal(*values)


def seeded(seed: int, draw: Callable[[], Tensor]) -> Draws:
    torch.manual_seed(seed)
    watched = Draws()
    with watched:
        draw()
    return watched


def test_draws_under_an_own_seed_or_generator_are_detected() -> None:
    def hidden() -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return torch.rand(2)

    check_draws([seeded(seed, lambda: torch.rand(2)) for seed in (0, 1)])
    with pytest.raises(TaskError, match="sets the seed of its draws"):
        check_draws([seeded(seed, hidden) for seed in (0, 1)])
    with pytest.raises(TaskError, match="from its own generator"):
        check_draws([seeded(seed, lambda: torch.rand(2, generator=torch.Generator())) for seed in (0, 1)])


def test_a_task_that_sets_torchs_seed_is_refused_with_the_reason() -> None:
    class Setting(Toy):
        @override
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            torch.manual_seed(5)
            return super().loss(outputs, targets)

    assert complaint(Setting()).startswith("its loss sets torch's seed, so dropout repeats its masks; leave")
