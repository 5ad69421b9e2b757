"""A protected server's store: what a run keeps is encrypted value by value, also what was there before."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from privacy.at_rest.vault import Secret
from privacy.at_rest.vaults import forget, header_of, is_protected
from privacy.errors import VaultError
from server.protection import kept_server
from server.store.store import Store
from tests.server.store.stores import place_in, run_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from server.settings import ServerFolder

CANARY = b"a canary that sings in the mine"
SECRET = Secret.of_passphrase("correct horse battery staple")


class Killed(BaseException):
    """Ends a process at once."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerFolder]:
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "correct horse battery staple")
    yield place_in(tmp_path)
    forget(tmp_path)


@pytest.fixture
def killed_at() -> Iterator[Callable[[int], None]]:
    """Raise what nothing catches before the transaction with this number is committed."""
    left = [0]

    def commit(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("cloister_reads") or not left[0]:
            return
        left[0] -= 1
        if not left[0]:
            raise Killed

    event.listen(sa.Engine, "commit", commit)
    yield lambda number: left.__setitem__(0, number)
    event.remove(sa.Engine, "commit", commit)


def fill(place: ServerFolder) -> str:
    """Keep a run with a canary in each value."""
    with Store.open(place) as store:
        run = store.submit(run_named())
        record = store.record(run.digest)
        record.write_state(CANARY, 1)
        for _ in range(3):
            record.append({"event": "round", "reason": CANARY.decode()})
        record.write_sum(1, [CANARY * (1 << 16)])
        store.mark(run.digest, "failed", CANARY.decode())
    return run.digest


def check_whole(place: ServerFolder, digest: str) -> None:
    with Store.open(place) as store:
        record = store.record(digest)
        assert (record.state(), record.read_sum(1)) == (CANARY, CANARY * (1 << 16))
        assert [event["reason"] for _, event in store.events(digest)] == [CANARY.decode()] * 3
        assert store.run(digest).reason == CANARY.decode()


def on_disk(place: ServerFolder) -> bytes:
    return b"".join(path.read_bytes() for path in place.folder.iterdir() if path.is_file())


def test_a_protected_servers_store_shows_nothing(place: ServerFolder) -> None:
    kept_server(place).protect(SECRET)
    digest = fill(place)
    check_whole(place, digest)
    assert CANARY not in on_disk(place)


def test_what_is_there_is_encrypted_and_decrypted_again(place: ServerFolder) -> None:
    digest = fill(place)
    assert CANARY in on_disk(place)
    assert kept_server(place).protect(SECRET) == 7
    assert CANARY not in on_disk(place)
    check_whole(place, digest)
    kept_server(place).unprotect()
    assert not is_protected(place.folder)
    assert CANARY in on_disk(place)
    check_whole(place, digest)


@pytest.mark.parametrize("number", range(1, 5))
def test_a_killed_encryption_loses_nothing_and_is_finished(
    place: ServerFolder, killed_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr("server.store.conversion._BYTES", 1)
    digest = fill(place)
    killed_at(number)
    with pytest.raises(Killed):
        kept_server(place).protect(SECRET)
    assert header_of(place.folder).state == "encrypting"
    check_whole(place, digest)
    killed_at(0)
    kept_server(place).ready()
    assert header_of(place.folder).state == "encrypted"
    assert CANARY not in on_disk(place)
    check_whole(place, digest)


def test_a_value_is_good_at_its_own_place_only(place: ServerFolder) -> None:
    kept_server(place).protect(SECRET)
    digest = fill(place)
    with closing(sqlite3.connect(place.folder / "store.sqlite")) as database, database:
        database.execute("UPDATE events SET value = (SELECT value FROM events WHERE number = 2) WHERE number = 1")
        database.execute("UPDATE states SET value = ?", (b"{}",))
    with Store.open(place) as store:
        with pytest.raises(VaultError, match=r"store/events/.*/1/value: this encrypted value was altered"):
            store.events(digest)
        with pytest.raises(VaultError, match=r"store/states/.*: this value is not encrypted, though its folder is"):
            store.record(digest).state()
