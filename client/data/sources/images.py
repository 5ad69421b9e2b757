"""Read images: PNG, JPEG, TIFF, BMP and WebP, by Pillow."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

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
_SIXTEEN = ("I;16", "I;16B", "I;16L")  # bits, grey
_WIDE = ("I", "F")  # grey: 32 bits, whole or real
_MODES = {1: "L", 3: "RGB"}
_BYTE, _WORD = 255, 65535  # white
_BRIGHTNESS = ((0, 1), (0, _BYTE), (0, _WORD))
"""Declared values that mean a share of white, however many bits a file has; others are as measured."""
_BITS, _INTERPRETATION, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value


class PillowReader(ImageReader):
    """Images in grey or colour, as the task declares.

    If the task's values are 0 … 1, 0 … 255 or 0 … 65535, black is 0 and white the highest, whether a file has 8 or 16
    bits a channel; files of 32 bits do not say what is white. Of other values, files have the numbers as measured.
    """

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
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # a photograph first, then its preview
                msg = "several images in one file; save them one by one"
                raise UnusableError(msg)
            ImageOps.exif_transpose(image, in_place=True)
            return self._tensor(image)

    def _tensor(self, image: Image) -> Tensor:
        channels, white = self.form.channels, _white(image)
        if image.mode in (*_SIXTEEN, *_WIDE):
            values = torch.from_numpy(np.asarray(image).astype(np.float32))
            if _tag(image, _INTERPRETATION) == _WHITE_IS_ZERO:
                if white is None:
                    msg = "numbers of 32 bits of which 0 is white; save the image with 0 as black"
                    raise UnusableError(msg)
                values = white - values
            return self._scaled(values.expand(channels, *values.shape), image.mode, white)
        try:
            pixels = torch.from_numpy(np.array(image.convert(_MODES[channels])))
        except ValueError as error:  # Pillow's, of a conversion that it lacks
            msg = f"colours of the kind {image.mode}, which this source cannot convert; save the image in grey or RGB"
            raise UnusableError(msg) from error
        return self._scaled(pixels[None] if channels == 1 else pixels.permute(2, 0, 1), image.mode, white)

    def _scaled(self, pixels: Tensor, mode: str, white: int | None) -> Tensor:
        """Bring pixels to the task's values, if these are a share of white.

        Raises:
            UnusableError: if a file's numbers cannot be what the task declares.
        """
        low, high = self.form.values
        if (low, high) not in _BRIGHTNESS:
            if white == _BYTE < high:
                msg = f"8 bits a channel, which end at 255, where the task declares values up to {high:g}; save the "
                raise UnusableError(msg + "image with the values as measured, in 16 bits or more")
            return pixels
        if white is not None:
            return pixels * (high / white)
        if mode == "F" and high == 1:
            return pixels
        msg = f"numbers of 32 bits, which do not say what is white, where the task declares {low:g} … {high:g}; save "
        raise UnusableError(msg + "the image with 8 or 16 bits a channel")


def _white(image: Image) -> int | None:
    """Return the number that means white; None if the file does not say."""
    if image.mode in _WIDE:
        return None
    if image.mode not in _SIXTEEN:
        return _BYTE
    bits = _tag(image, _BITS)
    return _WORD if bits is None else (1 << int(bits[0])) - 1  # some have 12


def _tag(image: Image, number: int) -> Any:  # noqa: ANN401 - of any type
    """Return a tag of a TIFF file; None of other files."""
    return getattr(image, "tag_v2", {}).get(number)
