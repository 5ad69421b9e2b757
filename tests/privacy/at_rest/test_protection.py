"""A folder is encrypted, decrypted and given another secret without losing a file, wherever the process is killed."""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privacy.at_rest.protection import finish, protect, unprotect
from privacy.at_rest.sealed import MAGIC
from privacy.at_rest.secrets import Asking, secret_for
from privacy.at_rest.vault import _MEMORY_KIB, FILE, KEY_FILE, PASSPHRASE, Secret
from privacy.at_rest.vaults import forget, header_of, is_protected, opened, remember
from privacy.errors import VaultError
from privacy.log_file import read_log
from privacy.storage import read_file

KEY = bytes(range(32))
SECRET = Secret(KEY_FILE, KEY)
PHRASE = "correct horse battery staple"
WHOLE = {"keys/signing.key": b"a key", "models/a.safetensors": b"weights" * 100, "outbox/x.update": b"{}\nupdate"}
LOGS = {"ledger/patients": b"one\ntwo\n", "outbox/x.commitments": b"deed: 1\n"}
OPEN = {"site.toml": b"site = 1", "models/public/b.safetensors": b"public", "own/tls.key": b"own key"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is not encrypted, with a hard link and what a killed process left."""
    (tmp_path / "key").write_bytes(KEY)
    monkeypatch.setenv("CLOISTER_KEY_FILE", str(tmp_path / "key"))
    folder = tmp_path / "north"
    for name, content in {**WHOLE, **LOGS, **OPEN}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    os.link(folder / "models" / "a.safetensors", folder / "outbox" / "a.safetensors")
    (folder / "keys" / ".signing.key.7.new").write_bytes(b"a key")
    return folder


def check_content(folder: Path) -> None:
    """All content is what it was."""
    forget(folder)
    for name, content in {**WHOLE, **OPEN, "outbox/a.safetensors": WHOLE["models/a.safetensors"]}.items():
        assert read_file(folder / name) == content, name
    for name, content in LOGS.items():
        assert read_log(folder / name) == content, name


def check_encrypted(folder: Path) -> None:
    """Nothing else is in the folder than what is encrypted, and what is not to be."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in {*OPEN, FILE}:
            assert path.read_bytes().startswith(MAGIC), name


def test_a_folder_is_encrypted_and_decrypted_again(folder: Path) -> None:
    assert protect(folder, SECRET, ()) == len(WHOLE) + len(LOGS) + 1
    check_encrypted(folder)
    check_content(folder)
    assert protect(folder, None, ()) == 0
    assert unprotect(folder) == len(WHOLE) + len(LOGS) + 1
    assert not is_protected(folder)
    assert (folder / "keys" / "signing.key").read_bytes() == b"a key"
    check_content(folder)


def test_further_files_are_encrypted_if_they_are_named(folder: Path) -> None:
    protect(folder, SECRET, ("own",))
    assert b"own key" not in (folder / "own" / "tls.key").read_bytes()
    check_content(folder)


def killed(folder: Path, number: int, act: Callable[[], object]) -> bool:
    """Act in a process of its own that ends at its sync with this number; return whether it got so far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    gc.freeze()  # see `tests.interrupted`
    sync, left = os.fsync, [number]

    def count(fd: Any) -> None:  # noqa: ANN401 - a number, or what has one
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        sync(fd)

    os.fsync = count
    try:
        forget(folder)
        act()
        os._exit(0)
    except BaseException:  # noqa: BLE001 - this process must not go on with the tests
        os._exit(1)


@pytest.mark.parametrize("decrypting", [False, True])
def test_killed_anywhere_the_folder_opens_and_is_finished(folder: Path, *, decrypting: bool) -> None:
    number, again = 0, folder.parent / "again"
    while True:
        _copy(folder, again)
        if decrypting:
            protect(again, SECRET, ())
        if not killed(again, number, lambda: unprotect(again) if decrypting else protect(again, SECRET, ())):
            break
        check_content(again)
        if is_protected(again):
            finish(again)
        check_content(again)
        if is_protected(again):
            check_encrypted(again)
        number += 1
    assert number > 2 * len(WHOLE)
    assert is_protected(again) != decrypting


def _copy(folder: Path, to: Path) -> None:
    for path in sorted(to.rglob("*"), reverse=True) if to.exists() else ():
        path.unlink() if path.is_file() else path.rmdir()
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (to / path.relative_to(folder)).write_bytes(path.read_bytes())


def test_what_was_in_the_clear_is_overwritten_on_the_disk(folder: Path) -> None:
    names = ["keys/signing.key", "ledger/patients", "models/a.safetensors", "keys/.signing.key.7.new"]
    old = [(folder / name).open("rb") for name in names]
    protect(folder, SECRET, ())
    for file in old:
        with file:
            assert not any(file.read())


def test_a_file_that_its_owner_may_only_read_is_overwritten_and_one_behind_a_link_is_not(folder: Path) -> None:
    (folder / "keys" / "signing.key").chmod(0o400)
    (folder.parent / "others").write_bytes(b"another's")
    (folder / "keys" / ".signing.key.old.new").symlink_to(folder.parent / "others")
    (folder / "keys" / ".tls.key.9.new").symlink_to(folder.parent / "nowhere")
    with (folder / "keys" / "signing.key").open("rb") as old:
        protect(folder, SECRET, ())
        assert not any(old.read())
    assert (folder.parent / "others").read_bytes() == b"another's"
    assert not [path for path in folder.rglob("*") if path.is_symlink()]


def test_a_passphrase_opens_it_and_a_new_one_replaces_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privacy.at_rest.vault._MEMORY_KIB", _MEMORY_KIB)  # other tests derive keys in less memory
    protect(folder, Secret.of_passphrase(PHRASE), ())
    (slot,) = header_of(folder).slots
    assert (slot.memory_kib, slot.passes, slot.lanes) == (1 << 16, 3, 4)  # as RFC 9106, section 4, recommends
    monkeypatch.setenv("CLOISTER_PASSPHRASE", PHRASE)
    check_content(folder)
    protect(folder, Secret.of_passphrase("another passphrase"), ())
    forget(folder)
    with pytest.raises(VaultError, match="this passphrase does not open the encrypted folder; check it"):
        opened(folder)
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "another passphrase")
    check_content(folder)


def test_the_secret_comes_from_the_environment_systemd_or_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CLOISTER_PASSPHRASE", "CLOISTER_KEY_FILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    for kind in (PASSPHRASE, KEY_FILE):
        with pytest.raises(VaultError, match="is encrypted"):
            secret_for(tmp_path, kind)
    monkeypatch.setattr(Asking, "how", lambda _: PHRASE)
    assert secret_for(tmp_path, PASSPHRASE) == Secret.of_passphrase(PHRASE)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "cloister-passphrase").write_text("from systemd\n")
    (tmp_path / "cloister-key").write_bytes(KEY)
    assert secret_for(tmp_path, PASSPHRASE) == Secret.of_passphrase("from systemd")
    assert secret_for(tmp_path, KEY_FILE) == SECRET
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "from the environment")
    assert secret_for(tmp_path, PASSPHRASE) == Secret.of_passphrase("from the environment")


def test_accents_may_be_typed_either_way() -> None:
    assert Secret.of_passphrase("e\u0301tude") == Secret.of_passphrase("\u00e9tude")


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda text: text[: len(text) // 2], "this file is damaged; restore it from a backup"),
        (lambda text: text.replace('"encrypted"', '"encrypting"'), "this file was altered"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "encrypted by another version of Cloister"),
        (lambda text: text.replace('"kind": "key file"', '"kind": "pkcs11"'), "can open no vault with a 'pkcs11'"),
        (lambda text: text.replace('"files": []', '"files": ["site.toml"]'), "this file was altered"),
        (lambda _: "[]", "this file is damaged"),
    ],
    ids=["cut", "state", "version", "kind", "files", "empty"],
)
def test_an_altered_vault_is_one_sentence(folder: Path, edit: Callable[[str], str], told: str) -> None:
    protect(folder, SECRET, ())
    forget(folder)
    (folder / FILE).write_text(edit((folder / FILE).read_text()))
    with pytest.raises(VaultError, match=told):
        read_file(folder / "keys" / "signing.key")


def test_every_field_of_a_slot_is_bound(folder: Path) -> None:
    protect(folder, Secret.of_passphrase(PHRASE), ())
    vault = opened(folder)
    values = json.loads((folder / FILE).read_text())
    for name, value in {"memory_kib": 2048, "passes": 1, "lanes": 2, "salt": "00" * 16}.items():
        changed = json.loads(json.dumps(values))
        changed["slots"][0][name] = value
        (folder / FILE).write_text(json.dumps(changed))
        assert header_of(folder).slots[0].unwrap(Secret.of_passphrase(PHRASE), vault.header.id) is None
    for name, value in {"memory_kib": 1 << 24, "passes": 1000, "lanes": 0}.items():
        changed = json.loads(json.dumps(values))
        changed["slots"][0][name] = value
        (folder / FILE).write_text(json.dumps(changed))
        with pytest.raises(VaultError, match="can open no vault"):
            header_of(folder)
    remember(vault)
