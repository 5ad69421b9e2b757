"""Models of rows of a table, of pairs and of sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from tests.client.zoo.parts import Architecture, Residual, by_class

if TYPE_CHECKING:
    from tests.client.zoo.parts import Records

COLUMNS, KINDS, CLASSES = 4, 5, 3


def measured(count: int) -> Records:
    """Four columns and what they lead to: `(n, 4)` and `(n, 1)`."""
    inputs = torch.randn(count, COLUMNS)
    return inputs, inputs @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]]) + 1


def yes_or_no(count: int) -> Records:
    inputs, targets = measured(count)
    return inputs, (targets > 0).float()


def mixed(count: int) -> Records:
    """Four measured columns, and two of categories, as floats: `(n, 6)`."""
    inputs, targets = yes_or_no(count)
    return torch.cat([inputs, torch.randint(KINDS, (count, 2)).float()], 1), targets


class Columns(nn.Module):
    """Measured columns beside embedded categories."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList([nn.Embedding(KINDS, width), nn.Embedding(KINDS, width)])

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        kinds = inputs[:, COLUMNS:].long().unbind(1)
        return torch.cat(
            [inputs[:, :COLUMNS], *(layer(kind) for layer, kind in zip(self.embeddings, kinds, strict=True))], 1
        )


class WideAndDeep(nn.Module):
    """A linear map of the columns and of pairs of categories, beside a deep one (Cheng et al., 2016)."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.pairs = nn.Linear(COLUMNS, 1), nn.Embedding(KINDS * KINDS, 1)
        self.deep = nn.Sequential(Columns(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        first, second = inputs[:, COLUMNS:].long().unbind(1)
        outputs: Tensor = self.wide(inputs[:, :COLUMNS]) + self.pairs(first * KINDS + second) + self.deep(inputs)
        return outputs


class DeepFM(nn.Module):
    """Products of all pairs of fields, beside a deep network (Guo et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.randn(COLUMNS, 3) * 0.3)
        self.kinds = nn.Embedding(2 * KINDS, 3)
        self.linear, self.deep = nn.Linear(COLUMNS, 1), nn.Sequential(nn.Linear(18, 8), nn.ReLU(), nn.Linear(8, 1))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        numbers = inputs[:, :COLUMNS]
        kinds = self.kinds(inputs[:, COLUMNS:].long() + torch.tensor([0, KINDS], device=inputs.device))
        fields = torch.cat([numbers.unsqueeze(2) * self.numbers, kinds], 1)
        pairs = (fields.sum(1).square() - fields.square().sum(1)).sum(1, keepdim=True) / 2
        outputs: Tensor = self.linear(numbers) + pairs + self.deep(fields.flatten(1))
        return outputs


class Factors(nn.Module):
    """Matrix factorisation: a rating is a product of factors of who rates and of what is rated, and two biases."""

    def __init__(self) -> None:
        super().__init__()
        self.people, self.things = nn.Embedding(8, 3), nn.Embedding(6, 3)
        self.biases = nn.ModuleList([nn.Embedding(8, 1), nn.Embedding(6, 1)])

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        who, item = inputs.unbind(1)
        taste = (self.people(who) * self.things(item)).sum(1, keepdim=True)
        outputs: Tensor = taste + self.biases[0](who) + self.biases[1](item)
        return outputs


def ratings(count: int) -> Records:
    pairs = torch.stack([torch.randint(8, (count,)), torch.randint(6, (count,))], 1)
    return pairs, pairs.float().sum(1, keepdim=True) / 5 - 1


class Siamese(nn.Module):
    """One tower for both parts of a record; how alike what comes out is."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(COLUMNS, 8), nn.Tanh(), nn.Linear(8, 4))
        self.scale = nn.Linear(1, 1)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        one, other = self.tower(inputs[:, 0]), self.tower(inputs[:, 1])
        outputs: Tensor = self.scale(functional.cosine_similarity(one, other, dim=1).unsqueeze(1))
        return outputs


class TwoTowers(nn.Module):
    """A tower for each part of a record."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.item = (nn.Sequential(nn.Linear(COLUMNS, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = (self.query(inputs[:, 0]) * self.item(inputs[:, 1])).sum(1, keepdim=True)
        return outputs


