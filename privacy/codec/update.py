"""Define models and updates. Every step that an update passes through has a type of its own.

    Update → PrivateUpdate → PackedUpdate → MaskedUpdate → TaggedUpdate → EncryptedUpdate → AuthenticatedUpdate
           → SignedUpdate → (wire) → VerifiedUpdate → EncryptedSum → Update

Each step takes one type and returns the next, so breaking the order of the protocol is a type error: an update cannot
be packed before it is charged to the ledger, encrypted before it is packed, or summed before it is verified. With
shared noise, `pack_with_share` packs an Update and its charge directly. The later types are defined next to the
functions that make them, in `privacy.codec` and `privacy.crypto`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from privacy.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from numpy.typing import NDArray

    from privacy.ledger.ledger import Charge


@dataclass(frozen=True)
class Constant:
    """A tensor of a model that no round changes: a frozen parameter or a buffer. It is never sent."""

    name: str
    dtype: str  # as a safetensors file names it: "F32", "I64", "BOOL"
    shape: tuple[int, ...]
    saved: bool  # in the model's files; the task recreates the others
    digest: str  # SHA-256, in hex, of the values
    values: NDArray[np.uint8] = field(compare=False, repr=False)  # bytes in C order, little-endian

    @classmethod
    def of(
        cls, name: str, dtype: str, shape: tuple[int, ...], values: NDArray[np.uint8], *, saved: bool = True
    ) -> Self:
        """Make a constant from its bytes."""
        return cls(name, dtype, shape, saved, sha256(values.data).hexdigest(), values)


Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes of tensors, in the order of their concatenation."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's trained tensors, in the order of their concatenation, and its constants.

    Parameters that stay at a site are trained too, but do not belong to the shared model: the digest does not cover
    them.
    """

    shapes: Shapes
    constants: tuple[Constant, ...] = ()
    local: Shapes = field(default=(), compare=False)  # trained, but never sent
    source: str = field(default="", compare=False)  # SHA-256 of the file with the constants; "" if the task makes them

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[np.float32]]) -> Self:
        """Return the layout of named tensors."""
        return cls(tuple((name, tensor.shape) for name, tensor in tensors.items()))

    @property
    def size(self) -> int:
        """How many parameters there are."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all names, shapes and constants. Sites whose digests differ do not train together."""
        hashed = sha256(b"cloister layout" + json.dumps(self.shapes).encode())
        if self.constants:
            hashed.update(b"constants" + self._beside)
        return hashed.hexdigest()

    @property
    def frozen(self) -> str:
        """SHA-256, in hex, of all constants; "" if there are none."""
        return sha256(b"cloister constants" + self._beside).hexdigest() if self.constants else ""

    @property
    def _beside(self) -> bytes:
        return json.dumps(
            [(constant.name, constant.dtype, constant.shape, constant.digest) for constant in self.constants]
        ).encode()

    def flatten(self, tensors: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Concatenate named tensors to `(size,)`."""
        return np.concatenate([np.ravel(tensors[name]) for name, _ in self.shapes])

    def unflatten(self, vector: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Split `(size,)` into named tensors."""
        cuts = np.cumsum([math.prod(shape) for _, shape in self.shapes])[:-1]
        parts = np.split(vector, cuts)
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes, parts, strict=True)}


@dataclass(frozen=True, eq=False)
class Model:
    """A model: its trained parameters as one vector `(size,)` of float32, and its layout with the constants.

    At a site it may have the site's own parameters too, by name. They belong to no digest, and never leave the site.
    """

    vector: NDArray[np.float32]
    layout: Layout
    local: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # empty: as the task makes them
    run: str = ""  # the run that made it, if it was read from a file that says so

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of layout and values: equal only for models that are equal bit for bit."""
        values = np.ascontiguousarray(self.vector, dtype="<f4")
        hashed = sha256(b"cloister model" + bytes.fromhex(self.layout.digest))
        hashed.update(values.data)
        return hashed.hexdigest()


def is_finite(vector: NDArray[np.float32]) -> bool:
    """Return whether all values are finite, without allocating an array as long as the vector."""
    return math.isfinite(vector.min(initial=0.0)) and math.isfinite(vector.max(initial=0.0))


@dataclass(frozen=True, eq=False)
class Update:
    """The local model minus the shared one, `(size,)` of float32; and what stays at the site, after training."""

    vector: NDArray[np.float32]
    local: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that are not finite.

        Raises:
            MalformedError: if a value is not finite.
        """
        if not is_finite(self.vector):
            msg = "the update contains values that are not finite; lower the learning rate or check the records"
            raise MalformedError(msg)


@dataclass(frozen=True, eq=False)
class PrivateUpdate:
    """An update whose privacy cost was in the site's ledger, on disk, before a record was read."""

    vector: NDArray[np.float32]
    charge: Charge


def privatise(update: Update, charge: Charge) -> PrivateUpdate:
    """Join an update made by DP-SGD with the charge under which it was made."""
    return PrivateUpdate(update.vector, charge)


@dataclass(frozen=True, eq=False)
class PackedUpdate:
    """An update as integers, several to a coefficient, made block by block as the blocks are taken.

    Blocks are `(n, 4096)` of uint64 below t, n = 32 for all but the last. The packed update is never whole in memory.
    """

    blocks: Iterator[NDArray[np.uint64]]
    charge: Charge
