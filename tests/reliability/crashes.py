"""Processes are killed: the server and agents at every failpoint and at random, and whoever writes a checkpoint."""

import random
import time
from pathlib import Path
from threading import Event

import numpy as np

from client.state.checkpoint import Checkpoint, CheckpointStore
from privacy.codec.update import Layout, Model
from tests.federations import SITES, charges_of
from tests.interrupted import killed_at
from tests.reliability import places
from tests.reliability.lines import until
from tests.reliability.outcomes import Outcome, check, same
from tests.reliability.stage import LONG, Stage, dying_at, masked, plain, staged, was_killed

GOES_ON = 30.0  # seconds in which a run must go on after its server was killed
VICTIM = "north"
FIGURES = ("rounds lost", "extra charges")
SECONDS = "s until the next round is over"


def server_at_failpoints(seed: int, folder: Path, *, masks: bool, only: int | None = None) -> Outcome:
    """Kill the server at every failpoint that it passes, in any order; at `only` so many of them, if it is given."""
    rng = random.Random(seed)  # noqa: S311 - the same in every run
    names = places.of(*places.SERVER, *places.BOTH, masks=masks)
    rng.shuffle(names)
    counts = [rng.randint(1, 3) for _ in names]
    settings, outcome = (masked if masks else plain)(3 * len(names[:only]) + 2), _none()
    with staged(folder, settings, ceremony=only is None) as stage:
        stage.start_agents()
        killed = None
        for name, count in list(zip(names, counts, strict=True))[:only]:
            server = stage.start_server(dying_at(name, count))
            _time_next_round(stage, killed, outcome)
            stage.await_rounds(stage.rounds + 3)
            if was_killed(server):
                outcome.reached.add(name)
                outcome.tries += 1
            else:
                check(server.poll() is None, f"the server ended: {stage.processes.tail('server')}")
                stage.kill("server")
            killed = time.monotonic(), stage.rounds
        check(outcome.tries > len(names[:only]) // 2, f"the server was killed only {outcome.tries} times")
        _finish(stage, killed, outcome)
    return outcome


def server_at_random(seed: int, folder: Path, *, masks: bool, kills: int = 10) -> Outcome:
    """Kill the server at random, again and again."""
    rng, outcome = random.Random(seed), _none()  # noqa: S311
    settings = (masked if masks else plain)(3 * kills)
    with staged(folder, settings) as stage:
        stage.start_agents()
        killed = None
        for _ in range(kills):
            server = stage.start_server()
            _time_next_round(stage, killed, outcome)
            shortest = min((event["seconds"] for event in stage.ended), default=0.3)
            Event().wait(rng.uniform(0, 3.0 * shortest))
            if server.poll() is None:
                stage.kill("server")
                outcome.tries += 1
            killed = time.monotonic(), stage.rounds
        check(outcome.tries >= kills // 2, f"the server was killed only {outcome.tries} times")
        _finish(stage, killed, outcome)
    return outcome


def _time_next_round(stage: Stage, killed: tuple[float, int] | None, outcome: Outcome) -> None:
    """Wait until a server that took another's place has ended a round, and note how long that took since the kill."""
    if killed is None:
        stage.await_rounds(1) if not was_killed(stage.process("server")) else None
        return
    since, rounds = killed
    server = stage.process("server")
    done = until(lambda: stage.rounds > rounds or server.poll() is not None, LONG)
    took = time.monotonic() - since
    if stage.rounds > rounds:
        check(done is not None and took < GOES_ON, f"the run went on only after {took:.0f} s")
        outcome.note(SECONDS, took)
    else:
        check(server.poll() is not None, f"the run did not go on:\n{stage.processes.tail('server')}")


def _finish(stage: Stage, killed: tuple[float, int] | None, outcome: Outcome) -> None:
    stage.start_server()
    if stage.rounds < stage.settings.rounds:
        _time_next_round(stage, killed, outcome)
    stage.await_end()
    outcome.counts["extra charges"] += stage.check_whole()


def agent_at_failpoints(seed: int, folder: Path, *, masks: bool, only: int | None = None) -> Outcome:
    """Kill an agent at every failpoint that it passes, in any order."""
    rng = random.Random(seed)  # noqa: S311
    names = places.of(*places.AGENT, *places.BOTH, masks=masks)
    rng.shuffle(names)
    names.sort(key=lambda name: name != "keys-taken")  # which happens once, at the beginning
    counts = [1 if name == "keys-taken" else rng.randint(1, 3) for name in names]
    settings, outcome = (masked if masks else plain)(4 * len(names[:only]) + 2), _none()
    with staged(folder, settings, ceremony=only is None) as stage:
        for site in SITES[1:]:
            stage.start_agent(site)
        stage.start_server()
        for name, count in list(zip(names, counts, strict=True))[:only]:
            agent, before = stage.start_agent(VICTIM, dying_at(name, count)), stage.rounds
            until(lambda agent=agent, before=before: agent.poll() is not None or stage.rounds > before + 3, LONG)  # type: ignore[misc]
            if was_killed(agent):
                outcome.reached.add(name)
                outcome.tries += 1
            else:
                check(agent.poll() is None, f"the agent ended: {stage.processes.tail(VICTIM)}")
                stage.kill(VICTIM)
            _check_never_under(stage, outcome)
        check(outcome.tries > len(names[:only]) // 2, f"the agent was killed only {outcome.tries} times")
        stage.start_agent(VICTIM)
        stage.await_end()
        outcome.counts["extra charges"] += stage.check_whole(extra=1)
    return outcome


def agent_at_random(seed: int, folder: Path, *, masks: bool, kills: int = 10) -> Outcome:
    """Kill agents at random, again and again."""
    rng, outcome = random.Random(seed), _none()  # noqa: S311
    settings = (masked if masks else plain)(3 * kills)
    with staged(folder, settings) as stage:
        stage.start_agents()
        stage.start_server()
        stage.await_rounds(1)
        for _ in range(kills):
            victim, before = rng.choice(SITES), stage.rounds
            Event().wait(rng.uniform(0, 0.6))
            if stage.process("server").poll() is not None:
                break
            stage.kill(victim)
            outcome.tries += 1
            _check_never_under(stage, outcome)
            stage.start_agent(victim)
            start = time.monotonic()
            stage.await_rounds(before + 2)
            outcome.note(SECONDS, time.monotonic() - start)
        check(outcome.tries >= kills // 2, f"agents were killed only {outcome.tries} times")
        stage.await_end()
        outcome.counts["extra charges"] += stage.check_whole(extra=1)
    return outcome


def _check_never_under(stage: Stage, outcome: Outcome) -> None:
    """Check that each site's ledger has what it released, and one charge more at most."""
    released = sum(VICTIM in event["sites"] for event in stage.ended)
    for site in SITES:
        charges = charges_of(stage.federation, site)
        check(released <= charges, f"{site} has {charges} charges for {released} rounds")
    # What is charged may not have left yet, and what has left may not be in a round that is over.
    charges, now = charges_of(stage.federation, VICTIM), stage.rounds
    check(charges <= now + 2, f"{VICTIM} has {charges} charges after {now} rounds")
    outcome.counts["charges below what was released"] = 0


def checkpoint_writer(seed: int, folder: Path) -> Outcome:
    """Kill whoever writes a checkpoint, before every one of its operations on files, many times."""
    rng, outcome = np.random.default_rng(seed), Outcome(counts={"torn": 0})
    store = CheckpointStore(folder / "models")
    layout = Layout((("weight", (1000,)),))
    run = "ab" * 32

    def at(number: int) -> Checkpoint:
        return Checkpoint(run, number, Model(rng.standard_normal(1000).astype(np.float32), layout), 1.0)

    now = at(1)
    store.save("run", now)
    for number in range(2, 12):
        operation, following = 0, at(number)
        while killed_at(operation, folder, lambda following=following: store.save("run", following)):  # type: ignore[misc]
            loaded = store.load("run", run, layout)
            check(loaded is not None, "no checkpoint is left")
            found = loaded[0].digest if loaded else ""
            check(found in {now.digest, following.digest}, "a torn checkpoint was read")
            outcome.tries += 1
            operation += 1
        check(operation > 3, "a checkpoint was written in too few operations")
        loaded = store.load("run", run, layout)
        same("the newest checkpoint", loaded[0].digest if loaded else "", following.digest)
        now = following
    return outcome


def _none() -> Outcome:
    return Outcome(counts=dict.fromkeys(FIGURES, 0))