def pairs(count: int) -> Records:
    """Pairs `(n, 2, 4)`; every other pair has two similar members."""
    one, alike = torch.randn(count, COLUMNS), (torch.arange(count) % 2).float().unsqueeze(1)
    return torch.stack([one, (2 * alike - 1) * one + 0.1 * torch.randn(count, COLUMNS)], 1), alike


def copies(count: int) -> Records:
    inputs = torch.randn(count, 2) @ torch.tensor([[1.0, 0, 1, -1], [0, 1.0, 1, 1]])
    return inputs, inputs.clone()


class Variational(nn.Module):
    """An autoencoder that draws its code: returns what it makes of it, the mean and the log variance."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(COLUMNS, 4), nn.Linear(2, COLUMNS)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        mean, spread = self.encoder(inputs).chunk(2, dim=1)
        return torch.cat([self.decoder(mean + torch.randn_like(mean) * (spread / 2).exp()), mean, spread], 1)


def evidence(outputs: Tensor, targets: Tensor) -> Tensor:
    decoded, mean, spread = outputs.split([COLUMNS, 2, 2], dim=1)
    apart = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(1)
    evidence_: Tensor = ((decoded - targets).square().sum(1) + 0.1 * apart).mean()
    return evidence_


INTERVALS = 5


def followed(count: int) -> Records:
    """Patients, and in which interval they were last seen and whether with an event: `(n, 4)` and `(n, 2)`."""
    inputs = torch.randn(count, COLUMNS)
    last = (2 + 1.5 * inputs[:, 0]).round().clamp(0, INTERVALS - 1)
    return inputs, torch.stack([last, (torch.arange(count) % 3 > 0).float()], 1)


def hazards(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of discrete hazards (Gensheimer and Narasimhan, 2019)."""
    last, event = targets[:, :1], targets[:, 1:]
    interval = torch.arange(INTERVALS, device=outputs.device)
    happened = (interval == last) * event
    seen = (interval < last) + happened
    return (functional.binary_cross_entropy_with_logits(outputs, happened, reduction="none") * seen).sum(1).mean()


class Experts(nn.Module):
    """A soft mixture: every expert sees every record, and a gate weighs what they say."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(COLUMNS, 3)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(COLUMNS, 6), nn.ReLU(), nn.Linear(6, CLASSES)) for _ in range(3)]
        )

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        weights = self.gate(inputs).softmax(1)
        answers = torch.stack([expert(inputs) for expert in self.experts], 1)
        outputs: Tensor = (weights.unsqueeze(2) * answers).sum(1)
        return outputs


class BestTwo(Experts):
    """Each record goes to the two experts that its gate likes best."""

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        weights, chosen = self.gate(inputs).softmax(1).topk(2, 1)
        outputs = inputs.new_zeros(len(inputs), CLASSES)
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            if len(rows):
                outputs = outputs.index_add(0, rows, weights[rows, place, None] * expert(inputs[rows]))
        return outputs


class Bayesian(nn.Module):
    """Draws its weights once for the batch, around means that it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(torch.zeros(CLASSES, COLUMNS)), nn.Parameter(torch.full((), -3.0))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        drawn = torch.randn_like(self.mean) * self.log_scale.exp() if self.training else 0.0
        outputs: Tensor = inputs @ (self.mean + drawn).T
        return outputs


class Choosing(nn.Module):
    """Draws one of some directions for each record; gradients go straight through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Linear(COLUMNS, 5), nn.Linear(5, CLASSES)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        chances = self.gate(inputs).softmax(1)
        drawn = torch.distributions.Categorical(chances).sample() if self.training else chances.argmax(1)
        outputs: Tensor = self.head(functional.one_hot(drawn, 5) - chances.detach() + chances)
        return outputs


class Heads(nn.Module):
    """One trunk, and a head for each of two questions; the second is learned half as fast."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.heads = nn.Linear(COLUMNS, 8), nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.trunk(inputs).relu()
        return torch.cat([head(outputs) for head in self.heads], 1)


def two_questions(count: int) -> Records:
    inputs, targets = measured(count)
    return inputs, torch.cat([targets, inputs[:, :1].abs()], 1)


