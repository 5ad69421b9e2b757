"""What a site did once, it does not do otherwise: not in another process, not after a crash, not at the same time."""

import multiprocessing
import stat
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.state.commitments import Commitments
from privacy.errors import ProtocolError
from privacy.storage import append

RUN, OTHER = "ab" * 32, "cd" * 32
DEED = "revealing round 1"
WORDS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters=":"), min_size=1)


@pytest.fixture
def once(tmp_path: Path) -> Commitments:
    return Commitments(tmp_path / "outbox")


def file_of(folder: Path) -> Path:
    (file,) = (folder / "outbox").iterdir()
    return file


def test_there_is_no_commitment_before_one_is_noted(once: Commitments) -> None:
    assert once.find(RUN, DEED) is None


def test_the_same_again_changes_nothing(once: Commitments, tmp_path: Path) -> None:
    once.note(RUN, DEED, "attempt 1")
    before = file_of(tmp_path).read_bytes()
    Commitments(tmp_path / "outbox").note(RUN, DEED, "attempt 1")
    assert file_of(tmp_path).read_bytes() == before
    assert once.find(RUN, DEED) == "attempt 1"


def test_a_different_value_is_refused_even_by_another_process(once: Commitments, tmp_path: Path) -> None:
    once.note(RUN, DEED, "attempt 1")
    for record in (once, Commitments(tmp_path / "outbox")):
        with pytest.raises(ProtocolError, match="revealing round 1 was already recorded with another value"):
            record.note(RUN, DEED, "attempt 2")
    assert once.find(RUN, DEED) == "attempt 1"


def test_actions_and_runs_are_kept_apart(once: Commitments) -> None:
    once.note(RUN, DEED, "1")
    once.note(RUN, "revealing round 2", "2")
    once.note(OTHER, DEED, "3")
    assert [once.find(RUN, DEED), once.find(RUN, "revealing round 2"), once.find(OTHER, DEED)] == ["1", "2", "3"]


@given(st.lists(st.tuples(WORDS, WORDS), max_size=8))
def test_the_first_value_of_an_action_is_kept(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, str]]
) -> None:
    once, first = Commitments(tmp_path_factory.mktemp("outbox")), dict[str, str]()
    for action, value in actions:
        if first.setdefault(action, value) == value:
            once.note(RUN, action, value)
        else:
            with pytest.raises(ProtocolError):
                once.note(RUN, action, value)
    assert {action: once.find(RUN, action) for action in first} == first


def test_a_line_that_a_crash_cut_off_is_not_a_commitment(once: Commitments, tmp_path: Path) -> None:
    once.note(RUN, "agreeing on round 1", "a set")
    whole = file_of(tmp_path).read_bytes()
    once.note(RUN, DEED, "attempt 1")
    for length in range(len(whole), len(file_of(tmp_path).read_bytes())):
        file_of(tmp_path).write_bytes((whole + b"revealing round 1: attempt 1\n")[:length])
        assert once.find(RUN, DEED) is None
        assert once.find(RUN, "agreeing on round 1") == "a set"
        once.note(RUN, DEED, "attempt 2")
        assert once.find(RUN, DEED) == "attempt 2"
        assert file_of(tmp_path).read_bytes() == whole + b"revealing round 1: attempt 2\n"


def test_a_commitment_is_on_disk_before_the_action_also_if_it_was_recorded_before(
    once: Commitments, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = list[bytes]()

    def watched(path: Path, descriptor: int, data: bytes, *, sync: bool) -> None:
        append(path, descriptor, data, sync=sync)
        synced.append(data)

    monkeypatch.setattr("privacy.log_file.append", watched)
    once.note(RUN, DEED, "1")
    once.note(RUN, DEED, "1")
    assert synced == [b"revealing round 1: 1\n", b""]


def test_a_full_disk_prevents_the_action(once: Commitments, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    once.note(RUN, "agreeing on round 1", "a set")
    with monkeypatch.context() as patch:
        patch.setattr("privacy.storage.os.fsync", full)
        with pytest.raises(OSError, match=r"No space left .*\.commitments"):
            once.note(RUN, DEED, "1")
    assert once.find(RUN, DEED) is None
    assert once.find(RUN, "agreeing on round 1") == "a set"


def _try(folder: str, value: str) -> bool:
    try:
        Commitments(Path(folder)).note(RUN, DEED, value)
    except ProtocolError:
        return False
    return True


def test_only_one_of_several_simultaneous_processes_acts(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        done = list(pool.map(_try, [str(tmp_path)] * 40, [f"attempt {number}" for number in range(40)]))
    assert sum(done) == 1
    assert Commitments(tmp_path).find(RUN, DEED) == f"attempt {done.index(True)}"


def test_only_its_owner_may_read_it(once: Commitments, tmp_path: Path) -> None:
    once.note(RUN, DEED, "1")
    assert stat.S_IMODE(file_of(tmp_path).stat().st_mode) == 0o600
