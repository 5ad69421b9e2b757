"""Random networks: layers of every kind, used twice, shared, frozen, reshaped; and records for them."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import torch
from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = 7
WIDTH = 4


class Last(nn.Module):
    """A recurrent layer's output at the last step, or at all steps."""

    def __init__(self, layer: nn.Module, *, everywhere: bool) -> None:
        super().__init__()
        self.layer, self._everywhere = layer, everywhere

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)[0]
        return outputs if self._everywhere else outputs[:, -1]


class Self(nn.Module):
    """Attention to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs, inputs, inputs, need_weights=False)[0]
        return outputs


class Again(nn.Module):
    """One layer under several names, used once under each."""

    def __init__(self, layer: nn.Module, times: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer] * times)

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = layer(inputs).tanh()
        return inputs


class Twins(nn.Module):
    """A Siamese pair: two names for one part, and the difference of what it makes of a record and of its mirror."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.one, self.other = part, part

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.one(inputs) - 0.5 * self.other(inputs.flip(1)).tanh()
        return outputs


class Around(nn.Module):
    """A residual connection."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = inputs + self.part(inputs)
        return outputs


class Scaled(nn.Module):
    """Bare parameters: of some shape, and a number."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.tensor(0.3))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale + self.shift


class Words(nn.Module):
    """Embeds words, and tells with the same weights which ones a bag of them is near to."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=padding)
        self.back = nn.Linear(WIDTH, WORDS, bias=False)
        self.back.weight = self.embedding.weight

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.back(self.embedding(inputs).mean(1).tanh())
        return outputs


class Turned(nn.Module):
    """Channels and positions change places."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(2).transpose(1, 2)


def network(seed: int) -> tuple[nn.Module, Tensor]:
    """Return a network with two outputs, and five records for it; the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Builder(Random(seed)).build()  # noqa: S311 - nothing is secret


class _Builder:
    """Adds layers at random, and lets made-up records through, to see what shape comes next."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._layers: list[nn.Module] = []
        self._shape: torch.Size = torch.Size()

    def build(self) -> tuple[nn.Module, Tensor]:
        kind = self._chance.choice(["flat", "rows", "series", "image", "volume", "words", "tied"])
        shapes = {"flat": (5,), "rows": (3, WIDTH), "series": (4, 6), "image": (2, 5, 6), "volume": (2, 3, 4, 3)}
        inputs = torch.randn(5, *shapes[kind]) if kind in shapes else torch.randint(WORDS, (5, 6))
        layers: Callable[[], nn.Module]
        padding = self._chance.choice([None, 0, 3])
        if kind == "tied":
            self._add(Words(padding), inputs)
        elif kind == "words":
            self._add(nn.Embedding(WORDS, WIDTH, padding_idx=padding), inputs)
        else:
            self._shape = inputs.shape
        for _ in range(self._chance.randint(1, 3)):
            rank = len(self._shape) - 1
            layers = (self._flat, self._rows if self._shape[-1] == WIDTH else self._series, self._image, self._image)[
                rank - 1
            ]
            self._add(layers())
        self._add(nn.Flatten())
        self._add(nn.Linear(self._shape[1], 2))
        model = nn.Sequential(*self._layers)
        self._freeze(model)
        return model, inputs

    def _add(self, layer: nn.Module, inputs: Tensor | None = None) -> None:
        self._layers.append(layer)
        with torch.no_grad():
            self._shape = layer(torch.randn(self._shape) if inputs is None else inputs).shape

    def _freeze(self, model: nn.Module) -> None:
        parameters = list(model.parameters())
        if self._chance.random() < 0.3:
            for parameter in self._chance.sample(parameters, self._chance.randint(1, len(parameters) - 1)):
                parameter.requires_grad_(False)  # noqa: FBT003 - torch's stubs know no name for it

    def _flat(self) -> nn.Module:
        size = self._shape[1]
        square = nn.Linear(size, size, bias=self._chance.random() < 0.5)
        return self._chance.choice(
            [
                nn.Sequential(nn.Linear(size, 6), self._bend()),
                nn.LayerNorm(size),
                Again(square, self._chance.randint(2, 3)),
                Twins(nn.Sequential(square, nn.Tanh())),
                Around(nn.Sequential(square, self._bend(), nn.Linear(size, size))),
                Scaled(size),
                nn.Unflatten(1, (1, size)),
            ]
        )

    def _rows(self) -> nn.Module:
        cell: Any = self._chance.choice([DPLSTM, DPGRU, DPRNN, nn.LSTM, nn.LSTM])
        recurrent = cell(WIDTH, WIDTH, batch_first=True, bidirectional=self._chance.random() < 0.3)
        everywhere = self._chance.random() < 0.5 and not recurrent.bidirectional
        return self._chance.choice(
            [
                nn.Sequential(nn.Linear(WIDTH, WIDTH), self._bend()),
                Around(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))),
                nn.RMSNorm(WIDTH),
                Self(),
                nn.TransformerEncoderLayer(WIDTH, 2, 6, dropout=0.0, batch_first=True),
                *[Last(recurrent, everywhere=everywhere)] * 3,
                Again(nn.Linear(WIDTH, WIDTH), 2),
                Scaled(1, WIDTH),
                Turned(),
            ]
        )

    def _series(self) -> nn.Module:
        channels, length = self._shape[1:]
        return self._chance.choice(
            [
                nn.Sequential(self._convolution(1), self._bend()),
                nn.GroupNorm(1, channels),
                nn.LayerNorm([channels, length], bias=False),
                Turned(),
            ]
        )

    def _image(self) -> nn.Module:
        channels, space = self._shape[1], len(self._shape) - 2
        return self._chance.choice(
            [
                nn.Sequential(self._convolution(space), self._bend()),
                nn.Sequential(self._convolution(space), self._bend()),
                nn.GroupNorm(self._chance.choice([1, channels]), channels),
                Scaled(*[1] * space),
                Turned(),
            ]
        )

    def _convolution(self, space: int) -> nn.Module:
        channels = self._shape[1]
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[space - 1]
        groups = self._chance.choice([number for number in (1, 2, channels) if channels % number == 0])
        kernel = tuple(min(self._chance.randint(1, 3), size) for size in self._shape[2:])
        fits = all(size >= 5 for size in self._shape[2:])
        stride = self._chance.choice([1, 1, 2])
        paddings: list[Any] = [0, 1, tuple(self._chance.randint(0, 1) for _ in kernel)]
        layer: nn.Module = kind(
            channels,
            groups * self._chance.randint(1, 2),
            kernel,
            stride=stride,
            padding=self._chance.choice([*paddings, "valid"] + ["same"] * (stride == 1)),
            dilation=2 if fits and self._chance.random() < 0.3 else 1,
            groups=groups,
            bias=self._chance.random() < 0.6,
            padding_mode=self._chance.choice(["zeros", "zeros", "circular", "replicate"]),
        )
        return layer

    def _bend(self) -> nn.Module:
        return self._chance.choice([nn.Tanh(), nn.ReLU(), nn.GELU(), nn.ELU(inplace=True), nn.Identity()])
