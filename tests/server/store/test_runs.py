"""A run on PostgreSQL goes on as one on SQLite does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from simulations.engine.results import opened_store
from tests.strategies.test_killed_server import (
    MASKED,
    Countdown,
    Killed,
    check_whole,
    go_on,
    make,
    serve_to_a_reply,
    serve_to_a_write,
    undisturbed,
)

if TYPE_CHECKING:
    from tests.federations import FederationMaker

pytestmark = pytest.mark.xdist_group("databases")


def test_a_run_on_postgresql_survives_kills_as_one_on_sqlite_does(
    make_federation: FederationMaker, database: str
) -> None:
    models, replies = undisturbed(make_federation, MASKED, serve_to_a_reply)
    federation = make(make_federation, MASKED, "postgresql")
    with (federation.server / "consortium.toml").open("a", encoding="utf-8") as settings:
        settings.write(f'\n[store]\nurl = "{database}"\n')
    for place in (9, 8):  # transactions and files
        with pytest.raises(Killed):
            serve_to_a_write(federation, Countdown(place))
    assert go_on(federation, [replies // 3], serve_to_a_reply) == 1
    check_whole(federation, models)
    assert not (federation.server / "store.sqlite").exists()
    with opened_store(federation) as (store, run):
        assert store.run(run).status == "finished"
