"""A server that stays: its runs wait, go on, fail, are stopped and tried again, without a restart of anything.

The agents are processes; the service is in this one, so that tests can ask it.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from threading import Event
from unittest.mock import Mock

import pytest

from cloister.client import Client
from privacy.crypto.summation import EncryptedSum
from privacy.errors import AuthenticityError, NotFoundError, RefusedError, RunError, StorageError
from privacy.run.manifest import open_run
from privacy.run.settings import RunSettings
from server.process import open_service
from server.service.running import Running
from server.service.service import Service
from server.settings import read_consortium
from server.store.sessions import Session
from server.store.store import Store, StoredRun
from simulations.engine.federation import Federation
from strategies.event_log import EventLog
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    await_condition,
    charges_of,
    roster_of,
    signed_document,
    task_name,
    with_deadline,
)
from tests.forked import ForkedAgents
from tests.ports import unused_port
from tests.studies import HOLD, MET, Held

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("agents"), pytest.mark.timeout(300)]

LONG = 90.0
HELD = replace(SETTINGS, task=task_name(Held))
MASKED = replace(HELD, rounds=2, encryption=replace(SETTINGS.encryption, collusion_resistant=True))


@dataclass
class Consortium:
    """A federation whose agents are online as long as a server is."""

    federation: Federation
    processes: ForkedAgents
    charges: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SITES, 0))
    agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def signed(self, settings: RunSettings = HELD, **changes: object) -> bytes:
        return signed_document(self.federation, replace(settings, **changes))  # type: ignore[arg-type]

    @contextmanager
    def serving(self, service: str = "") -> Iterator[Service]:
        """Serve, with further settings: those of `[service]` first."""
        file = self.federation.server / "consortium.toml"
        text = file.read_text(encoding="utf-8")
        file.write_text(f"{text}\n[service]\n{service}\n", encoding="utf-8")
        ended = Event()
        try:
            with open_service(read_consortium(self.federation.server), print, ended) as opened:
                await_condition(lambda: len(opened.status().online) == len(SITES), LONG)
                yield opened
        finally:
            file.write_text(text, encoding="utf-8")

    def start(self, site: str) -> subprocess.Popen[bytes]:
        """Start a site's agent; return its process."""
        path = self.federation.paths[site]
        return self.processes.start(site, path / "agent.log", "agent", str(path))

    def charged(self) -> dict[str, int]:
        """How often each site was charged since the last look."""
        now = {site: charges_of(self.federation, site) for site in SITES}
        before, self.charges = self.charges, now
        return {site: now[site] - before[site] for site in SITES}

    @contextmanager
    def held(self, site: str) -> Iterator[None]:
        """Hold a site as it trains next, wait until it does, and let it go on at the end."""
        hold = self.federation.paths[site] / HOLD
        hold.touch()
        try:
            yield
        finally:
            hold.unlink(missing_ok=True)
            hold.with_suffix(MET).unlink(missing_ok=True)  # nobody may have waited for it

    def await_training(self, site: str) -> None:
        met = (self.federation.paths[site] / HOLD).with_suffix(MET)
        await_condition(met.exists, LONG)
        met.unlink()

    def models(self, run: StoredRun) -> set[bytes]:
        """The weights of the sites' models of a run."""
        files = [
            path / "models" / f"{run.name}-{run.digest[:8]}.safetensors" for path in self.federation.paths.values()
        ]
        contents = [file.read_bytes() for file in files if file.exists()]
        return {data[8 + int.from_bytes(data[:8], "little") :] for data in contents}


