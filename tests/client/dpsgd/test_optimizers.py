"""Steps are those of torch's own optimizers on the noisy gradients, at the learning rates of the run's schedule."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from client.dpsgd.training_steps import train
from client.flower import app as client_app
from client.flower import open_site
from privacy.errors import ConfigError, RefusedError
from privacy.noise.randomness import Randomness
from privacy.run.manifest import Manifest
from privacy.run.optimizer import Adam, AdamW, Constant, Cosine, Linear, Optimizer, Schedule, Sgd, Step
from privacy.run.settings import Encryption, Privacy
from strategies.algorithm import NEEDS_PLAIN, Run
from strategies.registry import algorithm_of, completed
from tests.client.specimens import RECORDS, Scores, computing, make_specimen, manifest
from tests.federations import SETTINGS, SITES, FederationMaker, run_with, signed_run
from tests.tables import table

RATE, STEPS, ROUNDS = 0.05, 4, 3
Torch = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, tuple[Optimizer, Torch]] = {
    "sgd": (Sgd(), lambda own: torch.optim.SGD(own, lr=RATE)),
    "momentum": (Sgd(momentum=0.9), lambda own: torch.optim.SGD(own, lr=RATE, momentum=0.9)),
    "nesterov": (
        Sgd(momentum=0.8, nesterov=True, weight_decay=0.1),
        lambda own: torch.optim.SGD(own, lr=RATE, momentum=0.8, nesterov=True, weight_decay=0.1),
    ),
    "adam": (Adam(), lambda own: torch.optim.Adam(own, lr=RATE)),
    "adam with parameters": (
        Adam(beta_1=0.5, beta_2=0.9, epsilon=1e-3, weight_decay=0.2),
        lambda own: torch.optim.Adam(own, lr=RATE, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.2),
    ),
    "adamw": (AdamW(), lambda own: torch.optim.AdamW(own, lr=RATE)),
    "adamw with parameters": (
        AdamW(beta_1=0.5, beta_2=0.9, epsilon=1e-3, weight_decay=0.2),
        lambda own: torch.optim.AdamW(own, lr=RATE, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.2),
    ),
}


def settings_of(
    optimizer: Optimizer | None = None, schedule: Schedule | None = None, *, noise: float = 0.0, bound: float = 1e3
) -> Manifest:
    """Return a run of whole batches; by default without noise and without clipping that matters."""
    run = manifest(STEPS, 1.0, noise, bound)
    training = run.settings.training
    assert training is not None
    training = replace(training, learning_rate=RATE, optimizer=optimizer or Sgd(), schedule=schedule or Constant())
    return replace(run, settings=replace(run.settings, rounds=ROUNDS, training=training))


def trained(run: Manifest, numbers: tuple[int, ...] = (1,)) -> Tensor:
    """Train for the rounds of these numbers, one after the other, and return the parameters."""
    model, records = make_specimen("mlp")
    for number in numbers:
        train(Scores(), model, records, RECORDS, run, Randomness.seeded(5, number),
              computing=computing("bookkeeping"), number=number)  # fmt: skip
    return parameters_to_vector(model.parameters()).detach()


def by_torch(make: Torch, rates: list[list[float]]) -> Tensor:
    """Do the same in plain torch: whole batches, these learning rates by round and step, a new optimizer each round."""
    model, (inputs, targets) = make_specimen("mlp")
    for row in rates:
        optimizer = make(list(model.parameters()))
        for rate in row:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_noise_optimizers_equal_torchs_and_restart_every_round(name: str) -> None:
    optimizer, make = OPTIMIZERS[name]
    parameters = trained(settings_of(optimizer), (1, 2))
    torch.testing.assert_close(parameters, by_torch(make, [[RATE] * STEPS] * 2), rtol=0, atol=2e-6)


@pytest.mark.parametrize("schedule", [Cosine(warm_up=0.25, final=0.1), Linear(), Step(every=2, factor=0.1)])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_rates_follow_the_schedule_over_all_steps_of_the_run(name: str, schedule: Schedule) -> None:
    optimizer, make = OPTIMIZERS[name]
    rates = [RATE * schedule.fraction(step, STEPS, ROUNDS) for step in range(1, STEPS * ROUNDS + 1)]
    rows = [rates[start : start + STEPS] for start in range(0, len(rates), STEPS)]
    parameters = trained(settings_of(optimizer, schedule), (1, 2, 3))
    torch.testing.assert_close(parameters, by_torch(make, rows), rtol=0, atol=2e-6)
    one = trained(settings_of(optimizer, schedule), (3,))  # a site that joins late is at the right place too
    torch.testing.assert_close(one, by_torch(make, rows[2:]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_only_the_noisy_gradient_reaches_the_optimizer(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    optimizer, make = OPTIMIZERS[name]
    kind, seen = type(make([nn.Parameter(torch.zeros(1))])), list[list[Tensor]]()
    step = kind.step

    def watched(self: torch.optim.Optimizer, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as torch's
        seen.append([weight.grad.clone() for group in self.param_groups for weight in group["params"]])
        return step(self, *arguments, **named)

    monkeypatch.setattr(kind, "step", watched)
    parameters = trained(settings_of(optimizer, noise=3.0, bound=0.5))
    monkeypatch.undo()
    del seen[:-STEPS]  # of trials of the modes
    model, _ = make_specimen("mlp")
    own = list(model.parameters())
    again = make(own)
    for gradients in seen:
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient
        again.step()
    assert (
        torch.cat([tensor.flatten() for tensor in seen[0]]).norm() > 0.5
    )  # a clipped mean is shorter: this has its noise
    torch.testing.assert_close(parameters, parameters_to_vector(own).detach(), rtol=0, atol=2e-6)


def test_a_site_that_restarts_before_each_round_continues_the_schedule(make_federation: FederationMaker) -> None:
    training = SETTINGS.training
    assert training is not None
    schedule = Step(every=1, factor=0.25)
    settings = replace(
        SETTINGS,
        rounds=ROUNDS,
        training=replace(training, steps_per_round=2, learning_rate=0.02, schedule=schedule),
        privacy=Privacy(max_grad_norm=1e6, noise_multiplier=0.0),
        encryption=Encryption(update_bound=4.0, profile="precise"),
    )
    federation = make_federation(settings)

    def restarting(message: Message, context: Context) -> Message:
        open_site.cache_clear()
        return client_app(message, context)

    run_with(federation, restarting)
    _, signed, run = signed_run(federation)
    sites = {site: open_site(federation.paths[site]) for site in SITES}
    vector = sites["north"].checkpoint(signed, run).model.vector

    study = sites["north"].study(signed.settings.task)
    model = study.start(signed.settings).vector.astype(np.float64)
    weights = [signed.weight(site) for site in SITES]
    for number in range(ROUNDS):
        ends = []
        for site in SITES:
            inputs, targets = (
                part.double().numpy() for part in table(sites[site].study(signed.settings.task).training)
            )
            inputs, own = np.hstack([inputs, np.ones((len(inputs), 1))]), model.copy()
            for _ in range(2):
                slope = 2 * inputs.T @ (inputs @ own - targets[:, 0])
                own -= 0.02 * 0.25**number * slope / signed.settings.cohort.sizes[site]
            ends.append(own)
        model = np.average(ends, axis=0, weights=weights)
    np.testing.assert_allclose(vector, model, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["scaffold", "fednova", "feddyn"])
@pytest.mark.parametrize("change", [{"optimizer": Adam()}, {"schedule": Cosine()}, {"optimizer": Sgd(momentum=0.1)}])
def test_algorithms_that_need_plain_steps_refuse_other_optimizers(name: str, change: dict[str, Any]) -> None:
    training = SETTINGS.training
    assert training is not None
    settings = replace(SETTINGS, training=replace(training, **change), strategy={"name": name})
    assert not Run.of(settings).plain
    with pytest.raises(ConfigError, match="remove optimizer and schedule from") as caught:
        completed(settings)
    assert str(caught.value) == f"{name}: {NEEDS_PLAIN}"
    strategy = completed(replace(settings, training=training)).strategy  # a coordinator may sign anything
    with pytest.raises(RefusedError, match=r"north cannot take part: .* remove optimizer and schedule from"):
        algorithm_of(replace(settings_of(), settings=replace(settings, strategy=strategy)), "north")
    for other in ("fedavg", "fedprox", "fedadam"):
        assert completed(replace(settings, strategy={"name": other})).strategy["name"] == other
