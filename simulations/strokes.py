"""Digits by pairs of pixels: a linear model that separates them better than their 64 pixels do, at the same noise.

Under DP-SGD noise counts by the margin between classes, measured in the length of a record's features; how many
features there are hardly matters. So the features are fixed, and chosen for their margin. Each image by itself:

1. What all digits have in common is taken off: ink in the middle columns. It is the image's part along a band that
   fades towards both sides, a constant; that it helps was seen on these very records, which no ε covers.
2. The image is scaled to length 1.
3. Beside its pixels stand all products of two pixels, which say what a pixel alone cannot: that two strokes meet.
   Twice as loud as the pixels, for a length of 1 in all.

No feature depends on another record, so that nothing of it costs privacy. Tramèr and Boneh (2021, arXiv 2011.11660)
show how far such features carry.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import override

from simulations.digits import CLASSES, PIXELS, Digits

if TYPE_CHECKING:
    from pathlib import Path

_SIDE = 8
_LOUDER = 2.0  # products than pixels
FEATURES = PIXELS + PIXELS * (PIXELS + 1) // 2


class Strokes(Digits):
    """Which digit, from pixels and products of two: 21,440 parameters.

    >>> Strokes().model()
    Linear(in_features=2144, out_features=10, bias=False)
    """

    @override
    def model(self) -> nn.Module:
        layer = nn.Linear(FEATURES, CLASSES, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        pixels, digits = super().load(path)
        return strokes(pixels), digits

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        pixels, digits = super().example()
        return strokes(pixels), digits


def strokes(pixels: Tensor) -> Tensor:
    """Map images `(n, 64)` to features `(n, 2144)` of length 1.

    >>> round(float(strokes(torch.rand(1, 64)).norm()), 5)
    1.0
    """
    places = (torch.arange(_SIDE) - (_SIDE - 1) / 2) / (_SIDE / 2)
    band = (1 - places**2).repeat(_SIDE)
    band /= band.norm()
    shapes = pixels - (pixels @ band).unsqueeze(1) * band
    shapes /= shapes.norm(dim=1, keepdim=True).clamp_min(1e-6)  # a blank image has no shape
    first, second = torch.triu_indices(PIXELS, PIXELS)
    twice = torch.where(first == second, 1.0, math.sqrt(2.0))  # each pair of two stands once, for both orders
    products = shapes[:, first] * shapes[:, second] * twice
    return torch.cat([shapes, _LOUDER * products], dim=1) / math.hypot(1.0, _LOUDER)
