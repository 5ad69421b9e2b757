"""The network between agents and server is bad: cut, slow, late, doubled, garbled, or silent."""

import random
import time
from dataclasses import replace
from pathlib import Path

from tests.federations import SITES, charges_of, with_deadline
from tests.reliability.lines import KINDS, until
from tests.reliability.outcomes import Outcome, check, same
from tests.reliability.stage import LONG, Stage, masked, plain, staged

RECOVERS = 60.0  # seconds after a line was cut
ROUND_BYTES = 60_000  # about what passes one site's line in a round of these small models
SECONDS = "s until a round is over"


def cuts(seed: int, folder: Path, *, masks: bool = False, count: int = 20) -> Outcome:
    """Cut one site's line at many points of the conversation, wherever that is."""
    rng, outcome = random.Random(seed), Outcome(counts={"rounds lost": 0, "extra charges": 0})  # noqa: S311
    with staged(folder, (masked if masks else plain)(3 * count + 3), lines=True) as stage:
        stage.start_agents()
        stage.start_server()
        stage.await_rounds(1)
        for _ in range(count):
            _disturb(stage, "cut", rng, outcome)
        same("cuts", outcome.tries, count)
        stage.await_end()
        outcome.counts["extra charges"] += stage.check_whole()
    return outcome


def weather(seed: int, folder: Path, *, kinds: tuple[str, ...] = KINDS[1:]) -> Outcome:
    """Double, flip and swallow what passes a line; delay and throttle another."""
    rng, outcome = random.Random(seed), Outcome(counts={"rounds lost": 0, "extra charges": 0})  # noqa: S311
    with staged(folder, plain(6 * len(kinds) + 6), lines=True) as stage:
        stage.start_agents()
        stage.start_server()
        stage.await_rounds(1)
        slow = stage.lines[rng.choice(SITES)]
        for slow.delay, slow.rate in ((0.02, float("inf")), (0.0, 64e3)):
            start = time.monotonic()
            stage.await_rounds(stage.rounds + 2)
            outcome.note(SECONDS, (time.monotonic() - start) / 2)
            outcome.tries += 1
        slow.delay, slow.rate = 0.0, float("inf")
        for kind in kinds:
            _disturb(stage, kind, rng, outcome)
        stage.await_end()
        outcome.counts["extra charges"] += stage.check_whole()
    return outcome


def _disturb(stage: Stage, kind: str, rng: random.Random, outcome: Outcome) -> None:
    server = stage.process("server")
    fault = stage.lines[rng.choice(SITES)].will(kind, rng.randrange(1, ROUND_BYTES))
    until(lambda: fault.happened.is_set() or server.poll() is not None, LONG)
    if not fault.happened.is_set():
        return  # the run was over before
    outcome.tries += 1
    took = stage.await_rounds(stage.rounds + 1, RECOVERS)
    outcome.note(SECONDS, took)


def straggler(seed: int, folder: Path) -> Outcome:
    """Let one site send so slowly that its update is late: the round closes without it, and it comes back."""
    rng, outcome = random.Random(seed), Outcome(counts={"rounds lost": 0})  # noqa: S311
    deadline, late = 5.0, rng.choice(SITES)
    settings = with_deadline(plain(60), deadline)
    settings = replace(settings, cohort=replace(settings.cohort, minimum=3))
    with staged(folder, settings, lines=True) as stage:
        stage.start_agents()
        stage.start_server()
        stage.await_rounds(1)
        line = stage.lines[late]
        line.rate = 4e3
        check(until(lambda: _without(stage, late) >= 1, LONG) is not None, f"no round closed without {late}")
        line.rate = float("inf")
        outcome.tries = 1
        before = stage.rounds
        back = until(lambda: any(late in event["sites"] for event in stage.ended[before:]), LONG)
        check(back is not None, f"{late} did not come back")
        stage.await_end()
        check("a reply came too late: the round had closed" in stage.log(late), f"{late} was not told that it was late")
        events = stage.ended
        check(all(event["released"] for event in events), "a round released nothing")
        longest = max(event["seconds"] for event in events)
        check(longest < deadline + 3, f"a round took {longest:.1f} s")
        outcome.note("s that a round took, of a deadline of 5 s", longest)
        added = sum(late in event["sites"] for event in events)
        extra = charges_of(stage.federation, late) - added
        check(0 <= extra <= len(events) - added, f"{late} has {extra} charges more than updates in sums")
    return outcome


def _without(stage: Stage, site: str) -> int:
    return sum(site not in event["sites"] for event in stage.ended)