class Gated(nn.Module):
    """A gated feed-forward layer of today's transformers (Shazeer, 2020), behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.down = nn.RMSNorm(8), nn.Linear(12, 8, bias=False)
        self.up, self.gate = (nn.Linear(8, 12, bias=False) for _ in range(2))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.norm(inputs)
        hidden: Tensor = inputs + self.down(functional.silu(self.gate(outputs)) * self.up(outputs))
        return hidden


class Calibrated(nn.Module):
    """Divides what a network says by a temperature, a parameter of no dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.temperature = nn.Linear(COLUMNS, CLASSES), nn.Parameter(torch.tensor(1.5))

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.scores(inputs) / self.temperature
        return outputs


class DeepSet(nn.Module):
    """The sum over a record's visits of what a network makes of each (Zaheer et al., 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8)), nn.Linear(8, 2)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.all(self.each(inputs).sum(1))
        return outputs


class Graph(nn.Module):
    """Two rounds of convolution over a record's own graph of four nodes (Kipf and Welling, 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 8), nn.Linear(8, 8)])
        self.out = nn.Linear(8, 2)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        links, nodes = inputs[:, :, :4], inputs[:, :, 4:]
        links = links / links.sum(2, keepdim=True)
        for layer in self.layers:
            nodes = layer(links @ nodes).relu()
        outputs: Tensor = self.out(nodes.mean(1))
        return outputs


def graphs(count: int) -> Records:
    nodes, targets = by_class(4, 2)(count)
    links = (torch.rand(count, 4, 4) > 0.5).float()
    return torch.cat([(links + links.transpose(1, 2) + torch.eye(4)).clamp(max=1.0), nodes], 2), targets


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(COLUMNS, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, CLASSES))


def _residual() -> nn.Module:
    blocks = [Residual(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.1)) for _ in range(2)]
    return nn.Sequential(nn.Linear(COLUMNS, 8), *blocks, nn.Linear(8, CLASSES))


def _autoencoder() -> nn.Module:
    return nn.Sequential(nn.Linear(COLUMNS, 2), nn.Tanh(), nn.Linear(2, COLUMNS))


classes = by_class(COLUMNS, classes=CLASSES)
yes = functional.binary_cross_entropy_with_logits
near = functional.mse_loss

TABULAR = {
    "linear regression": Architecture("bookkeeping", lambda: nn.Linear(COLUMNS, 1), measured, near, 0.1),
    "logistic regression": Architecture("bookkeeping", lambda: nn.Linear(COLUMNS, 1), yes_or_no, yes),
    "softmax regression": Architecture("bookkeeping", lambda: nn.Linear(COLUMNS, CLASSES), classes),
    "MLP with dropout": Architecture("bookkeeping", _mlp, classes),
    "residual MLP with LayerNorm": Architecture("bookkeeping", _residual, classes),
    "gated MLP with RMSNorm": Architecture(
        "bookkeeping", lambda: nn.Sequential(nn.Linear(COLUMNS, 8), Gated(), nn.Linear(8, CLASSES)), classes),
    "MLP over embedded categories": Architecture(
        "bookkeeping", lambda: nn.Sequential(Columns(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 1)), mixed, yes),
    "wide & deep": Architecture("bookkeeping", WideAndDeep, mixed, yes),
    "DeepFM": Architecture("vmap", DeepFM, mixed, yes),
    "matrix factorisation": Architecture("bookkeeping", Factors, ratings, near),
    "two towers": Architecture("bookkeeping", TwoTowers, pairs, yes),
    "Siamese network": Architecture("bookkeeping", Siamese, pairs, yes),
    "autoencoder": Architecture("bookkeeping", _autoencoder, copies, near),
    "variational autoencoder": Architecture("bookkeeping", Variational, copies, evidence, 0.1),
    "survival, discrete hazards": Architecture("bookkeeping", lambda: nn.Linear(COLUMNS, INTERVALS), followed, hazards),
    "mixture of experts, soft gate": Architecture("bookkeeping", Experts, classes),
    "mixture of experts, each record's best two": Architecture("autograd", BestTwo, classes),
    "weights drawn around a mean": Architecture("vmap", Bayesian, classes),
    "Categorical choice, straight through": Architecture("bookkeeping", Choosing, classes, learning_rate=2.0),
    "several heads": Architecture("bookkeeping", Heads, two_questions, near, 0.1),
    "temperature, a parameter of shape ()": Architecture("vmap", Calibrated, classes),
    "deep sets": Architecture("bookkeeping", DeepSet, by_class(5, 3)),
    "graph convolution over a record": Architecture("bookkeeping", Graph, graphs),
}  # fmt: skip
