"""Classify handwritten digits by the strokes in them: fixed filters, and a linear model that is trained.

DP-SGD allows few steps, and its noise grows with the number of trained parameters. So, as Tramèr and Boneh do (2021,
arXiv 2011.11660), the features come from a scattering network, a convolutional network whose filters are wavelets and
are not trained (Bruna and Mallat, 2013, arXiv 1203.1513). For each image of `handwriting`:

1. Filter it with wavelets of two sizes and six directions, and take the modulus; once more, from small to large.
2. Average all of that over places, so that a digit written slightly off has nearly the same features.
3. Take the square root, and scale the features to length 1.
4. Subtract the mean of other people's digits, and whiten by their covariance. The others' are the 1,797 digits of
   scikit-learn, which are public and no site's records. Without this, gradient descent needs far more steps.

No feature depends on another record, so the features cost no privacy.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from simulations.tasks.digits import digits
from simulations.tasks.handwriting import CLASSES, SIDE, Handwriting, read_archive

if TYPE_CHECKING:
    from pathlib import Path

DIRECTIONS = 6
CHANNELS = 1 + 2 * DIRECTIONS + DIRECTIONS**2
_PLACES = 7  # along each side, at which features are averaged
FEATURES = CHANNELS * _PLACES**2

_PADDED = 32
_SIGMA, _FREQUENCY = 0.8, 3 * math.pi / 4  # of the smaller wavelets; the usual ones
_LEAST = 1e-3  # of the largest variance, added to all, so that axes of little variance do not count too much
_AT_ONCE = 250  # images


class Strokes(Handwriting):
    """Which digit, by a linear model of a scattering network's output: 24,010 parameters.

    >>> Strokes().model()
    Linear(in_features=2401, out_features=10, bias=False)
    """

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: features `(n, 2401)` to logits `(n, 10)`."""
        layer = nn.Linear(FEATURES, CLASSES, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read the archive that `Handwriting` reads, and compute features `(n, 2401)`."""
        images, labels = read_archive(path)
        return strokes(images), labels

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up ten images of noise, one per digit."""
        return strokes(torch.rand(CLASSES, SIDE, SIDE)), torch.arange(CLASSES)


def strokes(images: Tensor) -> Tensor:
    """Map images `(n, 28, 28)`, 0 to 1, to features `(n, 2401)` of length 1."""
    mean, axes = _others()
    return functional.normalize((_rooted(images) - mean) @ axes)


@cache
def _others() -> tuple[Tensor, Tensor]:
    """Return the mean `(features,)` of scikit-learn's digits, and the matrix `(features, features)` that whitens."""
    pixels, _ = digits()
    small = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8)
    edge = (SIDE - 20) // 2  # digits of MNIST fill a square of 20 by 20 pixels in the middle
    wide = functional.interpolate(small / small.amax(), size=(20, 20), mode="bilinear", align_corners=False)
    features = _rooted(functional.pad(wide, (edge,) * 4)[:, 0]).double()
    mean = features.mean(0)
    centred = features - mean
    # There are fewer digits than features: their products have the same variances, and are the smaller matrix.
    variances, sides = torch.linalg.eigh(centred @ centred.mT / len(features))
    least = _LEAST * variances.max()
    scale, root = (variances.clamp_min(0) + least).sqrt(), least.sqrt()
    axes = centred.mT @ sides
    # The inverse root of (covariance + least): 1/root, less along the axes, whose lengths are those of the digits.
    whitening = torch.eye(FEATURES) - axes / (len(features) * scale * (scale + root)) @ axes.mT
    return mean.float(), (whitening / root).float()


def _rooted(images: Tensor) -> Tensor:
    scattered = torch.cat([_scattered(some) for some in images.split(_AT_ONCE)])
    return functional.normalize(scattered.clamp_min(0).sqrt().flatten(1))


def _scattered(images: Tensor) -> Tensor:
    """Map images `(n, 28, 28)` to the output of a scattering network, `(n, 49, 7, 7)`."""
    small, large, blur = _filters()
    edge = (_PADDED - SIDE) // 2
    images = functional.pad(images, (edge,) * 4).unsqueeze(1)
    first, second = (_modulus(images, wavelets) for wavelets in (small, large))
    both = _modulus(first.unsqueeze(2), large).flatten(1, 2)
    averaged = torch.fft.rfft2(torch.cat([images, first, second, both], dim=1)) * blur[:, : _PADDED // 2 + 1]
    smooth: Tensor = torch.fft.irfft2(averaged)
    return smooth[:, :, edge : _PADDED - edge : 4, edge : _PADDED - edge : 4]


def _modulus(images: Tensor, wavelets: Tensor) -> Tensor:
    """Filter images with wavelets, and return the modulus."""
    modulus: Tensor = torch.fft.ifft2(torch.fft.fft2(images) * wavelets).abs()
    return modulus


@cache
def _filters() -> tuple[Tensor, Tensor, Tensor]:
    """Return the spectra of small and large wavelets, `(6, 32, 32)` both, and of the average over places."""
    places = torch.arange(_PADDED, dtype=torch.float64) - _PADDED // 2
    down, right = torch.meshgrid(places, places, indexing="ij")

    def wavelets(size: int) -> Tensor:
        return torch.stack([wavelet(size, math.pi * number / DIRECTIONS) for number in range(DIRECTIONS)])

    def wavelet(size: int, angle: float) -> Tensor:
        along = right * math.cos(angle) + down * math.sin(angle)
        across = (down * math.cos(angle) - right * math.sin(angle)) * 4 / DIRECTIONS
        bell = torch.exp(-(along**2 + across**2) / (2 * (_SIGMA * size) ** 2))
        wave = torch.exp(1j * along * _FREQUENCY / size)
        wave -= (bell * wave).sum() / bell.sum()  # so that it does not see how bright an image is
        return _spectrum(bell * wave / bell.sum())

    blur = torch.exp(-(right**2 + down**2) / (2 * (_SIGMA * 4) ** 2))
    return wavelets(1), wavelets(2), _spectrum(blur / blur.sum())


def _spectrum(kernel: Tensor) -> Tensor:
    spectrum: Tensor = torch.fft.fft2(torch.fft.ifftshift(kernel)).to(torch.complex64)
    return spectrum