@pytest.fixture(scope="module")
def consortium(federation_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    address = f"localhost:{unused_port()}"
    terms = replace(TERMS, tasks=(HELD.task, SETTINGS.task))
    make_federation = FederationMaker(federation_keys, tmp_path_factory.mktemp("service"))
    federation = make_federation(HELD, dict.fromkeys(SITES, terms), address)
    (federation.server / "consortium.toml").write_text(f'consortium = "demo"\nlisten = "{address}"\n', encoding="utf-8")
    with ForkedAgents() as processes:
        serving = Consortium(federation, processes)
        serving.agents |= {site: serving.start(site) for site in SITES}
        yield serving


def over(service: Service, run: StoredRun) -> StoredRun:
    """Wait until a run has ended, and return it."""
    await_condition(lambda: service.store.run(run.digest).status not in {"waiting", "running"}, LONG)
    return service.store.run(run.digest)


def test_runs_are_served_in_order_and_one_that_fails_does_not_stop_the_queue(consortium: Consortium) -> None:
    strange = consortium.signed(with_deadline(HELD, 1.0), name="second", task="no.such:Task")
    documents = [consortium.signed(name="first", rounds=2), strange, consortium.signed(name="third")]
    with consortium.serving() as service:
        runs = [service.submit(document, "ana") for document in documents]
        assert service.submit(documents[0], "ben").digest == runs[0].digest  # the same run again
        assert runs[0].by == "founder"  # who signed it
        assert len(service.store.runs()) == 3
        first, second, third = (over(service, run) for run in runs)
        assert [run.status for run in (first, second, third)] == ["finished", "failed", "finished"]
        assert "does not allow" in second.reason
        assert first.ended <= second.started <= second.ended <= third.started  # type: ignore[operator]
        assert [first.released, second.released, third.released] == [2, 0, 1]
    assert consortium.charged() == dict.fromkeys(SITES, 3)
    assert len(consortium.models(first)) == len(consortium.models(third)) == 1


def test_runs_go_on_side_by_side_with_their_own_models_and_charges(consortium: Consortium) -> None:
    with consortium.serving("runs_at_once = 2") as service, consortium.held("north"):
        documents = [consortium.signed(MASKED, name=name) for name in ("one", "two", "three")]
        service.new_epoch.add(open_run(documents[1], roster_of(consortium.federation)).digest)
        runs = [service.submit(document, "ana") for document in documents]
        consortium.await_training("north")
        await_condition(lambda: len(service.status().running) == 2, LONG)
        assert service.store.run(runs[2].digest).status == "waiting"
        (consortium.federation.paths["north"] / HOLD).unlink()
        ended = [over(service, run) for run in runs]
        events = [[event for _, event in service.store.events(run.digest)] for run in ended]
    lost = [event for run in events for event in run if event["event"] == "round" and not event["released"]]
    assert [(run.status, run.released) for run in ended] == [("finished", 2)] * 3, lost
    took_part = [site for run in events for event in run if event["event"] == "round" for site in event["sites"]]
    assert consortium.charged() == {site: took_part.count(site) for site in SITES}
    assert [len(consortium.models(run)) for run in ended] == [1] * 3
    assert ended[1].started < ended[0].ended  # type: ignore[operator]
    assert [sum(event["event"] == "epoch" for event in run) for run in events] == [0, 1, 0]


def test_a_run_with_a_short_deadline_loses_no_round_beside_one_with_a_long_deadline(consortium: Consortium) -> None:
    short, hold = with_deadline(SETTINGS, 3.0), consortium.federation.paths["north"] / HOLD
    with consortium.serving("runs_at_once = 3") as service, consortium.held("north"):
        quick = service.submit(consortium.signed(short, name="quick", rounds=40), "ana")
        await_condition(lambda: service.store.run(quick.digest).released > 0, LONG)
        slow = service.submit(consortium.signed(name="slow", rounds=2), "ana")  # whose first round is held
        consortium.await_training("north")
        await_condition(lambda: "waiting" in [event["event"] for _, event in service.store.events(quick.digest)], LONG)
        released = service.store.run(quick.digest).released
        assert released < 40
        late = service.submit(consortium.signed(short, name="late", rounds=2), "ana")
        Event().wait(6.0)  # two of the short deadlines, and the patience before anybody is told
        assert service.store.run(quick.digest).released == released
        hold.unlink()
        ended = [over(service, run) for run in (quick, slow, late)]
        events = {run.name: [event for _, event in service.store.events(run.digest)] for run in ended}
    rounds = {name: [event for event in run if event["event"] == "round"] for name, run in events.items()}
    assert [(run.status, run.released) for run in ended] == [("finished", 40), ("finished", 2), ("finished", 2)]
    assert {name: len(run) for name, run in rounds.items()} == {"quick": 40, "slow": 2, "late": 2}
    for event in (*rounds["quick"], *rounds["slow"], *rounds["late"]):
        assert (set(event["sites"]), event["problems"]) == (set(SITES), {})
    waits = [event for event in events["quick"] if event["event"] == "waiting"]
    assert [event["problems"] for event in waits] == [dict.fromkeys(SITES, "it is at work for another run")]
    assert consortium.charged() == dict.fromkeys(SITES, 44)


def test_a_run_whose_rounds_are_too_short_for_its_sites_says_so(consortium: Consortium) -> None:
    hurried = consortium.signed(with_deadline(HELD, 1.0), name="hurried", rounds=1)
    with consortium.serving() as service, ExitStack() as held:
        for site in SITES:
            held.enter_context(consortium.held(site))
        run = over(service, service.submit(hurried, "ana"))
    assert run.status == "failed"
    assert run.reason.endswith(
        f"within round_deadline_seconds = 1, no update came from {', '.join(sorted(SITES))}: sign the run with more"
    )


def test_a_person_submits_a_run_over_the_network_and_follows_it_to_its_end(consortium: Consortium) -> None:
    port, ghost = unused_port(), Session("0" * 64, "ghost", "key", 0.0, 1e12)
    with Store.open(read_consortium(consortium.federation.server)) as store:
        store.sessions.add(ghost)
    with (
        consortium.serving(f'[api]\nlisten = "localhost:{port}"') as service,
        Client(consortium.federation.folder / "coordinator", f"localhost:{port}") as client,
    ):
        assert service.store.sessions.get(ghost.token) is None  # as no roster lists that person
        run = client.submit(consortium.signed(name="remote"))
        events = [event["event"] for event in client.follow(run.digest)]
        assert (events[0], events[-1]) == ("started", "finished")
        assert client.run("remote").status == "finished"


def test_a_run_stopped_in_mid_round_ends_and_the_next_one_begins(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, release = consortium.federation.paths["north"] / HOLD, EventLog.release

    def hold_the_next(event_log: EventLog, total: EncryptedSum) -> None:
        hold.touch()
        release(event_log, total)

    with consortium.serving() as service:
        monkeypatch.setattr(EventLog, "release", hold_the_next)
        run = service.submit(consortium.signed(rounds=12), "ana")
        following = service.submit(consortium.signed(name="following"), "ana")
        consortium.await_training("north")
        monkeypatch.undo()
        stopped = service.stop(run.digest, "ana", "wrong task")
        assert (stopped.status, stopped.reason) == ("stopped", "stopped by ana: wrong task")
        await_condition(lambda: service.status().running == (following.digest,), LONG)
        assert len(consortium.models(stopped)) == 1  # of the last round that was released
        hold.unlink()
        assert over(service, following).status == "finished"
        assert service.store.run(run.digest).status == "stopped"
        assert service.store.events(run.digest)[-1][1]["reason"] == "stopped by ana: wrong task"
        assert service.stop(run.digest, "ben").reason == "stopped by ana: wrong task"
        with pytest.raises(RunError, match="has already finished"):
            service.stop(following.digest, "ana")
        assert service.retry(run.digest, "ana").status == "waiting"
        again = over(service, run)
        assert (again.status, again.released) == ("finished", 12)
    assert len(consortium.models(again)) == 1


def hang_as_a_sum_is_released(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> Event:
    """Have the agent of north hang from when the next sum is there; return what then is set."""
    release, delivering, north = EventLog.release, Event(), consortium.agents["north"].pid

    def hanging(event_log: EventLog, total: EncryptedSum) -> None:
        os.kill(north, SIGSTOP)
        release(event_log, total)
        delivering.set()

    monkeypatch.setattr(EventLog, "release", hanging)
    return delivering


def test_a_stopped_run_that_delivers_its_last_sum_lets_the_next_one_begin(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivering, north = hang_as_a_sum_is_released(consortium, monkeypatch), consortium.agents["north"].pid
    with consortium.serving() as service:
        try:
            run = service.submit(consortium.signed(rounds=3, name="delivers"), "ana")
            assert delivering.wait(LONG)
            monkeypatch.undo()
            service.stop(run.digest, "ana")
            following = service.submit(consortium.signed(name="next"), "ana")
            await_condition(lambda: set(service.status().running) == {run.digest, following.digest}, LONG)
        finally:
            os.kill(north, SIGCONT)
        assert over(service, following).status == "finished"
        await_condition(lambda: service.store.run(run.digest).released == 1, LONG)
        assert len(consortium.models(service.store.run(run.digest))) == 1  # every site got its sum


def test_a_run_stopped_as_its_server_is_killed_leaves_no_site_with_another_model(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivering, north = hang_as_a_sum_is_released(consortium, monkeypatch), consortium.agents["north"].pid
    try:
        with consortium.serving() as service:
            run = service.submit(consortium.signed(rounds=3, name="cut"), "ana")
            assert delivering.wait(LONG)
            monkeypatch.undo()
            service.store.mark(run.digest, "stopped", "stopped by ana")  # all that `stop` does before a kill
    finally:
        os.kill(north, SIGCONT)
    with consortium.serving() as service:
        await_condition(lambda: service.store.run(run.digest).behind == (), LONG)
        stopped = service.store.run(run.digest)
        assert (stopped.status, stopped.released, len(consortium.models(stopped))) == ("stopped", 1, 1)
        service.retry(run.digest, "ana")
        again = over(service, run)
        rounds = [event["round"] for _, event in service.store.events(run.digest) if event["event"] == "round"]
    assert (again.status, again.released, rounds, len(consortium.models(again))) == ("finished", 3, [1, 2, 3], 1)


def test_a_round_says_for_which_site_it_waits_and_that_it_is_back(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("strategies.absences.PATIENCE", 0.1)
    consortium.charged()
    with consortium.serving() as service, consortium.held("north"):
        run = service.submit(consortium.signed(name="waits"), "ana")
        consortium.await_training("north")
        consortium.agents["north"].kill()
        consortium.agents["north"].wait(LONG)
        (consortium.federation.paths["north"] / HOLD).unlink()
        await_condition(lambda: any(event["event"] == "away" for _, event in service.store.events(run.digest)), LONG)
        consortium.agents["north"] = consortium.start("north")
        assert over(service, run).status == "finished"
        events = [event for _, event in service.store.events(run.digest)]
    assert [event["event"] for event in events] == ["started", "away", "back", "round", "finished"]
    away, back, ended = events[1:4]
    assert away["round"] == back["round"] == 1
    assert away["sites"] == back["sites"] == ["north"]
    assert events[0]["time"] < away["since"] < away["time"] < away["until"] < away["since"] + 60.0
    assert sorted(ended["sites"]) == sorted(SITES)
    assert consortium.charged() == dict.fromkeys(SITES, 1)


def test_a_site_that_is_away_until_a_run_has_ended_gets_its_model_from_the_next_server(consortium: Consortium) -> None:
    consortium.charged()
    with consortium.serving() as service:
        consortium.agents["north"].kill()
        consortium.agents["north"].wait(LONG)
        run = over(service, service.submit(consortium.signed(with_deadline(HELD, 3.0), name="late", rounds=2), "ana"))
        assert (run.status, run.released, run.behind) == ("finished", 2, ("north",))
        assert service.store.events(run.digest)[-1][1]["behind"] == ["north"]
    file = consortium.federation.paths["north"] / "models" / f"late-{run.digest[:8]}.safetensors"
    assert not file.exists()
    consortium.agents["north"] = consortium.start("north")
    with consortium.serving() as service:
        await_condition(lambda: service.store.run(run.digest).behind == (), LONG)
        assert service.store.events(run.digest)[-1][1]["event"] == "finished"
    assert file.exists()
    assert len(consortium.models(run)) == 1
    assert consortium.charged() == {site: 2 * (site != "north") for site in SITES}


def test_a_run_whose_sites_are_not_online_lets_others_pass_and_fails_in_time(consortium: Consortium) -> None:
    with consortium.serving(f"wait_hours = {1 / 3600}") as service:
        service._agents.online = lambda: {"north", "south", "east"}  # type: ignore[method-assign]
        waiting = service.submit(consortium.signed(cohort=replace(HELD.cohort, minimum=4)), "ana")
        passing = service.submit(consortium.signed(), "ana")
        assert over(service, passing).status == "finished"
        failed = over(service, waiting)
        assert failed.status == "failed"
        assert "only 3 of the 4 sites that it needs are online; not online: west" in failed.reason
        assert service.store.events(waiting.digest)[-1][1]["event"] == "failed"


@pytest.mark.parametrize(("at", "what", "error"), [(Store, "document", StorageError), (Running, "start", RuntimeError)])
def test_a_fault_before_a_run_begins_is_not_the_runs_and_does_not_end_the_queue(
    at: type, what: str, error: type, consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    with consortium.serving() as service:
        fails = Mock(side_effect=error)
        monkeypatch.setattr(at, what, fails)
        run = service.submit(consortium.signed(name=what), "ana")
        await_condition(lambda: fails.call_count > 1, LONG)
        monkeypatch.undo()
        assert over(service, run).status == "finished"
        assert [event["event"] for _, event in service.store.events(run.digest)] == ["started", "round", "finished"]


def test_what_cannot_run_is_not_taken(consortium: Consortium) -> None:
    with consortium.serving() as service:
        known = len(service.store.runs())
        document = bytearray(consortium.signed())
        document[-1] ^= 1
        for refused, error, words in (
            (bytes(document), AuthenticityError, "nobody in roster 1"),
            (consortium.signed(valid_days=1e-9), RefusedError, "expired"),
            (consortium.signed(cohort=replace(HELD.cohort, sizes={"north": 1, "venus": 1, "mars": 1}, minimum=2)),
             RunError, "lacks mars, venus"),
        ):  # fmt: skip
            time.sleep(0.01)
            with pytest.raises(error, match=words):
                service.submit(refused, "ana")
        assert len(service.store.runs()) == known
        with pytest.raises(NotFoundError):
            service.stop("nothing", "ana")


def test_a_store_that_fails_for_a_while_costs_no_round(consortium: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.service.running.FIRST_PAUSE", 0.1)
    consortium.charged()
    with consortium.serving() as service, consortium.held("north"):
        run = service.submit(consortium.signed(rounds=2), "ana")
        consortium.await_training("north")
        fence = service.store.database.fence

        def full(_: object) -> None:
            msg = "the disk is full; make room on it"
            raise StorageError(msg)

        service.store.database.fence = full
        (consortium.federation.paths["north"] / HOLD).unlink()
        why = "the disk is full; make room on it"
        await_condition(lambda: service.status().paused == {run.digest: why}, LONG)  # but while it is tried again
        service.store.database.fence = fence
        ended = over(service, run)
        assert (ended.status, ended.released) == ("finished", 2)
    assert consortium.charged() == dict.fromkeys(SITES, 2)
