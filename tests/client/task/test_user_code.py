"""A task's own code may raise anything: a site says which error and where, never in its words, and goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from client.flower import open_site
from client.task.probe import MADE_UP, OWN, Probe
from client.task.task import Task
from client.work.survey import Survey
from privacy.errors import CloisterError, DataError, TaskError
from simulations.engine.federation import SiteTerms
from tests.federations import task_name
from tests.studies import QUOTE, Tiny
from tests.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.federations import FederationMaker

SITE = "north"


class Loading(Tiny):
    """Reads as a test says."""

    read: ClassVar[Callable[[], Any]]

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        return Loading.read()  # type: ignore[no-any-return]


def _out_of_memory() -> None:
    raise MemoryError


def _endless() -> None:
    _endless()


WHERE = "at tests/client/task/test_user_code.py:"
LOADS: dict[str, tuple[Callable[[], Any], str]] = {
    "column": (lambda: {QUOTE: "1"}["age"], f"raises KeyError {WHERE}"),
    "value": (lambda: float(QUOTE), f"raises ValueError {WHERE}"),
    "encoding": (lambda: f"{QUOTE} ü".encode().decode("ascii"), f"raises UnicodeDecodeError {WHERE}"),
    "exit": (lambda: sys.exit(QUOTE), f"raises SystemExit {WHERE}"),
    "recursion": (_endless, f"raises RecursionError {WHERE}"),
    "memory": (_out_of_memory, "needs more memory than this machine has left"),
    "three": (
        lambda: (torch.rand(5, 2), torch.rand(5, 1), torch.rand(5)),
        "returns after the records does not name persons",
    ),
    "a missing file": (Path("missing.csv").read_text, "if `file` in [data] of site.toml is wrong, correct that"),
    "nothing": (lambda: None, "returns a NoneType; return two tensors"),
    "lists": (lambda: ([[1.0, 2.0], [1.0]], [0.0] * 2), "the inputs cannot be read as numbers of one shape"),
    "sparse": (lambda: (torch.rand(5, 2).to_sparse(), torch.rand(5, 1)), "returns a sparse tensor"),
    "short": (lambda: (torch.rand(5, 2), torch.rand(4, 1)), "5 inputs and 4 targets"),
    "empty": (lambda: (torch.rand(0, 2), torch.rand(0, 1)), "the task read no records in it; name one with records"),
    "not finite": (
        lambda: (torch.tensor([[1.0, 2.0], [1.0, torch.inf]]), torch.rand(2, 1)),
        "input 2 of record 2, as the task read it, is not finite",
    ),
}


@pytest.mark.parametrize(("read", "message"), LOADS.values(), ids=LOADS)
def test_a_bad_load_is_reported_in_one_sentence_without_its_own_text(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, read: Callable[[], Any], message: str
) -> None:
    monkeypatch.setattr(Loading, "read", read, raising=False)
    with pytest.raises(DataError) as caught:
        site_with(make_federation, task_name(Loading)).check_records()
    assert message in str(caught.value)
    assert "records.csv" in str(caught.value)
    assert QUOTE not in str(caught.value)
    assert "\n" not in str(caught.value)


class Simulated(Tiny):
    """A task that was only simulated, over arrays."""

    load = Task.load  # type: ignore[assignment]  # what a task without one has


def test_a_site_says_that_a_task_does_not_say_how_it_reads_records(make_federation: FederationMaker) -> None:
    with pytest.raises(TaskError, match=r"Simulated does not say .*: write load\(self, path\), which returns inputs"):
        site_with(make_federation, task_name(Simulated)).check_records()


def test_records_that_carry_a_gradient_are_taken_without_it(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = torch.rand(5, 2, requires_grad=True), torch.rand(5, 1)
    monkeypatch.setattr(Loading, "read", lambda: records, raising=False)
    site = site_with(make_federation, task_name(Loading))
    assert site.check_records() == {task_name(Loading): 4}
    assert not table(site.study(task_name(Loading)).training)[0].requires_grad


def site_with(make_federation: FederationMaker, task: str) -> Any:  # noqa: ANN401 - a Site
    federation = make_federation(terms={SITE: SiteTerms(tasks=(task,), file="records.csv", device="cpu")})
    return open_site(federation.paths[SITE])


MODULES = {
    "def f(:": "module raises SyntaxError at",
    "X = undefined_name": "module raises NameError at",
    f"raise KeyError({QUOTE!r})": "module raises KeyError at",
    'open("/nonexistent/labels.json")': "module raises FileNotFoundError at",
    f"import sys; sys.exit({QUOTE!r})": "module raises SystemExit at",
    f"raise ImportError({QUOTE!r})": "module raises ImportError at",
    "class Error(BaseException): pass\nraise Error": "module raises Error at",
    "import nowhere.to_be_found": "there is no module 'nowhere'",
    "X = 1": "has no 'Study'",
    "Study = 1": "is not a class",
    "class Study: pass": "is not a cloister.Task",
    "from cloister import Task\nclass Study(Task): pass": "lacks example, loss, model; write what is missing",
}
STUDY = """
from tests.studies import Tiny
from tests.tables import table
class Study(Tiny):
    def __init__(self{more}):
        {body}
