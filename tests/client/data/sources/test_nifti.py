"""NIfTI volumes: turned to the same axes, scaled, and refused before a damaged or huge one is unpacked."""

from __future__ import annotations

import gzip
import struct
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
import pytest
import torch

from client.data.sources.options import Nifti
from tests.client.data.sources.cohorts import Picture, complaint, read
from tests.client.data.sources.test_images import labels

if TYPE_CHECKING:
    from pathlib import Path

VOXELS = np.arange(24, dtype=np.int16).reshape(4, 3, 2)  # x, y, z
nib: Any = nibabel  # which has few types


class Brain(Picture):
    """A small volume."""

    size = (2, 3, 4)
    values = (0, 20)


def save(folder: Path, voxels: np.ndarray = VOXELS, name: str = "a.nii.gz", axes: object = None) -> Path:
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if axes is None else axes), folder / name)
    return labels(folder, f"{name},malignant")


def problem_of(path: Path, task: Picture | None = None) -> str:
    return complaint(path, Nifti(), task or Brain()).removeprefix("labels.csv, line 2, column `file`: ")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_volume_has_depth_height_and_width_and_is_clipped(tmp_path: Path, name: str) -> None:
    volumes, targets = read(save(tmp_path, name=name), Nifti(), Brain())
    expected = torch.from_numpy(VOXELS.T.astype(np.float32)).clamp(0, 20) / 10 - 1
    torch.testing.assert_close(volumes[0, 0], expected)
    assert targets.tolist() == [1]


def test_a_volume_that_was_stored_along_other_axes_becomes_the_same(tmp_path: Path) -> None:
    expected, _ = read(save(tmp_path), Nifti(), Brain())
    turned = np.ascontiguousarray(np.transpose(VOXELS[::-1], (2, 0, 1)))
    axes = np.array([[0, -1, 0, 3], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    volumes, _ = read(save(tmp_path, turned, axes=axes), Nifti(), Brain())
    torch.testing.assert_close(volumes, expected)


def test_scales_of_the_header_channels_and_the_second_form_are_read(tmp_path: Path) -> None:
    image = nib.Nifti1Image(VOXELS, np.eye(4))
    image.header.set_slope_inter(2, -1)
    nib.save(image, tmp_path / "scaled.nii.gz")
    nib.save(nib.Nifti2Image(VOXELS.astype(np.float32) * 2 - 1, np.eye(4)), tmp_path / "second.nii")
    two, _ = read(labels(tmp_path, "scaled.nii.gz,benign", "second.nii,benign"), Nifti(), Brain())
    expected = torch.from_numpy(VOXELS.T.astype(np.float32) * 2 - 1).clamp(0, 20) / 10 - 1
    torch.testing.assert_close(two[0, 0], expected)
    torch.testing.assert_close(two[1, 0], expected)

    class Pair(Brain):
        channels = 2

    pair, _ = read(save(tmp_path, np.stack([VOXELS, VOXELS + 1], 3)), Nifti(), Pair())
    assert pair.shape == (1, 2, 2, 3, 4)
    assert problem_of(save(tmp_path), Pair()) == "1 channels where the task declares 2; convert the image"


def test_other_sizes_are_resized_and_gaps_count_as_the_lowest_value(tmp_path: Path) -> None:
    voxels = np.full((8, 6, 4), 20, np.float32)
    voxels[:4] = np.nan
    volumes, _ = read(save(tmp_path, voxels), Nifti(), Brain())
    assert volumes.shape == (1, 1, 2, 3, 4)
    assert volumes[0, 0, 0, 0].tolist() == [-1, -1, 1, 1]


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.stack([VOXELS] * 5, 3), "5 channels where the task declares 1; convert the image"),
        (VOXELS[..., None, None], "5 dimensions where a volume has three, and a fourth for channels; convert it"),
        (np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "voxels that are not real numbers; convert"),
    ],
)
def test_volumes_of_another_form_are_refused(tmp_path: Path, voxels: np.ndarray, message: str) -> None:
    assert problem_of(save(tmp_path, voxels)).startswith(message)


def test_a_fourth_dimension_of_one_and_other_types_of_number_change_nothing(tmp_path: Path) -> None:
    expected, _ = read(save(tmp_path), Nifti(), Brain())
    for voxels in (VOXELS[..., None], VOXELS.astype(np.float64), VOXELS.astype(">f4"), VOXELS.astype(np.uint8)):
        torch.testing.assert_close(read(save(tmp_path, voxels), Nifti(), Brain())[0], expected)


def test_a_damaged_file_or_one_of_another_kind_is_refused(tmp_path: Path) -> None:
    path, damaged = save(tmp_path), "the file is cut, damaged, or of another kind"
    file = tmp_path / "a.nii.gz"
    whole = file.read_bytes()
    plain = gzip.decompress(whole)
    for data in (whole[: len(whole) - 12], whole[:30], gzip.compress(plain[:-2]), plain[:-2]):
        file.write_bytes(data)
        assert problem_of(path).startswith((damaged, "not a NIfTI file"))
    for data in (b"", b"Mrs Smith" * 100, gzip.compress(b"x" * 1000)):
        file.write_bytes(data)
        assert problem_of(path) == "not a NIfTI file; convert it, or leave the record out"
    assert problem_of(save(tmp_path, VOXELS[..., 0])).startswith("2 dimensions where a volume has three")
    assert problem_of(save(tmp_path, VOXELS.astype(np.complex64))).startswith("voxels that are not real numbers")


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = save(tmp_path)
    file = tmp_path / "a.nii.gz"
    plain = bytearray(gzip.decompress(file.read_bytes()))
    shape = bytes(plain[40:56])
    plain[40:56] = struct.pack("<8h", 3, 32000, 32000, 32000, 1, 1, 1, 1)
    file.write_bytes(gzip.compress(bytes(plain)))
    assert problem_of(path) == "larger than 100 megapixels; shrink it, or raise most_megapixels in [data.source]"
    plain[40:56] = shape
    plain[108:112] = struct.pack("<f", 3e9)  # where the volume begins
    file.write_bytes(gzip.compress(bytes(plain)))
    assert problem_of(path).startswith("a NIfTI header that does not say where the volume is")
    plain[40:56] = struct.pack("<8h", 3, -4, 3, 2, 1, 1, 1, 1)
    file.write_bytes(gzip.compress(bytes(plain)))
    assert problem_of(path)
