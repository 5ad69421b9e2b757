"""Models that are hard to differentiate record by record, each in its own way."""

import torch
from torch import Tensor, nn
from torch.nn import functional

WORDS = 12  # in the vocabulary


class Mean(nn.Module):
    """The mean over everything between records and the last dimension."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1, -2).mean(1)


class Twice(nn.Module):
    """Calls one layer twice, and another for inputs of another length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer, self.norm = nn.Embedding(WORDS, 4), nn.Linear(4, 4), nn.LayerNorm(4)
        self.convolution, self.out = nn.Conv1d(4, 2, 2), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.norm(self.layer(self.embedding(inputs))) + self.embedding(inputs.flip(1))
        both = self.norm(self.layer(found.tanh()))
        seen = self.convolution(both.transpose(1, 2)).mean(2) + self.convolution(both[:, 1:].transpose(1, 2)).sum(2)
        out: Tensor = self.out(self.layer(both.mean(1))) + seen
        return out


class Tied(nn.Module):
    """Two layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.back = nn.Embedding(WORDS, 4), nn.Linear(4, WORDS, bias=False)
        self.back.weight = self.embedding.weight

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.back(self.embedding(inputs).mean(1).tanh())
        return found


class Borrowed(nn.Module):
    """A weight is used outside its layer as well, which no list of layers shows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = functional.linear(self.embedding(inputs).mean(1).tanh(), self.embedding.weight)
        return found


class Bare(nn.Module):
    """A parameter of the model's own, and one that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.randn(3)), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layer(inputs * self.scale)
        return found


class Attention(nn.Module):
    """Torch's own attention and encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 4, padding_idx=0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.embedding(inputs)
        found, _ = self.attention(found, found, found, need_weights=False)
        out: Tensor = self.out(self.layer(found).mean(1))
        return out


def padded() -> nn.Module:
    return nn.Sequential(nn.Embedding(WORDS, 4, padding_idx=0), Mean(), nn.Linear(4, 2))


def two_dimensions() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.GroupNorm(2, 4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 2, dilation=2, groups=2, bias=False), nn.Flatten(), nn.Linear(36, 2)),
    )


def one_dimension() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 4, 3, padding="same"), nn.Tanh(), nn.Conv1d(4, 2, 9), nn.Flatten())


def in_place() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.ELU(inplace=True), nn.Linear(4, 2))
