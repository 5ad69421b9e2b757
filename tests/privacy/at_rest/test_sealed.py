"""Encrypted files: what is read is what was written, and nothing else is accepted."""

import io
import os
from pathlib import Path
from tempfile import TemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.at_rest.protection import protect
from privacy.at_rest.sealed import HEAD_BYTES, PIECE, TAG_BYTES, WHOLE, FileKey, SealedFile, sealed_parts, sealed_size
from privacy.at_rest.sealed_log import open_records, sealed_record
from privacy.at_rest.vault import KEY_FILE, Secret
from privacy.errors import VaultError
from privacy.log_file import opened_log, read_log
from privacy.storage import link_atomically, move, open_file, read_file, size_of, write_atomically

SECRET = Secret(KEY_FILE, bytes(range(32)))
KEY = FileKey(b"\x01" * 32, b"\x02" * 16, "outbox/a", WHOLE, b"\x03" * 32, Path("a"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encrypted folder, open in this process."""
    (tmp_path / "north").mkdir()
    protect(tmp_path / "north", SECRET, ())
    return tmp_path / "north"


# --- Whole files -----------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40) | st.integers(0, 2 * PIECE + 1).map(lambda size: b"\xab" * size), max_size=4))
def test_content_comes_back_however_it_was_cut_into_parts(parts: list[bytes]) -> None:
    sealed, whole = b"".join(sealed_parts(KEY, parts)), b"".join(parts)
    assert len(sealed) == sealed_size(len(whole))
    file = opened(sealed)
    assert file.read() == whole
    assert file.seek(0, os.SEEK_END) == len(whole)
    file.seek(len(whole) // 2)
    assert file.read(10) == whole[len(whole) // 2 :][:10]


def opened(sealed: bytes, key: FileKey = KEY) -> io.BufferedReader:
    file = TemporaryFile()  # noqa: SIM115 - closed with what reads it
    file.write(sealed)
    file.seek(HEAD_BYTES)
    try:
        return io.BufferedReader(SealedFile(file, key))
    except BaseException:
        file.close()
        raise


@pytest.mark.parametrize("size", [0, 1, 100, PIECE, PIECE + 1, 2 * PIECE])
def test_no_file_that_was_cut_anywhere_opens(size: int) -> None:
    sealed = b"".join(sealed_parts(KEY, [os.urandom(size)]))
    step = PIECE + TAG_BYTES
    places = {HEAD_BYTES, HEAD_BYTES + 1, HEAD_BYTES + TAG_BYTES, HEAD_BYTES + step, HEAD_BYTES + step + TAG_BYTES}
    for place in {*places, len(sealed) - 1, len(sealed) - TAG_BYTES} - {len(sealed)}:
        if place < len(sealed):
            with pytest.raises(VaultError, match="altered or cut"):
                opened(sealed[:place]).read()
    with pytest.raises(VaultError, match="altered or cut"):
        opened(sealed + b"\0").read()


def test_pieces_in_another_order_or_another_file_do_not_open() -> None:
    sealed, step = b"".join(sealed_parts(KEY, [os.urandom(3 * PIECE)])), PIECE + TAG_BYTES
    first, second = sealed[HEAD_BYTES:][:step], sealed[HEAD_BYTES + step :][:step]
    with pytest.raises(VaultError):
        opened(sealed[:HEAD_BYTES] + second + first + sealed[HEAD_BYTES + 2 * step :]).read()
    other = FileKey(KEY.data_key, KEY.vault, "outbox/b", WHOLE, KEY.salt, KEY.path)
    with pytest.raises(VaultError):
        opened(sealed, other).read()


def test_any_flipped_bit_is_noticed(folder: Path) -> None:
    path = folder / "models" / "a"
    write_atomically(path, b"weights")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(VaultError, match=r"models/a: .*; restore"):
            read_file(path)


# --- In a site's folder ----------------------------------------------------------------------------------------------


def test_a_site_s_files_are_encrypted_and_what_people_write_is_not(folder: Path) -> None:
    for name in ("keys/a", "outbox/b", "refused-tasks.json", "keys/epochs/c"):
        write_atomically(folder / name, b"secret")
        assert b"secret" not in (folder / name).read_bytes()
        assert read_file(folder / name) == b"secret"
    for name in ("site.toml", "models/public/a.safetensors", "records.csv", "statements/a.html"):
        write_atomically(folder / name, b"open")
        assert (folder / name).read_bytes() == b"open"
        assert read_file(folder / name) == b"open"


def test_a_file_under_another_name_or_in_the_clear_is_refused(folder: Path) -> None:
    write_atomically(folder / "keys" / "a", b"secret")
    (folder / "keys" / "a").rename(folder / "keys" / "b")
    with pytest.raises(VaultError, match="belongs at another place"):
        read_file(folder / "keys" / "b")
    (folder / "keys" / "b").write_bytes(b"put there")
    with pytest.raises(VaultError, match="is not encrypted, though its folder is"):
        read_file(folder / "keys" / "b")


def test_a_file_of_another_folder_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "south").mkdir()
    protect(tmp_path / "south", SECRET, ())
    write_atomically(tmp_path / "south" / "keys" / "a", b"secret")
    (folder / "keys").mkdir()
    (tmp_path / "south" / "keys" / "a").rename(folder / "keys" / "a")
    with pytest.raises(VaultError, match="encrypted in another folder"):
        read_file(folder / "keys" / "a")


def test_without_its_vault_a_file_says_so(folder: Path) -> None:
    write_atomically(folder / "keys" / "a", b"secret")
    (folder / "vault.json").unlink()
    with pytest.raises(VaultError, match=r"not in its own folder beside vault\.json"):
        read_file(folder / "keys" / "a")


def test_files_are_moved_linked_and_measured_by_their_content(folder: Path) -> None:
    first, second, third = (folder / "outbox" / name for name in "abc")
    write_atomically(first, b"content")
    link_atomically(first, second)
    move(second, third)
    assert (read_file(first), second.exists(), read_file(third), size_of(third)) == (b"content", False, b"content", 7)
    with open_file(third) as file:
        assert (file.readline(), file.read()) == (b"content", b"")


def test_large_files_take_no_more_memory_than_a_piece(folder: Path) -> None:
    import tracemalloc  # noqa: PLC0415 - slows down everything else

    content = bytes(40 * PIECE)
    tracemalloc.start()
    write_atomically(folder / "models" / "a", content)
    with open_file(folder / "models" / "a") as file:
        while file.read(PIECE):
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * PIECE


# --- Files of entries ------------------------------------------------------------------------------------------------


def entries_in(path: Path, *texts: bytes) -> bytes:
    path.parent.mkdir(exist_ok=True)
    for text in texts:
        with opened_log(path) as log:
            log.append(text)
    return path.read_bytes()


def test_entries_come_back_and_are_not_in_the_file(folder: Path) -> None:
    path = folder / "ledger" / "patients"
    data = entries_in(path, b"first\n", b"second\n")
    assert read_log(path) == b"first\nsecond\n"
    assert b"first" not in data


def test_a_torn_entry_is_dropped_wherever_it_was_torn(folder: Path) -> None:
    path = folder / "ledger" / "patients"
    whole = entries_in(path, b"first\n")
    longer = entries_in(path, b"second\n")
    for end in range(len(whole), len(longer)):
        for tail in (b"", bytes(len(longer) - end)):  # cut short, or never written
            path.write_bytes(longer[:end] + tail)
            if tail and len(tail) < TAG_BYTES:
                continue
            assert read_log(path) == b"first\n"
            entries_in(path, b"third\n")
            assert read_log(path) == b"first\nthird\n"


def test_a_first_entry_that_was_torn_leaves_an_empty_file(folder: Path) -> None:
    path = folder / "ledger" / "patients"
    whole = entries_in(path, b"first\n")
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert read_log(path) == b""
    entries_in(path, b"again\n")
    assert read_log(path) == b"again\n"


def test_any_flipped_bit_in_entries_is_noticed(folder: Path) -> None:
    path = folder / "ledger" / "patients"
    whole = entries_in(path, b"first\n", b"second\n")
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
        with pytest.raises(VaultError, match="ledger/patients: "):
            read_log(path)


def test_entries_cannot_change_places() -> None:
    records = [sealed_record(KEY, number, b"text") for number in range(2)]
    assert open_records(KEY, KEY.head + b"".join(records))[0] == [b"text", b"text"]
    with pytest.raises(VaultError):
        open_records(KEY, KEY.head + b"".join(reversed(records)))


def test_a_failed_append_leaves_the_file_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = folder / "ledger" / "patients"
    for before in (b"", b"first\n"):
        path.unlink(missing_ok=True)
        entries_in(path, before)
        with opened_log(path) as log:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(OSError, match="No space"):
                    log.append(b"lost\n")
            log.append(b"later\n")
        assert read_log(path) == before + b"later\n"


def test_the_end_can_be_dropped_at_the_end_of_an_entry_only(folder: Path) -> None:
    path = folder / "ledger" / "patients"
    entries_in(path, b"first\n", b"second\n")
    with opened_log(path) as log:
        with pytest.raises(VaultError):
            log.keep(3)
        log.keep(6)
        log.append(b"third\n")
    assert read_log(path) == b"first\nthird\n"
