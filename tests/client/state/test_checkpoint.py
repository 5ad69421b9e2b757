"""A checkpoint is the same bits at every site, and is taken back only as it was saved: whole, and of the same run."""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.numpy import load_file

from client.state.checkpoint import Checkpoint, CheckpointStore
from privacy.codec.update import Constant, Layout, Model
from privacy.errors import KeyFileError

RUN, OTHER = "ab" * 32, "ab" * 4 + "cd" * 28  # whose files have the same name
PLACES = np.array([3, 1], "<i8")
LAYOUT = Layout(
    (("weight", (2, 3)), ("bias", (2,)), ("scale", ())),
    (
        Constant.of("places", "I64", (2,), PLACES.view(np.uint8)),
        Constant.of("mask", "BOOL", (3,), np.array([1, 0, 1], np.uint8)),
        Constant.of("made again", "F32", (1,), np.zeros(4, np.uint8), saved=False),
    ),
)
VECTOR = np.arange(9, dtype=np.float32) - 4
CHECKPOINT = Checkpoint(RUN, 3, Model(VECTOR, LAYOUT), 0.25, "ef" * 32, 2)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "models")


def content_of(value: Checkpoint | tuple[Checkpoint, str] | None) -> tuple[object, ...]:
    assert value is not None
    checkpoint, state = value if isinstance(value, tuple) else (value, value.state.digest)
    assert not state
    rest = checkpoint.run, checkpoint.round, checkpoint.update_bound, checkpoint.average, checkpoint.averaged
    return (checkpoint.model.vector.tobytes(), checkpoint.model.digest, checkpoint.digest, *rest)


def test_there_is_no_checkpoint_before_the_first_round(store: CheckpointStore) -> None:
    assert store.load("study", RUN, LAYOUT) is None
    assert store.peek("study", RUN) is None


@given(
    vector=arrays.arrays(np.float32, 9, elements=st.floats(width=32)),
    number=st.integers(0, 10**6),
    bound=st.floats(min_value=1e-30, max_value=1e30),
    average=st.sampled_from(["", "ef" * 32]),
)
def test_another_process_loads_the_very_bits(
    tmp_path_factory: pytest.TempPathFactory, vector: np.ndarray, number: int, bound: float, average: str
) -> None:
    folder = tmp_path_factory.mktemp("models")
    saved = Checkpoint(RUN, number, Model(vector, LAYOUT), bound, average, 5)
    CheckpointStore(folder).save("study", saved)
    assert content_of(CheckpointStore(folder).load("study", RUN, LAYOUT)) == content_of(saved)
    assert CheckpointStore(folder).peek("study", RUN) == (number, saved.model.digest, average, "")


def test_all_sites_write_the_same_file(tmp_path: Path) -> None:
    one, other = (CheckpointStore(tmp_path / site).save("study", CHECKPOINT) for site in ("north", "south"))
    assert one.read_bytes() == other.read_bytes()


def test_the_file_has_the_trained_parameters_by_name_and_the_digest_of_the_rest(store: CheckpointStore) -> None:
    path = store.save("study", CHECKPOINT)
    tensors = load_file(path)
    assert set(tensors) == {"weight", "bias", "scale"}
    np.testing.assert_array_equal(tensors["weight"], VECTOR[:6].reshape(2, 3))
    np.testing.assert_array_equal(tensors["bias"], VECTOR[6:8])
    assert tensors["scale"].shape == ()
    assert tensors["scale"] == VECTOR[8]
    with safe_open(path, "numpy") as file:
        note = json.loads(file.metadata()["cloister"])
    assert (note["round"], note["frozen"], note["source"]) == (3, LAYOUT.frozen, "")