"""
MODULES[STUDY.format(more=", path", body="pass")] = "cannot be constructed (missing a required argument: 'path')"
MODULES[STUDY.format(more="", body=f"raise ValueError({QUOTE!r})")] = "constructor raises ValueError at"
MODULES[STUDY.format(more="", body="raise SystemExit(0)")] = "constructor raises SystemExit at"


@pytest.mark.parametrize(("text", "message"), MODULES.items(), ids=map(str, range(len(MODULES))))
def test_a_task_that_cannot_be_imported_is_named_with_the_line(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "mytasks.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mytasks", raising=False)
    site = site_with(make_federation, "mytasks:Study")
    with pytest.raises(TaskError) as caught:
        site.check_records()
    monkeypatch.delitem(sys.modules, "mytasks", raising=False)
    assert message in str(caught.value)
    assert "mytasks:Study" in str(caught.value)
    assert QUOTE not in str(caught.value)
    if message.endswith(" at"):
        assert f"{message} {tmp_path / 'mytasks.py'}:" in str(caught.value)


class Quoting(Tiny):
    """Its loss and its metrics have a bug, which quotes a record."""

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        raise KeyError(QUOTE)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        raise KeyError(QUOTE)


@pytest.mark.parametrize("method", ["loss", "metrics"])
def test_text_from_a_task_that_is_tested_on_a_sites_own_records_is_not_repeated(method: str) -> None:
    records = torch.rand(3, 1), torch.rand(3, 1)
    own, made_up = (Probe(Quoting(), nn.Linear(2, 1), kind) for kind in (OWN, MADE_UP))
    with pytest.raises(TaskError) as caught:
        getattr(own, method)(*records)
    assert f"its {method}() fails on 3 records (KeyError {WHERE}" in str(caught.value)
    assert QUOTE not in str(caught.value)
    with pytest.raises(TaskError, match=QUOTE):  # of records that it made up itself, it may say what it likes
        getattr(made_up, method)(*records)


class Exiting(Tiny):
    """Ends the process where a model is to be made."""

    @override
    def model(self) -> nn.Module:
        sys.exit(0)


class Reading(Survey):
    """Reads a name where a number is to be."""

    columns: ClassVar[Mapping[str, tuple[float, float]]] = {"a": (0.0, 4.0)}

    @override
    def load(self, path: Path) -> Any:
        return [[QUOTE]], [0]


class Counting(Reading):
    """Cannot read at all."""

    @override
    def load(self, path: Path) -> Any:
        raise KeyError(QUOTE)


@pytest.mark.parametrize("task", [Exiting, Reading, Counting])
def test_a_model_that_exits_and_a_survey_that_fails_are_sentences_too(
    make_federation: FederationMaker, task: type[Tiny | Survey]
) -> None:
    with pytest.raises(CloisterError) as caught:
        site_with(make_federation, task_name(task)).check_records()
    assert QUOTE not in str(caught.value)
