"""Tables of `run.toml` beside training: what is measured or voted on, and the model with which a run begins."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from privacy.config import STRICT


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """`[evaluation]`: what every site adds up over its held-out records, once, about the model of `[start]`."""

    metrics: tuple[str, ...] = ("accuracy",)  # the task's, clamped to 0 … 1
    loss_bound: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # if given, the loss, clamped to it


@dataclass(frozen=True, config=STRICT)
class Vote:
    """`[vote]`: after each round every site says in one bit whether the model got worse: `privacy.votes`."""

    epsilon: Annotated[float, Field(gt=0, le=20)]  # of one vote
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # how much larger the loss on held-out records may be


@dataclass(frozen=True, config=STRICT)
class Start:
    """`[start]`: the model with which a run begins, in place of an untrained one."""

    model: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # SHA-256 of its file, which every site has already
