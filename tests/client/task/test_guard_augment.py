"""The guard refuses an augmentation that links records, and lets the usual ones pass."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from typing_extensions import override

from client.flower import open_site
from client.task.augmentation import check_augmentation, check_variations
from client.task.guard import check_records, check_task
from client.task.probe import Example, Probe, make_model
from privacy.errors import TaskError
from tests.federations import SETTINGS, FederationMaker
from tests.probes import Toy, sequences, vectors, words

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.data.inputs import Batch, Inputs
    from client.task.task import Task

    Augment = Callable[[Tensor, Generator], Tensor]

MEET = "its augment() mixes the records of a batch, or uses their place or number; vary each record by itself"
ELSEWHERE = "its augment() draws at random, but not from the generator that it is given, or sets its seed"


class Varying(Toy):
    """A classifier of `vectors` with an augmentation."""

    def __init__(self, augment: Augment, example: Callable[[], tuple[Tensor, Tensor]] = vectors) -> None:
        super().__init__(example=example)
        self._augment = augment

    @override
    def augment(self, inputs: Tensor, generator: Generator) -> Tensor:
        return self._augment(inputs, generator)


def tried(task: Task) -> None:
    check_variations(Probe(task, make_model(task, 0)), Example.of(task).batch()[0])


def complaint(augment: Augment) -> str:
    with pytest.raises(TaskError) as caught:
        tried(Varying(augment))
    return str(caught.value)


# --- What passes ----------------------------------------------------------------------------------------------------


def noisy(inputs: Tensor, generator: Generator) -> Tensor:
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def scaled_in_place(inputs: Tensor, generator: Generator) -> Tensor:
    return inputs.mul_(1 + 0.1 * torch.rand(len(inputs), 1, generator=generator))


def mirrored(inputs: Tensor, generator: Generator) -> Tensor:
    turned = torch.rand(len(inputs), generator=generator) < 0.5
    return torch.where(turned.view(-1, *[1] * (inputs.dim() - 1)), inputs.flip(-1), inputs)


def shifted(inputs: Tensor, generator: Generator) -> Tensor:
    """Each record by its own number of places."""
    by = torch.randint(inputs.shape[1], (len(inputs), 1), generator=generator)
    places = (torch.arange(inputs.shape[1]) + by) % inputs.shape[1]
    return inputs.gather(1, places)


def alike(inputs: Tensor, generator: Generator) -> Tensor:
    """The same draw for all records, which links none with another."""
    return inputs * (1 + torch.rand((), generator=generator))


def unchanged(inputs: Tensor, generator: Generator) -> Tensor:
    del generator
    return inputs


@pytest.mark.parametrize("augment", [noisy, scaled_in_place, mirrored, shifted, alike, unchanged])
def test_sound_augmentations_are_accepted(augment: Augment) -> None:
    tried(Varying(augment))


def test_the_guard_checks_the_augmentation() -> None:
    check_task(Varying(noisy), "package:Class")
    with pytest.raises(TaskError, match=r"package:Class: its augment\(\) mixes the records"):
        check_task(Varying(mixed_up), "package:Class")


# --- What does not --------------------------------------------------------------------------------------------------


def mixed_up(inputs: Tensor, generator: Generator) -> Tensor:
    """Mixup, with another record of the batch (Zhang et al., 2018)."""
    order = torch.randperm(len(inputs), generator=generator)
    return 0.9 * inputs + 0.1 * inputs[order]


def sometimes_mixed(inputs: Tensor, generator: Generator) -> Tensor:
    if float(torch.rand((), generator=generator)) < 0.3:
        return inputs + 0.01 * inputs.roll(1, 0)
    return inputs


def standardised(inputs: Tensor, generator: Generator) -> Tensor:
    return noisy(inputs, generator) / (1 + inputs.std(0))


def by_place(inputs: Tensor, generator: Generator) -> Tensor:
    return noisy(inputs, generator) * torch.arange(len(inputs)).unsqueeze(1)


def by_number(inputs: Tensor, generator: Generator) -> Tensor:
    return noisy(inputs, generator) / len(inputs)


@pytest.mark.parametrize("augment", [mixed_up, sometimes_mixed, standardised, by_place, by_number])
def test_it_refuses_augmentations_that_mix_records(augment: Augment) -> None:
    assert complaint(augment).startswith(MEET)


def by_default(inputs: Tensor, generator: Generator) -> Tensor:
    del generator
    return inputs + torch.randn_like(inputs)


def by_python(inputs: Tensor, generator: Generator) -> Tensor:
    del generator
    return inputs * (1 + random.random())  # noqa: S311 - the point


def by_numpy(inputs: Tensor, generator: Generator) -> Tensor:
    del generator
    return inputs + torch.from_numpy(np.random.rand(*inputs.shape)).float()  # noqa: NPY002 - the point


def by_a_new_one(inputs: Tensor, generator: Generator) -> Tensor:
    del generator
    return inputs + torch.from_numpy(np.random.default_rng().normal(size=inputs.shape)).float()


def seeded_again(inputs: Tensor, generator: Generator) -> Tensor:
    generator.manual_seed(7)
    return noisy(inputs, generator)


@pytest.mark.parametrize("augment", [by_default, by_python, by_numpy, by_a_new_one, seeded_again])
def test_it_refuses_draws_that_do_not_come_from_the_generator_given(augment: Augment) -> None:
    assert complaint(augment).startswith(ELSEWHERE)


def test_it_refuses_the_same_draws_in_every_batch() -> None:
    def of_one_seed(inputs: Tensor, generator: Generator) -> Tensor:
        own = torch.Generator().manual_seed(3)
        return noisy(noisy(inputs, own), generator)

    assert complaint(of_one_seed).startswith(MEET)  # a row's draws depend on its place alone


def test_it_refuses_augmentations_that_remember_earlier_batches() -> None:
    seen = [torch.zeros(())]

    def centred(inputs: Tensor, generator: Generator) -> Tensor:
        seen.append(inputs.mean())
        return noisy(inputs, generator) + 0.0 * seen[-2]

    task = Varying(centred)
    with pytest.raises(TaskError, match="keeps something of every batch"):
        check_augmentation(Probe(task, make_model(task, 0)), Example.of(task), 0.0)


def longer(inputs: Tensor, generator: Generator) -> Tensor:
    return torch.cat([inputs, noisy(inputs, generator)])


def as_numbers(inputs: Tensor, generator: Generator) -> Tensor:
    return noisy(inputs, generator).double()


def as_a_pair(inputs: Tensor, generator: Generator) -> Tensor:
    return (inputs, generator)  # type: ignore[return-value]  # on purpose


@pytest.mark.parametrize(("augment", "form"), [(longer, "(10, 4)"), (as_numbers, "float64"), (as_a_pair, "tuple")])
def test_it_refuses_records_of_another_form(augment: Augment, form: str) -> None:
    message = complaint(augment)
    assert message.startswith("its augment() turns inputs torch.float32 (5, 4) on cpu into")
    assert form in message


def test_it_names_an_augmentation_that_fails() -> None:
    def failing(inputs: Tensor, generator: Generator) -> Tensor:
        return inputs @ torch.rand(3, 3, generator=generator)

    assert complaint(failing).startswith("its augment() fails on 5 made-up records (RuntimeError")


def test_it_tries_the_augmentation_on_a_sites_own_records_too() -> None:
    def filling(inputs: Tensor, generator: Generator) -> Tensor:
        """A missing value becomes the batch's mean; the example has none."""
        return noisy(torch.where(inputs == -77.5, inputs.mean(0), inputs), generator)

    inputs, targets = torch.randn(32, 4), torch.arange(32) % 3
    task = Varying(filling)
    check_records(task, "package:Class", Example(inputs, targets))
    inputs[::3, 1] = -77.5
    with pytest.raises(TaskError, match="mixes the records"):
        check_records(task, "package:Class", Example(inputs, targets))


