"""The store: runs and how they stand, and each run's state, events and sums."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from privacy.errors import NotFoundError, RunError
from server.store.sessions import Session
from server.store.store import Store
from tests.server.store.stores import place_in, run_named

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.settings import ServerFolder

pytestmark = pytest.mark.xdist_group("databases")


@pytest.fixture
def store(place: ServerFolder) -> Iterator[Store]:
    with Store.open(place) as opened:
        yield opened


def test_a_run_that_is_submitted_again_is_there_once(store: Store) -> None:
    first = store.submit(run_named())
    assert (first.status, first.by) == ("waiting", "ada")
    assert store.document(first.digest) == run_named().document
    store.mark(first.digest, "running")
    again = store.submit(run_named())
    assert (again.status, again.by, again.submitted) == ("running", "ada", first.submitted)
    assert len(store.runs()) == 1


def test_a_run_that_is_here_as_somebody_else_signed_it_is_refused(store: Store) -> None:
    mine = run_named()
    first = store.submit(mine)
    theirs = run_named(signer="ben")._replace(document=b"signed by ben")
    with pytest.raises(RunError, match="here as ada signed it, and it is theirs; ben signs the run's file again"):
        store.submit(theirs)
    assert store.document(first.digest) == mine.document
    with pytest.raises(NotFoundError, match="there is no run"):
        store.document("0" * 64)


def test_capital_letters_name_no_run_on_any_database(store: Store) -> None:
    run = store.submit(run_named("abcdef0123"))
    assert store.run("abcdef").digest == run.digest
    for name in ("ABCDEF", "Abcdef0123", run.digest.upper()[:12], "%", "_bcdef"):
        with pytest.raises(NotFoundError, match="there is no run"):
            store.run(name)


def test_every_run_that_has_ended_says_which_sites_it_left_behind(store: Store) -> None:
    runs = [store.submit(run_named(f"run-{number}")).digest for number in range(120)]
    for run in runs:
        store.mark_behind(run, ["east", "north"])
    assert store.sites_behind() == {}
    assert store.run(runs[0]).behind == ()  # it may have no model yet
    for run in runs:
        store.mark(run, "finished")
    store.mark_behind(runs[1], [])
    assert store.sites_behind() == dict.fromkeys([runs[0], *runs[2:]], ("east", "north"))
    assert [store.run(run).behind for run in runs[:2]] == [("east", "north"), ()]


def test_runs_wait_in_the_order_of_their_submission(store: Store) -> None:
    digests = [store.submit(run_named(name)).digest for name in ("one", "two", "three")]
    assert [run.digest for run in store.runs()] == digests[::-1]
    assert [run.name for run in store.runs(before=digests[2], limit=1)] == ["two"]
    for digest in digests:
        waiting = store.next_waiting()
        assert waiting is not None
        assert waiting.digest == digest
        store.mark(digest, "running")
    assert store.next_waiting() is None
    store.mark(digests[1], "failed", "the disk\nis full")
    (failed,) = store.runs(status="failed")
    assert failed.reason == r"the disk\nis full"
    assert failed.started is not None
    assert failed.ended is not None


def test_a_run_is_found_by_what_names_it_alone(store: Store) -> None:
    one, two = (store.submit(run_named(name)) for name in ("lungs", "lungs-2"))
    for name in (one.digest, one.digest[:12], "lungs"):
        assert store.run(name) == one
    assert store.run("lungs-") == two
    with pytest.raises(
        NotFoundError, match=r"several runs are called “lu”; give more of its digest: lungs-2 .*, lungs"
    ):
        store.run("lu")
    with pytest.raises(NotFoundError, match=r"there is no run “heart%”; name one of these: lungs-2"):
        store.run("heart%")


def test_a_run_that_is_called_as_the_digest_of_another_begins_does_not_pass_for_it(store: Store) -> None:
    ours = store.submit(run_named())
    theirs = store.submit(run_named(ours.digest[:8], "mallory"))
    assert store.run(ours.digest) == store.run(ours.digest[:9]) == ours
    assert store.run(theirs.digest[:8]) == theirs
    with pytest.raises(NotFoundError, match="several runs are called"):
        store.run(ours.digest[:8])


def test_nobody_can_fill_the_queue(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.store.MOST_WAITING", 2)
    first, _ = (store.submit(run_named(name, "mallory")) for name in ("one", "two"))
    with pytest.raises(RunError, match="mallory has 2 runs that wait; stop some of these first"):
        store.submit(run_named("three", "mallory"))
    assert store.submit(run_named("one", "mallory")) == first
    assert store.submit(run_named("theirs")).status == "waiting"
    store.mark(first.digest, "stopped")
    assert store.submit(run_named("three", "mallory")).status == "waiting"


def test_a_record_keeps_state_events_and_sums(store: Store, place: ServerFolder) -> None:
    digest = store.submit(run_named()).digest
    record = store.record(digest)
    assert record.state() is None
    assert not record.holds_sums
    record.append({"event": "started"})
    with record.together():
        record.write_state(b"two", 1)
        record.append({"event": "round", "round": 1})
    total = bytes(range(256)) * (3 << 12)
    record.write_sum(1, [b"old"])
    record.write_sum(1, [total[:5], memoryview(total)[5:]])
    with Store.open(place) as other:
        again = other.record(digest)
        assert (again.state(), other.run(digest).released) == (b"two", 1)
        assert other.events(digest) == [(1, {"event": "started"}), (2, {"event": "round", "round": 1})]
        assert other.events(digest, after=1, limit=1) == other.events(digest)[1:]
        assert again.has_sum(1)
        assert again.read_sum(1) == total
        again.remove_sum(1)
    assert not record.has_sum(1)


def test_what_belongs_together_is_written_together_or_not_at_all(store: Store) -> None:
    digest = store.submit(run_named()).digest
    record = store.record(digest)
    with pytest.raises(ZeroDivisionError), record.together():  # noqa: PT012 - what it writes is the test
        record.write_state(b"state", 1)
        record.append({"event": "round", "ratio": 1 / 0})
    assert (record.state(), store.events(digest), store.run(digest).released) == (None, [], 0)


def test_who_waits_for_events_hears_of_them(store: Store, place: ServerFolder) -> None:
    digest = store.submit(run_named()).digest
    assert not store.wait_for_events(digest, 0, 0.01)
    with Store.open(place) as other:
        for number, writer in enumerate((store, other)):
            thread = threading.Thread(target=writer.record(digest).append, args=({"event": "waiting"},))
            thread.start()
            assert store.wait_for_events(digest, number, 30.0)
            thread.join()


def test_sessions_end_when_they_are_revoked_or_over(store: Store) -> None:
    sessions = [Session(f"{number:064x}", "ada", "key", 0.0, float(number)) for number in range(4)]
    for session in sessions:
        store.sessions.add(session)
    assert store.sessions.get(sessions[1].token) == sessions[1]
    assert store.sessions.purge(1.0) == 2
    assert store.sessions.of("ada") == sessions[2:]
    assert store.sessions.revoke(sessions[3].token)
    assert not store.sessions.revoke(sessions[3].token)
    assert store.sessions.revoke_all("ada") == 1
    assert store.sessions.get(sessions[2].token) is None


def test_only_sessions_of_listed_people_with_the_same_key_are_kept(store: Store) -> None:
    for number, (person, key) in enumerate([("ada", "one"), ("ada", "two"), ("ben", "one"), ("eve", "one")]):
        store.sessions.add(Session(f"{number:064x}", person, key, 0.0, 9.0))
    assert store.sessions.keep({"ada": "two", "ben": "one", "zoe": "one"}) == 2
    left = [(each.person, each.key) for name in ("ada", "ben", "eve") for each in store.sessions.of(name)]
    assert left == [("ada", "two"), ("ben", "one")]


def test_another_process_that_looks_at_the_store_takes_nothing_from_the_one_that_writes(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    look = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1]);"
        "print(*sorted(name for (name,) in connection.execute('SELECT name FROM runs'))); connection.close()"
    )

    def seen() -> list[str]:
        command = [sys.executable, "-c", look, str(place.folder / "store.sqlite")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    with Store.open(place) as store:
        store.submit(run_named("first"))
        with store.database.engine.connect(), store.database.engine.connect():  # as threads do, at the same time
            store.submit(run_named("second"))
        assert seen() == ["first", "second"]
        store.submit(run_named("third"))
        assert seen() == ["first", "second", "third"]
