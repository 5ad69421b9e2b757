"""A federation as it is deployed: agents are killed, and the run goes on; the server's disk and process hold no secret.

Server and agents are processes that do what `cloister server` and `cloister agent` do. Files in the sites' folders make
a task stop where a test wants to have it (see `tests.studies.Held`), so that what happens here happens in this order:

    round 1   waits for east until the deadline; north, south and west train; east comes meanwhile
    round 2   west is killed while it trains; the others make three
    round 3   east is killed while it trains; two are too few
    round 4   west is back, and makes three with north and south; east comes back meanwhile
    round 5   all four
    round 6   all four
"""

import json
import time
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from numpy.typing import NDArray

from client.dpsgd.training_steps import train
from client.flower import open_site
from client.round.admission import admit
from client.round.aggregate import open_sum
from client.site import Site
from cloister.local import start_server
from cloister.processes import Processes
from privacy.codec.packing import pack
from privacy.codec.update import privatise
from privacy.noise.randomness import Randomness
from privacy.run.manifest import Manifest
from privacy.run.plan import RoundPlan, read_plan
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation
from simulations.engine.results import Results, read_results
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    await_condition,
    charges_of,
    roster_of,
    rounds_of,
    signed_run,
    sums_of,
    task_name,
    with_deadline,
)
from tests.forked import ForkedAgents
from tests.ports import unused_port
from tests.privacy.consortium import CHARGE
from tests.studies import HOLD, HOLD_LOADING, HOLD_SPARE, MET, SPARE, Held

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]

DEADLINE = 4.0  # seconds of a round; nothing that takes long happens within one
LONG = 90.0  # seconds; starting an agent takes a few, many at once on a busy machine more
WINDOW = 16  # bytes


@dataclass(frozen=True)
class Disturbed:
    """What was left of a run in which agents were killed."""

    federation: Federation
    rounds: list[dict[str, Any]]
    results: Results
    maps: str  # of the server's process, while it worked