def test_sequences_and_words_may_be_varied() -> None:
    def dropped(inputs: Tensor, generator: Generator) -> Tensor:
        return inputs.masked_fill(torch.rand(inputs.shape, generator=generator) < 0.1, 0)

    tried(Varying(dropped, sequences))
    tried(Varying(dropped, words))


def test_inputs_may_be_several_tensors() -> None:
    class Several(Toy):
        crossed = False

        @override
        def example(self) -> Batch:  # type: ignore[override]  # several tensors
            drawn, targets = vectors()
            return {"one": drawn, "other": drawn[:, 0]}, targets

        @override
        def augment(self, inputs: Inputs, generator: Generator) -> Inputs:
            assert isinstance(inputs, dict)
            other = inputs["other"].roll(1, 0) if self.crossed else inputs["other"]
            return {"one": noisy(inputs["one"], generator), "other": other}

    task = Several()
    tried(task)
    task.crossed = True
    with pytest.raises(TaskError, match=r"its augment\(\) mixes the records"):
        tried(task)


# --- Runs -----------------------------------------------------------------------------------------------------------


def test_a_run_that_asks_for_copies_of_a_task_without_augmentation_is_refused_before_it_is_charged(
    make_federation: FederationMaker,
) -> None:
    assert SETTINGS.training is not None
    settings = replace(SETTINGS, training=replace(SETTINGS.training, augmentation_multiplicity=4))
    site = open_site(make_federation(settings).paths["north"])
    with pytest.raises(TaskError, match=r"has no augment\(\); write it, or remove augmentation_multiplicity"):
        site.study(settings.task).prepare(settings)
