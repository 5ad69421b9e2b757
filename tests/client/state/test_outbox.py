"""The outbox keeps a run's last update as it was signed: its plan gets the same bytes again, and no other gets any."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.state.outbox import Outbox
from privacy.codec.envelope import SignedUpdate
from privacy.errors import KeyFileError, ProtocolError
from privacy.run.plan import RoundPlan
from tests.privacy.consortium import make_plan

RUN, OTHER = "ab" * 32, "cd" * 32
UPDATE = SignedUpdate(b'{"site": "north"}', b"\x01" * 64, (b"first chunk\n", b"", b"\x00\xff last"), b"\x02" * 32)
SEED = b"\x03" * 32


def plan_of(number: int = 1, attempt: int = 1, run: str = RUN) -> RoundPlan:
    return make_plan(run, number=number, attempt=attempt, deadline=4102444800.0)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def test_an_empty_outbox_has_nothing_for_any_plan(outbox: Outbox) -> None:
    assert outbox.last(RUN) is None
    assert outbox.find(plan_of()) is None


@given(
    header=st.text(),
    signature=st.binary(max_size=64),
    chunks=st.lists(st.binary(max_size=50), max_size=4).map(tuple),
    commitments=st.binary(max_size=64),
    seed=st.binary(max_size=32),
)
def test_another_process_finds_the_very_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    header: str,
    signature: bytes,
    chunks: tuple[bytes, ...],
    commitments: bytes,
    seed: bytes,
) -> None:
    folder = tmp_path_factory.mktemp("outbox")
    update = SignedUpdate(header.encode(), signature, chunks, commitments)
    Outbox(folder).keep(plan_of(), update, seed)
    entry = Outbox(folder).last(RUN)
    assert entry is not None
    assert (entry.plan, entry.update, entry.mask) == (plan_of(), update, seed)
    assert Outbox(folder).find(plan_of()) == update


def test_a_later_attempt_or_round_has_no_update_yet(outbox: Outbox) -> None:
    outbox.keep(plan_of(2, 2), UPDATE, SEED)
    assert outbox.find(plan_of(2, 3)) is None
    assert outbox.find(plan_of(3, 1)) is None


@pytest.mark.parametrize("plan", [(2, 1), (1, 1), (1, 9)])
def test_an_earlier_plan_is_refused_after_a_later_one(outbox: Outbox, plan: tuple[int, int]) -> None:
    outbox.keep(plan_of(2, 2), UPDATE, SEED)
    with pytest.raises(ProtocolError, match=f"asks for round {plan[0]}, attempt {plan[1]}, after a later attempt"):
        outbox.find(plan_of(*plan))


@pytest.mark.parametrize(
    "change", [{"cohort": ("north", "south")}, {"base_model": "0" * 64}, {"keys": "0" * 64}, {"deadline": 1.0}]
)
def test_another_plan_for_the_same_attempt_is_refused(outbox: Outbox, change: dict[str, object]) -> None:
    outbox.keep(plan_of(), UPDATE, SEED)
    with pytest.raises(ProtocolError, match="asks twice for round 1, with different plans"):
        outbox.find(replace(plan_of(), **change))  # type: ignore[arg-type]
    assert outbox.find(plan_of()) == UPDATE


def test_each_run_keeps_its_last_update_alone(outbox: Outbox) -> None:
    later = replace(UPDATE, chunks=(b"later",))
    outbox.keep(plan_of(1), UPDATE, SEED)
    outbox.keep(plan_of(1, run=OTHER), UPDATE, SEED)
    outbox.keep(plan_of(2), later, b"")
    assert outbox.find(plan_of(2)) == later
    assert outbox.find(plan_of(1, run=OTHER)) == UPDATE


def test_a_write_that_fails_leaves_the_update_before(
    outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    outbox.keep(plan_of(1), UPDATE, SEED)
    with monkeypatch.context() as patch:
        patch.setattr("privacy.storage.os.fsync", full)
        with pytest.raises(OSError, match=r"No space left .*\.update"):
            outbox.keep(plan_of(2), UPDATE, SEED)
    assert outbox.find(plan_of(1)) == UPDATE
    assert len(list((tmp_path / "outbox").iterdir())) == 1


def test_only_its_owner_may_read_an_update_with_its_seed(outbox: Outbox, tmp_path: Path) -> None:
    outbox.keep(plan_of(), UPDATE, SEED)
    (file,) = (tmp_path / "outbox").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def note_of(data: bytes, **change: object) -> bytes:
    """The file with something else in its first line."""
    first, _, rest = data.partition(b"\n")
    return json.dumps(json.loads(first) | change).encode() + b"\n" + rest


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[:-1],
    "too long": lambda data: data + b"\n",
    "cut off in its note": lambda data: data[:100],
    "empty": lambda _: b"",
    "another note": lambda _: b"[1]\n",
    "a deep note": lambda data: b"[" * 100_000 + data,
    "a negative size": lambda data: note_of(data, chunks=[-1, 1]),
    "a huge size": lambda data: note_of(data, chunks=[1 << 70]),
    "no sizes": lambda data: note_of(data, chunks=None),
    "no plan": lambda data: note_of(data, plan="{}"),
    "no header": lambda data: note_of(data, header=None),
    "no signature": lambda data: note_of(data, signature="no hex"),
    "no mask": lambda data: note_of(data, mask=[]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_what_to_do(outbox: Outbox, tmp_path: Path, damage: str) -> None:
    outbox.keep(plan_of(), UPDATE, SEED)
    (file,) = (tmp_path / "outbox").iterdir()
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(KeyFileError, match=rf"{file.name}: this file is damaged; restore it, or move it aside"):
        outbox.find(plan_of())


def test_an_update_of_another_run_under_this_ones_name_is_not_taken_for_its_own(tmp_path: Path) -> None:
    """The name has 16 digits of the run's: whoever signs runs can make two that agree in them."""
    outbox, other = Outbox(tmp_path / "outbox"), RUN[:16] + OTHER[16:]
    outbox.keep(plan_of(), UPDATE, SEED)
    for ask in (lambda: outbox.last(other), lambda: outbox.find(plan_of(run=other, attempt=2))):
        with pytest.raises(KeyFileError, match="damaged"):
            ask()
    assert outbox.find(plan_of()) == UPDATE
