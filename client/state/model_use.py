"""Save the frozen part of a model for a run to start from, and load a run's model to use it.

from cloister import load_model, save_frozen

save_frozen(model, path)           # once, for all sites: [start] names the digest that it returns
model = load_model(MyTask(), path)  # at a site, after a run
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import file_digest
from typing import TYPE_CHECKING

from client.state.initial_model import find_model
from client.state.local_parameters import FOLDER, LocalParameters
from client.state.model_file import write_constants
from client.state.model_parts import layout_of, set_tensors, trained
from client.task.probe import make_model
from privacy.codec.update import Model
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
    module = make_model(task, model_seed)
    layout, held = layout_of(module, task.local), trained(module)
    vector = layout.flatten({name: held[name].detach().cpu().numpy() for name, _ in layout.shapes})
    model = find_model(path.parent, _digest(path), Model(vector, layout), str(path.parent))
    own = LocalParameters(path.parent.parent / FOLDER).load(model.run, layout.local) if personal else None
    set_tensors(module, replace(model, local=own or {}))
    return module.eval()


def _digest(path: Path) -> str:
    with open_file(path) as file:
        return file_digest(file, "sha256").hexdigest()
