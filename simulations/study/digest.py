"""A digest of all that the result of a simulation depends on."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from simulations.study.run_settings import as_toml

if TYPE_CHECKING:
    from collections.abc import Iterable

    from client.data.inputs import Inputs
    from simulations.pools import Pool
    from simulations.study.runner import Study


def digest_of(study: Study, *options: object) -> str:
    """Return SHA-256, in hex, of what the result of a study depends on: settings, model, records, sites, chance."""
    simulation, site_noise = study.simulation, study.simulation.site_noise
    model = simulation.start()
    hashed = sha256()
    said = (
        "cloister simulation 1", as_toml(simulation.settings), study.engine.name, simulation.task_name,
        str(simulation.population), simulation.device.type, site_noise and site_noise.settings, model.digest,
        study.personal, *options,
    )  # fmt: skip
    hashed.update(json.dumps([str(text) for text in said]).encode())
    for pool in (simulation.records.pool, study.test):
        _add(hashed, pool)
    held_out = study.held_out.parts if study.held_out else {}
    for part in (*simulation.records.parts.values(), *held_out.values()):
        hashed.update(np.ascontiguousarray(part, np.int64).data)
    return hashed.hexdigest()


def _add(hashed: Any, pool: Pool) -> None:  # noqa: ANN401 - a hash of hashlib
    for tensor in (*_tensors(pool.inputs), pool.targets):
        hashed.update(json.dumps([str(tensor.dtype), *tensor.shape]).encode())
        hashed.update(tensor.contiguous().view(-1).numpy().data.cast("B"))


def _tensors(inputs: Inputs) -> Iterable[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    return inputs.values() if isinstance(inputs, dict) else inputs
