"""Save the frozen part of a model for a run to start from, and load a run's model to use it.

from cloister import load_model, load_personal, save_frozen

save_frozen(model, path)               # once, for all sites: [start] names the digest that it returns
model = load_model(MyTask(), path)     # at a site, after a run
model = load_personal(MyTask(), path)  # the model that this site trained for itself
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import file_digest
from typing import TYPE_CHECKING

import torch

from client.state.initial_model import find_model
from client.state.local_parameters import FOLDER, LocalParameters
from client.state.model_file import write_constants
from client.state.model_parts import layout_of, set_tensors, shapes_of, trained
from client.state.personal_models import FOLDER as PERSONAL
from client.state.personal_models import PersonalModels
from client.task.probe import make_model
from privacy.codec.update import Model
from privacy.errors import RefusedError
from privacy.storage import open_file

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from client.task.task import Task


def save_frozen(module: nn.Module, path: Path) -> str:
    """Write a model's frozen parameters and buffers into a safetensors file.

    Returns:
        The file's SHA-256, in hex, for `[start]`.

    Raises:
        OSError: if it cannot be written.
    """
    write_constants(path, layout_of(module))
    return _digest(path)


def load_model(task: Task, path: Path, *, personal: bool = False, model_seed: int = 0) -> nn.Module:
    """Load a run's model, on the CPU and in evaluation mode.

    The frozen part is the task's own, or in the file from which the run started; that file must be in the same folder
    or below it.

    Args:
        task: the run's task.
        path: the file in the site's `models/`.
        personal: whether to load the parameters that stayed at this site too; otherwise they are as the task makes
            them.
        model_seed: the run's.

    Raises:
        RefusedError: if the file is not one of this task, or the run started from a file that is not there.
        KeyFileError: if the file of the site's own parameters is damaged.
    """
    return _loaded(task, path, model_seed, personal=personal)[0]


def load_personal(task: Task, path: Path, *, model_seed: int = 0) -> nn.Module:
    """Load the model that this site trained for itself (`[personal]`), on the CPU and in evaluation mode.

    It was trained without noise: neither it nor what it says of the site's records may leave the site.

    Args:
        task: the run's task.
        path: the run's file in the site's `models/`.
        model_seed: the run's.

    Raises:
        RefusedError: if this site has no personal model of that run; or as `load_model` does.
        KeyFileError: if its file is damaged.
    """
    module, run = _loaded(task, path, model_seed, personal=True)
    stored = PersonalModels(path.parent.parent / PERSONAL).load(run, shapes_of(module)) if run else None
    if stored is None:
        msg = f"{path}: this site has trained no personal model in that run; set [personal] in its site.toml before"
        raise RefusedError(msg)
    held = trained(module)
    with torch.no_grad():
        for name, values in stored[0].items():
            held[name].copy_(torch.from_numpy(values))
    return module


def _loaded(task: Task, path: Path, model_seed: int, *, personal: bool) -> tuple[nn.Module, str]:
    """Return a run's model in evaluation mode, and the run's digest."""
    module = make_model(task, model_seed)
    layout, held = layout_of(module, task.local), trained(module)
    vector = layout.flatten({name: held[name].detach().cpu().numpy() for name, _ in layout.shapes})
    model = find_model(path.parent, _digest(path), Model(vector, layout), str(path.parent))
    own = LocalParameters(path.parent.parent / FOLDER).load(model.run, layout.local) if personal else None
    set_tensors(module, replace(model, local=own or {}))
    return module.eval(), model.run


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return file_digest(file, "sha256").hexdigest()
