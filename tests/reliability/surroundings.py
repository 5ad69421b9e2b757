"""What a process needs fails: its disk, its memory, its clock."""

import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from shutil import move
from typing import cast

from privacy.run.settings import RunSettings
from tests.federations import SITES, charges_of, with_deadline
from tests.forked import Forked, run_command
from tests.reliability.lines import until
from tests.reliability.outcomes import NotRunError, Outcome, check
from tests.reliability.stage import LONG, Stage, dying_at, plain, staged

VICTIM, DEADLINE, APART = "north", 20.0, 600.0
PLACES = {
    "entry-written": "while it appends to its ledger",
    "entry-synced": "as it syncs its ledger",
    "file-opened": "while it makes a file",
    "file-written": "as it syncs a file",
    "file-replaced": "as it syncs a folder",
}
ERRORS = {"ENOSPC": "No space left on device", "EIO": "Input/output error"}
_ENDLESS = 10_000


def three_suffice(rounds: int = _ENDLESS) -> RunSettings:
    """A run whose rounds go on without one of the sites."""
    settings = with_deadline(plain(rounds), DEADLINE)
    return replace(settings, cohort=replace(settings.cohort, minimum=3))


def failing_disk(seed: int, folder: Path, *, places: tuple[str, ...] = tuple(PLACES)) -> Outcome:
    """Have a site's disk fail, in every way and at every place; repair it each time."""
    rng, outcome = random.Random(seed), Outcome(counts={"updates that left uncharged": 0})  # noqa: S311
    faults = [(place, error) for place in places for error in ERRORS]
    rng.shuffle(faults)
    with staged(folder, three_suffice()) as stage:
        for site in SITES[1:]:
            stage.start_agent(site)
        stage.start_agent(VICTIM)
        stage.start_server()
        stage.await_rounds(2)
        for place, error in faults:
            stage.kill(VICTIM)
            agent = stage.start_agent(VICTIM, dying_at(place, rng.randint(1, 6), error))
            said = until(lambda agent=agent, error=error: _says(stage, ERRORS[error], agent), LONG)  # type: ignore[misc]
            check(said is not None, f"{VICTIM} did not say that {ERRORS[error]} {PLACES[place]}:\n{stage.log(VICTIM)}")
            check("Traceback" not in stage.log(VICTIM), f"a traceback:\n{stage.log(VICTIM)}")
            stage.await_rounds(stage.rounds + 1)
            _check_charged(stage)
            outcome.tries += 1
            stage.kill(VICTIM)
            stage.start_agent(VICTIM)
            _await_return(stage)
        _check_charged(stage)
    return outcome


def _says(stage: Stage, words: str, agent: subprocess.Popen[bytes]) -> bool:
    return words in stage.log(VICTIM) or (agent.poll() is not None and words in stage.log(VICTIM))


def _check_charged(stage: Stage) -> None:
    """Check that all that the victim released is in its ledger."""
    added = sum(VICTIM in event["sites"] for event in stage.ended)
    charges = charges_of(stage.federation, VICTIM)
    check(charges >= added, f"{VICTIM} has {charges} charges for {added} updates in sums")
    check(all(event["released"] for event in stage.ended), "a round released nothing")


def _await_return(stage: Stage) -> None:
    before = stage.rounds
    back = until(lambda: any(VICTIM in event["sites"] for event in stage.ended[before:]), LONG)
    check(back is not None, f"{VICTIM} did not come back:\n{stage.log(VICTIM)[-2000:]}")


def full_disk(seed: int, folder: Path) -> Outcome:
    """Fill a site's disk, and then the server's, to the last byte; make room again."""
    del seed  # there is no chance in it
    outcome = Outcome(counts={"rounds lost": 0})
    with staged(folder, three_suffice()) as stage, _small(stage.federation.paths[VICTIM]) as fill:
        stage.start_agents()
        stage.start_server()
        stage.await_rounds(2)
        fill()
        left = until(lambda: VICTIM not in stage.ended[-1]["sites"], LONG)
        check(left is not None, f"{VICTIM} still sends updates, on a full disk")
        check("No space left" in stage.log(VICTIM), f"{VICTIM} does not say why:\n{stage.log(VICTIM)[-2000:]}")
        stage.await_rounds(stage.rounds + 2)
        _check_charged(stage)
        fill.free()
        _await_return(stage)
        _check_charged(stage)
        outcome.tries += 1
        for site in SITES:
            stage.kill(site)
        stage.kill("server")
    with staged(folder / "server", plain(30)) as stage, _small(stage.federation.server) as fill:
        stage.start_agents()
        server = stage.start_server()
        stage.await_rounds(3)
        fill()
        ended = until(lambda: server.poll() is not None, LONG)
        check(ended is not None and server.poll() == 1, f"the server did not end:\n{stage.log('server')[-2000:]}")
        check("Traceback" not in stage.log("server"), f"a traceback:\n{stage.log('server')}")
        check("room" in stage.log("server") or "full" in stage.log("server"), stage.log("server")[-500:])
        fill.free()
        stage.start_server()
        stage.await_end()
        stage.check_whole(extra=0)
        outcome.tries += 1
        stage.close()
        for site in SITES:
            stage.kill(site)
    return outcome


