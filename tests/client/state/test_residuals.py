"""What an update left over goes into the next one, but only if the update itself reached the model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, MessageType
from numpy.typing import NDArray

from client.flower import app, open_site
from client.state import residuals as module
from client.state.checkpoint import CheckpointStore
from client.state.residuals import Residuals
from privacy.run.plan import RoundPlan, read_plan
from tests.federations import SETTINGS, FederationMaker, models_of, node_of, run_with, signed_run
from tests.privacy.consortium import make_plan
from transport.flower import reply
from transport.run_messages import read_train

RUN, OTHER = "ab" * 32, "cd" * 32
FIRST = np.array([0.5, -0.25, 1e-9], np.float32)
SECOND = np.array([3.0, 0.0, -1.0], np.float32)


def plan_of(number: int, run: str = RUN, attempt: int = 1) -> RoundPlan:
    return make_plan(run, number=number, attempt=attempt)


def held(folder: Path, run: str = RUN) -> list[float]:
    """What a process that starts now would add to an update of noughts."""
    vector = np.zeros(3, np.float32)
    Residuals(folder).add_to(vector, run)
    return vector.tolist()


@pytest.fixture
def residuals(tmp_path: Path) -> Residuals:
    return Residuals(tmp_path)


def test_nothing_is_added_without_a_residual(residuals: Residuals, tmp_path: Path) -> None:
    assert held(tmp_path) == [0, 0, 0]
    residuals.settle(plan_of(1), contributed=True)
    assert held(tmp_path) == [0, 0, 0]


def test_a_residual_counts_once_its_sum_is_open_and_is_added_to_what_is_there(
    residuals: Residuals, tmp_path: Path
) -> None:
    residuals.keep(plan_of(1), FIRST)
    assert held(tmp_path) == [0, 0, 0]
    residuals.settle(plan_of(1), contributed=True)
    assert held(tmp_path) == held(tmp_path) == FIRST.tolist()
    vector = SECOND.copy()
    residuals.add_to(vector, RUN)
    np.testing.assert_array_equal(vector, FIRST + SECOND)


def test_a_kept_residual_is_not_a_view_of_the_update(residuals: Residuals, tmp_path: Path) -> None:
    vector = FIRST.copy()
    residuals.keep(plan_of(1), vector)
    vector[:] = 7
    residuals.settle(plan_of(1), contributed=True)
    assert held(tmp_path) == FIRST.tolist()


def test_a_sum_without_this_sites_update_keeps_the_older_residual(residuals: Residuals, tmp_path: Path) -> None:
    _send(residuals, 1, FIRST, contributed=True)
    _send(residuals, 2, SECOND, contributed=False)
    assert held(tmp_path) == FIRST.tolist()
    residuals.settle(plan_of(2), contributed=True)  # too late: it was forgotten
    assert held(tmp_path) == FIRST.tolist()
    _send(residuals, 3, SECOND, contributed=True)
    assert held(tmp_path) == SECOND.tolist()


def test_a_round_without_a_release_keeps_the_older_residual(residuals: Residuals, tmp_path: Path) -> None:
    _send(residuals, 1, FIRST, contributed=True)
    residuals.keep(plan_of(2), SECOND)  # its sum never comes
    assert held(tmp_path) == FIRST.tolist()
    residuals.keep(plan_of(3), 2 * SECOND)
    residuals.settle(plan_of(2), contributed=True)
    assert held(tmp_path) == FIRST.tolist()
    residuals.settle(plan_of(3), contributed=True)
    assert held(tmp_path) == (2 * SECOND).tolist()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".residual"]


def test_an_update_that_is_made_again_has_a_new_residual(residuals: Residuals, tmp_path: Path) -> None:
    # The process ended after the residual was kept, before the update was: it is trained once more.
    residuals.keep(plan_of(1), FIRST)
    _send(residuals, 1, SECOND, contributed=True)
    assert held(tmp_path) == SECOND.tolist()


def test_settling_twice_changes_nothing(residuals: Residuals, tmp_path: Path) -> None:
    # The process ended after the residual was settled, before the model was saved: the sum is opened once more.
    _send(residuals, 1, FIRST, contributed=True)
    for _ in range(2):
        Residuals(tmp_path).settle(plan_of(1), contributed=True)
        assert held(tmp_path) == FIRST.tolist()


def test_runs_do_not_share_residuals(residuals: Residuals, tmp_path: Path) -> None:
    _send(residuals, 1, FIRST, contributed=True)
    residuals.keep(plan_of(2), FIRST)
    residuals.keep(plan_of(2, OTHER), SECOND)
    residuals.settle(plan_of(2, OTHER), contributed=True)
    assert (held(tmp_path), held(tmp_path, OTHER)) == (FIRST.tolist(), SECOND.tolist())
    residuals.settle(plan_of(2), contributed=True)
    assert held(tmp_path) == FIRST.tolist()


@pytest.mark.parametrize("size", [0, 2, 4])
def test_a_residual_of_another_size_is_left_alone(residuals: Residuals, size: int) -> None:
    _send(residuals, 1, FIRST, contributed=True)
    vector = np.zeros(size, np.float32)
    residuals.add_to(vector, RUN)
    assert not vector.any()


def test_long_residuals_are_read_piece_by_piece(residuals: Residuals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP", 7)
    values = np.random.default_rng(1).normal(size=100).astype(np.float32)
    _send(residuals, 1, values, contributed=True)
    vector = values.copy()
    residuals.add_to(vector, RUN)
    np.testing.assert_array_equal(vector, 2 * values)


def test_only_the_owner_may_read_residuals(residuals: Residuals, tmp_path: Path) -> None:
    _send(residuals, 1, FIRST, contributed=True)
    residuals.keep(plan_of(2), SECOND)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def _send(residuals: Residuals, number: int, left: NDArray[np.float32], *, contributed: bool) -> None:
    residuals.keep(plan_of(number), left)
    residuals.settle(plan_of(number), contributed=contributed)


# --- In a run ------------------------------------------------------------------------------------------------------

SITE = "north"
RUN_SETTINGS = replace(SETTINGS, rounds=4)


def last_of(make: FederationMaker, name: str, **options: Any) -> tuple[bytes, bytes]:  # noqa: ANN401 - of `run_with`
    """Run a federation of this name; return the site's model and residual at the end."""
    federation = make(RUN_SETTINGS, name=name)
    run_with(federation, **options)
    (left,) = federation.paths[SITE].glob("outbox/*.residual")
    assert len(set(models_of(federation).values())) == 1
    return _model(federation, SITE), left.read_bytes()


