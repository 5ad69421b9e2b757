"""Read a safetensors file out of a site's encrypted folder, tensor by tensor, never the whole file at once.

The library reads files by name, so it cannot read what is decrypted as it is read. This reader has its methods that
`client.state.model_file` uses, and checks the same: header, shapes, types and places of all tensors agree, and cover
the whole file.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from client.state.model_parts import DTYPES, WIDTHS

if TYPE_CHECKING:
    from typing import BinaryIO

    from torch import Tensor

_LARGEST_HEADER = 100_000_000  # bytes, as in the library
_LENGTH = 8
_METADATA = "__metadata__"
_TYPES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Slice:
    """What the header says about one tensor."""

    dtype: str
    shape: list[int]
    start: int  # from the first byte after the header
    end: int

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Slice:
        """Read a tensor's entry.

        Raises:
            ValueError, KeyError, TypeError: if it contradicts itself.
        """
        shape = [int(size) for size in entry["shape"]]
        start, end = entry["data_offsets"]
        if min(shape, default=0) < 0 or end - start != WIDTHS[entry["dtype"]] * math.prod(shape):
            raise ValueError
        return cls(entry["dtype"], shape, start, end)

    def get_dtype(self) -> str:
        """Return the type's name."""
        return self.dtype

    def get_shape(self) -> list[int]:
        """Return the shape."""
        return self.shape


class SealedModel:
    """A model's file, open for reading.

    Args:
        file: the file's content.

    Raises:
        SafetensorError: if it is not a complete safetensors file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            length = int.from_bytes(file.read(_LENGTH), "little")
            if not 0 < length <= min(_LARGEST_HEADER, size - _LENGTH):
                raise ValueError  # noqa: TRY301 - reported below with all the others
            header = json.loads(file.read(length))
            self._metadata: dict[str, str] = header.pop(_METADATA, {})
            self._slices = {name: Slice.of(entry) for name, entry in header.items()}
            self._start = _LENGTH + length
            _check_places(list(self._slices.values()), size - self._start)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            msg = "its header is not one of a complete safetensors file"
            raise SafetensorError(msg) from error

    def keys(self) -> list[str]:
        """Return the tensors' names."""
        return list(self._slices)

    def metadata(self) -> dict[str, str]:
        """Return the notes in the header, which may be none."""
        return self._metadata

    def get_slice(self, name: str) -> Slice:
        """Return what the header says about a tensor."""
        return self._slices[name]

    def get_tensor(self, name: str) -> Tensor:
        """Read a tensor."""
        place = self._slices[name]
        self._file.seek(self._start + place.start)
        values = bytearray(place.end - place.start)
        view, done = memoryview(values), 0
        while done < len(view):
            read = self._file.readinto(view[done:])  # type: ignore[attr-defined]  # of a buffered file
            if not read:
                msg = "the file ends too early"
                raise SafetensorError(msg)
            done += read
        dtype = _TYPES[place.dtype]
        return torch.frombuffer(values, dtype=dtype).reshape(place.shape) if values else torch.empty(
            place.shape, dtype=dtype
        )  # fmt: skip


def _check_places(slices: list[Slice], size: int) -> None:
    """Check that the tensors follow one another, and fill the file.

    Raises:
        ValueError: if they do not.
    """
    end = 0
    for place in sorted(slices, key=lambda each: (each.start, each.end)):
        if place.start != end:
            raise ValueError
        end = place.end
    if end != size:
        raise ValueError
