"""Models that are hard to differentiate record by record, each in its own way."""

import torch
from opacus.layers import DPGRU, DPLSTM
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

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
        outputs = self.norm(self.layer(self.embedding(inputs))) + self.embedding(inputs.flip(1))
        both = self.norm(self.layer(outputs.tanh()))
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
        outputs: Tensor = self.back(self.embedding(inputs).mean(1).tanh())
        return outputs


class Borrowed(nn.Module):
    """A weight is used outside its layer as well, which no list of layers shows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = functional.linear(self.embedding(inputs).mean(1).tanh(), self.embedding.weight)
        return outputs


class Bare(nn.Module):
    """A parameter of the model's own, and one that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = nn.Parameter(torch.randn(3)), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs * self.scale)
        return outputs


class Thrice(nn.Module):
    """One layer under three names, and a number of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(3, 3)
        self.layers, self.scale, self.out = nn.ModuleList([layer] * 3), nn.Parameter(torch.tensor(0.7)), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer(self.scale * inputs).tanh()
        out: Tensor = self.out(inputs)
        return out


class Siamese(nn.Module):
    """One part under two names, for a record and for its mirror."""

    def __init__(self) -> None:
        super().__init__()
        part = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.one, self.other, self.out = part, part, nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.out(self.one(inputs) - 0.5 * self.other(inputs.flip(1)))
        return out


class Sorted(nn.Module):
    """A layer sees records in the order of their first value; what it makes of them goes back to its place."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        order = inputs[:, 0].argsort()
        out: Tensor = self.out(self.layer(inputs[order])[order.argsort()].tanh())
        return out


class Aside(nn.Module):
    """Calls a layer once in vain, and has another that is not called at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out, self.unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.out(self.layer(inputs).tanh())
        self.layer(2 * inputs)
        return out


class Recurrent(nn.Module):
    """Opacus's recurrent layers, to both sides; the last step's output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first = nn.Embedding(WORDS, 4), DPLSTM(4, 3, batch_first=True, bidirectional=True)
        self.second, self.out = DPGRU(6, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.out(self.second(self.first(self.embedding(inputs))[0])[0][:, -1])
        return out


class Packed(nn.Module):
    """A recurrent layer that is given sequences of several lengths, packed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer, self.out = nn.Embedding(WORDS, 4), DPLSTM(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        lengths = (inputs > 2).sum(1).clamp(min=1)
        packed = pack_padded_sequence(self.embedding(inputs), lengths, batch_first=True, enforce_sorted=False)
        out: Tensor = self.out(self.layer(packed)[1][0][-1])
        return out


def frozen() -> nn.Module:
    """Return a frozen backbone, of which one layer's bias is trained, with a head."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))
    model[:4].requires_grad_(False)  # noqa: FBT003 - torch's stubs know no name for it
    model[2].bias.requires_grad_()
    return model


class Constants(nn.Module):
    """A frozen layer, buffers of two types, and a parameter of no dimension."""

    mean: Tensor
    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.out = nn.Linear(3, 3), nn.Linear(3, 2)
        self.frozen.requires_grad_(requires_grad=False)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]))
        self.register_buffer("places", torch.tensor([2, 0, 1]))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.frozen(inputs - self.mean)[:, self.places % 3] * self.scale)
        return outputs


class Attention(nn.Module):
    """Torch's own attention and encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 4, padding_idx=0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.embedding(inputs)
        outputs, _ = self.attention(outputs, outputs, outputs, need_weights=False)
        out: Tensor = self.out(self.layer(outputs).mean(1))
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