def test_a_later_round_takes_the_place_of_an_earlier_one(store: CheckpointStore, tmp_path: Path) -> None:
    store.save("study", CHECKPOINT)
    later = replace(CHECKPOINT, round=4, model=Model(VECTOR + 1, LAYOUT))
    store.save("study", later)
    assert content_of(store.load("study", RUN, LAYOUT)) == content_of(later)
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_a_write_that_fails_leaves_the_round_before(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store.save("study", CHECKPOINT)
    with monkeypatch.context() as patch:
        patch.setattr("privacy.storage.os.fsync", full)
        with pytest.raises(OSError, match=r"No space left .*\.safetensors"):
            store.save("study", replace(CHECKPOINT, round=4))
    assert content_of(store.load("study", RUN, LAYOUT)) == content_of(CHECKPOINT)
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_a_file_of_another_run_or_another_model_is_refused(store: CheckpointStore) -> None:
    path = store.save("study", CHECKPOINT)
    assert path == store.path("study", OTHER)
    shapes = (("weight", (3, 2)), *LAYOUT.shapes[1:])
    for run, layout in (
        (OTHER, LAYOUT),
        (RUN, replace(LAYOUT, shapes=shapes)),
        (RUN, replace(LAYOUT, shapes=LAYOUT.shapes[:-1])),
        (RUN, replace(LAYOUT, constants=LAYOUT.constants[1:])),
        (RUN, replace(LAYOUT, constants=(replace(LAYOUT.constants[0], digest="0" * 64), *LAYOUT.constants[1:]))),
    ):
        with pytest.raises(KeyFileError, match=r"was altered, or belongs to another run; move it aside and restart"):
            store.load("study", run, layout)


def test_one_bit_that_changed_among_the_values_is_noticed(store: CheckpointStore) -> None:
    path = store.save("study", CHECKPOINT)
    data = bytearray(path.read_bytes())
    start = data.index(VECTOR.tobytes())
    for place in range(start, start + VECTOR.nbytes):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(KeyFileError, match="was altered"):
            store.load("study", RUN, LAYOUT)


def _with_note(data: bytes, note: object) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {"cloister": note} if isinstance(note, str) else note
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[:-1],
    "too long": lambda data: data + b"\0",
    "cut off in its header": lambda data: data[:50],
    "no length": lambda data: data[:7],
    "empty": lambda _: b"",
    "a huge length": lambda data: b"\xff" * 8 + data[8:],
    "overlapping tensors": lambda data: data.replace(b'"data_offsets": [0, 24]', b'"data_offsets": [8, 32]'),
    "no notes": lambda data: _with_note(data, None),
    "other notes": lambda data: _with_note(data, {"other": "1"}),
    "a note that is no JSON": lambda data: _with_note(data, "no JSON"),
    "a note that is a list": lambda data: _with_note(data, "[]"),
    "a deep note": lambda data: _with_note(data, "[" * 100_000),
    "a note without all": lambda data: _with_note(data, '{"round": 1}'),
    "an infinite round": lambda data: _with_note(data, '{"round": 1e999, "update_bound": 1, "averaged": 0}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_what_to_do(store: CheckpointStore, damage: str) -> None:
    path = store.save("study", CHECKPOINT)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(KeyFileError, match=rf"{path.name}: this checkpoint is damaged .*; move it aside and restart"):
        store.load("study", RUN, LAYOUT)
    peeked = store.peek("study", RUN)
    assert peeked is None


def test_a_pipe_in_its_place_is_not_waited_for(store: CheckpointStore, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    os.mkfifo(store.path("study", RUN))
    assert store.peek("study", RUN) is None
    with pytest.raises(OSError, match="a pipe or a device, not a file"):
        store.load("study", RUN, LAYOUT)


def test_a_checkpoint_kept_elsewhere_is_unchanged(store: CheckpointStore, tmp_path: Path) -> None:
    other = CheckpointStore(tmp_path / "outbox")
    store.save("study", CHECKPOINT)
    store.keep("study", RUN, other)
    store.save("study", replace(CHECKPOINT, round=4))
    assert content_of(other.load("study", RUN, LAYOUT)) == content_of(CHECKPOINT)
    store.keep("study", RUN, other)
    assert other.peek("study", RUN) == store.peek("study", RUN) == (4, CHECKPOINT.model.digest, CHECKPOINT.average, "")


def test_before_the_first_round_nothing_is_kept_elsewhere(store: CheckpointStore, tmp_path: Path) -> None:
    other = CheckpointStore(tmp_path / "outbox")
    other.save("study", CHECKPOINT)  # of a run that was started again
    store.keep("study", RUN, other)
    assert other.load("study", RUN, LAYOUT) is None


def test_the_digest_is_the_models_or_that_of_model_and_mean() -> None:
    model = CHECKPOINT.model.digest
    assert replace(CHECKPOINT, average="").digest == model
    both = sha256(b"cloister average" + bytes.fromhex(model) + bytes.fromhex("ef" * 32)).hexdigest()
    assert CHECKPOINT.digest == both


def test_only_its_owner_may_read_it(store: CheckpointStore) -> None:
    assert stat.S_IMODE(store.save("study", CHECKPOINT).stat().st_mode) == 0o600
