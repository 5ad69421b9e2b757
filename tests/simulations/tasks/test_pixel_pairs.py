"""Features of digits: of length 1, each image by itself, and the kernel that they are made for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from simulations.tasks.digits import CLASSES, digits, write_digits
from simulations.tasks.pixel_pairs import FEATURES, PixelPairs, pixel_pairs

IMAGES = torch.from_numpy(digits()[0][:20] / 16).float()


def test_features_have_length_one_and_depend_on_their_image_alone() -> None:
    features = pixel_pairs(IMAGES)
    assert features.shape == (20, FEATURES)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(pixel_pairs(IMAGES[7:8]), features[7:8])


def test_features_ignore_darkness_and_a_blank_image_is_accepted() -> None:
    torch.testing.assert_close(pixel_pairs(IMAGES / 2), pixel_pairs(IMAGES))
    assert pixel_pairs(torch.zeros(1, 64)).abs().max() == 0


def test_features_are_pixels_and_products_of_an_image_and_its_four_moves() -> None:
    band = np.tile(1 - ((np.arange(8) - 3.5) / 4) ** 2, 8)
    wide = np.pad(IMAGES.numpy().reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    linear, squares = np.zeros((20, 64)), np.zeros((20, 64 * 64))
    for weight, down, right in [(2, 0, 0), (1, 1, 0), (1, -1, 0), (1, 0, 1), (1, 0, -1)]:
        moved = np.roll(wide, (down, right), (1, 2))[:, 1:-1, 1:-1].reshape(20, 64)
        shapes = moved - np.outer(moved @ band / (band @ band), band)
        shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
        linear += weight * shapes
        squares += weight * np.einsum("ni,nj->nij", shapes, shapes).reshape(20, -1)
    linear, squares = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (linear, squares))
    features = pixel_pairs(IMAGES).double().numpy()
    np.testing.assert_allclose(features @ features.T, (linear @ linear.T + 4 * squares @ squares.T) / 5, atol=1e-5)
    np.testing.assert_allclose(features[:, :64] * np.sqrt(5), linear, atol=1e-5)


def test_the_task_reads_what_is_written(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits.csv", np.arange(20))
    inputs, targets = PixelPairs().load(tmp_path / "digits.csv")
    torch.testing.assert_close(inputs, pixel_pairs(IMAGES))
    assert targets.tolist() == digits()[1][:20].tolist()
    outputs = PixelPairs().model()(inputs).detach()
    assert outputs.shape == (20, CLASSES)
    assert float(PixelPairs().loss(outputs, targets)) == pytest.approx(np.log(CLASSES), rel=1e-5)
