"""`cloister data check`: what a task sees of a site's records, every problem with its place; nothing is written."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner
from typing_extensions import override

from client.data.columns import AnyColumn, Number
from client.task.image_task import ImageTask
from client.task.installed import installed_digest
from client.task.table_task import TableTask
from cloister.cli import app
from privacy.errors import ConfigError, TaskError
from tests.client.data.sources.cohorts import HEADER, ROWS, SECRET, Picture, Visits, Ward
from tests.client.data.test_labels import Percent
from tests.client.task.test_scoring import Binary
from tests.federations import task_name
from tests.studies import Tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SETTINGS = """\
site = "north"
server = "localhost:1"
device = "cpu"

[data]
file = "{file}"
lineage = "north-patients"
held_out = 0.25
{source}
[budget]
epsilon = 3.0
delta = 1e-5

[policy]
tasks = [{tasks}]
maximum_epsilon = 3.0
"""


def logarithmic(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that is infinite for the lowest target, which no example makes up."""
    return ((outputs - (targets + 1).log()) ** 2).mean()


class Costs(TableTask):
    columns: ClassVar[Sequence[AnyColumn]] = [Number("age", low=18, high=100)]
    target: ClassVar[AnyColumn | Sequence[AnyColumn]] = Number("cost", low=0, high=10)

    @override
    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return logarithmic(outputs, targets)


class Sizes(ImageTask):
    size: ClassVar[tuple[int, ...]] = (4, 6)
    label: ClassVar[AnyColumn | Sequence[AnyColumn]] = Number("size", low=0, high=10)

    @override
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(24, 1))

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return logarithmic(outputs, targets)


class Listing(Tiny):
    """Reads all files of a folder by itself."""

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        return torch.stack([torch.ones(2) for _ in path.iterdir()]), torch.ones(1, 1)


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Path]:
    """Makes a site's folder with records and settings, and no keys: none are needed."""

    def make(records: str = "", *, task: str = "", file: str = "patients.csv", source: str = 'source = "csv"') -> Path:
        if records:
            (tmp_path / file).write_text(records)
        tasks = f'"{task or task_name(Ward)}"'
        (tmp_path / "site.toml").write_text(SETTINGS.format(file=file, source=source, tasks=tasks))
        return tmp_path

    return make


def check(folder: Path, *options: str, code: int = 0) -> str:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, ["data", "check", str(folder), *options])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before  # nothing is written
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert SECRET not in result.output
    return result.stdout


def report(folder: Path, code: int = 0) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(check(folder, "--json", code=code).splitlines()[-1])
    return result


def test_a_table_is_described_column_by_column(site: Callable[..., Path]) -> None:
    folder = site("\n".join([HEADER, *ROWS, "150,3,icu,1,1990-01-01,well"]))
    output = check(folder)
    assert max(map(len, output.replace(str(folder), "").splitlines())) <= 90
    assert [line.split() for line in output.splitlines()[1:8]] == [
        ["column", "kind", "range", "missing", "clipped", "unknown"],
        ["age", "number", "18", "…", "100", "–", "1", "–"],
        ["glucose", "number", "2", "…", "12", "mmol/L", "1", "–", "–"],
        ["ward", "category", "surgery,", "medicine,", "other", "–", "–", "2"],
        ["smoker", "flag", "1", "or", "0", "–", "–", "–"],
        ["admitted", "date", "2020-01-01", "…", "2025-01-01", "–", "1", "–"],
        ["outcome", "(target)", "category", "well,", "ill", "–", "–", "–"],
    ]
    assert "✓ 4 records: 3 to train on, 1 held out" in output
    assert "model     gets inputs float32 (n, 7), targets int64 (n,)" in output
    result = report(folder)
    assert result["usable"]
    assert (result["site"], result["source"]) == ("north", "csv")
    (task,) = result["tasks"]
    assert (task["records"], task["training"], task["held_out"], task["problems"]) == (4, 3, 1, [])
    assert [column["clipped"] for column in task["columns"]] == [1, 0, 0, 0, 1, 0]


