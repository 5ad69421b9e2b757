"""What a crash leaves of a party's folder."""

import os
import random
from pathlib import Path

import pytest

from privacy.log_file import opened_log
from privacy.storage import write_atomically
from simulations.schedules.disk import Disk, Killed, watched

SEEDS = 40


def after_power_cuts(folder: Path, disk: Disk, name: str, *, seeds: int = SEEDS) -> set[bytes | None]:
    """What cuts may leave of a file, each from where it is now."""
    path, left = folder / name, set[bytes | None]()
    held = path.read_bytes() if path.exists() else None
    durable = dict(disk._durable)
    for seed in range(seeds):
        disk.restart(random.Random(seed))  # noqa: S311 - guards nothing
        left.add(path.read_bytes() if path.exists() else None)
        if held is not None:
            path.write_bytes(held)
        disk._durable = durable
    return left


def test_what_was_synced_survives_every_power_cut(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with watched(disk):
        write_atomically(tmp_path / "whole", b"new")
        with opened_log(tmp_path / "log") as file:
            file.append(b"line\n")
        assert (disk.read(tmp_path / "whole"), disk.read(tmp_path / "log")) == (b"new", b"line\n")
        for seed in range(SEEDS):
            disk.restart(random.Random(seed))  # noqa: S311 - guards nothing
            assert ((tmp_path / "whole").read_bytes(), (tmp_path / "log").read_bytes()) == (b"new", b"line\n")


def test_what_was_not_synced_may_be_lost_or_torn(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with watched(disk):
        with opened_log(tmp_path / "log") as file:
            file.append(b"one\n")
            file.append(b"two\n", sync=False)
        left = after_power_cuts(tmp_path, disk, "log")
    assert {b"one\n", b"one\ntwo\n"} < left
    assert all(text is not None and text.startswith(b"one\n") for text in left)


def test_a_replaced_file_that_was_not_synced_is_the_old_one_or_a_part_of_the_new(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    disk = Disk(tmp_path)
    with watched(disk):
        write_atomically(tmp_path / "file", b"new!", sync=False)
        left = after_power_cuts(tmp_path, disk, "file")
    assert b"old" in left
    assert left - {b"old"} <= {b"new!"[:size] for size in range(5)}


def test_a_kill_ends_the_party_for_good_and_keeps_what_it_wrote(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with watched(disk):
        write_atomically(tmp_path / "first", b"1")
        disk.kill_at = {disk.operations + 2}
        with pytest.raises(Killed):
            write_atomically(tmp_path / "second", b"2")
        with pytest.raises(Killed):
            write_atomically(tmp_path / "third", b"3")
        disk.restart()
        write_atomically(tmp_path / "fourth", b"4")
    names = {name for name in os.listdir(tmp_path) if not name.startswith(".")}  # noqa: PTH208 - names alone
    assert names == {"first", "fourth"}
