"""Read images: PNG, JPEG, TIFF, BMP and WebP, by Pillow."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from typing_extensions import override

from client.data.sources.listed_files import ImageReader, UnusableError
from client.data.sources.optional import needing
from privacy.storage import open_file

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_DEEP = ("I;16", "I;16B", "I;16L", "I", "F")  # grey, of more than 8 bits
_MODES = {1: "L", 3: "RGB"}


class PillowReader(ImageReader):
    """Images of 8 bits as 0 … 255, in grey or colour as the task declares; grey ones of 16 bits as they are."""

    dimensions = frozenset({2})

    @override
    def read(self, path: Path) -> Tensor:
        with needing("pillow", "imaging"):
            from PIL import Image, ImageOps, UnidentifiedImageError  # noqa: PLC0415 - an extra
        if self.form.channels not in _MODES:
            msg = "the task declares other channels than 1 (grey) or 3 (colour); this source has no others"
            raise UnusableError(msg)
        with open_file(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = Image.open(file, formats=_FORMATS)
            except Image.DecompressionBombError:
                self.check_size(1 << 62)
                raise
            except UnidentifiedImageError as error:
                msg = f"not an image of the kinds {', '.join(_FORMATS)}, or its start is damaged; convert it"
                raise UnusableError(msg) from error
            self.check_size(image.width * image.height)
            if getattr(image, "n_frames", 1) > 1:
                msg = "several images in one file; save them one by one"
                raise UnusableError(msg)
            return self._tensor(ImageOps.exif_transpose(image))

    def _tensor(self, image: Image) -> Tensor:
        channels = self.form.channels
        if image.mode in _DEEP:
            grey = torch.from_numpy(np.asarray(image).astype(np.float32))
            return grey.expand(channels, *grey.shape)
        pixels = torch.from_numpy(np.array(image.convert(_MODES[channels])))
        return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)
