"""DICOM files and series: values in the modality's units, and one sentence for every file that cannot be used."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless

from client.data.sources.options import Dicom
from tests.client.data.sources.cohorts import SECRET, Picture, complaint, read
from tests.client.data.sources.test_images import labels

if TYPE_CHECKING:
    from pathlib import Path

STORED = np.arange(24, dtype=np.int16).reshape(4, 6)


class Scan(Picture):
    """One slice of a CT, in Hounsfield units."""

    values = (-1000, 1000)
    modality = "CT"


class Volume(Scan):
    """A series of a CT."""

    size = (3, 4, 6)


def dicom(pixels: np.ndarray = STORED, **changes: Any) -> FileDataset:  # noqa: ANN401 - pydicom's elements
    """A CT image; `None` removes an element."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, UID("1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.Modality, data.PatientName, data.SeriesInstanceUID = "CT", SECRET, "1.2"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = (
        8 * pixels.itemsize,
        8 * pixels.itemsize,
        8 * pixels.itemsize - 1,
    )
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.RescaleSlope, data.RescaleIntercept = 100, -1000
    data.InstanceNumber, data.ImageOrientationPatient = 1, [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [0, 0, 0]
    data.PixelData = pixels.tobytes()
    for name, value in changes.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def save(folder: Path, data: FileDataset, name: str = "a.dcm") -> Path:
    (folder / name).parent.mkdir(exist_ok=True)
    data.save_as(folder / name, enforce_file_format=True)
    return labels(folder, f"{name},malignant")


def problem_of(path: Path, task: Picture | None = None) -> str:
    return complaint(path, Dicom(), task or Scan()).removeprefix("labels.csv, line 2, column `file`: ")


def test_stored_values_become_the_modalitys_units_and_are_clipped_to_the_declared_range(tmp_path: Path) -> None:
    images, targets = read(save(tmp_path, dicom()), Dicom(), Scan())
    expected = (torch.from_numpy(STORED).float() * 100 - 1000).clamp(-1000, 1000) / 1000
    torch.testing.assert_close(images[0, 0], expected)
    assert targets.tolist() == [1]


def test_an_image_in_which_bright_means_little_is_turned_round(tmp_path: Path) -> None:
    images, _ = read(save(tmp_path, dicom(PhotometricInterpretation="MONOCHROME1")), Dicom(), Scan())
    expected = -(torch.from_numpy(STORED).float() * 100 - 1000).clamp(-1000, 1000) / 1000
    torch.testing.assert_close(images[0, 0], expected)


def test_slices_are_put_in_their_order_in_space_whatever_their_names(tmp_path: Path) -> None:
    for name, place in {"c": -2.5, "a": 0.0, "b": 2.5}.items():
        pixels = np.full((4, 6), place * 2 + 10, np.int16)
        save(tmp_path, dicom(pixels, ImagePositionPatient=[0, 0, place], InstanceNumber=9), f"series/{name}")
    volumes, _ = read(labels(tmp_path, "series,benign"), Dicom(), Volume())
    assert volumes.shape == (1, 1, 3, 4, 6)
    assert volumes[0, 0, :, 0, 0].tolist() == pytest.approx([-0.5, 0, 0.5])
    for name, number in {"c": 3, "a": 1, "b": 2}.items():
        data = dicom(np.full((4, 6), number, np.int16), InstanceNumber=number, ImagePositionPatient=None)
        save(tmp_path, data, f"numbered/{name}")
    volumes, _ = read(labels(tmp_path, "numbered,benign"), Dicom(), Volume())
    assert volumes[0, 0, :, 0, 0].tolist() == pytest.approx([-0.9, -0.8, -0.7])


def test_frames_of_one_file_are_a_volume(tmp_path: Path) -> None:
    frames = np.stack([STORED, STORED + 1, STORED + 2])
    data = dicom(NumberOfFrames=3, PixelData=frames.tobytes())
    assert read(save(tmp_path, data), Dicom(), Volume())[0].shape == (1, 1, 3, 4, 6)
    assert problem_of(save(tmp_path, data)) == "3 images in one record, where the task declares one; name single files"


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "693_J2KI.dcm"])
def test_real_files_are_read(tmp_path: Path, name: str) -> None:
    file = get_testdata_file(name)
    assert isinstance(file, str)
    shutil.copy(file, tmp_path / "a.dcm")

    class AnyModality(Picture):
        values = (-1000, 1000)
        size = (16, 16)

    images, _ = read(labels(tmp_path, "a.dcm,benign"), Dicom(), AnyModality())
    assert images.shape == (1, 1, 16, 16)
    assert images.std() > 0.01


