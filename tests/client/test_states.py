"""What an algorithm keeps beside the model outlasts a restart, is in the digest, and is made again if it is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from client.flower import app as client_app
from client.flower import open_site
from client.state.algorithm_states import States
from client.state.own_vectors import Own
from privacy.errors import KeyFileError
from strategies.advance import State
from tests.federations import SETTINGS, FederationMaker, charges_of, models_of, node_of, restart, run_with, signed_run
from tests.privacy.consortium import make_plan
from tests.strategies.hostile import TRAIN

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Context, Message

RUN, SIZE = "ab" * 32, 5
STATE = State({"v": np.linspace(0.1, 1, SIZE), "m": -np.ones(SIZE)})


def test_a_state_is_read_back_and_other_states_of_its_run_can_be_deleted(tmp_path: Path) -> None:
    states, other = States(tmp_path), State({"v": np.zeros(SIZE), "m": np.zeros(SIZE)})
    for state in (STATE, other):
        states.save(RUN, state)
    read = states.load(RUN, STATE.digest, ("v", "m"), SIZE)
    assert read
    assert read.digest == STATE.digest
    assert [vector.tobytes() for vector in read.vectors.values()] == [
        vector.tobytes() for vector in STATE.vectors.values()
    ]
    states.forget(RUN, {STATE.digest})
    assert states.load(RUN, other.digest, ("v", "m"), SIZE) is None
    assert states.load(RUN, STATE.digest, ("v", "m"), SIZE)
    states.forget("cd" * 32, ())
    assert states.load(RUN, STATE.digest, ("v", "m"), SIZE)


def test_without_state_there_is_none_and_no_file(tmp_path: Path) -> None:
    states = States(tmp_path)
    states.save(RUN, State())
    assert not list(tmp_path.iterdir())
    read = states.load(RUN, "", (), SIZE)
    assert read
    assert read.digest == ""
    assert states.load(RUN, "ab" * 32, (), SIZE) is None  # of a run that has one
    assert states.load(RUN, "", ("v",), SIZE) is None


@pytest.mark.parametrize("names", [("v", "m"), ("v",), ("v", "m", "c")])
@pytest.mark.parametrize("damage", ["cut", "flipped", "none"])
def test_a_damaged_state_is_named_and_never_taken(tmp_path: Path, names: tuple[str, ...], damage: str) -> None:
    states = States(tmp_path)
    states.save(RUN, STATE)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-1] ^= 1
    path.write_bytes(data[:-3] if damage == "cut" else data)
    if damage == "none" and names == ("v", "m"):
        assert states.load(RUN, STATE.digest, names, SIZE)
        return
    with pytest.raises(KeyFileError) as caught:
        states.load(RUN, STATE.digest, names, SIZE)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("vectors", [{"m": np.ones(SIZE), "v": np.ones(SIZE)}, {"v": np.ones(SIZE)}])
def test_names_and_values_are_in_the_digest(vectors: dict[str, np.ndarray]) -> None:
    digests = {State(vectors).digest, State(dict(reversed(vectors.items()))).digest, STATE.digest}
    assert len(digests) == 1 + len(vectors)


def test_a_sites_state_takes_effect_once_its_update_is_in_an_opened_sum(tmp_path: Path) -> None:
    own, plan = Own(tmp_path), make_plan(RUN)
    first, second = {"c": np.ones(SIZE)}, {"c": np.full(SIZE, 2.0)}
    assert own.load(plan.run, ("c",), SIZE)["c"].tolist() == [0.0] * SIZE
    own.keep(plan, first)
    assert own.load(plan.run, ("c",), SIZE)["c"].tolist() == [0.0] * SIZE
    own.settle(plan, contributed=True)
    assert own.load(plan.run, ("c",), SIZE)["c"].tolist() == [1.0] * SIZE
    own.keep(replace(plan, round=plan.round + 1), second)
    own.settle(replace(plan, round=plan.round + 1), contributed=False)
    assert own.load(plan.run, ("c",), SIZE)["c"].tolist() == [1.0] * SIZE
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_with_averaging_goes_on_after_a_restart_and_from_its_sums_if_the_state_is_lost(
    make_federation: FederationMaker,
) -> None:
    assert SETTINGS.training
    training = replace(SETTINGS.training, averaging=0.6)
    federation = make_federation(
        replace(SETTINGS, rounds=3, training=training, strategy={"name": "fedadam", "tau": 0.1})
    )
    node, done = node_of(federation, "west"), list[str]()

    def lose(message: Message, context: Context) -> Message:
        """Lose the state of one site before its third round, and let it start again."""
        if (message.metadata.dst_node_id, message.metadata.message_type) == (node, TRAIN):
            done.append("train")
            if len(done) == 3:
                (path,) = (federation.paths["west"] / "outbox").glob("*.state")
                path.unlink()
                restart(federation, "west")
        return client_app(message, context)

    events = run_with(federation, lose)
    assert [event["released"] for event in events] == [True] * 3
    _, manifest, run = signed_run(federation)
    assert open_site(federation.paths["west"]).checkpoint(manifest, run).round in {0, 3}
    models = models_of(federation)
    assert models["north"] == models["south"] == models["east"]
    before = restart(federation, "north").checkpoint(manifest, run)
    assert before.round == 3
    assert list(before.state.vectors) == ["m", "v"]
    assert before.digest == events[-1]["model"]


def test_a_damaged_own_vector_is_not_charged(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(SETTINGS, rounds=2, strategy={"name": "scaffold"}))
    node, done = node_of(federation, "west"), list[str]()

    def damage(message: Message, context: Context) -> Message:
        if (message.metadata.dst_node_id, message.metadata.message_type) == (node, TRAIN):
            done.append("train")
            if len(done) == 2:
                (path,) = (federation.paths["west"] / "outbox").glob("*.own")
                path.write_bytes(path.read_bytes()[:-1])
        return client_app(message, context)

    events = run_with(federation, damage)
    assert "west" in events[0]["sites"]
    assert "west" not in events[1]["contributors"] if "contributors" in events[1] else "west" in events[1]["problems"]
    assert charges_of(federation, "west") == 1
