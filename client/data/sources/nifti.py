"""Read NIfTI volumes, by nibabel: `.nii` and `.nii.gz`, turned to the axes right, front, up of the closest orientation.

Values are after the file's slope and intercept.
"""

from __future__ import annotations

import gzip
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import torch
from typing_extensions import override

from client.data.sources.listed_files import ImageReader, UnusableError
from client.data.sources.optional import needing
from privacy.storage import open_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_GZIP = b"\x1f\x8b"
_HEADERS = {348: "Nifti1", 540: "Nifti2"}  # by their size
_MOST_EXTENSIONS = 1 << 20  # bytes between header and data
_SPACE, _CHANNELS = 3, 4  # dimensions of a volume, without and with channels


class NiftiReader(ImageReader):
    """Volumes `(channels, depth, height, width)`; a fourth dimension of the file has the channels."""

    dimensions = frozenset({3})

    @override
    def read(self, path: Path) -> Tensor:
        with needing("nibabel", "imaging", "nibabel.global"):
            import nibabel  # noqa: F401, PLC0415 - an extra
        with open_file(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            packed = file.read(2) == _GZIP
            file.seek(0)
            if not packed:
                return self._volume(file)
            with gzip.open(file) as unpacked:
                return self._volume(cast("BinaryIO", unpacked))

    def _volume(self, file: BinaryIO) -> Tensor:
        import nibabel  # noqa: PLC0415

        turned: Any = nibabel.as_closest_canonical  # which has no types
        start = file.read(540)
        size = next((int.from_bytes(start[:4], order) for order in ("little", "big")
                     if int.from_bytes(start[:4], order) in _HEADERS), 0)  # fmt: skip
        if not size or len(start) < size:
            msg = "not a NIfTI file; convert it, or leave the record out"
            raise UnusableError(msg)
        kind: Any = getattr(nibabel, f"{_HEADERS[size]}Image")
        header = kind.header_class(start[:size])
        shape = tuple(int(length) for length in header.get_data_shape())
        if len(shape) not in {_SPACE, _CHANNELS}:
            msg = f"{len(shape)} dimensions where a volume has three, and a fourth for channels; convert it"
            raise UnusableError(msg)
        self.check_channels(shape[3] if len(shape) == _CHANNELS else 1)
        # Before anything is unpacked: a small file may hold a huge one.
        self.check_size(int(np.prod(shape, dtype=object)))
        offset = int(header["vox_offset"])
        if not 0 <= offset - size <= _MOST_EXTENSIONS:
            msg = "a NIfTI header that does not say where the volume is, as in .img files; save it as one .nii file"
            raise UnusableError(msg)
        length = offset + int(np.prod(shape, dtype=object)) * header.get_data_dtype().itemsize
        rest = file.read(length - len(start))
        if len(start) + len(rest) < length:
            raise EOFError
        image = turned(kind.from_stream(BytesIO(start + rest)))
        if not np.issubdtype(image.get_data_dtype(), np.number) or image.get_data_dtype().kind == "c":
            msg = "voxels that are not real numbers; convert the volume"
            raise UnusableError(msg)
        volume = torch.from_numpy(image.get_fdata(dtype=np.float32))
        volume = volume if volume.dim() == _CHANNELS else volume[..., None]
        return volume.permute(3, 2, 1, 0)
