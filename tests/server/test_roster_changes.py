"""Members come and go while a run goes on, in processes: the run goes on under the newer roster, with new keys.

round 1   the coordinator renews the roster meanwhile, and north its certificate, of which two thirds are over
round 2   west is revoked while it and the others train
round 3   without west
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cloister.local import start_server
from privacy.run.settings import Encryption
from server.coordinator import Coordinator
from simulations.engine.federation import Federation
from simulations.engine.results import read_events
from tests.aged import age
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    models_of,
    task_name,
    with_deadline,
)
from tests.forked import ForkedAgents
from tests.ports import unused_port
from tests.server.test_processes import Conductor
from tests.studies import HOLD_LOADING, Held
from transport.pki import read_certificate, renewal_is_due

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]

DEADLINE = 10.0  # seconds of a round
LONG = 90.0
STAYED = ("north", "south", "east")


@dataclass(frozen=True)
class Changed:
    """What was left of a run during which the roster changed."""

    federation: Federation
    events: list[dict[str, Any]]
    seconds: float  # from the revocation until west's agent ended
    west: str  # what it said


@pytest.fixture(scope="module")
def changed(federation_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Changed:
    settings = replace(
        with_deadline(SETTINGS, DEADLINE), task=task_name(Held), rounds=3, encryption=Encryption(update_bound=1.0)
    )
    terms = replace(TERMS, tasks=(settings.task,), disclose=("epsilon",))
    address = f"localhost:{unused_port()}"
    make_federation = FederationMaker(federation_keys, tmp_path_factory.mktemp("changed"))
    federation = make_federation(settings, dict.fromkeys(SITES, terms), address)
    joining = '[joining]\nlisten = "localhost:0"\nauthority = "../coordinator"\n'
    (federation.server / "consortium.toml").write_text(
        f'consortium = "demo"\nlisten = "{address}"\n{joining}', encoding="utf-8"
    )
    age(federation, federation.server, days=70)
    age(federation, federation.paths["north"] / "keys", days=70, site="north")
    coordinator = Coordinator(federation.folder / "coordinator")
    with ForkedAgents() as processes:
        run = Conductor(processes, federation)
        for site in SITES:
            run.boot(site)
        for site in SITES:
            run.held(site, HOLD_LOADING)
        start_server(processes, federation)
        run.hold("north")
        run.join(*SITES)
        run.held("north")  # in round 1
        run.wait_for_update("south", 1)
        coordinator.renew()
        processes.wait_for_line("server", "took roster 2", LONG)
        run.hold("south")
        run.let_go("north")
        run.held("south")  # in round 2
        start = time.monotonic()
        coordinator.remove("west")
        assert processes._children["west"][0].wait(LONG) == 1, processes.tail("west", 20)
        seconds = time.monotonic() - start
        run.let_go("south")
        assert processes._children["server"][0].wait(LONG) == 0, processes.tail("server", 30)
        west = processes.tail("west")
    return Changed(federation, read_events(federation), seconds, west)


def test_no_round_is_lost(changed: Changed) -> None:
    rounds = [event for event in changed.events if event["event"] == "round"]
    assert [event["released"] for event in rounds] == [True] * 3, json.dumps(rounds, indent=1)
    assert sorted(rounds[0]["sites"]) == sorted(SITES)
    assert sorted(rounds[2]["sites"]) == sorted(STAYED)


def test_the_server_says_under_which_roster_it_goes_on(changed: Changed) -> None:
    rosters = [event for event in changed.events if event["event"] == "roster"]
    assert [(event["version"], len(event["sites"])) for event in rosters] == [(2, 4), (3, 3)]


def test_every_roster_has_keys_of_its_own(changed: Changed) -> None:
    epochs = [event for event in changed.events if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [2, 3]  # the first was made before
    assert sorted(epochs[1]["sites"]) == sorted(STAYED)
    assert not list((changed.federation.paths["west"] / "keys" / "epochs").glob("000003*"))


def test_who_was_revoked_is_out_within_seconds_and_knows_why(changed: Changed) -> None:
    assert changed.seconds < 15  # loaded machines: its process has to end, too
    assert "not a member of the roster" in changed.west


def test_certificates_are_renewed_meanwhile(changed: Changed) -> None:
    for files in (changed.federation.server, changed.federation.paths["north"] / "keys"):
        assert not renewal_is_due(read_certificate(files / "tls.pem"))
    log = (changed.federation.paths["north"] / "north.log").read_text(encoding="utf-8")
    assert "renewed this site's certificate, until" in log


def test_the_others_have_one_model(changed: Changed) -> None:
    models = models_of(changed.federation)
    assert len({models[site] for site in STAYED}) == 1
    assert models["west"] != models["north"]
