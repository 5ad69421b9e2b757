"""Five sites with masks, one of which is killed: before it has sent its update, and in another run while it sends it.

Server and agents are processes. Between each agent and the server stands a relay, which counts all that the site sends.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cloister.local import start_server
from privacy.run.settings import Cohort, RunSettings, Training
from simulations.engine.federation import Federation
from simulations.engine.results import read_results
from simulations.tasks.idle import PARAMETERS
from tests.federations import NOISY, TERMS, await_condition, charges_of, rounds_of, task_name, with_deadline
from tests.forked import ForkedAgents
from tests.ports import unused_port
from tests.server.relays import Relay
from tests.studies import HOLD, HOLD_SPARE, MET, SPARE, Weighty

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]

SITES = ("east", "north", "ridge", "south", "west")
VICTIM = "west"
OTHERS = tuple(site for site in SITES if site != VICTIM)
SIZE = 100_000  # parameters: an update is far larger than all other messages of a run
HALF = 150_000  # bytes of it, about
ROUNDS = 2
DEADLINE = 10.0  # seconds, that a round waits for the victim
LONG = 180.0

RUN = replace(
    NOISY, task=task_name(Weighty), rounds=ROUNDS,
    training=Training(steps_per_round=0, sample_rate=1.0, learning_rate=0.1),
    encryption=replace(NOISY.encryption, collusion_resistant=True),
    cohort=Cohort(dict.fromkeys(SITES, 20), minimum=3, round_deadline_seconds=DEADLINE),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What was left of a run in which a site was killed."""

    rounds: list[dict[str, Any]]
    sent: dict[str, int]  # bytes, by site
    updates: dict[str, int]  # bytes of the last update
    charges: dict[str, int]  # of this run
    models: set[str]


@dataclass
class Stage:
    """A federation whose agents run, each behind its relay."""

    federation: Federation
    processes: ForkedAgents
    relays: dict[str, Relay]

    def start(self, site: str, *, spare: bool = False) -> None:
        """Start an agent; a spare one waits when it has loaded all but the records."""
        path, name, env = self.federation.paths[site], site + SPARE * spare, {PARAMETERS: str(SIZE)}
        self.processes.start(name, path / f"{name}.log", "agent", str(path), env=env | ({SPARE: "1"} if spare else {}))

    def kill(self, name: str = VICTIM) -> None:
        """Kill the victim's agent."""
        process, _ = self.processes._children[name]
        process.kill()
        process.wait(LONG)

    def warm_up(self) -> None:
        """Start all agents, and take them through a run, for which they have time."""
        self.hold(HOLD_SPARE)
        self.start(VICTIM, spare=True)
        self.held(HOLD_SPARE)
        self.begin(replace(with_deadline(RUN, LONG), rounds=1))
        for site in SITES:
            self.start(site)
        self.end({})

    def hold(self, where: str) -> None:
        """Have the victim stop there."""
        (self.federation.paths[VICTIM] / where).touch()

    def held(self, where: str) -> None:
        """Wait until it has."""
        await_condition((self.federation.paths[VICTIM] / where).with_suffix(MET).exists, LONG)

    def let_go(self, where: str) -> None:
        """Have it go on."""
        (self.federation.paths[VICTIM] / where).unlink()

    def begin(self, settings: RunSettings = RUN) -> dict[str, int]:
        """Sign a run, and start its server; return how many charges are in the ledgers."""
        self.federation.sign(settings)
        for relay in self.relays.values():
            relay.sent = 0
        charges = {site: charges_of(self.federation, site) for site in SITES}
        start_server(self.processes, self.federation)
        return charges

    def end(self, before: dict[str, int]) -> Run:
        """Wait until the run is over."""
        process, _ = self.processes._children["server"]
        assert process.wait(LONG) == 0, self.processes.tail("server", 30)
        paths = self.federation.paths
        return Run(
            rounds=rounds_of(self.federation),
            sent={site: relay.sent for site, relay in self.relays.items()},
            updates={site: _last_update(paths[site]) for site in SITES},
            charges={site: charges_of(self.federation, site) - before.get(site, 0) for site in SITES},
            models={digest for site, digest in read_results(self.federation).digests.items() if site != VICTIM},
        )


def _last_update(folder: Path) -> int:
    """The size of the last update that a site made: its header, signature and ciphertexts."""
    newest = max(folder.glob("outbox/*.update"), key=lambda path: path.stat().st_mtime_ns)
    note = json.loads(newest.read_bytes().partition(b"\n")[0])
    return len(note["header"]) + len(note["signature"]) // 2 + sum(map(int, note["chunks"]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    federation = Federation.create(tmp_path_factory.mktemp("dropouts") / "federation", SITES)
    port = unused_port()
    settings = federation.server / "consortium.toml"
    settings.write_text(settings.read_text().replace(":0", f":{port}"))
    relays = {site: Relay(port) for site in SITES}
    for site, path in federation.paths.items():
        (path / TERMS.file).write_text("0\n" * 20)
        federation.write_settings(site, f"localhost:{relays[site].port}", replace(TERMS, tasks=(RUN.task,)))
    try:
        with ForkedAgents() as processes:
            stage = Stage(federation, processes, relays)
            stage.warm_up()
            yield {"before": _killed_before_it_sends(stage), "while": _killed_while_it_sends(stage)}
    finally:
        for relay in relays.values():
            relay.close()


def _killed_before_it_sends(stage: Stage) -> Run:
    stage.hold(HOLD)
    before = stage.begin()
    stage.held(HOLD)
    stage.kill()
    stage.let_go(HOLD)
    return stage.end(before)


def _killed_while_it_sends(stage: Stage) -> Run:
    relay = stage.relays[VICTIM]
    relay.most = HALF
    stage.let_go(HOLD_SPARE)
    before = stage.begin()
    assert relay.full.wait(LONG)
    stage.kill(VICTIM + SPARE)
    return stage.end(before)


@pytest.fixture(params=["before", "while"])
def run(runs: dict[str, Run], request: pytest.FixtureRequest) -> Run:
    return runs[request.param]


def test_every_round_closes_with_the_updates_of_the_other_sites(run: Run) -> None:
    assert len(run.rounds) == ROUNDS
    for event in run.rounds:
        assert event["released"], event
        assert (sorted(event["sites"]), event["attempts"]) == (list(OTHERS), 1)
    assert sorted(run.rounds[0]["cohort"]) == list(SITES)
    assert run.rounds[0]["problems"] == {VICTIM: "no update by the round's deadline"}
    assert len(run.models) == 1


def test_no_byte_of_an_update_is_sent_twice(run: Run) -> None:
    first, last = (event["bytes_up"] for event in run.rounds)
    assert last == sum(run.updates[site] for site in OTHERS)
    assert first == pytest.approx(last, rel=1e-3)
    for site in OTHERS:
        assert ROUNDS <= run.sent[site] / run.updates[site] < ROUNDS + 0.5


def test_nobody_is_charged_twice(run: Run) -> None:
    assert run.charges == dict.fromkeys(OTHERS, ROUNDS) | {VICTIM: 1}


def test_the_victim_was_killed_where_it_should(runs: dict[str, Run]) -> None:
    """It had sent nothing of its update, or a part."""
    before, meanwhile = (runs[name].sent[VICTIM] for name in ("before", "while"))
    update = runs["while"].updates[VICTIM]
    assert before < update / 4 < meanwhile < update
