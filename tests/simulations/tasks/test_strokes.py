"""The features of strokes: the same on every machine, of each image by itself, and where a digit is hardly matters."""

import pytest
import torch

from simulations.tasks.handwriting import handwriting
from simulations.tasks.strokes import FEATURES, _filters, _others, strokes

pytestmark = pytest.mark.xdist_group("strokes")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(handwriting()[0][::500]).float() / 255


def test_an_images_features_depend_on_no_other_image(images: torch.Tensor) -> None:
    together = strokes(images)
    assert together.shape == (10, FEATURES)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(10))
    for image, features in zip(images, together, strict=True):
        torch.testing.assert_close(strokes(image[None])[0], features, atol=1e-4, rtol=0)


def test_a_digit_that_is_moved_is_nearer_than_another_digit(images: torch.Tensor) -> None:
    here, moved = strokes(images), strokes(images.roll(1, dims=2))
    assert (here @ moved.mT).argmax(1).equal(torch.arange(10))


def test_wavelets_do_not_see_brightness() -> None:
    small, large, blur = _filters()
    assert max(float(small[:, 0, 0].abs().max()), float(large[:, 0, 0].abs().max())) < 1e-6
    assert abs(complex(blur[0, 0]) - 1) < 1e-6


def test_whitening_does_not_depend_on_the_signs_of_axes() -> None:
    _, whitening = _others()
    torch.testing.assert_close(whitening, whitening.mT, atol=1e-4, rtol=1e-4)