def test_colours_are_read_as_red_green_and_blue(tmp_path: Path) -> None:
    class Colour(Picture):
        channels, size = 3, (100, 100)

    for name in ("SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_rle.dcm"):
        file = get_testdata_file(name)
        assert isinstance(file, str)
        shutil.copy(file, tmp_path / "a.dcm")
        images, _ = read(labels(tmp_path, "a.dcm,benign"), Dicom(), Colour())
        assert images[0, :, 5, 50].tolist() == pytest.approx([1, -1, -1], abs=0.02)  # its first bar is red
    assert problem_of(labels(tmp_path, "a.dcm,benign"), Picture()) == (
        "3 channels where the task declares 1; convert the image"
    )


def test_a_file_of_another_kind_or_modality_is_refused(tmp_path: Path) -> None:
    assert problem_of(save(tmp_path, dicom(Modality="MR"))) == (
        "of another modality than CT, which the task declares; leave the record out"
    )
    assert problem_of(save(tmp_path, dicom(Modality=None))).startswith("of another modality than CT")
    assert problem_of(save(tmp_path, dicom(PixelData=None))).startswith("no image in this file")
    assert problem_of(save(tmp_path, dicom(PhotometricInterpretation="PALETTE COLOR"))).startswith(
        "colours by a palette"
    )
    assert problem_of(save(tmp_path, dicom(SharedFunctionalGroupsSequence=[]))).startswith("an enhanced DICOM file")
    assert problem_of(save(tmp_path, dicom(RescaleSlope=0))).startswith("a rescale slope that is zero")
    assert problem_of(save(tmp_path, dicom(RescaleIntercept="1e999"))).startswith("a rescale slope that is zero, or")
    for half in (dicom(RescaleSlope=None), dicom(RescaleIntercept=None)):
        assert problem_of(save(tmp_path, half)).startswith("a rescale slope without an intercept, or the reverse;")
    (tmp_path / "a.dcm").write_bytes(b"Mrs Smith" * 100)
    assert problem_of(labels(tmp_path, "a.dcm,benign")) == "not a DICOM file; name another, or leave the record out"
    (tmp_path / "a.dcm").write_bytes(b"")
    assert problem_of(labels(tmp_path, "a.dcm,benign")) == "not a DICOM file; name another, or leave the record out"


def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path) -> None:
    path = save(tmp_path, dicom())
    whole = (tmp_path / "a.dcm").read_bytes()
    for length in range(140, len(whole), 37):
        (tmp_path / "a.dcm").write_bytes(whole[:length])
        assert problem_of(path).split(";")[0] in {
            "the file is cut, damaged, or of another kind", "no image in this file",
            "of another modality than CT, which the task declares",
        }, length  # fmt: skip


def test_a_file_that_claims_more_pixels_than_a_site_allows_is_refused_before_they_are_read(tmp_path: Path) -> None:
    large = "larger than 100 megapixels; shrink it, or raise most_megapixels in [data.source]"
    assert problem_of(save(tmp_path, dicom(Rows=60_000, Columns=60_000))) == large
    assert problem_of(save(tmp_path, dicom(NumberOfFrames=10_000_000)), Volume()) == large
    compressed = dicom()
    compressed.compress(RLELossless)
    compressed.Rows = 65_000
    compressed.Columns = 65_000
    assert problem_of(save(tmp_path, compressed)) == large
    deflated = dicom()
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert problem_of(save(tmp_path, deflated)).startswith("a deflated DICOM file, whose size cannot be known")


