"""Flower's own strategies, wrappers and workflows run unchanged on our grids, and what comes out is right."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import Client, NumPyClient
from flwr.client.mod import secagg_mod, secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import Mod
from flwr.common import NDArrays, Scalar, ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow, SecAggWorkflow
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    FedMedian,
    Strategy,
)
from numpy.typing import NDArray

from tests.federations import Answer
from tests.transport.grids import LONG, grpc_grid, inline_grid
from transport.flower import quieten, reply
from transport.grid import ReplyGrid

SITES = ("north", "south", "east")
EXAMPLES = 4
GOAL = np.arange(1, 7, dtype=np.float64).reshape(2, 3)  # every node goes half-way to it
MakeGrid = Callable[[Answer], ReplyGrid]


@pytest.fixture(params=["inline", "grpc"])
def make_grid(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeGrid]:
    """Make a grid with three nodes."""
    quieten()
    with ExitStack() as stack:
        if request.param == "inline":
            yield lambda app: inline_grid(app, len(SITES))
        else:
            yield lambda app: stack.enter_context(grpc_grid(tmp_path, one_at_a_time(app), SITES))


def one_at_a_time(app: Answer) -> Answer:
    """Let nodes, which are threads here, answer in turn: numpy parses, for which Python 3.11 has threads collide.

    It raises SystemError (CPython's issue 106905).
    """
    turn = Lock()

    def answer(message: Message, context: Context) -> Message:
        with turn:
            return app(message, context)

    return answer


def node(*mods: Mod) -> ClientApp:
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        del context
        ((name, arrays),) = message.content.array_records.items()
        (weights,) = arrays.to_numpy_ndarrays()
        metrics = MetricRecord({"num-examples": EXAMPLES})
        weights_ = ArrayRecord({"w": Array(weights + (GOAL - weights) / 2)})
        return reply(RecordDict({name: weights_, "metrics": metrics}), message)

    return app


def every_node() -> FedAvg:
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=len(SITES), min_available_nodes=len(SITES))


def trained(strategy: Strategy, grid: ReplyGrid, rounds: int = 2) -> NDArray[Any]:
    start = ArrayRecord({"w": Array(np.zeros_like(GOAL))})
    (weights,) = strategy.start(grid, start, rounds, timeout=LONG).arrays.to_numpy_ndarrays()
    return weights


@pytest.mark.parametrize("strategy", [FedAvg, FedMedian])
def test_a_plain_strategy_aggregates(make_grid: MakeGrid, strategy: type[FedAvg]) -> None:
    chosen = strategy(fraction_evaluate=0.0, min_train_nodes=len(SITES), min_available_nodes=len(SITES))
    assert trained(chosen, make_grid(node())) == pytest.approx(GOAL * 3 / 4)


Wrapped = list[tuple[Callable[..., Strategy], list[Mod]]]
FIXED: Wrapped = [
    (DifferentialPrivacyServerSideFixedClipping, []),
    (DifferentialPrivacyClientSideFixedClipping, [fixedclipping_mod]),
]
ADAPTIVE: Wrapped = [
    (DifferentialPrivacyServerSideAdaptiveClipping, []),
    (DifferentialPrivacyClientSideAdaptiveClipping, [adaptiveclipping_mod]),
]


def wrapped(wrapper: Callable[..., Strategy], bound: float) -> Strategy:
    name = "clipping_norm" if wrapper in dict(FIXED) else "initial_clipping_norm"
    return wrapper(every_node(), noise_multiplier=0.0, num_sampled_clients=len(SITES), **{name: bound})


@pytest.mark.parametrize("bound", [100.0, 0.5])
@pytest.mark.parametrize(("wrapper", "mods"), FIXED + ADAPTIVE)
def test_a_wrapper_that_clips_moves_the_model_by_what_it_clips_to(
    make_grid: MakeGrid, wrapper: Callable[..., Strategy], mods: list[Mod], bound: float
) -> None:
    result = trained(wrapped(wrapper, bound), make_grid(node(*mods)), rounds=1)
    assert result == pytest.approx(GOAL / 2 * min(1.0, bound / float(np.linalg.norm(GOAL / 2))), rel=1e-5)


@pytest.mark.parametrize(("wrapper", "mods"), ADAPTIVE)
def test_a_wrapper_that_adapts_counts_the_nodes_that_clipped(
    make_grid: MakeGrid, wrapper: Callable[..., Strategy], mods: list[Mod]
) -> None:
    strategy: Any = wrapped(wrapper, 0.5)
    trained(strategy, make_grid(node(*mods)), rounds=1)
    every_one, quantile, rate = 1.0, 0.5, 0.2  # Flower's defaults
    assert strategy.clipping_norm == pytest.approx(0.5 * math.exp(-rate * (every_one - quantile)))


class HalfWay(NumPyClient):
    """The same in Flower's older API, with which its secure aggregation works."""

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> tuple[NDArrays, int, dict[str, Scalar]]:
        del config
        return [weights + (GOAL - weights) / 2 for weights in parameters], EXAMPLES, {}


def older_node(context: Context) -> Client:
    del context
    return HalfWay().to_client()


@pytest.mark.parametrize(
    ("workflow", "mod"),
    [
        (SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2, timeout=LONG), secaggplus_mod),
        (SecAggWorkflow(reconstruction_threshold=2, timeout=LONG), secagg_mod),
    ],
    ids=["secaggplus", "secagg"],
)
def test_secure_aggregation_aggregates(make_grid: MakeGrid, workflow: SecAggPlusWorkflow, mod: Mod) -> None:
    grid = make_grid(ClientApp(client_fn=older_node, mods=[mod]))
    strategy = LegacyFedAvg(
        fraction_evaluate=0.0,
        min_fit_clients=len(SITES),
        min_available_clients=len(SITES),
        initial_parameters=ndarrays_to_parameters([np.zeros_like(GOAL)]),
    )
    context = LegacyContext(Context(grid.run.run_id, 1, {}, RecordDict(), {}), ServerConfig(num_rounds=2), strategy)
    DefaultWorkflow(fit_workflow=workflow)(grid, context)
    (weights,) = context.state.array_records["parameters"].to_numpy_ndarrays()
    assert weights == pytest.approx(GOAL * 3 / 4, abs=2e-3)