def _model(federation: Any, site: str) -> bytes:  # noqa: ANN401 - a Federation
    _, manifest, run = signed_run(federation)
    return open_site(federation.paths[site]).checkpoint(manifest, run).model.vector.tobytes()


def test_without_residuals_a_run_ends_elsewhere(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the next two tests compare would otherwise say nothing.
    model, left = last_of(make_federation, "with")
    assert np.frombuffer(left, np.float32).any()
    monkeypatch.setattr(Residuals, "add_to", lambda *_: None)
    assert last_of(make_federation, "without")[0] != model


def test_a_crash_between_settling_a_residual_and_saving_the_model_changes_nothing(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = last_of(make_federation, "undisturbed")
    save, crashes = CheckpointStore.save, list[list[str]]()

    def crash(store: CheckpointStore, *arguments: Any) -> Path:  # noqa: ANN401 - passed on
        if "disturbed" in store._folder.parts[-3] and SITE in store._folder.parts and not crashes:
            crashes.append(sorted(path.suffix for path in (store._folder.parent / "outbox").iterdir()))
            open_site.cache_clear()
            raise KeyboardInterrupt
        return save(store, *arguments)

    monkeypatch.setattr(CheckpointStore, "save", crash)
    assert last_of(make_federation, "crashed-disturbed", answer=_surviving(app)) == undisturbed
    assert crashes == [[".residual", ".update"]]


def _surviving(answer: Callable[[Message, Context], Message]) -> Callable[[Message, Context], Message]:
    def survive(message: Message, context: Context) -> Message:
        try:
            return answer(message, context)
        except KeyboardInterrupt:
            return reply(Error(1, "the agent's process ended"), message)

    return survive


def test_a_round_that_released_nothing_leaves_the_sites_the_older_residual(make_federation: FederationMaker) -> None:
    federation = make_federation(RUN_SETTINGS)
    node, failing = node_of(federation, SITE), {node_of(federation, site) for site in ("east", "west")}
    before: dict[int, bytes] = {}

    def answer(message: Message, context: Context) -> Message:
        meta = message.metadata
        if meta.message_type != MessageType.TRAIN:
            return app(message, context)
        number = read_plan(read_train(message.content)[0]).round
        if meta.dst_node_id == node:
            left = list(federation.paths[SITE].glob("outbox/*.residual"))
            before[number] = left[0].read_bytes() if left else b""
        response = app(message, context)
        return reply(Error(1, "the line broke"), message) if meta.dst_node_id in failing and number == 2 else response

    rounds = run_with(federation, answer)
    assert [event["released"] for event in rounds] == [True, False, True, True]
    assert before[1] == b""
    assert before[2] == before[3] != b""
    assert before[4] != before[3]
    assert len(set(models_of(federation).values())) == 1
