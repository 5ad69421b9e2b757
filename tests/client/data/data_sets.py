"""Map-style data sets for tests, which processes of their own import too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from typing_extensions import override

from privacy.errors import DataError
from tests.client.data.rows import WIDTH
from tests.studies import QUOTE, Tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ODD = 2  # the index of the record that cannot be used


class Lines(Dataset[Any]):
    """The records of `Tiny`, each read from its line when it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __len__(self) -> int:
        return len(self._path.read_text(encoding="utf-8").splitlines()) - 1

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        a, b, y = self._path.read_text(encoding="utf-8").splitlines()[index + 1].split(",")
        return torch.tensor([float(a), float(b)]), torch.tensor([float(y)])


class Streamed(Tiny):
    """`Tiny` on a data set."""

    @override
    def load(self, path: Path) -> Any:
        return Lines(path)


@dataclass(frozen=True)
class Spoilt(Dataset[Any]):
    """Has one record that cannot be used."""

    spoilt: Callable[[], Any]

    def __len__(self) -> int:
        return 6

    @override
    def __getitem__(self, index: int) -> Any:
        return self.spoilt() if index == ODD else (torch.full((2,), float(index)), torch.ones(1))


class Spoiling(Tiny):
    """Returns what a test says."""

    loaded: ClassVar[Any] = None

    @override
    def load(self, path: Path) -> Any:
        return type(self).loaded


def unknown_name() -> object:
    return {QUOTE: 1}["age"]


def no_number() -> object:
    return float(QUOTE)


def own_words() -> object:
    msg = "scan 17 is cut; scan it again"
    raise DataError(msg)


class Stream(IterableDataset[Any]):
    """Has no length."""

    @override
    def __iter__(self) -> Any:
        return iter(())


class Wide(Tiny):
    """A classifier of `Rows`."""

    @override
    def model(self) -> nn.Module:
        return nn.Linear(WIDTH, 2)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        return torch.rand(4, WIDTH), torch.arange(4) % 2

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)
