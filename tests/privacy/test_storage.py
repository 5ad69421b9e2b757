"""A file is replaced whole, and only its owner may read it."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from privacy.storage import write_atomically

if TYPE_CHECKING:
    from pathlib import Path


def test_the_last_content_is_there_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for content in (b"a" * 10_000, b"", b"short"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_not_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o644)
    write_atomically(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_atomically(path, b"content")
    assert (path / "inside").is_dir()
