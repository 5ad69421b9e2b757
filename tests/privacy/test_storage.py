"""A file is replaced whole, and only its owner may read it."""

from __future__ import annotations

import errno
import os
import re
import resource
import stat
from functools import partial
from typing import TYPE_CHECKING

import pytest

from privacy.accounting.accounting import Mechanism
from privacy.errors import AuthenticityError, CloisterError, KeyFileError, LedgerError, MalformedError
from privacy.files import remove_unfinished
from privacy.ledger.ledger import Budget, Ledger, Release
from privacy.storage import append, link_atomically, read_document, read_file, set_aside, write_atomically
from tests.privacy.consortium import signing_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_only_the_last_content_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for content in (b"a" * 10_000, b"", b"short"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(0o644)
    write_atomically(path, b"secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_replaced_is_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_atomically(path, b"content")
    assert (path / "inside").is_dir()


def test_what_killed_processes_left_hours_ago_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "keys" / "epochs").mkdir(parents=True)
    (tmp_path / "records").mkdir()
    gone = [".a.toml.12.new", "keys/.tls.key.7.new", "keys/epochs/.000001.key.123456.new"]
    kept = ["a.new", ".a.new", ".a.12.new.old", ".a.x.new", "keys/tls.key", "records/.scan.12.new", ".young.12.new"]
    for name in [*gone, *kept]:
        (tmp_path / name).write_bytes(b"x")
        if "young" not in name:
            os.utime(tmp_path / name, (1.0e9, 1.0e9))
    (tmp_path / "keys" / ".link.12.new").symlink_to(tmp_path / "a.new")
    remove_unfinished(tmp_path, ["keys", "keys/tls.key", "absent"])
    assert not [name for name in gone if (tmp_path / name).exists()]
    assert all((tmp_path / name).exists() for name in [*kept, "keys/.link.12.new"])


# --- Files that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["folder", "pipe", "/dev/zero", "dangling", "loop", "missing", "n" * 300])
def test_anything_but_a_file_is_refused_at_once_and_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its parts are looked at
        read_file(tmp_path / name)
    assert (caught.value.filename, bool(caught.value.strerror)) == (str(tmp_path / name), True)


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == b"content"


# --- Writes that fail -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let this process write files of 100 bytes at most, as `ulimit -f` does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(OSError, match=re.escape(str(path))):
        write_atomically(path, b"a" * 90, b"b" * 90)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("small_files")
def test_an_append_that_fails_leaves_the_file_as_long_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("ab") as file:
        append(path, file.fileno(), b"a" * 60)
        with pytest.raises(OSError, match=re.escape(str(path))):
            append(path, file.fileno(), b"b" * 60)  # 40 of them fit
        append(path, file.fileno(), b"c" * 30)
    assert path.read_bytes() == b"a" * 60 + b"c" * 30


@pytest.mark.usefixtures("small_files")
def test_a_ledger_that_cannot_grow_refuses_and_keeps_its_entries(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", "north", "patients", signing_key("north"))
    with pytest.raises(LedgerError, match="no update is sent until the ledger can be written"):
        ledger.reserve(Release("0" * 64, 1, 1), Mechanism(2.0, 1.0, 1), Budget(9.0, 1e-5))
    assert ledger.path.read_bytes() == b""
    ledger.check_writable()


@pytest.mark.parametrize("name", ["patients", "."], ids=["file", "folder"])
def test_a_ledger_on_a_disk_that_is_not_mounted_is_not_an_empty_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ledger" / "patients"
    path.parent.mkdir()
    link = path.parent / name
    if name == ".":
        path.parent.rmdir()
        link = path.parent
    (tmp_path / "disk").mkdir()
    link.symlink_to(tmp_path / "disk" / "ledger")
    ledger = Ledger(path, "north", "patients", signing_key("north"))
    for use in (partial(ledger.spent, 1e-5), ledger.check_writable):
        with pytest.raises(LedgerError, match="this link leads to a missing file; mount or restore the file"):
            use()
    assert not list((tmp_path / "disk").iterdir())


def test_space_is_reserved_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "space"
    set_aside(path, 300_000)
    assert path.stat().st_size == 300_000
    assert path.stat().st_blocks * 512 >= 300_000
    free = os.statvfs(tmp_path)
    with pytest.raises(OSError, match=re.escape(str(path))):
        set_aside(path, free.f_frsize * free.f_blocks + 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_keeps_what_a_file_held_when_it_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path, second = tmp_path / "model", tmp_path / "other" / "model"
    for content in (b"one", b"two", b"two", b"three"):
        write_atomically(path, content)
        link_atomically(path, second)
        link_atomically(path, second)
        write_atomically(path, b"after")
        assert (path.read_bytes(), second.read_bytes()) == (b"after", content)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["model", "model", "other"]


def test_a_second_name_that_cannot_be_made_is_named_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path, second = tmp_path / "model", tmp_path / "second"
    write_atomically(path, b"new")
    write_atomically(second, b"old")
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="second"):
        link_atomically(path, second)
    assert second.read_bytes() == b"old"


# --- Signed documents ------------------------------------------------------------------------------------------------


def test_a_document_is_parsed_by_its_reader(tmp_path: Path) -> None:
    (tmp_path / "document").write_bytes(b"signed")
    assert read_document(tmp_path / "document", bytes.upper, "bring it") == b"SIGNED"


@pytest.mark.parametrize("kind", [AuthenticityError, MalformedError])
def test_a_document_that_is_refused_is_named(tmp_path: Path, kind: type[CloisterError]) -> None:
    def refuse(_: bytes) -> None:
        msg = "somebody else signed this"
        raise kind(msg)

    path = tmp_path / "document"
    path.touch()
    with pytest.raises(KeyFileError, match=f"^{re.escape(str(path))}: somebody else signed this$"):
        read_document(path, refuse, "bring it")


def test_a_document_that_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "document"
    with pytest.raises(KeyFileError, match=f"^{re.escape(str(path))}: no such file or directory; bring it$"):
        read_document(path, bytes, "bring it")