def test_every_problem_is_listed_with_its_place_and_ends_with_1(site: Callable[..., Path]) -> None:
    bad = [f"18,4,surgery,yes,2020-01-01,{SECRET}"] * 30
    folder = site("\n".join([HEADER, *ROWS, *bad]))
    output = check(folder, code=1)
    assert f"✗ {folder}/patients.csv, 30 lines (5, 6, 7, …), column `outcome`: none of the task's 2 values" in output
    assert "✗ 30 problems: the agent would refuse to train\n  records   3 without problems" in output
    result = report(folder, code=1)
    assert not result["usable"]
    assert (result["tasks"][0]["problem_count"], result["tasks"][0]["records"]) == (30, 3)


def test_records_left_out_because_a_person_has_more_are_counted(site: Callable[..., Path]) -> None:
    rows = [f"{row},{person}" for person in "abcdef" for row in ROWS]
    output = check(site("\n".join([f"{HEADER},patient", *rows]), task=task_name(Visits)))
    assert "✓ 18 records: 4 to train on, 2 held out, 12 left out (records_per_person = 1 in [data] of site" in output


def test_a_record_of_a_table_whose_loss_cannot_be_computed_has_line_and_column(site: Callable[..., Path]) -> None:
    output = check(site("age,cost\n\n20,1\n30,0\n", task=task_name(Costs)), code=1)
    assert f"patients.csv, line 4, column `cost`: {task_name(Costs)} cannot use it: the loss is not finite" in output
    folder = site("file,size\n\na.png,1\nb.png,0\n", task=task_name(Sizes), source='source = "images"')
    for name in ("a.png", "b.png"):
        Image.new("L", (6, 4), 30).save(folder / name)
    assert "patients.csv, line 4, column `size`: " in check(folder, code=1)


@pytest.mark.parametrize(
    ("task", "file", "source", "message"),
    [
        (Ward, "patients.csv", "csv", "no records follow the line that names the columns; add one line per record"),
        (Picture, "images", "images", "images: this folder is empty; put the images into it, with the table"),
        (Tiny, "nothing.csv", "", "nothing.csv: the file is empty; name one with records"),
        (Listing, "images", "", "images: the folder is empty; name one with records"),
        (Listing, "nothing.csv", "", "nothing.csv: the file is empty; name one with records"),
    ],
)
def test_what_is_empty_is_called_so(
    site: Callable[..., Path], tmp_path: Path, task: type, file: str, source: str, message: str
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "nothing.csv").touch()
    (tmp_path / "patients.csv").write_text(HEADER)
    folder = site(task=task_name(task), file=file, source=f'source = "{source}"' if source else "")
    assert message in check(folder, code=1)


def test_a_file_that_cannot_be_read_at_all_is_a_problem_too(site: Callable[..., Path]) -> None:
    output = check(site(), code=1)
    assert "patients.csv: no such file or directory; name a text file that this account can read" in output
    assert "✗ 1 problem: the agent" in output


def test_every_image_is_read(site: Callable[..., Path], tmp_path: Path) -> None:
    for number in range(70):
        Image.new("L", (6, 4), number).save(tmp_path / f"{number}.png")
    rows = [f"{number}.png,{'benign' if number % 2 else 'malignant'}" for number in range(70)]
    folder = site("\n".join(["file,label", *rows]), task=task_name(Picture), source='source = "images"')
    assert "✓ 70 records: 52 to train on, 18 held out" in check(folder)
    (tmp_path / "69.png").write_bytes((tmp_path / "69.png").read_bytes()[:50])
    output = check(folder, code=1)
    assert "labels" not in output
    assert "patients.csv, line 71, column `file`: the file is cut, damaged, or of another kind" in output
    assert "records   69 without problems" in output


def test_a_task_that_reads_its_own_file_is_described_too(site: Callable[..., Path]) -> None:
    folder = site("a,b,y\n1,2,3\n4,5,6\n", task="tests.studies:Tiny", source="")
    assert "✓ 2 records: 2 to train on, 0 held out" in check(folder)
    (folder / "patients.csv").write_text("a,b,y\n1,2,x\n")
    assert "patients.csv:2: `y` is not a number" in check(folder, code=1)


