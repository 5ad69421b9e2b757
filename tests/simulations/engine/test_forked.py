"""Processes that a simulation or a search forks leave alone what this process has not freed yet."""

from __future__ import annotations

import gc
import os
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any

import pytest
from typing_extensions import override

from cloister import simulate, tune
from tests.simulations.study.test_simulate import INPUTS, PLAIN, TARGETS, Sign

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor


class Collecting(Sign):
    """Collects garbage in a forked process."""

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if parent_process():
            gc.collect()
        return super().loss(outputs, targets)


class Garbage:
    """Notes which process frees it."""

    def __init__(self, notes: Path) -> None:
        self.me, self.notes = self, notes

    def __del__(self) -> None:
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")


def _search(*given: Any, **options: Any) -> None:  # noqa: ANN401 - as for `simulate`
    pytest.importorskip("optuna", reason="the extra simulation is not installed")
    tune(*given, space={"training.learning_rate": [0.1, 0.2]}, trials=2, engine="vectorised", **options)


def _simulation(*given: Any, **options: Any) -> None:  # noqa: ANN401
    simulate(*given, engine="processes", **options)


@pytest.mark.parametrize("play", [_search, _simulation])
def test_a_forked_process_frees_no_garbage_of_its_parent(play: Callable[..., None], tmp_path: Path) -> None:
    gc.disable()
    try:
        Garbage(tmp_path / "notes")
        play(Collecting, (INPUTS, TARGETS), PLAIN, sites=2, processes=2)
    finally:
        gc.enable()
    gc.collect()
    assert (tmp_path / "notes").read_text(encoding="utf-8") == f"{os.getpid()}\n"
