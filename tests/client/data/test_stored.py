"""Records in a data set are read when needed: the same numbers as in memory, flat memory, a sentence for a bad one."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from client.data.fitness import Fitness
from client.data.own_records import check_loaded
from client.data.site_records import predictions
from client.data.stored import Stored
from client.dpsgd.training_steps import train
from client.flower import open_site
from client.settings import Computing, Data
from client.task.probe import Example, make_model
from client.task.proving import prove
from privacy.errors import DataError, TaskError
from privacy.noise.randomness import Randomness
from simulations.engine.federation import SiteTerms
from tests.client.agent_rounds import plan_of
from tests.client.agent_rounds import train as train_round
from tests.client.data.data_sets import (
    ODD,
    Lines,
    Spoiling,
    Spoilt,
    Stream,
    Streamed,
    Wide,
    no_number,
    own_words,
    unknown_name,
)
from tests.client.data.rows import WIDTH, Rows
from tests.client.named_inputs import Named, Towers, pairs
from tests.federations import NOISY, charges_of, signed_run, task_name
from tests.studies import QUOTE, Tiny
from tests.trainings import signed

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.data.inputs import Inputs
    from client.task.task import Task
    from tests.federations import FederationMaker

SITE = "north"
CPU = torch.device("cpu")


def stored(dataset: Dataset[Any], task: Task, path: Path = Path("records")) -> Stored:
    records = check_loaded(dataset, "package:Class", Example.of(task), path).records
    assert isinstance(records, Stored)
    return records


def whole(inputs: Inputs) -> Tensor:
    assert isinstance(inputs, Tensor)
    return inputs


# --- The same numbers -------------------------------------------------------------------------------------------------


def test_a_rounds_update_and_its_measures_are_those_of_the_same_records_in_memory(
    make_federation: FederationMaker,
) -> None:
    results = []
    for number, task in enumerate((Tiny, Streamed)):
        terms = SiteTerms(tasks=(task_name(task),), file="records.csv", device="cpu")
        federation = make_federation(terms={SITE: terms}, name=f"federation{number}")
        site, (_, manifest, _) = open_site(federation.paths[SITE]), signed_run(federation)
        study = site.study(task_name(task))
        assert study.count() == 20
        update = study.release(manifest, 1, study.start(manifest.settings), Randomness.seeded(7))
        results.append((update.vector.tolist(), study.measure(manifest.settings, study.start(manifest.settings))))
    assert results[0] == results[1]


def test_processes_read_ahead_the_same_records_in_the_same_order(tmp_path: Path) -> None:
    task = Wide()
    rows = Rows(tmp_path / "rows", 200)
    data = Data(Path("rows"), "people", loader_workers=2)
    ahead = check_loaded(rows, "package:Class", Example.of(task), tmp_path / "rows", data).records
    here = stored(rows, task)
    order, before = torch.arange(200).flip(0)[:70], torch.get_rng_state()
    for _ in range(2):  # the same processes again
        parts = list(ahead.parts(order, 30))
        assert [len(targets) for _, targets in parts] == [30, 30, 10]
        for (inputs, targets), (own, aims) in zip(parts, here.parts(order, 30), strict=True):
            assert torch.equal(whole(inputs), whole(own))
            assert torch.equal(targets, aims)
        next(ahead.parts(order, 30))  # the rest is left
    assert [len(targets) for _, targets in ahead.parts(order[:0], 30)] == [0]
    assert torch.equal(before, torch.get_rng_state())
    assert isinstance(ahead, Stored)
    feed = ref(ahead.feed)
    del ahead
    assert feed() is None  # without the garbage collector, under which the processes would wait for seconds


@pytest.mark.parametrize(("task", "count"), [(Named(), 40), (Named(Towers, pairs), 12)], ids=["dict", "tuple"])
def test_inputs_of_several_tensors_are_stacked_tensor_by_tensor(task: Named, count: int) -> None:
    inputs, targets = task._records(count)

    class ByIndex(Dataset[Any]):
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - a dict or a list
            if isinstance(inputs, dict):
                return {name: tensor[index].numpy() for name, tensor in reversed(inputs.items())}, int(targets[index])
            return [tensor[index] for tensor in inputs], targets[index]

    records = stored(ByIndex(), task)
    order = torch.tensor([3, 1, 1])
    selected, chosen = records.select(order)
    assert torch.equal(chosen, targets[order])
    assert type(selected) is type(inputs)
    if isinstance(inputs, dict) and isinstance(selected, dict):
        assert all(torch.equal(selected[name], inputs[name][order]) for name in inputs)
        assert list(selected) == list(inputs)
    model = make_model(task, 0)
    outputs, _ = predictions(model, records, 5)
    assert torch.allclose(outputs, predictions(model, records, count)[0], atol=1e-6)
    prove(task, "package:Class", records, CPU, Computing())


def test_a_task_in_which_records_of_a_data_set_interact_is_refused_on_the_sites_own() -> None:
    class Rare(nn.Module):
        """Mixes the records of a batch only once it sees a large one."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.layer(inputs)
            return outputs * (1 + inputs.mean() * (inputs.abs().max() > 5000))

    class Mixing(Tiny):
        def model(self) -> nn.Module:
            return Rare()

    task = Mixing()
    values = torch.rand(12, 2) * 9000
    with pytest.raises(TaskError, match="record"):
        prove(task, "package:Class", stored(TensorDataset(values, torch.ones(12, 1)), task), CPU, Computing())


