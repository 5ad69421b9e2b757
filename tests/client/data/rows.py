"""A data set that processes read ahead: they load this file, and little besides."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 4096  # numbers in a record of `Rows`: 16 KiB


class Rows(Dataset[Any]):
    """Rows of a file of float32, far larger than what a step needs; notes how many bytes it reads."""

    def __init__(self, path: Path, count: int) -> None:
        self._path, self._count, self.read = path, count, 0
        with path.open("wb") as file:
            file.truncate(4 * WIDTH * count)  # zeros that take no disk

    def __len__(self) -> int:
        return self._count

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file = os.open(self._path, os.O_RDONLY)
        try:
            row = bytearray(os.pread(file, 4 * WIDTH, 4 * WIDTH * index))
        finally:
            os.close(file)
        self.read += len(row)
        values = torch.frombuffer(row, dtype=torch.float32)
        values[index % WIDTH] = 1.0
        return values, index % 2
