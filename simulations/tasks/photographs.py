"""Tell leaves with rust from healthy ones in colour photographs of 150 by 150 pixels, with a convolutional network.

The 1,000 photographs are made up, by `photograph` below, and written as JPEG files with a table of labels, as a folder
of real ones would be: point `file` of `site.toml` to such a table, with `source = "images"`. Rust shows as orange round
spots. A third of the healthy leaves have drops of water, which are as round, but green; a third have dry streaks, which
are as orange, but long; the others have both. So neither colour nor shape alone tells. Light, soil, the leaf's
green, place, size, noise and JPEG quality vary. No leaf was photographed.
"""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.columns import Category
from client.task.image_task import ImageTask

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 150  # pixels
FINDINGS = ("healthy", "rust")
_SEED, _COUNT = 2029, 1000
_REACH = 32  # pixels from the middle of a mark to its end, at most
_RUST, _WATER = (0.85, 0.42, 0.08), (0.45, 0.80, 0.40)


class Photographs(ImageTask):
    """Rust or none, by a network with group normalisation: 1,282 parameters."""

    size, channels = (SIDE, SIDE), 3
    label = Category("finding", FINDINGS)

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: inputs `(n, 3, 150, 150)` to logits `(n, 2)`."""
        return nn.Sequential(
            *(nn.AvgPool2d(3), nn.Conv2d(3, 16, 5, stride=2), nn.GroupNorm(4, 16), nn.ReLU()),
            *(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 2)),
        )

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `(n, 2)`, in nats."""
        return functional.cross_entropy(outputs, targets)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each photograph is classified correctly: 1 or 0, `(n,)`."""
        return {"accuracy": (outputs.argmax(1) == targets).float()}


@cache
def findings() -> NDArray[np.int64]:
    """Make up all labels: 1 for rust, `(1000,)`; the same every time."""
    return np.random.default_rng(_SEED).integers(2, size=_COUNT)


def photograph(number: int) -> NDArray[np.uint8]:
    """Make up one photograph `(150, 150, 3)`; the same every time."""
    rng = np.random.default_rng((_SEED, number))
    image = np.zeros((SIDE, SIDE, 3), np.float32)
    image += rng.uniform(0.2, 0.6) * np.array([1.0, rng.uniform(0.7, 0.95), 0.6]) + 0.06 * _rough(rng)
    leaf = _leaf(rng)
    green = np.array([rng.uniform(0.1, 0.4), rng.uniform(0.4, 0.65), rng.uniform(0.05, 0.3)])
    image += leaf * (green + 0.05 * _rough(rng) - image)
    rust, kind = findings()[number], rng.integers(3)
    if rust or kind != 1:
        image += leaf * _marks(rng, long=False) * (_varied(rng, _RUST if rust else _WATER) - image)
    if kind != 0 and (not rust or kind == 2):
        image += leaf * _marks(rng, long=True) * (_varied(rng, _WATER if rust else _RUST) - image)
    image *= rng.uniform(0.7, 1.2) * (1 + rng.uniform(-0.25, 0.25) * np.linspace(-1, 1, SIDE)[:, None, None])
    image *= rng.uniform(0.92, 1.08, 3)
    image += rng.uniform(0.01, 0.05) * rng.standard_normal(image.shape, np.float32)
    return (255 * image.clip(0, 1)).astype(np.uint8)


def _varied(rng: np.random.Generator, colour: tuple[float, float, float]) -> NDArray[np.float64]:
    return np.clip(np.array(colour) * rng.uniform(0.8, 1.15) + rng.normal(0, 0.04, 3), 0, 1)


def _rough(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return smooth random texture, `(150, 150, 1)`, of deviation about 1."""
    coarse = rng.normal(size=(SIDE // 5 + 2, SIDE // 5 + 2))
    place = np.arange(SIDE) / 5
    low, part = place.astype(int), place % 1
    rows = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
    smooth: NDArray[np.float64] = rows[:, low] * (1 - part) + rows[:, low + 1] * part
    return smooth[:, :, None]


def _turned(
    rng: np.random.Generator, side: int, down: float, across: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each pixel's distance from a place along and across a random direction, in pixels, `(side, side)` each."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.arange(side)[:, None] - down, np.arange(side)[None] - across
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _leaf(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return how much of each pixel is leaf, `(150, 150, 1)`: an ellipse that fills much of the photograph."""
    along, across = _turned(rng, SIDE, *rng.uniform(60, 90, 2))
    return _inside(1 - np.hypot(along / rng.uniform(62, 80), across / rng.uniform(42, 60)), 0.03)[:, :, None]


def _marks(rng: np.random.Generator, *, long: bool) -> NDArray[np.float64]:
    """Return how much of each pixel is a mark, `(150, 150, 1)`: of 6 to 11 round or long ones, of the same area."""
    marks = np.zeros((SIDE, SIDE))
    for down, across in rng.integers(_REACH, SIDE - _REACH, (rng.integers(6, 12), 2)):
        radius, stretch = rng.uniform(6, 8), rng.uniform(3, 3.8) if long else rng.uniform(0.9, 1.1)
        part = marks[down - _REACH : down + _REACH, across - _REACH : across + _REACH]
        x, y = _turned(rng, 2 * _REACH, _REACH, _REACH)
        np.maximum(part, _inside(1 - np.hypot(x / stretch, y * stretch) / radius, 0.15), out=part)
    return marks[:, :, None]


def _inside(depth: NDArray[np.float64], edge: float) -> NDArray[np.float64]:
    """Return 1 where depth is above 0, and 0 below, with a soft edge."""
    soft: NDArray[np.float64] = (0.5 + depth / edge).clip(0, 1)
    return soft


@cache
def _file(number: int) -> bytes:
    from PIL import Image  # noqa: PLC0415 - only those who make the records need the package

    file, quality = BytesIO(), np.random.default_rng((_SEED, number, 1)).integers(60, 96)
    Image.fromarray(photograph(number)).save(file, "JPEG", quality=int(quality))
    return file.getvalue()


def write_photographs(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the photographs with these indices into a folder beside `path`, and the table that lists them to `path`."""
    folder, lines = path.parent / "photographs", ["file,finding"]
    folder.mkdir(exist_ok=True)
    for number in rows:
        (folder / f"{number:04}.jpg").write_bytes(_file(int(number)))
        lines.append(f"photographs/{number:04}.jpg,{FINDINGS[int(findings()[number])]}")
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
