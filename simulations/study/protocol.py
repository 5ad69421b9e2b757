"""The engines that play the whole protocol, with keys, ledgers, encryption and every message."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from queue import Empty, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Error
from flwr.serverapp import Grid
from typing_extensions import override

from client.app import make_app
from client.data.own_records import OwnRecords
from client.settings import read_site
from client.site import Site
from client.state.local_parameters import FOLDER, LocalParameters
from privacy.errors import ConfigError
from privacy.run.plan import read_plan
from server.settings import read_consortium, read_run
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.inline import InlineGrid, contexts_of, serve_over
from simulations.engine.pool import PoolGrid
from simulations.engine.results import read_events
from simulations.study.simulation import Played
from strategies.interruption import RunInterrupted
from transport.flower import REFUSED, reply
from transport.messages import TRAIN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flwr.app import Context, Message

    from client.settings import SiteFolder
    from client.state.personal_models import Values
    from client.task.probe import Example
    from client.task.task import Task
    from privacy.run.settings import RunSettings
    from simulations.pools import Pool
    from simulations.study.checkpoints import Checkpoint
    from simulations.study.population import Population
    from simulations.study.simulation import Simulation
    from transport.flower import App

log = logging.getLogger("cloister.run")

OpenGrid = Callable[[int], AbstractContextManager[Grid]]

_PLANNED = "too late in this simulation", "it does not take part in this round of the simulation"
_ALIVE = 0.2  # seconds between two looks whether the run's thread has ended
_AT_ONCE = 0.5  # seconds for that thread to end on Ctrl-C; a site that trains goes on until its step is done


class HeldSite(Site):
    """A site whose records are in memory already."""

    def __init__(self, place: SiteFolder, pool: Pool) -> None:
        super().__init__(place)
        self._pool = pool

    @override
    def load(self, task: Task, name: str, example: Example) -> OwnRecords:
        return OwnRecords(self._pool.records)


def terms_for(settings: RunSettings) -> SiteTerms:
    """Return the terms of sites that allow what a run asks for, and hold no records out."""
    return SiteTerms(
        (settings.task,), epsilon=inf, delta=settings.privacy.delta, maximum_epsilon=inf, minimum_noise_multiplier=0.0,
        minimum_cohort=2, held_out=0.0, collusion_resistant=False, shared_noise=True, colluding_sites=0,
        vote_epsilon=inf, strategies=(str(settings.strategy["name"]),), file="records", device="cpu",
    )  # fmt: skip


class WholeProtocol:
    """Plays rounds by Flower's apps, server and sites: in this process (`inline`), or in `processes` of its own."""

    def __init__(self, name: str, why: str = "you asked for it") -> None:
        self.name, self.why = name, why

    def play(self, simulation: Simulation, begun: Checkpoint) -> Iterator[Played]:
        """Yield each round once it is over.

        A site that does not take part in a round answers as one that fails: without training, or, if it is late, after.
        """
        federation = _founded(simulation, self._terms(simulation.settings))
        run = read_run(federation.manifest, read_consortium(federation.server).roster())
        model, numbers = simulation.start(), {site: number for number, site in enumerate(simulation.sites)}
        if begun.number:
            model = begun.model(model)
        with _quiet_about(_PLANNED), self._opened(simulation, federation) as (first, grid):
            first.check_records()  # the same task everywhere: what is wrong with it is said once, and before the run
            # The last process may have ended before the server had noted a round for good, or before the checkpoint was
            # written: the round may be noted again, or not.
            noted, done = _rounds_of(federation) if simulation.resumable else [], begun.number
            with _Rounds(federation, grid) as rounds:
                for event in itertools.chain(noted, rounds):
                    if event["round"] <= done:
                        continue
                    done = event["round"]
                    if event["released"]:
                        model = first.checkpoint(run.manifest, run.digest).model
                    turnout = simulation.population.turnout(event["round"])
                    absent = {simulation.sites[site] for site in turnout.absent(len(numbers))}
                    problems = {site: why for site, why in event["problems"].items() if site not in absent}
                    yield Played(
                        event["round"], replace(model, vector=model.vector.copy(), local={}),
                        np.array([numbers[site] for site in event["sites"]], np.intp), turnout.charged,
                        bool(event["released"]), int(event["bytes_up"]), float(event["seconds"]),
                        turnout.problems | problems,
                    )  # fmt: skip

    def at_sites(self, simulation: Simulation) -> Callable[[str], Values]:
        """Return a function that reads from a site's folder, by the site's name, what stays there; nothing before."""
        federation, local = Federation(simulation.folder, simulation.sites), simulation.start().layout.local
        run = read_run(federation.manifest, read_consortium(federation.server).roster()).digest
        return lambda site: LocalParameters(federation.paths[site] / FOLDER).load(run, local) or {}

    def _terms(self, settings: RunSettings) -> SiteTerms:
        """Return the settings of each site."""
        return terms_for(settings)

    @contextmanager
    def _opened(self, simulation: Simulation, federation: Federation) -> Iterator[tuple[Site, OpenGrid]]:
        """Yield one site, and what opens a grid over all of them for a run of a number."""
        roster = read_consortium(federation.server).roster()
        nodes = {
            roster.member(site).node_id: HeldSite(read_site(path), simulation.records[site])
            for site, path in federation.paths.items()
        }
        numbers = {node: number for number, node in enumerate(nodes)}
        app = with_turnout(
            make_app(lambda context: nodes[context.node_id]),
            simulation.population,
            lambda context: numbers[context.node_id],
        )

        def grid(run_id: int) -> AbstractContextManager[Grid]:
            contexts = contexts_of(run_id, nodes)
            if self.name == "inline":
                return nullcontext(InlineGrid(run_id, contexts, app))
            return PoolGrid(run_id, contexts, app, min(simulation.processes, len(nodes)))

        yield next(iter(nodes.values())), grid


