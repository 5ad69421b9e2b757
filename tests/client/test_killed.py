"""Killed wherever and as often as may be, a site has charged for all that left it, and for one round more at most."""

import json
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import MessageType

from privacy.accounting.accounting import Mechanism, epsilon
from privacy.run.settings import Encryption
from simulations.engine.federation import Federation
from tests.client.killed import main
from tests.federations import NOISY, FederationMaker, models_of
from tests.forked import Forked


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize(("kills", "rounds"), [(10, 3), pytest.param(100, 10, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "encryption",
    [
        pytest.param(NOISY.encryption, id="without masks", marks=pytest.mark.soak),
        pytest.param(replace(NOISY.encryption, collusion_resistant=True), id="with masks"),
    ],
)
def test_a_site_that_is_killed_often_has_charged_for_all_that_left_it(
    make_federation: FederationMaker, encryption: Encryption, kills: int, rounds: int
) -> None:
    federation = make_federation(replace(NOISY, rounds=rounds, encryption=encryption))
    outcome = killed(federation, kills, seed=int(encryption.collusion_resistant))
    assert len(outcome["deaths"]) == kills
    assert MessageType.TRAIN in {kind for kind, *_ in outcome["deaths"]}
    cost = Mechanism(2.0, 1.0, 1)
    for left, charged in outcome["seen"]:
        assert epsilon([cost] * left, 1e-5) <= epsilon([cost] * charged, 1e-5)
        assert charged - left <= 1
    assert set(outcome["left"]) == {1}  # asked again, the site sent the same bytes
    assert len(set(models_of(federation).values())) == 1


def killed(federation: Federation, kills: int, *, seed: int) -> dict[str, Any]:
    process = Forked(federation.folder / "killed.log", main, str(federation.folder), str(kills), str(seed), env={})
    code, message = process.wait(110), process.log.read_text(encoding="utf-8")
    assert code == 0, message[-3000:]
    report: dict[str, Any] = json.loads(message.splitlines()[-1])
    return report
