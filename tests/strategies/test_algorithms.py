"""The contract of every federated algorithm that ships, and of those that others write.

Each runs under encryption and masks, with a site that trains in a round, loses the answer and misses the sum. The model
must be what plain float64 arithmetic says, up to the codec's rounding, the same bits at every site; and the ledgers
must say what they say under federated averaging.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message
from numpy.typing import NDArray
from torch.nn import functional

from client.dpsgd.training_steps import train
from client.flower import app as client_app
from client.flower import open_site
from client.work.local import train_locally
from privacy.codec.update import Update
from privacy.errors import ConfigError, RefusedError, RunError, TaskError
from privacy.noise.randomness import Randomness
from privacy.run.plan import read_plan
from privacy.run.settings import Encryption, Privacy, Training
from privacy.run.tables import Vote
from strategies.algorithm import BLOCK, Algorithm, LocalRound, LocalSolver, Mean, Run
from strategies.algorithms.fedadam import FedAdam
from strategies.algorithms.fedavg import FedAvg
from strategies.registry import algorithm_of, check_strategy, completed, find, parameters_of, shipped
from tests.federations import (
    NOISY,
    SETTINGS,
    SITES,
    SIZES,
    TERMS,
    Answer,
    FederationMaker,
    charges_of,
    models_of,
    node_of,
    rounds_of,
    run_with,
    signed_run,
    with_deadline,
)
from tests.second.numbers import applied, begun
from tests.strategies.hostile import EVALUATE, TRAIN
from tests.tables import table
from transport.flower import reply
from transport.run_messages import read_sum, read_train

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from privacy.run.settings import RunSettings
    from simulations.engine.federation import Federation

STEPS, RATE, ROUNDS, ABSENT, MISSED = 4, 0.02, 4, "west", 2
GIVEN: dict[str, dict[str, Any]] = {
    "fedprox": {"mu": 2.0},
    "feddyn": {"alpha": 2.0},
    "fednova": {"steps": {"south": 2, "west": 1}},
    "scaffold": {"server_learning_rate": 0.8},
    "fedadagrad": {"tau": 0.1},  # which does not blow up what rounding changes
    "fedadam": {"tau": 0.1},
    "fedyogi": {"tau": 0.1},
}
TOY = "tests.toys:Slowed"


def settings_of(name: str, **parameters: Any) -> RunSettings:  # noqa: ANN401
    return replace(
        SETTINGS,
        rounds=ROUNDS,
        training=Training(steps_per_round=STEPS, sample_rate=1.0, learning_rate=RATE),
        privacy=Privacy(max_grad_norm=1e6, noise_multiplier=0.0),
        encryption=Encryption(update_bound=4.0, profile="precise"),
        strategy={"name": name, **parameters},
    )


def missing(federation: Federation, site: str, number: int) -> Answer:
    """Let a site train in a round, lose the answer, and not get the sum."""
    node = node_of(federation, site)

    def answer(message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        if message.metadata.dst_node_id != node or kind not in {TRAIN, EVALUATE}:
            return client_app(message, context)
        content = message.content
        plan = read_plan(read_train(content)[0] if kind == TRAIN else read_sum(content).plan)
        if plan.round != number:
            return client_app(message, context)
        if kind == TRAIN:
            assert not client_app(message, context).has_error()
        return reply(Error(1, "the line broke"), message)

    return answer


# --- The contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_algorithms_equal_float64_arithmetic_under_encryption_and_masks_even_if_a_site_misses_a_round(
    make_federation: FederationMaker, name: str
) -> None:
    federation = make_federation(settings_of(name, **GIVEN.get(name, {})))
    events = run_with(federation, missing(federation, ABSENT, MISSED))
    contributors = [event["sites"] for event in events]
    assert [ABSENT in contributor for contributor in contributors] == [True, False, True, True]

    assert len(set(models_of(federation).values())) == 1
    assert len(models_of(federation)) == len(SITES)
    site = open_site(federation.paths["north"])
    _, manifest, run = signed_run(federation)
    checkpoint = site.checkpoint(manifest, run)
    start = site.study(manifest.settings.task).start(manifest.settings).vector
    expected, state = reference(federation, manifest.settings, start, contributors)
    np.testing.assert_allclose(checkpoint.model.vector, expected, rtol=0, atol=2e-4)
    assert np.abs(checkpoint.model.vector - start).max() > 0.05
    assert list(checkpoint.state.vectors) == list(state)
    for key, values in state.items():
        np.testing.assert_allclose(checkpoint.state.vectors[key], values, rtol=0, atol=1e-3)

    for path in federation.paths.values():  # what it keeps is small, and one of each
        assert len(list((path / "outbox").glob("*.state"))) == (1 if state else 0)
        assert site.ledger.mechanisms() == [manifest.round_cost] * ROUNDS
        assert open_site(path).ledger.mechanisms() == [manifest.round_cost] * ROUNDS


def reference(
    federation: Federation, settings: RunSettings, start: NDArray[np.float32], contributors: list[list[str]]
) -> tuple[NDArray[np.float64], dict[str, list[float]]]:
    """Run the algorithm without encryption, noise or float32, as its paper has it; `apply` by the second reader."""
    strategy: dict[str, Any] = dict(settings.strategy)
    name, weights = strategy["name"], {site: settings.weight(site) for site in SITES}
    model, state = [float(value) for value in start], begun(strategy, start.size)
    own = {site: np.zeros(start.size) for site in SITES}
    for there in contributors:
        w0, sent = np.array(model), dict[str, NDArray[np.float64]]()
        for site in there:
            steps, pull, offset = STEPS, 0.0, np.zeros(start.size)
            if name == "fednova":
                steps = strategy["steps"].get(site, STEPS)
            if name == "fedprox":
                pull = strategy["mu"]
            if name == "feddyn":
                pull, offset = strategy["alpha"], -own[site]
            if name == "scaffold":
                offset = np.array(state["c"]) / (STEPS * RATE) - own[site]
            delta = descend(federation, site, w0, steps, pull, offset)
            if name == "feddyn":
                own[site] = own[site] - strategy["alpha"] * delta
            if name == "scaffold":  # option II
                own[site] = own[site] - np.array(state["c"]) / (STEPS * RATE) - delta / (STEPS * RATE)
            sent[site] = delta * (STEPS / steps)
        mean = np.average([sent[site] for site in there], axis=0, weights=[weights[site] for site in there])
        model, state = applied(strategy, STEPS, weights, there, model, state, mean.tolist())
    return np.array(model), state


def descend(
    federation: Federation, site: str, w0: NDArray[np.float64], steps: int, pull: float, offset: NDArray[np.float64]
) -> NDArray[np.float64]:
    inputs, targets = (part.double() for part in table(open_site(federation.paths[site]).study(SETTINGS.task).training))
    w = w0.copy()
    for _ in range(steps):
        parameters = torch.tensor(w, requires_grad=True)
        loss = functional.mse_loss(functional.linear(inputs, parameters[None, :2], parameters[2:]), targets)
        (gradient,) = torch.autograd.grad(loss * len(inputs) / SIZES[site], parameters)
        w = w - RATE * (gradient.numpy() + pull * (w - w0) + offset)
    return w - w0


@pytest.mark.parametrize("name", shipped())
def test_the_size_of_blocks_does_not_change_the_result(name: str) -> None:
    size, draw = 1000, np.random.default_rng(3)
    algorithm = algorithm_with(name)
    run, weights = Run(STEPS, RATE, {"north": 1.0, "south": 0.5}), {"north": 1.0}
    model, mean = draw.normal(size=size), draw.normal(size=size)
    state = {key: np.abs(draw.normal(size=size)) for key in algorithm.state}
    whole, kept = algorithm.apply(model, state, Mean(mean, weights, run))
    parts = [slice(start, start + 128) for start in range(0, size, 128)]
    results = [
        algorithm.apply(
            model[part], {key: values[part] for key, values in state.items()}, Mean(mean[part], weights, run)
        )
        for part in parts
    ]
    assert np.concatenate([vector for vector, _ in results]).tobytes() == whole.tobytes()
    for key in algorithm.state:
        assert np.concatenate([vectors[key] for _, vectors in results]).tobytes() == kept[key].tobytes()
    assert size < BLOCK


def algorithm_with(name: str) -> Algorithm:
    kind: Any = find(name)
    return kind(**GIVEN.get(name, {}))  # type: ignore[no-any-return]


# --- Corrections come after clipping and noise, and an algorithm trains once ------------------------------------------


def test_a_correction_is_added_to_the_gradient_that_is_clipped_and_has_its_noise(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(
        replace(NOISY, training=Training(steps_per_round=3, sample_rate=0.5, learning_rate=0.1))
    )
    site = open_site(federation.paths["north"])
    _, manifest, _ = signed_run(federation)
    study = site.study(manifest.settings.task)
    model = study.start(manifest.settings)
    offset = np.array([5.0, -7.0, 1000.0])

    def trained_vector(solver: LocalSolver, steps: int) -> NDArray[np.float32]:
        module = study.load_into(study.module(manifest.settings.model_seed), model)
        rng = Randomness.seeded(1, "same")
        train(study.task, module, study.training, 20, manifest, rng, solver=replace(solver, steps=steps))
        return study.difference(module, model).vector

    plain, moved = trained_vector(LocalSolver(), 1), trained_vector(LocalSolver(offset=offset), 1)
    np.testing.assert_allclose(moved - plain, -0.1 * offset, rtol=1e-5)
    one, two = trained_vector(LocalSolver(), 1), trained_vector(LocalSolver(), 2)
    assert one.tobytes() == trained_vector(LocalSolver(proximal=3.0), 1).tobytes()  # at w₀ nothing pulls
    # Gradients of the second step are clipped and noisy alike, and start from the same place.
    np.testing.assert_allclose(
        trained_vector(LocalSolver(proximal=3.0), 2), two - 0.1 * 3.0 * one, rtol=1e-4, atol=1e-6
    )


def test_an_algorithm_cannot_train_more_steps_than_were_charged() -> None:
    zeros = np.zeros(3, np.float32)
    at = LocalRound(Run(4, 0.1, {"north": 1.0}), "north", zeros, {}, {})
    done = list[LocalSolver]()

    def one(solver: LocalSolver) -> Update:
        done.append(solver)
        return Update(zeros.copy())

    class Greedy(FedAvg):
        def local(self, at: LocalRound, train: Callable[[LocalSolver], Any]) -> Any:  # noqa: ANN401
            return at.model + train(LocalSolver()) + train(LocalSolver())

    class Longer(FedAvg):
        def local(self, at: LocalRound, train: Callable[[LocalSolver], Any]) -> Any:  # noqa: ANN401
            return train(LocalSolver(steps=at.run.steps + 1))

    class Shorter(FedAvg):
        def local(self, at: LocalRound, train: Callable[[LocalSolver], Any]) -> Any:  # noqa: ANN401
            return train(LocalSolver(steps=at.run.steps - 2))[:2]

    for kind, message, count in ((Greedy, "call train once", 1), (Longer, "call train once", 0), (Shorter, "(2,)", 1)):
        done.clear()
        with pytest.raises(TaskError, match=message.replace("(", r"\(").replace(")", r"\)")):
            train_locally("greedy", kind(), at, one)
        assert len(done) == count


@pytest.mark.parametrize("error", [ValueError("a record"), TaskError("records meet"), KeyboardInterrupt()])
def test_an_error_of_training_is_raised_even_if_the_algorithm_catches_it(error: BaseException) -> None:
    at = LocalRound(Run(4, 0.1, {"north": 1.0}), "north", np.zeros(3, np.float32), {}, {})

    class Going(FedAvg):
        def local(self, at: LocalRound, train: Callable[[LocalSolver], Any]) -> Any:  # noqa: ANN401
            with suppress(BaseException):
                train(LocalSolver())
            return np.zeros_like(at.model)

    def fail(_: LocalSolver) -> Update:
        raise error

    for algorithm in (FedAvg(), Going()):
        with pytest.raises(type(error)) as caught:
            train_locally("going", algorithm, at, fail)
        assert caught.value is error


# --- Who may use which strategy, and the messages otherwise -----------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"name": "fedadm"}, "there is no strategy 'fedadm' here; did you mean `fedadam`?"),
        ({"name": "zzz"}, "choose one of fedadagrad, fedadam"),
        ({"name": "fedadam", "beta1": 0.5}, "has no parameter 'beta1'; did you mean `beta_1`?"),
        ({"name": "fedavg", "mu": 0.5}, "has no parameter 'mu'; it has none; remove it"),
        ({"name": "fedadam", "beta_1": 1.5}, "does not accept beta_1 = 1.5"),
        ({"name": "fedadam", "version": 2}, "uses version 2 of the strategy fedadam, but version 1 is installed here"),
        ({"name": "fedprox", "mu": 100}, "times the learning rate"),
        ({"name": "fednova", "steps": {"nowhere": 1}}, "nowhere, which is not in [cohort.sizes]"),
        ({"name": "fednova", "steps": {"north": 9}}, "the run is charged for 4"),
        ({"name": "nowhere:Class"}, "there is no module 'nowhere'; install its package"),
        ({"name": "tests.toys:ClassVar"}, "is not an algorithm; derive a dataclass from cloister.Algorithm"),
    ],
)
def test_a_wrong_strategy_is_refused_with_the_correction(strategy: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        completed(replace(settings_of("fedavg"), strategy=strategy))
    assert message in str(caught.value)


def test_signing_fills_in_the_version_and_every_parameter() -> None:
    strategy = completed(settings_of("fedyogi", tau=1)).strategy
    assert strategy == {
        "name": "fedyogi", "version": 1, "server_learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1.0
    }  # fmt: skip
    assert completed(replace(settings_of("fedavg"), strategy=strategy)).strategy == strategy
    assert parameters_of(find("fedyogi")) == ("server_learning_rate", "beta_1", "tau", "beta_2")


def test_algorithms_that_cannot_share_noise_or_be_undone_are_refused() -> None:
    shared = replace(
        settings_of("scaffold"),
        training=Training(steps_per_round=1, sample_rate=0.5, learning_rate=RATE),
        privacy=Privacy(max_grad_norm=1.0, noise_multiplier=2.0, noise="shared"),
        seed=None,
    )
    for name in ("scaffold", "fedprox", "fednova", "feddyn"):
        with pytest.raises(ConfigError, match="an update has no noise of its own"):
            completed(replace(shared, strategy={"name": name}))
    for name in ("fedavg", "fedadam", "fedavgm"):
        assert completed(replace(shared, strategy={"name": name})).strategy["version"] == 1
    with pytest.raises(ConfigError, match=r"remove \[vote\]"):
        completed(replace(settings_of("scaffold"), vote=Vote(1.0, 0.1)))


@pytest.mark.parametrize(
    ("allowed", "name", "message"),
    [
        (("fedavg",), "fedadam", 'strategies = ["fedavg"]'),
        ((), "fedavg", "strategies = []"),
        (None, TOY, "allows only those that ship, fedadagrad"),
    ],
)
def test_a_policy_lists_the_allowed_strategies(
    make_federation: FederationMaker, allowed: tuple[str, ...] | None, name: str, message: str
) -> None:
    terms = replace(TERMS, strategies=allowed)
    federation = make_federation(with_deadline(settings_of(name), 0.2), dict.fromkeys(SITES, terms))
    with pytest.raises(RunError, match="does not allow the strategy") as caught:
        run_with(federation)
    site = open_site(federation.paths["north"])
    with pytest.raises(RefusedError) as refused:
        check_strategy(site.settings.policy, settings_of(name), "north")
    assert message in str(refused.value)
    assert name in str(caught.value)
    assert [charges_of(federation, member) for member in SITES] == [0] * len(SITES)


def test_a_site_with_another_version_takes_no_part_and_is_charged_nothing(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(replace(settings_of("fedadam"), rounds=1))

    def newer_in_the_west(manifest: Any, site: str) -> Algorithm:  # noqa: ANN401
        with monkeypatch.context() as changed:
            changed.setattr(FedAdam, "version", 1 + (site == "west"))
            return algorithm_of(manifest, site)

    monkeypatch.setattr("client.site.algorithm_of", newer_in_the_west)
    (event,) = run_with(federation)
    assert "west" not in event["sites"]
    assert "version 2 is installed here; install the same version everywhere" in event["problems"]["west"]
    assert [charges_of(federation, site) for site in SITES] == [1, 1, 1, 0]


# --- Of other packages ------------------------------------------------------------------------------------------------


def test_a_strategy_of_another_package_is_loaded_by_module_and_class(make_federation: FederationMaker) -> None:
    federation = make_federation(settings_of(TOY, part=0.25), dict.fromkeys(SITES, replace(TERMS, strategies=(TOY,))))
    check_toy(federation)


def test_a_strategy_of_another_package_is_loaded_by_its_entry_point(
    make_federation: FederationMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "site" / "toys-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[cloister.strategies]\nslowed = {TOY}\n")
    monkeypatch.syspath_prepend(about.parent)
    assert str(about.parent) in sys.path
    federation = make_federation(
        settings_of("slowed", part=0.25), dict.fromkeys(SITES, replace(TERMS, strategies=("slowed",)))
    )
    check_toy(federation)


def check_toy(federation: Federation) -> None:
    run_with(federation)
    assert len(set(models_of(federation).values())) == 1
    assert all(event["released"] for event in rounds_of(federation))
    _, manifest, run = signed_run(federation)
    assert manifest.settings.strategy["version"] == 3
    assert manifest.settings.strategy["part"] == 0.25
    checkpoint = open_site(federation.paths["north"]).checkpoint(manifest, run)
    assert checkpoint.state.vectors["rounds"].tolist() == [ROUNDS] * 3
