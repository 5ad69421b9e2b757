"""`cloister check` says how fast records are read, and whether a step fits in memory."""

import re
from dataclasses import replace

import pytest
import torch

from client.settings import read_site
from client.site import Site
from client.work import room
from privacy.errors import ConfigError
from tests.client.data.data_sets import Streamed
from tests.federations import SETTINGS, FederationMaker, task_name


@pytest.mark.parametrize("task", [SETTINGS.task, task_name(Streamed)], ids=["memory", "data set"])
def test_how_records_are_read_is_said(make_federation: FederationMaker, task: str) -> None:
    site = Site(read_site(make_federation(replace(SETTINGS, task=task)).paths["north"]))
    said = room.reading(site)
    if task == SETTINGS.task:
        assert said == "all records are in memory"
    else:
        assert re.fullmatch(rf"[0-9]+ records a second for {task}, with loader_workers = 0", said)


def test_a_step_that_does_not_fit_is_reported_with_what_to_do(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(read_site(make_federation().paths["north"]))
    needs = rf"{SETTINGS.task} needs [0-9]+ MB, with [0-9]+ records at a time; [0-9]+ MB are free"
    assert re.fullmatch(needs, room.memory(site))
    monkeypatch.setattr(room, "free_memory", lambda _: 10)
    with pytest.raises(ConfigError, match=r"0 MB are free; set a smaller physical_batch in \[training\]"):
        room.memory(site)
    monkeypatch.setattr(room, "free_memory", lambda _: None)
    assert "free" not in room.memory(site)


def test_this_machine_has_free_memory() -> None:
    free = room.free_memory(torch.device("cpu"))
    assert free is None or free > 1 << 20
