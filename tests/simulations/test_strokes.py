"""Features of digits: of length 1, each image by itself, and the kernel that they are made for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from simulations.digits import CLASSES, digits, write_digits
from simulations.strokes import FEATURES, Strokes, strokes

IMAGES = torch.from_numpy(digits()[0][:20] / 16).float()


def test_features_have_length_one_and_depend_on_their_image_alone() -> None:
    found = strokes(IMAGES)
    assert found.shape == (20, FEATURES)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(20))
    torch.testing.assert_close(strokes(IMAGES[7:8]), found[7:8])


def test_louder_ink_changes_nothing_and_a_blank_image_is_no_error() -> None:
    torch.testing.assert_close(strokes(IMAGES / 2), strokes(IMAGES))
    assert strokes(torch.zeros(1, 64)).abs().max() == 0


def test_their_product_is_a_polynomial_of_the_shapes_product() -> None:
    found = strokes(IMAGES)
    linear = (found[:, :64] * np.sqrt(5)) @ (found[:, :64] * np.sqrt(5)).T
    torch.testing.assert_close(found @ found.T, (linear + 4 * linear**2) / 5, atol=1e-5, rtol=0)


def test_the_task_reads_what_is_written(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits.csv", np.arange(20))
    inputs, targets = Strokes().load(tmp_path / "digits.csv")
    torch.testing.assert_close(inputs, strokes(IMAGES))
    assert targets.tolist() == digits()[1][:20].tolist()
    outputs = Strokes().model()(inputs).detach()
    assert outputs.shape == (20, CLASSES)
    assert float(Strokes().loss(outputs, targets)) == pytest.approx(np.log(CLASSES), rel=1e-5)