class _Filling:
    """Fills a small disk, and frees it again."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "filling"

    def __call__(self) -> None:
        with suppress(OSError), self._file.open("wb", buffering=0) as file:
            size = 1 << 16
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def free(self) -> None:
        self._file.unlink()


@contextmanager
def _small(folder: Path) -> Iterator[_Filling]:
    """Put a folder on a disk of its own, of a few megabytes.

    Raises:
        NotRunError: if this user may not mount one.
    """
    aside = folder.with_name(f"{folder.name}-before")
    move(folder, aside)
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", str(folder)],  # noqa: S607
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        folder.rmdir()
        move(aside, folder)
        msg = "needs the right to mount a small disk"
        raise NotRunError(msg)
    try:
        for path in aside.iterdir():
            move(path, folder / path.name)
        yield _Filling(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607


# --- Clocks ---------------------------------------------------------------------------------------------------------


def clocks(seed: int, folder: Path) -> Outcome:
    """Set a site's clock wrong, both ways: by ten minutes, and by a few seconds, with which it may take part."""
    rng, outcome = random.Random(seed), Outcome(counts={"rounds lost": 0})  # noqa: S311
    with staged(folder, three_suffice()) as stage:
        for site in SITES[1:]:
            stage.start_agent(site)
        _start(stage, _run_shifted, str(rng.choice([-1, 1]) * 5.0))
        stage.start_server()
        _await_return(stage)
        for way in rng.sample([-1, 1], 2):
            stage.kill(VICTIM)
            _start(stage, _run_shifted, str(way * APART))
            which = "ahead of" if way > 0 else "behind"
            told = until(lambda which=which: f"{APART:.0f} s {which}" in _why(stage), LONG)  # type: ignore[misc]
            check(told is not None, f"a clock that is {APART:g} s {which} is not named: {_why(stage)!r}")
            stage.await_rounds(stage.rounds + 1)
            _check_charged(stage)
            outcome.tries += 1
            stage.kill(VICTIM)
            stage.start_agent(VICTIM)
            _await_return(stage)
    return outcome


def _why(stage: Stage) -> str:
    return str(stage.ended[-1]["problems"].get(VICTIM, ""))


def _start(stage: Stage, run: Callable[..., None], *arguments: str) -> None:
    """Start the victim's agent in some condition."""
    path = stage.federation.paths[VICTIM]
    child = Forked(path / "agent.log", run, *arguments, "agent", str(path), env={})
    stage.processes._children[VICTIM] = cast("subprocess.Popen[bytes]", child), path / "agent.log"


def _run_shifted(seconds: str, *arguments: str) -> None:
    """Run a command under a clock that is wrong by so much."""
    real, by = time.time, float(seconds)

    def shown() -> float:
        """The clock as our code sees it. gRPC's deadlines, which are absolute times of Python's, stay right."""
        ours = str(sys._getframe(1).f_globals["__name__"]).startswith(("client.", "privacy.", "transport."))
        return real() + by * ours

    time.time = shown
    run_command(*arguments)


# --- Memory ---------------------------------------------------------------------------------------------------------


def little_memory(seed: int, folder: Path) -> Outcome:
    """Let an agent have only a little more memory than it has when it starts; then enough again."""
    rng, outcome = random.Random(seed), Outcome(counts={"updates that left uncharged": 0})  # noqa: S311
    with staged(folder, three_suffice()) as stage:
        stage.start_agents()
        stage.start_server()
        stage.await_rounds(2)
        for more in rng.sample([0, 1, 4, 16, 64, 256], 6):
            stage.kill(VICTIM)
            _start(stage, _run_in_little, str(more << 20))
            before = stage.rounds
            stage.await_rounds(before + 3)
            check("Traceback" not in stage.log(VICTIM), f"a traceback:\n{stage.log(VICTIM)}")
            _check_charged(stage)
            outcome.tries += 1
            stage.kill(VICTIM)
            stage.start_agent(VICTIM)
            _await_return(stage)
    return outcome


def _run_in_little(more: str, *arguments: str) -> None:
    """Run a command with so many more bytes of memory than this process has."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + int(more)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    run_command(*arguments)
