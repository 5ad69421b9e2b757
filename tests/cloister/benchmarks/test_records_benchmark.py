"""The records benchmark trains on what it says, and counts the time of reading. Never times."""

import json
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from client.data.site_records import InMemory
from cloister.benchmarks import record_times
from cloister.benchmarks.record_times import CACHED, Timed, measured, write_images, write_parquet, write_sqlite
from cloister.benchmarks.records import measure, table

COUNT = 32


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("records")
    paths = {
        "memory": folder,
        "images": write_images(folder, COUNT, 8),
        **{source: write_images(tmp_path_factory.mktemp(source), COUNT, 2, side=160) for source in CACHED},
        "parquet": write_parquet(folder, COUNT),
        "sql": write_sqlite(folder, COUNT),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_times, "_STEPS", 1)
        return [
            {"source": source, "workers": 0, "records": COUNT} | measured(source, 0, path, COUNT)
            for source, path in paths.items()
        ]


def test_every_source_gets_a_row_of_plain_numbers(rows: list[dict[str, Any]]) -> None:
    assert json.loads(json.dumps(rows)) == rows
    for row in rows:
        assert 0 < row["share_of_step"] < 1
        assert row["ms_per_record"] > 0
        assert row["worker_mb"] == 0
    assert {row["source"] for row in rows} == {"memory", "images", "parquet", "sql", *CACHED}


def test_the_table_has_a_line_for_every_row(rows: list[dict[str, Any]]) -> None:
    lines = table({"rows": rows}).splitlines()
    assert len(lines) == len(rows) + 4
    assert max(len(line) for line in lines) <= 80


def test_images_that_are_listed_often_are_links_to_few_files(tmp_path: Path) -> None:
    listed = write_images(tmp_path, 20, 4)
    assert len(listed.read_text(encoding="utf-8").splitlines()) == 21
    assert len({path.stat().st_ino for path in (tmp_path / "scans").iterdir()}) == 4


def test_all_records_that_are_read_are_counted() -> None:
    records = Timed(InMemory(torch.arange(10.0)[:, None], torch.arange(10)))
    parts = list(records.parts(torch.arange(7), 3))
    assert [len(targets) for _, targets in parts] == [3, 3, 1]
    assert [targets.tolist() for _, targets in records.parts(torch.empty(0, dtype=torch.int64), 3)] == [[]]
    inputs, targets = records.select(torch.tensor([2, 9]))
    assert isinstance(inputs, torch.Tensor)
    assert inputs[:, 0].tolist() == targets.tolist() == [2, 9]
    assert records.read == 9
    assert records.seconds > 0


def test_whoever_waits_is_told_how_many_records_were_read() -> None:
    with get_context("spawn").Manager() as manager:
        told = manager.Value("q", 0)
        records = Timed(InMemory(torch.arange(10.0)[:, None], torch.arange(10)), told)
        records.select(torch.arange(7))
        assert told.value == 7


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_memory_does_not_grow_with_the_number_of_images_and_workers_read_ahead(
    capsys: pytest.CaptureFixture[str],
) -> None:
    few, ahead, many = measure(COUNT, 20_000, [("images", 0), ("images", 2)])["rows"]
    assert ahead["worker_mb"] > 0
    assert abs(many["peak_mb"] - few["peak_mb"]) < 200
    assert "images, 2 processes that read ahead: 20,000 records\n" in capsys.readouterr().err
