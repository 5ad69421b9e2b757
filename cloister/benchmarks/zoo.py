"""Models for measuring training, with random records from which nothing can be learnt.

mlp                 203k parameters, 784 inputs
cnn-small            26k, Opacus's own example for MNIST
cnn-large           422k, two wide convolutions
transformer         164k, torch's own encoder layers, 64 tokens
transformer-linear  the same with attention built from linear layers, the only form that Opacus can train
gru                   2k, as in the reference task `sensors`, 48 steps of four values
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.task.task import Task
from simulations.tasks.sensors import CHANNELS, STEPS, Recurrent

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SIDE = 28  # pixels
_CLASSES = 10
_VOCABULARY, _TOKENS, _WIDTH, _HEADS, _FEED_FORWARD, _DEPTH = 1000, 64, 64, 4, 256, 2


@dataclass(frozen=True)
class Specimen:
    """A model, and the records to measure it with."""

    model: Callable[[], nn.Module]
    records: int
    batches: tuple[int, ...]  # expected batch sizes
    inputs: Callable[[int], Tensor]  # returns the inputs of this many records
    classes: int = _CLASSES


class Classify(Task):
    """A classifier on random records; it reads no file."""

    def __init__(self, specimen: Specimen) -> None:
        self._specimen = specimen

    @override
    def model(self) -> nn.Module:
        """Make the untrained model."""
        return self._specimen.model()

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Make up records: inputs `(n, ...)` and classes `(n,)`."""
        del path
        count = self._specimen.records
        return self._specimen.inputs(count), torch.randint(self._specimen.classes, (count,))

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up four more records."""
        return self._specimen.inputs(4), torch.arange(4).remainder(self._specimen.classes)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        return functional.cross_entropy(outputs, targets)


class _Attention(nn.Module):
    """Multi-head self-attention from linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(n, tokens, width)` to the same."""
        heads = [
            layer(inputs).unflatten(2, (_HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        ]
        outputs: Tensor = self.out(functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return outputs


class _Layer(nn.Module):
    """An equivalent of `nn.TransformerEncoderLayer`."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = _Attention()
        self.wide = nn.Sequential(nn.Linear(_WIDTH, _FEED_FORWARD), nn.ReLU(), nn.Linear(_FEED_FORWARD, _WIDTH))
        self.norms = nn.ModuleList([nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)])

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(n, tokens, width)` to the same."""
        inputs = self.norms[0](inputs + self.attention(inputs))
        outputs: Tensor = self.norms[1](inputs + self.wide(inputs))
        return outputs


class _Transformer(nn.Module):
    """Tokens to classes: embedding, layers, the mean over tokens, a linear map."""

    def __init__(self, layer: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, _WIDTH)
        self.layers = nn.Sequential(*[layer() for _ in range(_DEPTH)])
        self.out = nn.Linear(_WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens `(n, tokens)` to scores `(n, 2)`."""
        outputs: Tensor = self.out(self.layers(self.embedding(tokens)).mean(1))
        return outputs


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(_SIDE * _SIDE, 256), nn.ReLU(), nn.Linear(256, _CLASSES))


def _cnn_small() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, stride=2), nn.ReLU(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, _CLASSES)),
    )


def _cnn_large() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, _CLASSES)),
    )


def _torchs_layer() -> nn.Module:
    return nn.TransformerEncoderLayer(_WIDTH, _HEADS, _FEED_FORWARD, dropout=0.0, batch_first=True)


def _images(count: int) -> Tensor:
    return torch.randn(count, 1, _SIDE, _SIDE)


def _tokens(count: int) -> Tensor:
    return torch.randint(_VOCABULARY, (count, _TOKENS))


SPECIMENS = {
    "mlp": Specimen(_mlp, 2000, (32, 256), lambda count: torch.randn(count, _SIDE * _SIDE)),
    "cnn-small": Specimen(_cnn_small, 2000, (32, 256), _images),
    "cnn-large": Specimen(_cnn_large, 1000, (32, 256), _images),
    "transformer": Specimen(lambda: _Transformer(_torchs_layer), 1000, (256,), _tokens, classes=2),
    "transformer-linear": Specimen(lambda: _Transformer(_Layer), 1000, (256,), _tokens, classes=2),
    "gru": Specimen(
        lambda: Recurrent(CHANNELS, 24, 2), 2000, (256,), lambda count: torch.randn(count, STEPS, CHANNELS), classes=2
    ),
}