def test_a_task_may_be_a_file_beside_site_toml(site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    folder = site("a,b,y\n1,2,3\n4,5,6\n", task="beside_site_toml:Mine", source="")
    with pytest.raises(TaskError, match="no module 'beside_site_toml'; install its package, or put its file beside"):
        check(folder)
    code = "from tests.studies import Tiny\n\n\nclass Mine(Tiny):\n    pass\n"
    (folder / "beside_site_toml.py").write_text(code)
    try:
        assert "✓ 2 records: 2 to train on, 0 held out" in check(folder)
        assert installed_digest("beside_site_toml:Mine")  # which a policy may demand
    finally:
        sys.modules.pop("beside_site_toml", None)


def test_only_tasks_of_the_policy_make_a_folder_importable_and_installed_packages_come_first(
    site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = list(sys.path)
    monkeypatch.setattr(sys, "path", path)
    before = list(path)
    folder = site("a,b,y\n1,2,3\n4,5,6\n", task="tests.studies:Tiny", source="")
    for name in ("other", "tests", "numpy"):
        (folder / f"{name}.py").write_text("raise RuntimeError")
    check(folder)
    assert sys.path == before


def test_a_record_whose_loss_cannot_be_computed_is_found(site: Callable[..., Path]) -> None:
    folder = site("a,b,y\n1,2,3\n1,1e30,1\n", task="tests.studies:Tiny", source="")
    assert "cannot use input column 2 of record 2" in check(folder, code=1)


def test_a_label_that_the_metrics_cannot_mean_is_a_problem_and_a_clamped_target_is_none(
    site: Callable[..., Path],
) -> None:
    folder = site("a,b,y\n1,2,1\n3,4,2\n", task=task_name(Binary), source="")
    assert "its load() returns them: labels are 1 to 2, but the task's classes are 0 and 1;" in check(folder, code=1)
    folder = site("a,b,y\n1,2,1\n3,4,50\n", task=task_name(Percent), source="")
    assert "✓ 2 records: 2 to train on, 0 held out\n  notice    the target of record 2 is beyond" in check(folder)
    (notice,) = report(folder)["tasks"][0]["notices"]
    assert "target_range, 0 to 1: evaluations over all sites take its nearer end instead" in notice


def test_the_task_may_be_chosen_but_only_from_the_policy(site: Callable[..., Path]) -> None:
    folder = site("\n".join([HEADER, *ROWS]))
    assert "3 records" in check(folder, "--task", task_name(Ward))
    with pytest.raises(ConfigError, match="its policy does not allow the task 'os:path'; list it in `tasks`"):
        check(folder, "--task", "os:path")
    with pytest.raises(ConfigError, match="allows no task that trains; list one in `tasks` of"):
        check(site(task="tests.studies:Asked"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('source = "cvs"', "there is no source 'cvs'; did you mean `csv`?"),
        ("source = 3", "must be"),
        ('[data.source]\nname = "csv"\nseperator = ";"', "unknown key; did you mean `separator`?"),
        ('[data.source]\nseparator = ";"', "its name is missing; name one of csv, parquet, sql"),
        ('[data.source]\nname = "csv"\ndecimal = ","', "a comma cannot separate both columns and decimals"),
        ('[data.source]\nname = "sql"\nurl = "sqlite:///x.db"', "the key `order_by` is missing in [data.source]"),
        ('[data.source]\nname = "images"\nmost_megapixels = 0', "must be greater than 0"),
    ],
)
def test_wrong_settings_are_shown_in_their_line(site: Callable[..., Path], source: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(site(source=source))
    assert message in str(caught.value)


def test_a_site_may_set_every_option(site: Callable[..., Path]) -> None:
    source = (
        '[data.source]\nname = "csv"\nseparator = "\\t"\ndecimal = ","\nencoding = "windows-1252"\n'
        'dates = "%d.%m.%Y"\nmissing = ["n/v", ""]\ncolumns = { age = "alter" }\nunits = { glucose = "mg/dL" }'
    )
    text = "alter\tglucose\tward\tsmoker\tadmitted\toutcome\n18\tn/v\tsurgery\t1\t31.12.2024\twell\n"
    assert "✓ 1 record: 1 to train on, 0 held out" in check(site(text, source=source))
    with pytest.raises(ConfigError, match="must be a valid string"):
        check(site(source='[data.source]\nname = "csv"\nmissing = [1]'))


def test_a_task_that_cannot_be_trained_is_refused_as_the_agent_refuses_it(site: Callable[..., Path]) -> None:
    with pytest.raises(TaskError, match="there is no module 'nowhere'"):
        check(site(task="nowhere:Task"))
