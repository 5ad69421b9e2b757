"""pfl-research, for `cloister bench simulation`, where it is installed (pip install pfl): the same training by it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn import functional

from cloister.benchmarks.simulation_trials import BATCH, RATE, TASKS, accuracy, dealt
from privacy.errors import ConfigError


class _Module(nn.Module):
    """A task's model as pfl-research wants it."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.inner = TASKS[model]().model()

    def loss(self, inputs: Tensor, targets: Tensor, is_eval: bool = False) -> Tensor:
        """Return the mean loss of a batch."""
        del is_eval
        return functional.cross_entropy(self.inner(inputs), targets)

    def metrics(self, inputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return nothing that takes time."""
        del inputs
        return {"count": Weighted(len(targets), 1)}


def train(model: str, sites: int, rounds: int, *, private: bool) -> dict[str, Any]:
    """Train by pfl-research. With noise it clips a site's update, not records, so there is no such row."""
    if private:
        msg = "pfl-research has no DP-SGD at the sites; measure it without"
        raise ConfigError(msg)
    parts, test = dealt(sites)
    np.random.seed(0)  # noqa: NPY002 - pfl samples by it
    torch.manual_seed(0)
    module = _Module(model)
    users = {str(number): part for number, part in enumerate(parts)}
    sampler = get_user_sampler("minimize_reuse", list(users))
    data = FederatedDataset(lambda user: Dataset(raw_data=list(users[user])), sampler)
    wrapped = PyTorchModel(
        module, local_optimizer_create=torch.optim.SGD, central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0)
    )
    started = time.perf_counter()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds, evaluation_frequency=10 * rounds, train_cohort_size=sites,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=wrapped,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=1000),
    )  # fmt: skip
    return {"seconds": time.perf_counter() - started, "accuracy": accuracy(module.inner, test)}
