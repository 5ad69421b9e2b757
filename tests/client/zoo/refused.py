"""Ordinary layers that one cannot clip record by record, or not as they are; and what Cloister says of them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from tests.probes import CLASSES, LENGTH, WIDTH, Through, Toy, head, sequences, words

if TYPE_CHECKING:
    from client.task.task import Task


class Capacity(nn.Module):
    """Experts, each of which takes the half of the batch that wants it most."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, 2), nn.ModuleList([head(), head()])

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        weights, outputs = self.gate(inputs).softmax(1), inputs.new_zeros(len(inputs), CLASSES)
        for number, expert in enumerate(self.experts):
            chosen = weights[:, number].topk((len(inputs) + 1) // 2).indices
            outputs = outputs.index_add(0, chosen, weights[chosen, number, None] * expert(inputs[chosen]))
        return outputs


class LastStep(nn.Module):
    """A GRU that takes time for the first dimension, and records for the second."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(WIDTH, 8), nn.Linear(8, CLASSES)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.gru(inputs)[0][:, -1])
        return outputs


class Counting(nn.Module):
    """Counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)
        self.batches = 0

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        self.batches += 1
        outputs: Tensor = self.head(inputs)
        return outputs


class Again(nn.Module):
    """Computes a layer again, in the old way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs = cast("Tensor", checkpoint(self.second, self.first(inputs), use_reentrant=True))
        scores: Tensor = self.head(outputs)
        return scores


class Listed(nn.Module):
    """A layer in a list, where torch does not see it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.head = [nn.Linear(WIDTH, WIDTH)], head()

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.layers[0](inputs))
        return outputs


def _between(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 8), layer, nn.Linear(8, CLASSES))


def _over_sequences(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(LENGTH * WIDTH, CLASSES))


def _over_words(embedding: nn.Module) -> nn.Module:
    return nn.Sequential(embedding, nn.Flatten(), nn.Linear(5 * LENGTH, CLASSES))


def _sparse() -> nn.Module:
    layer = head()
    layer.register_buffer("edges", torch.eye(WIDTH).to_sparse())
    return layer


@torch.enable_grad()
def _slopes(inputs: Tensor) -> Tensor:
    held = inputs.detach().requires_grad_()
    return torch.autograd.grad(held.square().sum(), held, create_graph=True)[0]


def _of_the_batch(outputs: Tensor, targets: Tensor) -> Tensor:
    del targets
    return functional.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


def _cox(outputs: Tensor, targets: Tensor) -> Tensor:
    """Records by falling times, all of them events."""
    risks = outputs[targets.argsort(descending=True), 0]
    return (risks.logcumsumexp(0) - risks).mean()


REFUSED: dict[str, tuple[Task, str]] = {
    "batch normalisation that is trained": (Toy(lambda: _between(nn.BatchNorm1d(8))), "use GroupNorm or LayerNorm"),
    "`nn.InstanceNorm` with `track_running_stats=True`": (
        Toy(lambda: _over_sequences(nn.InstanceNorm1d(LENGTH, track_running_stats=True)), example=sequences),
        "track_running_stats=False"),
    "`spectral_norm`": (Toy(lambda: spectral_norm(head())), "remembers earlier batches"),
    "recurrent layers without `batch_first`, given records first": (
        Toy(LastStep, example=sequences), "set batch_first=True"),
    "experts that take a share of the batch": (Toy(Capacity), "mixes the records of a batch"),
    "losses over pairs of records": (
        Toy(loss=_of_the_batch), "give each record one term that depends on no other record"),
    "Cox's partial likelihood, over risk sets": (Toy(lambda: nn.Linear(WIDTH, 1), loss=_cox), "no pairs or risk sets"),
    "gamma, beta, Dirichlet or Poisson draws": (
        Toy(lambda: _between(Through(lambda x: x * torch.distributions.Gamma(x.exp(), 1.0).rsample()))),
        "transform normal or uniform numbers"),
    "models compiled by `torch.jit`": (Toy(lambda: torch.jit.script(head())), "return the module itself"),
    "a counter, cache, running mean or list that outlasts a batch": (Toy(Counting), "in `batches` of its model, so"),
    "`nn.Lazy…` layers": (Toy(lambda: nn.LazyLinear(CLASSES)), "use layers of fixed size"),
    "`nn.RReLU`": (Toy(lambda: _between(nn.RReLU())), "mixes the records of a batch"),
    "`nn.Embedding` with `sparse=True`": (
        Toy(lambda: _over_words(nn.Embedding(9, 5, sparse=True)), example=words), "leave out sparse=True"),
    "`nn.Embedding` with `max_norm`": (
        Toy(lambda: _over_words(nn.Embedding(9, 5, max_norm=1.0)), example=words), "change in forward"),
    "`nn.Embedding` with `scale_grad_by_freq`": (
        Toy(lambda: _over_words(nn.Embedding(9, 5, scale_grad_by_freq=True)), example=words),
        "a record's gradient"),
    "`checkpoint(…, use_reentrant=True)`": (Toy(Again), "use_reentrant"),
    "trained parameters in float64 or 16 bits": (Toy(lambda: head().double()), "make all of them float32"),
    "trained parameters that are complex": (Toy(lambda: head().to(torch.complex64)), "torch.view_as_complex in"),
    "sparse parameters and buffers": (Toy(_sparse), "keep it dense, by .to_dense()"),
    "draws from generators of Python or NumPy": (
        Toy(lambda: Through(lambda x: x * random.random(), head())),  # noqa: S311 - that is what is refused
        "draws from another generator than torch's default"),
    "`torch.autograd.grad` in `forward`": (Toy(lambda: Through(_slopes, head())), "write torch.func.vmap(torch.func."),
    "layers in a list": (Toy(Listed), "nn.ModuleList instead of a list"),
}  # fmt: skip
