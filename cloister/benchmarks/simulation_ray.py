"""Flower's simulation on Ray, for `cloister bench simulation`: the same training as a `ClientApp` and FedAvg."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from cloister.benchmarks.simulation_trials import TASKS, Site, accuracy, dealt, train_part

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flwr.serverapp import Grid


def train(model: str, sites: int, rounds: int, *, private: bool) -> dict[str, Any]:
    """Train by Flower's simulation."""
    _, test = dealt(sites)
    client, server, result = ClientApp(), ServerApp(), dict[str, Any]()
    known: dict[int, list[Site]] = {}

    @client.train()
    def one_site(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        if sites not in known:
            known[sites] = dealt(sites)[0]
        module = TASKS[model]().model()
        module.load_state_dict(message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]  # an ArrayRecord
        part = known[sites][int(context.node_config["partition-id"])]
        train_part(module, part, private=private)
        content = RecordDict(
            {"arrays": ArrayRecord(module.state_dict()), "metrics": MetricRecord({"num-examples": len(part[1])})}
        )
        return Message(content, reply_to=message)

    class Timed(FedAvg):
        """FedAvg that notes when its first round begins."""

        def configure_train(self, server_round: int, *rest: Any, **named: Any) -> Iterable[Message]:  # noqa: ANN401
            """Note the time of round 2: the first starts Ray's actors."""
            result.setdefault("began", time.perf_counter()) if server_round == 2 else None  # noqa: PLR2004
            return super().configure_train(server_round, *rest, **named)

    @server.main()
    def coordinate(grid: Grid, context: Context) -> None:
        del context
        torch.manual_seed(0)
        module = TASKS[model]().model()
        everybody: dict[str, Any] = {"min_train_nodes": sites, "min_available_nodes": sites, "fraction_evaluate": 0.0}
        trained = Timed(fraction_train=1.0, **everybody).start(
            grid=grid, initial_arrays=ArrayRecord(module.state_dict()), num_rounds=rounds + 1
        )
        result["ended"] = time.perf_counter()
        module.load_state_dict(trained.arrays.to_torch_state_dict())
        result["accuracy"] = accuracy(module, test)

    run_simulation(server, client, sites, backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}})
    return {"seconds": result["ended"] - result["began"], "accuracy": result["accuracy"]}
