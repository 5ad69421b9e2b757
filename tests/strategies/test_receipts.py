"""A site whose update is not in a sum gets the reason in a receipt that the server signed and the site keeps."""

import json
from typing import Any

import pytest

from client.flower import open_site
from client.round.receipts import keep_receipt
from privacy.run.plan import read_plan
from simulations.engine.federation import Federation
from tests.federations import SITES, FederationMaker, run_with
from tests.strategies.hostile import HONEST, HOSTILE, resigned, sending
from transport.receipts import Receipt


def receipts_of(federation: Federation, site: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_bytes()) for path in sorted((federation.paths[site] / "receipts").glob("*.json"))]


@pytest.mark.parametrize("tls", [True, False], ids=["signed", "of a server without a key"])
def test_a_site_left_out_of_a_sum_keeps_the_servers_receipt(make_federation: FederationMaker, *, tls: bool) -> None:
    federation = make_federation()
    if not tls:
        (federation.server / "tls.key").unlink()
    (event,) = run_with(federation, sending(federation, lambda keys, update: resigned(keys, update, update_bound=0.5)))
    assert event["sites"] == HONEST
    (receipt,) = receipts_of(federation, HOSTILE)
    assert receipt["signed"] == tls
    assert receipt["reason"] == event["problems"][HOSTILE]
    assert json.loads(receipt["plan"])["round"] == 1
    assert [receipts_of(federation, site) for site in SITES if site != HOSTILE] == [[]] * 3
    site, plan = open_site(federation.paths[HOSTILE]), read_plan(receipt["plan"].encode())
    keep_receipt(site, plan, Receipt("it was not I", b"", b""))  # later: what was signed stays
    assert (receipts_of(federation, HOSTILE) == [receipt]) == tls