class Conductor:
    """Starts and stops the parties of one federation."""

    def __init__(self, processes: Processes, federation: Federation) -> None:
        self._processes, self.federation = processes, federation
        self._killed: set[str] = set()

    @property
    def maps(self) -> str:
        """What the server's process has in its memory."""
        process, _ = self._processes._children["server"]
        return Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")

    def boot(self, site: str, *, spare: bool = False) -> None:
        """Start an agent, which waits when it has loaded everything but the records."""
        self.hold(site, HOLD_SPARE if spare else HOLD_LOADING)
        path, name = self.federation.paths[site], site + SPARE * spare
        env = {SPARE: "1"} if spare else {}
        self._processes.start(name, path / f"{name}.log", "agent", str(path), env=env)

    def join(self, *sites: str, spare: bool = False) -> None:
        """Let agents that were started go on, at the same time, and wait until they are online."""
        for site in sites:
            self.let_go(site, HOLD_SPARE if spare else HOLD_LOADING)
        for site in sites:
            self._processes.wait_for_line(site + SPARE * spare, "online at", LONG)

    def kill(self, site: str) -> None:
        """Kill an agent that a file holds."""
        process, _ = self._processes._children[site]
        self._killed.add(site)
        process.kill()
        process.wait(LONG)
        self.let_go(site)

    def hold(self, site: str, where: str = HOLD) -> None:
        (self.federation.paths[site] / where).touch()

    def held(self, site: str, where: str = HOLD) -> None:
        met = (self.federation.paths[site] / where).with_suffix(MET)
        self._until(met.exists)
        met.unlink()

    def let_go(self, site: str, where: str = HOLD) -> None:
        (self.federation.paths[site] / where).unlink()

    def wait_for_update(self, site: str, number: int) -> None:
        """Wait until a site has made its update of a round."""
        self._until(lambda: _last_made(self.federation.paths[site]) >= number)

    def over(self, number: int) -> None:
        """Wait until a round is over."""
        self._until(lambda: len(rounds_of(self.federation)) >= number)

    def _until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition, as long as no process ends of itself."""
        await_condition(lambda: holds() or bool(self._processes.ended().keys() - self._killed), LONG)
        assert holds(), {name: self._processes.tail(name, 30) for name in self._processes.ended()}


def _last_made(folder: Path) -> int:
    notes = [json.loads(file.read_bytes().partition(b"\n")[0]) for file in folder.glob("outbox/*.update")]
    return max((int(json.loads(note["plan"])["round"]) for note in notes), default=0)


@pytest.fixture(scope="module")
def disturbed(federation_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    settings = with_deadline(replace(SETTINGS, task=task_name(Held), rounds=6), DEADLINE)
    # Metrics are not shared, so that the task's loss is asked for in training alone.
    terms = replace(TERMS, tasks=(settings.task,), disclose=("epsilon",))
    address = f"localhost:{unused_port()}"
    make_federation = FederationMaker(federation_keys, tmp_path_factory.mktemp("disturbed"))
    federation = make_federation(settings, dict.fromkeys(SITES, terms), address)
    (federation.server / "consortium.toml").write_text(f'consortium = "demo"\nlisten = "{address}"\n', encoding="utf-8")
    with ForkedAgents(server=False) as processes:
        run = Conductor(processes, federation)
        for site in SITES:
            run.boot(site)
        for site in ("east", "west"):
            run.boot(site, spare=True)
            run.held(site, HOLD_SPARE)
        for site in SITES:
            run.held(site, HOLD_LOADING)
        assert start_server(processes, federation) == address

        run.hold("north")
        run.join("north", "south", "west")
        run.held("north")  # in round 1
        run.wait_for_update("south", 1)
        run.wait_for_update("west", 1)
        run.join("east")
        run.hold("west")
        run.let_go("north")

        run.held("west")  # in round 2
        run.wait_for_update("north", 2)
        run.wait_for_update("east", 2)
        run.hold("east")
        maps = run.maps
        run.kill("west")
        run.over(2)

        run.held("east")  # in round 3
        run.wait_for_update("north", 3)
        run.hold("north")
        run.kill("east")
        run.over(3)

        run.join("west", spare=True)
        run.held("north")  # in round 4
        run.join("east", spare=True)
        run.let_go("north")
        assert processes._children["server"][0].wait(LONG) == 0, processes.tail("server", 30)
    return Disturbed(federation, rounds_of(federation), read_results(federation), maps)


def test_a_round_in_which_an_agent_is_killed_closes_at_its_deadline_with_the_others(disturbed: Disturbed) -> None:
    first, second, *_ = disturbed.rounds
    assert sorted(first["sites"]) == ["north", "south", "west"]
    assert sorted(second["cohort"]) == sorted(SITES)
    assert sorted(second["sites"]) == ["east", "north", "south"]
    assert second["problems"] == {"west": "no update by the round's deadline"}
    assert second["released"]
    assert DEADLINE <= second["seconds"] < 2 * DEADLINE


def test_a_round_in_which_too_few_are_left_releases_nothing(disturbed: Disturbed) -> None:
    third = disturbed.rounds[2]
    assert sorted(third["cohort"]) == ["east", "north", "south"]
    assert sorted(third["sites"]) == ["north", "south"]
    assert not third["released"]
    assert "2 of the 3 sites that the round needs" in third["reason"]
    assert third["problems"] == {"east": "no update by the round's deadline", "west": "it is not online"}


def test_the_run_goes_on_when_the_agents_are_back_and_all_end_with_the_same_file(disturbed: Disturbed) -> None:
    later = disturbed.rounds[3:]
    assert [sorted(event["sites"]) for event in later] == [["north", "south", "west"], sorted(SITES), sorted(SITES)]
    assert [event["problems"] for event in later] == [{"east": "it is not online"}, {}, {}]
    assert set(disturbed.results.digests) == set(SITES)
    assert len(set(disturbed.results.digests.values())) == 1


def test_a_killed_agent_is_charged_for_what_it_may_have_sent_and_once_more_at_most(disturbed: Disturbed) -> None:
    expected = {site: sum(site in event["cohort"] for event in disturbed.rounds) for site in SITES}
    added = {site: sum(site in event["sites"] for event in disturbed.rounds) for site in SITES}
    charges = {site: charges_of(disturbed.federation, site) for site in SITES}
    assert charges == expected
    assert all(charges[site] == added[site] + (site in {"west", "east"}) for site in SITES)


def test_the_servers_process_has_loaded_nothing_that_trains_or_decrypts(disturbed: Disturbed) -> None:
    mapped = {line.split(maxsplit=5)[-1] for line in disturbed.maps.splitlines() if "/" in line}
    assert any("grpc" in name for name in mapped)  # this is the server's process
    for name in ("torch", "tenseal", "_sealapi", "opacus"):
        assert not [path for path in mapped if name in path]


# --- The server's disk ----------------------------------------------------------------------------------------------


def test_nothing_that_the_server_wrote_holds_a_piece_of_a_sites_key(disturbed: Disturbed) -> None:
    secrets = _site_secrets(disturbed.federation)
    assert len(secrets) == 1 + 3 * len(SITES)
    windows = {piece for secret in secrets for spelled in _spellings(secret) for piece in _pieces(spelled)}
    for path, data in _written(disturbed.federation).items():
        assert not windows & _pieces(data), path


def test_the_search_would_find_a_key(disturbed: Disturbed, tmp_path: Path) -> None:
    key = next(secret for secret in _site_secrets(disturbed.federation) if len(secret) > 1000)
    for leak in (key[777 : 777 + WINDOW], key[778:800].hex().encode(), b64encode(key[779:810])):
        (tmp_path / "leak").write_bytes(b"before" + leak + b"after")
        pieces = _pieces((tmp_path / "leak").read_bytes())
        assert any(piece in pieces for spelled in _spellings(key) for piece in _pieces(spelled))


def test_nothing_that_the_server_wrote_holds_a_weight_of_a_model_or_an_update(disturbed: Disturbed) -> None:
    vectors = _models_and_updates(disturbed)
    released = [event for event in disturbed.rounds if event["released"]]
    assert len(vectors) == 1 + len(released) + 3 * sum(len(event["sites"]) for event in released)
    written = _written(disturbed.federation)
    assert len(sums_of(disturbed.federation)) == len(released)
    for path, data in written.items():
        for vector in vectors:
            for kind in ("<f4", "<f8", ">f4", ">f8"):
                pairs = np.stack([vector[:-1], vector[1:]], axis=1).astype(kind)  # a single value may occur by chance
                assert not [pair for pair in pairs if pair.all() and pair.tobytes() in data], path
            for value in vector.tolist():
                assert value == round(value, 3) or f"{value:.6f}".encode() not in data, path


def _written(federation: Federation) -> dict[Path, bytes]:
    """Everything on the server's disk that it wrote itself, and what it was given: sites' keys are in neither."""
    return {path: path.read_bytes() for path in federation.server.rglob("*") if path.is_file()}


def _site_secrets(federation: Federation) -> list[bytes]:
    secrets = {file.read_bytes() for site in SITES for file in federation.paths[site].glob("keys/epochs/*.key")}
    assert secrets
    secrets |= {(federation.paths[site] / "keys" / "sealing.key").read_bytes() for site in SITES}
    for site in SITES:
        for name in ("signing.key", "tls.key"):
            key = load_pem_private_key((federation.paths[site] / "keys" / name).read_bytes(), password=None)
            if isinstance(key, Ed25519PrivateKey):
                secrets.add(key.private_bytes_raw())
            elif isinstance(key, EllipticCurvePrivateKey):
                secrets.add(key.private_numbers().private_value.to_bytes(32, "big"))
    return sorted(secrets)


def _spellings(secret: bytes) -> list[bytes]:
    return [secret, secret.hex().encode(), *(b64encode(secret[start:]) for start in range(3))]


def _pieces(data: bytes) -> set[bytes]:
    """Every piece of 16 bytes, but for those that are nearly all alike."""
    pieces = {data[start : start + WINDOW] for start in range(len(data) - WINDOW + 1)}
    return {piece for piece in pieces if len(set(piece)) > 3}


def _models_and_updates(disturbed: Disturbed) -> list[NDArray[np.float32]]:
    """Rebuild everything that the run's sums were made from: the run has a seed and no noise.

    Every model; of every update what training changed, what the site sent, and what that left over.
    """
    federation = disturbed.federation
    document, manifest, run = signed_run(federation)
    folder = federation.folder / "again"
    if not folder.exists():
        folder.mkdir()
        for site in SITES:
            copytree(federation.paths[site], folder / site)
            for file in (*(folder / site).glob("models/*"), *(folder / site).glob("outbox/*")):
                file.unlink()
    sites = {site: open_site(folder / site) for site in SITES}
    runs = {name: admit(site, document) for name, site in sites.items()}
    model = sites["north"].checkpoint(manifest, run).model
    vectors = [model.vector.copy()]
    for total in sums_of(federation):
        plan = read_plan(total.plan)
        for site in disturbed.rounds[plan.round - 1]["sites"]:
            vectors += _made_again(sites[site], manifest, plan)
        models = {model.digest: model for model in (open_sum(keys, total).model for keys in runs.values())}
        ((_, model),) = models.items()
        vectors.append(model.vector.copy())
    assert model.digest == disturbed.results.model
    for site in SITES:
        residuals = [file.read_bytes() for at in (federation.paths[site], folder / site)
                      for file in at.glob("outbox/*.residual")]  # fmt: skip
        assert len(residuals) == 2
        assert residuals[0] == residuals[1]  # killed or not, a site carried on just what its updates had left over
    return vectors


def _made_again(site: Site, manifest: Manifest, plan: RoundPlan) -> list[NDArray[np.float32]]:
    """Make a site's update of a round; return what training changed, what was sent, and what that left over."""
    checkpoint, study = site.checkpoint(manifest, plan.run), site.study(manifest.settings.task)
    module = study.load_into(study.module(manifest.settings.model_seed), checkpoint.model)
    randomness = {
        purpose: Randomness.seeded(SETTINGS.seed or 0, site.name, plan.round, plan.attempt, purpose)
        for purpose in ("training", "rounding")
    }
    size = manifest.settings.cohort.sizes[site.name]
    train(study.task, module, study.training, size, manifest, randomness["training"])
    update = privatise(study.difference(module, checkpoint.model), CHARGE)
    changed = update.vector.copy()
    site.residuals.add_to(update.vector, plan.run)
    sent = update.vector.copy()
    packing = replace(manifest.packing, update_bound=checkpoint.update_bound)
    packed = pack(update, manifest.weight(site.name), packing, randomness["rounding"])
    for _ in packed.blocks:
        pass
    site.residuals.keep(plan, packed.residual)
    return [changed, sent, packed.residual]


