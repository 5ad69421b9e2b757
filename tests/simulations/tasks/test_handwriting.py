"""The network of `handwriting` starts the same everywhere, and variations of an image are the image, shifted."""

from __future__ import annotations

import torch

from simulations.tasks.chest import Chest
from simulations.tasks.handwriting import Handwriting


def test_a_variation_is_the_image_shifted_by_at_most_a_pixel() -> None:
    task = Handwriting()
    images, _ = task.example()
    background = images.amin()
    images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1] = (background,) * 4  # digits touch no edge
    seen = set()
    for seed in range(9):
        shifted = task.augment(images.clone(), torch.Generator().manual_seed(seed))
        for image, other in zip(images[:, 0], shifted[:, 0], strict=True):
            found = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)
                     if torch.equal(other[1:-1, 1:-1], image.roll((down, across), (0, 1))[1:-1, 1:-1])]  # fmt: skip
            assert len(found) == 1
            seen.update(found)
    assert len(seen) == 9


def test_the_filters_start_as_edges_that_every_processor_computes_alike() -> None:
    weights = Handwriting().model().get_parameter("0.weight").detach()
    assert weights.shape == (8, 1, 7, 7)
    torch.testing.assert_close(weights, (weights.double() * 1000).round().div(1000).float(), atol=0, rtol=0)
    torch.testing.assert_close(weights.sum((1, 2, 3)), torch.zeros(8), atol=2e-3, rtol=0)
    torch.testing.assert_close(weights.flatten(1).norm(dim=1), torch.ones(8), atol=5e-3, rtol=0)


def test_a_mirrored_radiograph_is_what_the_other_filter_sees() -> None:
    model = Chest().model()
    first = torch.nn.Sequential(*list(model.children())[:4])
    image, _ = Chest().example()
    seen, mirrored = (first(each) for each in (image, image.flip(-1)))
    torch.testing.assert_close(seen, mirrored.flip(1))
    assert not model(image).any()