# --- Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for this process's peak of memory")
def test_memory_is_flat_and_only_sampled_records_are_read(tmp_path: Path) -> None:
    """20,000 records of 16 KiB are 320 MB."""
    task, count, steps, rate = Wide(), 20_000, 4, 0.005
    rows = Rows(tmp_path / "rows", count)
    records, model = stored(rows, task), make_model(task, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("client.data.watching._MANY", count + 1)
        train(task, model, records, count, signed(rate=rate, steps=1), Randomness.seeded(0))  # fills torch's caches
    rows.read, before = 0, _peak(anew=True)
    train(task, model, records, count, signed(rate=rate, steps=steps, noise=1.0), Randomness.seeded(1))
    assert 0.5 < rows.read / (4 * WIDTH * count * rate * steps) < 2  # the last line reads some again
    rows.read = 0
    Fitness(task, "package:Class", model).check(records, range(1, count + 1), tmp_path)
    assert rows.read == 4 * WIDTH * count  # once
    assert _peak() - before < 80 << 20


def _peak(*, anew: bool = False) -> int:
    """Return this process's peak memory, in bytes, since the last call with `anew`."""
    if anew:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    (line,) = [text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def test_a_check_that_reads_everything_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, count = Streamed(), 1200
    path = tmp_path / "records.csv"
    path.write_text("a,b,y\n1,2,3\n")
    line = Lines(path)[0]
    many = TensorDataset(line[0].expand(count, 2), line[1].expand(count, 1))
    with caplog.at_level(logging.INFO):
        Fitness(task, "package:Class", make_model(task, 0)).check(stored(many, task), range(count), tmp_path)
    assert "checking package:Class each of 1200 records, which reads all of them once" in caplog.text


# --- Records that cannot be used --------------------------------------------------------------------------------------

SPOILT: dict[str, tuple[Callable[[], Any], str]] = {
    "raises": (unknown_name, "cannot be read: it raises KeyError at tests/client/data/data_sets.py:"),
    "no number": (no_number, "cannot be read: it raises ValueError at tests/client/data/data_sets.py:"),
    "exits": (lambda: sys.exit(QUOTE), "cannot be read: it raises SystemExit at tests/client/data/"),
    "longer": (lambda: (torch.ones(3), torch.ones(1)), "is float32 (n, 3) and float32 (n, 1), but the example has"),
    "complex": (
        lambda: (torch.ones(2), torch.ones(1, dtype=torch.complex64)),
        "is float32 (n, 2) and complex64 (n, 1), but the example has",
    ),
    "texts": (lambda: ([QUOTE, QUOTE], torch.ones(1)), "cannot be used: the inputs are no numbers (<U"),
    "text": (lambda: (QUOTE, torch.ones(1)), "is a builtins.str and float32 (n, 1), but the example has"),
    "alone": (lambda: torch.ones(2), "is not a pair; return (inputs, target)"),
    "NaN": (
        lambda: (torch.tensor([1.0, torch.nan]), torch.ones(1)),
        "has numbers in its inputs that are not finite; correct",
    ),
    "infinite target": (
        lambda: (torch.ones(2), torch.tensor([torch.inf])),
        "has numbers in its target that are not finite",
    ),
}


@pytest.mark.parametrize(("spoilt", "message"), SPOILT.values(), ids=SPOILT)
def test_a_record_that_cannot_be_used_is_named_before_anything_is_charged(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, spoilt: Callable[[], Any], message: str
) -> None:
    monkeypatch.setattr(Spoiling, "loaded", Spoilt(spoilt))
    federation = make_federation(terms={SITE: SiteTerms((task_name(Spoiling),), file="records.csv", device="cpu")})
    with pytest.raises(DataError) as caught:
        open_site(federation.paths[SITE]).check_records()
    assert f"record {ODD + 1} (index {ODD}) of {task_name(Spoiling)}'s data set {message}" in str(caught.value)
    assert QUOTE not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "target", "said"),
    [
        (torch.ones(2).double(), 1, "inputs from float64 to float32"),
        (np.ones(2), np.float64(1), "inputs from float64 to float32, targets from float64 to float32"),
        ([1, 1], [1.0], ""),
        (np.ones(2, np.uint16), True, "inputs from uint16 to float32"),
        (torch.ones(2).int(), torch.tensor(1), "inputs from int32 to float32, targets from int64 to float32"),
    ],
)
def test_numbers_of_any_type_become_those_of_the_example_with_a_notice(
    inputs: object, target: object, said: str
) -> None:
    class Alike(Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> object:
            return inputs, target

    (notice,) = check_loaded(Alike(), "package:Class", Example.of(Tiny()), Path("records")).notices or ("",)
    assert notice.rpartition("converted: ")[2] == said
    (read, aims) = stored(Spoilt(lambda: (inputs, target)), Tiny()).whole()
    assert torch.equal(whole(read)[ODD], torch.ones(2))
    assert aims[ODD].tolist() == [1.0]


def test_a_data_error_of_the_task_is_shown_as_it_is() -> None:
    with pytest.raises(DataError, match=r"^scan 17 is cut; scan it again$"):
        stored(Spoilt(own_words), Tiny()).whole()


LOADS: dict[str, tuple[Any, str]] = {
    "a stream": (Stream(), "returns a data set without a length; return one with len"),
    "empty": (TensorDataset(torch.ones(0, 2), torch.ones(0, 1)), "the task's data set has no records"),
    "two of them": ((Spoilt(own_words),) * 3, "the task read inputs and targets a tests.client.data.data_sets.Spoilt"),
}


@pytest.mark.parametrize(("loaded", "message"), LOADS.values(), ids=LOADS)
def test_a_data_set_that_cannot_be_used_is_a_sentence(loaded: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_loaded(loaded, "package:Class", Example.of(Tiny()), Path("records"))
    assert str(caught.value).startswith("records: ")
    assert message in str(caught.value)


def test_a_record_that_spoils_after_the_checks_refuses_the_round_and_nothing_leaves(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Spoiled(Dataset[Any]):
        sound = True

        def __len__(self) -> int:
            return 25

        def __getitem__(self, index: int) -> object:
            return (torch.rand(2), torch.rand(1)) if self.sound else unknown_name()

    monkeypatch.setattr(Spoiling, "loaded", Spoiled())
    settings = replace(NOISY, task=task_name(Spoiling))
    federation = make_federation(settings)
    site = open_site(federation.paths[SITE])
    site.check_records()
    monkeypatch.setattr(Spoiled, "sound", False)
    answer = train_round(federation, plan_of(federation))
    message = str(answer.error.reason)
    assert charges_of(federation, SITE) == 1
    assert not site.ledger.has_left(site.ledger.entries().charges[0].release)
    assert QUOTE not in message + caplog.text
    assert "data set" not in message


def test_processes_that_cannot_get_the_data_set_are_a_sentence() -> None:
    class Local(Spoilt):
        """Cannot be pickled."""

    data = Data(Path("records"), "people", loader_workers=1)
    records = check_loaded(Local(own_words), "package:Class", Example.of(Tiny()), Path("records"), data).records
    with pytest.raises(DataError, match=r"set loader_workers = 0 in \[data\] of site.toml, or let the data set be"):
        records.select(torch.arange(3))
