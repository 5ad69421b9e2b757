"""A site whose ledger was restored from an old backup, or deleted, takes part in nothing and charges nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from shutil import rmtree
from typing import TYPE_CHECKING

import pytest

from client.flower import app as client_app
from tests.federations import NOISY, charges_of, node_of, restart, run_with, with_deadline
from transport.ledger_head import read_head

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Context, Message

    from simulations.engine.federation import Federation
    from tests.federations import FederationMaker

REASON = "“A privacy ledger could not be read, trusted or written; the reason is in the site's own log”"


def ledger_of(federation: Federation, site: str = "north") -> Path:
    (path,) = (federation.paths[site] / "ledger").iterdir()
    return path


@pytest.mark.parametrize("loss", ["an old copy", "none"])
def test_an_old_copy_and_a_deleted_ledger_are_noticed_in_the_next_run(
    make_federation: FederationMaker, loss: str
) -> None:
    federation = make_federation(replace(NOISY, rounds=2))
    run_with(federation)
    path = ledger_of(federation)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    if loss == "none":
        path.unlink()
    before = charges_of(federation, "north")
    restart(federation, "north")
    federation.sign(replace(NOISY, name="again"))
    (done,) = run_with(federation)
    assert done["sites"] == ["east", "south", "west"]
    assert done["problems"] == {"north": REASON}
    assert charges_of(federation, "north") == before


def test_a_whole_ledger_takes_part_in_run_after_run(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY)
    for name in ("one", "two", "three"):
        federation.sign(replace(NOISY, name=name))
        (done,) = run_with(federation)
        assert (len(done["sites"]), done["problems"]) == (4, {})
    stored = json.loads((federation.server / "ledger-heads.json").read_bytes())
    for site in federation.sites:
        assert stored[site]["head"] == ledger_of(federation, site).read_text().splitlines()[-1][:64]
    assert "lineage" not in (federation.server / "ledger-heads.json").read_text()


def test_a_ledger_that_is_restored_while_a_run_goes_on_is_noticed_in_the_next_round(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(with_deadline(replace(NOISY, rounds=3), 20.0))
    north = node_of(federation, "north")

    def restored(message: Message, context: Context) -> Message:
        if context.node_id == north and message.metadata.message_type == "train":
            path = ledger_of(federation) if charges_of(federation, "north") else None
            if path and charges_of(federation, "north") == 2:
                path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
        return client_app(message, context)

    *_, last = run_with(federation, restored)
    assert last["problems"]["north"] == REASON
    assert charges_of(federation, "north") == 1


def test_nodes_with_other_numbers_get_the_head_once_they_name_their_site(make_federation: FederationMaker) -> None:
    # On Flower's own engines nodes have any numbers: only a site's signed answer tells whose head to send.
    federation = make_federation(NOISY)
    run_with(federation)
    path = ledger_of(federation)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    rmtree(federation.paths["north"] / "ledger-heads")  # by which the site would notice itself
    restart(federation, "north")
    federation.sign(replace(NOISY, name="again"))
    own = node_of(federation, "north")
    heads_asked: list[bool] = []

    def elsewhere(message: Message, context: Context) -> Message:
        if context.node_id == own:
            raise AssertionError
        if context.node_id == 7:
            heads_asked.append(read_head(message.content) is not None)
        return client_app(message, context)

    (done,) = run_with(federation, elsewhere, {7: "north"})
    assert heads_asked == [False, True]
    assert "north" not in done["sites"]