def _founded(simulation: Simulation, terms: SiteTerms) -> Federation:
    """Return the simulation's federation, which an earlier process may have made if there is a checkpoint.

    Raises:
        ConfigError: if there is no checkpoint, and something is in the folder.
    """
    folder = simulation.folder
    if simulation.resumable:
        federation = Federation(folder, simulation.sites)
        if federation.manifest.exists():
            return federation
        shutil.rmtree(folder, ignore_errors=True)  # an earlier process ended before it had made all of it
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        msg = f"{folder} is {'not empty' if folder.is_dir() else 'a file'}; name an empty or a new folder"
        raise ConfigError(msg)
    federation = Federation.create(simulation.folder, simulation.sites, consortium="simulation")
    for site in simulation.sites:
        federation.write_settings(site, "localhost:1", terms)
    federation.share(simulation.initial_files())
    federation.sign(simulation.settings)
    return federation


def _rounds_of(federation: Federation) -> list[dict[str, Any]]:
    """Return the events of the rounds that have ended; none if the run was not submitted."""
    return [event for event in read_events(federation) if event["event"] == "round"]


def with_turnout(app: App, population: Population, number_of: Callable[[Context], int]) -> App:
    """Return an app whose nodes take part in a round or not, as the population says.

    Args:
        app: of all sites.
        population: the sites.
        number_of: returns the number of a node's site, from 0. If it can be pickled, so can what is returned.
    """
    return app if population.is_whole else _Turnouts(app, population, number_of)


@dataclass(frozen=True)
class _Turnouts:
    """What `with_turnout` returns."""

    app: App
    population: Population
    number_of: Callable[[Context], int]

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; one to train as a site that takes part in its round, is late, or does not."""
        if message.metadata.message_type != TRAIN.name:
            return self.app(message, context)
        turnout = self.population.turnout(read_plan(TRAIN.read(message.content).plan).round)
        number = self.number_of(context)
        if number in turnout.delivered:
            return self.app(message, context)
        if number in turnout.late:
            self.app(message, context)
            return reply(Error(REFUSED, _PLANNED[0]), message)
        return reply(Error(REFUSED, _PLANNED[1]), message)


@contextmanager
def _quiet_about(reasons: Sequence[str]) -> Iterator[None]:
    """Keep sites from warning that they miss rounds for these reasons."""

    def others(record: logging.LogRecord) -> bool:
        return not any(reason in record.getMessage() for reason in reasons)

    sites = logging.getLogger("cloister.agent")
    sites.addFilter(others)
    try:
        yield
    finally:
        sites.removeFilter(others)


class _Rounds(logging.Handler):
    """The rounds of a run that a thread serves; it waits after each until the next one is asked for."""

    def __init__(self, federation: Federation, grid: OpenGrid) -> None:
        super().__init__()
        self._events: Queue[dict[str, Any]] = Queue()
        self._go_on, self._ended, self._error = Event(), False, list[BaseException]()
        self._thread = Thread(target=partial(self._serve, federation, grid), daemon=True, name="simulated server")

    def __enter__(self) -> Iterator[dict[str, Any]]:
        log.addHandler(self)
        self._level, self._spreads = log.level, log.propagate
        log.setLevel(logging.INFO)
        log.propagate = False
        self._thread.start()
        return self._rounds()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended = True
        self._go_on.set()
        self._thread.join(_AT_ONCE if kind and issubclass(kind, KeyboardInterrupt) else None)
        log.removeHandler(self)
        log.setLevel(self._level)
        log.propagate = self._spreads

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Hand a round over, and wait.

        Raises:
            RunInterrupted: if no further round is wanted.
        """
        entry: dict[str, Any] | None = getattr(record, "entry", None)
        if record.thread != self._thread.ident or entry is None:
            return
        if self._ended:
            raise RunInterrupted
        if entry["event"] != "round":
            return
        self._go_on.clear()
        self._events.put(entry)
        self._go_on.wait()
        if self._ended:
            raise RunInterrupted

    def _rounds(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                event = self._events.get(timeout=_ALIVE)
            except Empty:
                if self._thread.is_alive():
                    continue
                break
            yield event
            self._go_on.set()
        if self._error:
            raise self._error[0]

    def _serve(self, federation: Federation, grid: OpenGrid) -> None:
        try:
            serve_over(federation, grid)
        except RunInterrupted:
            pass
        except BaseException as error:  # noqa: BLE001 - raised where the rounds are read
            self._error.append(error)