# --- Agents that cannot begin ---------------------------------------------------------------------------------------


def test_an_agent_process_reports_within_seconds_why_it_cannot_start(
    make_federation: FederationMaker, tmp_path: Path
) -> None:
    federation = make_federation()
    place, roster = read_consortium(federation.server), roster_of(federation)
    members = tuple(member for member in roster.members if member.site != "west")
    hub = Hub(replace(roster, members=members), Mailboxes({member.node_id for member in members}), 1 << 20)
    address = f"localhost:{hub.start('localhost:0', place.tls)}"
    strangers = Federation.create(tmp_path / "strangers", SITES)
    (strangers.paths["north"] / TERMS.file).write_bytes((federation.paths["north"] / TERMS.file).read_bytes())
    strangers.write_settings("north", address, TERMS)
    federation.write_settings("west", address, TERMS)
    nowhere = "localhost:1"
    federation.write_settings("south", nowhere, TERMS)
    try:
        with ForkedAgents() as processes:
            started = time.monotonic()
            north, south, west = strangers.paths["north"], federation.paths["south"], federation.paths["west"]
            Processes.start(processes, "stranger", north / "agent.log", "agent", str(north))  # not forked: it loads all
            processes.start("unreachable", south / "agent.log", "agent", str(south))
            processes.start("west", west / "agent.log", "agent", str(west))
            message = processes.wait_for_line("stranger", "✗ ", LONG)
            assert address in message
            assert "did not issue" in message
            assert nowhere in processes.wait_for_line("unreachable", "cannot reach the server at", LONG)
            assert time.monotonic() - started < 30  # loaded machines: one of them loads torch

            processes.wait_for_line("west", "data: ", LONG)
            up = time.monotonic()
            message = processes.wait_for_line("west", "✗ ", LONG)
            assert time.monotonic() - up < 15
            assert f"the server at {address} refuses this site" in message

            codes = {name: processes._children[name][0].wait(LONG) for name in ("stranger", "west")}
            assert codes == {"stranger": 1, "west": 1}
            assert "unreachable" not in processes.ended()  # it goes on trying
            for name in ("stranger", "unreachable", "west"):
                assert "Traceback" not in processes.tail(name, 1000)
    finally:
        hub.stop(grace=0)