def test_a_folder_must_have_one_series(tmp_path: Path) -> None:
    path = labels(tmp_path, "series,benign")
    (tmp_path / "series").mkdir()
    assert problem_of(path, Volume()).startswith("a folder with no file, or with more than 5,000")
    save(tmp_path, dicom(), "series/a")
    save(tmp_path, dicom(), "series/b")
    path = labels(tmp_path, "series,benign")
    assert problem_of(path, Volume()) == "two slices at the same place; keep one of them"
    save(tmp_path, dicom(ImagePositionPatient=[0, 0, 1], SeriesInstanceUID="1.3"), "series/b")
    path = labels(tmp_path, "series,benign")
    assert problem_of(path, Volume()).startswith("a folder with slices of several series or sizes")
    save(tmp_path, dicom(STORED[:2], ImagePositionPatient=[0, 0, 1]), "series/b")
    path = labels(tmp_path, "series,benign")
    assert problem_of(path, Volume()).startswith("a folder with slices of several series or sizes")
    (tmp_path / "series" / "b").unlink()
    (tmp_path / "series" / "b").symlink_to("/etc/passwd")
    assert problem_of(path, Volume()).startswith("a folder with something else than files")


def scan_of(folder: Path, **changes: dict[str, Any]) -> str:
    """The problem with a series of three slices, some of which are changed, by name."""
    for number, name in enumerate("abc"):
        elements: dict[str, Any] = {
            "ImagePositionPatient": [0, 0, 2.5 * number],
            "InstanceNumber": number,
        } | changes.get(name, {})
        save(folder, dicom(**elements), f"series/{name}")
    return problem_of(labels(folder, "series,benign"), Volume())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"c": {"ImagePositionPatient": [0, 0, 7.5]}},
            "a folder in which a slice is missing, or which are not equally",
        ),
        ({"b": {"ImagePositionPatient": None}}, "a folder with slices in several directions, or of which some do not"),
        ({"b": {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}}, "a folder with slices in several directions"),
        (
            {name: {"ImagePositionPatient": None, "InstanceNumber": None} for name in "abc"},
            "slices that say neither where they lie nor their number",
        ),
    ],
)
def test_slices_whose_order_or_distance_is_not_known_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert scan_of(tmp_path, **changes).startswith(message)


def test_what_a_scan_need_not_say_and_unused_bits_change_nothing(tmp_path: Path) -> None:
    expected, _ = read(save(tmp_path, dicom()), Dicom(), Scan())
    others: tuple[dict[str, Any], ...] = (
        {"PatientName": None, "InstanceNumber": None, "SeriesInstanceUID": None},
        {"ImagePositionPatient": None, "ImageOrientationPatient": None},
        {"BitsStored": 12, "HighBit": 11},
        {"WindowCenter": 40, "WindowWidth": 400, "PixelSpacing": [0.5, 0.5]},
        {"NumberOfFrames": 1, "PlanarConfiguration": 0},
    )
    for changes in others:
        torch.testing.assert_close(read(save(tmp_path, dicom(**changes)), Dicom(), Scan())[0], expected)
    negative = dicom(STORED - 12)
    twelve = dicom((STORED - 12) & 0x0FFF, BitsStored=12, HighBit=11)
    torch.testing.assert_close(
        read(save(tmp_path, twelve), Dicom(), Scan())[0], read(save(tmp_path, negative), Dicom(), Scan())[0]
    )


def test_a_compression_that_nothing_here_decodes_says_what_to_install(tmp_path: Path) -> None:
    file = get_testdata_file("MR_small_jpeg_ls_lossless.dcm")
    assert isinstance(file, str)
    data = dcmread(file)
    data.Modality = "CT"
    assert "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg; or save it uncompressed" in problem_of(
        save(tmp_path, data)
    )
