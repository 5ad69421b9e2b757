"""Read DICOM, by pydicom: a file with one image or several frames, or a folder with the slices of one series.

Values are in the modality's units (Hounsfield units for CT), after its rescale slope and intercept or its table.
"""

from __future__ import annotations

import warnings
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from client.data.sources.listed_files import ImageReader, UnusableError
from client.data.sources.optional import needing
from privacy.storage import open_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_FLAT = 2
_MOST_SLICES = 5000
_SAME_DIRECTION = 1e-2  # difference of unit vectors
_UNEVEN = 1.5  # between the largest and the smallest distance of two slices
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1")  # may become any size when they are read
_COLOURS = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
_GREY = {"MONOCHROME1", "MONOCHROME2"}


class DicomReader(ImageReader):
    """Images `(channels, height, width)`, or volumes `(channels, depth, height, width)`, as the task declares."""

    dimensions = frozenset({2, 3})
    folders = True

    @override
    def read(self, path: Path) -> Tensor:
        with needing("pydicom", "imaging", "pydicom"):
            import pydicom  # noqa: F401, PLC0415 - an extra
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they may quote the file
            frames = self._series(path) if path.is_dir() else self._frames(self._open(path))
        if len(self.form.size) > _FLAT:
            return frames.transpose(0, 1)
        if len(frames) > 1:
            msg = f"{len(frames)} images in one record, where the task declares one; name single files"
            raise UnusableError(msg)
        return frames[0]

    def _open(self, path: Path) -> Any:  # noqa: ANN401 - pydicom's data sets
        from pydicom import dcmread  # noqa: PLC0415
        from pydicom.errors import InvalidDicomError  # noqa: PLC0415
        from pydicom.filereader import read_file_meta_info, read_preamble  # noqa: PLC0415

        with open_file(path) as file:
            try:
                read_preamble(file, force=False)
            except InvalidDicomError as error:
                msg = "not a DICOM file; name another, or leave the record out"
                raise UnusableError(msg) from error
            if str(read_file_meta_info(path).get("TransferSyntaxUID", "")) in _DEFLATED:
                msg = "a deflated DICOM file, whose size cannot be known before it is read; save it in another form"
                raise UnusableError(msg)
            file.seek(0)
            return dcmread(file)

    def _frames(self, data: Any) -> Tensor:  # noqa: ANN401
        """Return the images of a file, `(frames, channels, height, width)`."""
        from pydicom.pixels.processing import apply_modality_lut  # noqa: PLC0415

        if self.form.modality is not None and data.get("Modality") != self.form.modality:
            msg = f"of another modality than {self.form.modality}, which the task declares; leave the record out"
            raise UnusableError(msg)
        if "PixelData" not in data:
            msg = "no image in this file; name one with pixels, or leave the record out"
            raise UnusableError(msg)
        if "SharedFunctionalGroupsSequence" in data:
            msg = "an enhanced DICOM file, with its scales per frame; convert it to one file per slice, or to NIfTI"
            raise UnusableError(msg)
        count, channels = int(data.get("NumberOfFrames") or 1), int(data.SamplesPerPixel)
        self.check_size(count * int(data.Rows) * int(data.Columns))
        if data.PhotometricInterpretation not in (_GREY if channels == 1 else _COLOURS):
            msg = "colours by a palette, or of another kind; convert the image to grey or RGB"
            raise UnusableError(msg)
        self.check_channels(channels)
        slope, intercept = data.get("RescaleSlope"), data.get("RescaleIntercept")
        if (slope is None) != (intercept is None):  # pydicom would ignore the other
            msg = "a rescale slope without an intercept, or the reverse; correct it, or leave the record out"
            raise UnusableError(msg)
        if slope is not None and not (0 < abs(float(slope)) < inf and abs(float(intercept)) < inf):
            msg = "a rescale slope that is zero, or a scale that is no number; correct it, or leave the record out"
            raise UnusableError(msg)
        pixels = np.asarray(apply_modality_lut(_pixels(data), data), np.float32)
        frames = torch.from_numpy(pixels).reshape(count, int(data.Rows), int(data.Columns), channels)
        if data.PhotometricInterpretation == "MONOCHROME1":  # bright means little: turn it round within the range
            low, high = self.form.values
            frames = low + high - frames.clamp(low, high)
        return frames.permute(0, 3, 1, 2)

    def _series(self, folder: Path) -> Tensor:
        """Return the slices of a series in their order in space, `(slices, channels, height, width)`."""
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        if not 0 < len(paths) <= _MOST_SLICES:
            msg = f"a folder with no file, or with more than {_MOST_SLICES:,}; keep one series in it"
            raise UnusableError(msg)
        if any(path.is_symlink() or not path.is_file() for path in paths):
            msg = "a folder with something else than files; keep one series in it"
            raise UnusableError(msg)
        slices, total = list[tuple[float, Tensor]](), 0
        series, shape, axes = None, None, None
        for path in paths:
            data = self._open(path)
            total += int(data.get("Rows") or 0) * int(data.get("Columns") or 0)
            self.check_size(total)
            frames = self._frames(data)
            series, shape = series or data.SeriesInstanceUID, shape or frames.shape
            if data.SeriesInstanceUID != series or frames.shape != shape or len(frames) > 1:
                msg = "a folder with slices of several series or sizes; keep one series in it"
                raise UnusableError(msg)
            own = _axes(data)
            axes = own if axes is None else axes
            if own.shape != axes.shape or not np.allclose(own, axes, atol=_SAME_DIRECTION):
                msg = (
                    "a folder with slices in several directions, or of which some do not say where they lie; keep one "
                )
                raise UnusableError(msg + "series in it")
            slices.append((_place(data, own), frames))
        slices.sort(key=lambda pair: pair[0])
        gaps = np.diff([place for place, _ in slices])
        if len(gaps) and not gaps.min() > 0:
            msg = "two slices at the same place; keep one of them"
            raise UnusableError(msg)
        if len(gaps) and gaps.max() > _UNEVEN * gaps.min():
            msg = "a folder in which a slice is missing, or which are not equally far apart; copy the whole series "
            raise UnusableError(msg + "again, or resample it")
        return torch.cat([frames for _, frames in slices])


def _pixels(data: Any) -> Any:  # noqa: ANN401
    """Return a file's pixels, colours as RGB."""
    try:
        return data.pixel_array
    except RuntimeError as error:  # pydicom's, if no package decodes the compression
        if data.file_meta.TransferSyntaxUID.is_compressed:
            msg = (
                "damaged, or compressed in a way that needs another package: pip install pylibjpeg pylibjpeg-libjpeg "
                "pylibjpeg-openjpeg; or save it uncompressed"
            )
            raise UnusableError(msg) from error
        raise


def _axes(data: Any) -> NDArray[np.float64]:  # noqa: ANN401
    """Return the directions of a slice's rows and columns, `(6,)`; empty if it does not say where it lies."""
    position, axes = data.get("ImagePositionPatient"), data.get("ImageOrientationPatient")
    return np.array([] if position is None or axes is None else axes, float)


def _place(data: Any, axes: NDArray[np.float64]) -> float:  # noqa: ANN401
    """Return a slice's place along the normal of its plane, in mm; without one, its number.

    Raises:
        UnusableError: if it has neither.
    """
    if len(axes):
        position = np.array(data.ImagePositionPatient, float)
        return round(float(np.dot(np.cross(axes[:3], axes[3:]), position)), 3)
    if data.get("InstanceNumber") is None:
        msg = (
            "slices that say neither where they lie nor their number, so that their order is not known; leave them out"
        )
        raise UnusableError(msg)
    return float(data.InstanceNumber)
