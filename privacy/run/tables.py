"""The smaller tables and choices of `run.toml`, which know nothing of the others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, Hex32

Clipping = Literal["flat", "per_layer"]
"""Whether a record's gradient is clipped as a whole, to C, or layer by layer, to C/√L in each of L layers."""


@dataclass(frozen=True, config=STRICT)
class Vote:
    """`[vote]`: after each round every site votes with one bit whether the model got worse: `privacy.run.votes`."""

    epsilon: Annotated[float, Field(gt=0, le=20)]  # of one vote
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # how much larger the loss on held-out records may be


@dataclass(frozen=True, config=STRICT)
class Start:
    """`[start]`: the model from which a run starts, instead of an untrained one."""

    model: Hex32  # SHA-256 of its file, which every site must already have
