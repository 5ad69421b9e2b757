"""Tasks whose inputs are a dict or a tuple: texts with a mask, as transformers take them, and pairs of tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.task.task import Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WORDS, LENGTH, WIDTH, CLASSES = 20, 6, 8, 3


class Reading(nn.Module):
    """A small transformer: called as `model(input_ids=…, attention_mask=…)`."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.wide, self.narrow = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    @override
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        values = self.words(input_ids) + self.places(torch.arange(LENGTH).expand_as(input_ids))
        hidden = attention_mask.unsqueeze(1) == 0
        weights = (self.query(values) @ self.key(values).transpose(1, 2) / WIDTH**0.5).masked_fill(hidden, -1e4)
        values = self.norm(values + self.out(weights.softmax(2) @ self.value(values)))
        values = values + self.narrow(self.wide(values).relu())
        kept = attention_mask.unsqueeze(2).float()
        outputs: Tensor = self.head((values * kept).sum(1) / kept.sum(1).clamp(min=1))
        return outputs


class Encoding(nn.Module):
    """The same with torch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    @override
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        values = self.layer(self.words(input_ids))
        kept = attention_mask.unsqueeze(2).float()
        outputs: Tensor = self.head((values * kept).sum(1) / kept.sum(1).clamp(min=1))
        return outputs


class Towers(nn.Module):
    """Two tables, each with its own layer: called as `model(left, right)`."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, WIDTH), nn.Linear(3, WIDTH), nn.Linear(WIDTH, CLASSES)

    @override
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        outputs: Tensor = self.head(torch.tanh(self.left(left) * self.right(right)))
        return outputs


def texts(count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Texts of different lengths, padded with zeros, and their classes."""
    mask = (torch.arange(LENGTH) < torch.arange(count).remainder(LENGTH).unsqueeze(1) + 1).long()
    ids = torch.randint(1, WORDS, (count, LENGTH)) * mask
    return {"input_ids": ids, "attention_mask": mask}, torch.arange(count) % CLASSES


def pairs(count: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Rows of two tables, and their classes."""
    return (torch.randn(count, 4), torch.randn(count, 3)), torch.arange(count) % CLASSES


class Named(Task):
    """Classifies texts or pairs of rows."""

    def __init__(
        self,
        model: Callable[[], nn.Module] = Reading,
        records: Callable[[int], tuple[dict[str, Tensor] | tuple[Tensor, ...], Tensor]] = texts,
    ) -> None:
        self._model, self._records = model, records

    @override
    def model(self) -> nn.Module:
        return self._model()

    @override
    def load(self, path: Path) -> tuple[dict[str, Tensor] | tuple[Tensor, ...], Tensor]:
        return self._records(40)

    @override
    def example(self) -> tuple[dict[str, Tensor] | tuple[Tensor, ...], Tensor]:
        return self._records(7)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (outputs.argmax(1) == targets).float()}
