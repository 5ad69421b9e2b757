"""The agent's process: dial the server, answer its messages one at a time, and reconnect when the connection breaks.

Under `torchrun`, the first of the site's processes is the agent; the others are workers: see
`client.dpsgd.process_group`.

Messages go through the same `ClientApp` that Flower's own engines run. They are answered in order. A reply that could
not be delivered is sent again unchanged, never recomputed. `client.agents` has several sites in one process.
"""

from __future__ import annotations

import logging
import os
import random
import re
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from flwr.app import Context, RecordDict

from client.dpsgd.torchrun import own_place
from client.exchange import WAIT_SECONDS, Exchange, reach
from client.identity import check_certificate, check_keys, check_room, check_secrecy
from client.operations.watched import watched
from client.protection import kept, ready
from client.settings import SiteFolder, read_site
from client.turn import TURN
from client.upkeep import Upkeep
from privacy.errors import (
    ConfigError,
    DeviceError,
    KeyFileError,
    MalformedError,
    ProtocolError,
    StorageError,
    UnreachableError,
)
from privacy.failpoints import failpoint
from privacy.locks import locked
from privacy.log_fields import about
from privacy.parallel import in_processes
from transport.flower import answer
from transport.memory import large_pages, trim
from transport.parcel import decode_instruction, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from threading import Event

    from client.site import Site
    from client.watch import Watch
    from transport.flower import App

log = logging.getLogger("cloister.agent")

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 15.0  # seconds between attempts to reach the server
_TURN_SECONDS = 0.5
_REFUSED_DELAY = 2.0  # seconds after the server refuses a reply
_ALONE = nullcontext()  # a process with one site waits for nobody


def attend(path: Path, stop: Event, started: Callable[[], None] = lambda: None) -> None:
    """Serve as the agent of the site in this folder until `stop` is set; call `started` once it could take part.

    Raises:
        CloisterError: if the site's own settings, keys or records are wrong, the server refuses the site, or a process
            of the group is lost.
    """
    place = read_site(path)
    with about(site=place.settings.site):
        ready(place)
        if own_place().size > 1 and place.settings.training.checkpoint_steps:
            msg = (
                f"{place.folder}: checkpoint_steps is for a single process, and torchrun starts {own_place().size}; "
                "set it to 0 in [training] of site.toml, or start the agent without torchrun"
            )
            raise ConfigError(msg)
        if own_place().rank:
            from client.dpsgd.worker import assist  # noqa: PLC0415 - loads torch

            assist(place)
            return
    attend_site(place, stop, started=started)


def attend_site(
    place: SiteFolder,
    stop: Event,
    turns: AbstractContextManager[Any] = _ALONE,
    started: Callable[[], None] = lambda: None,
    kind: Callable[[SiteFolder], Site] | None = None,
) -> None:
    """Serve as the agent of an opened site until `stop` is set.

    Args:
        place: the site.
        stop: ends this.
        turns: entered for all work with torch, where several sites share a process.
        started: called once it could take part.
        kind: makes the site, instead of `Site`.

    Raises:
        CloisterError: as `attend` does.
    """
    with about(site=place.settings.site):
        _look_first(place)
        kept(place).sweep()
        with watched(place) as watch:
            _take_part(place, watch, stop, turns, started, kind)


def _take_part(
    place: SiteFolder, watch: Watch, stop: Event, turns: AbstractContextManager[Any], started: Callable[[], None],
    kind: Callable[[SiteFolder], Site] | None,
) -> None:  # fmt: skip
    line = _Line(place, watch)
    line.check()
    large_pages()
    # Torch reads this when it loads. Otherwise its idle threads would spin, and slow down everything else here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # These load torch; errors that need no torch were reported before.
    with turns:
        from client.app import make_app  # noqa: PLC0415
        from client.dpsgd.process_group import gather  # noqa: PLC0415
        from client.site import Site  # noqa: PLC0415
        from client.work.personal_training import go_on  # noqa: PLC0415

        site, waiting = (kind or Site)(place), list["Callable[[], None]"]()
        site.forget_steps()
    site.later, site.watch = waiting.append, watch
    site.apply = in_processes(place.settings.encryption_processes or os.cpu_count() or 1)
    if metrics := site.settings.policy.metrics:
        log.warning(
            "`disclose` lists %s: sent after every round without noise, and not covered by ε", ", ".join(metrics)
        )
    with gather(site.device, stop.set) as group, site.tracking:
        site.group = group
        log.info("reading and checking records for %s", ", ".join(site.settings.policy.tasks) or "no task")
        with turns:
            for task, count in site.check_records().items():
                log.info("data: %d training records, fit %s", count, task)
        if group:
            group.compare(site.records_digest())
            log.info("%d processes train together, this one on %s", group.size, site.device)
        site.later(lambda: go_on(site))
        started()
        _serve(site, line, make_app(lambda _: site), stop, waiting, turns)
    if group and group.lost:
        msg = f"{site.name} lost another of its processes and ended; to come back, run the same command"
        raise DeviceError(msg)


def _look_first(place: SiteFolder) -> None:
    """Look at what can be seen without the server, so that it is said before anything waits for the network.

    Raises:
        CloisterError: if keys, certificate or roster cannot be used.
        OSError: if the site's folder cannot be written.
    """
    check_keys(place)
    check_certificate(place)
    for look in (check_secrecy, check_room):
        try:
            look(place)
        except (KeyFileError, StorageError) as warning:
            log.warning("%s", warning)


def _serve(
    site: Site,
    line: _Line,
    app: App,
    stop: Event,
    waiting: list[Callable[[], None]],
    turns: AbstractContextManager[Any],
) -> None:
    place, upkeep = site.place, Upkeep(site)
    with _turn(place.folder / TURN, stop):
        while not stop.is_set():
            if not line.check():
                stop.wait(line.delay())
                continue
            line.status = _limits(site)
            try:
                with Exchange(place.settings.server, place.tls, place.proxy, place.signer) as exchange:
                    look = partial(upkeep.look, exchange)
                    answer_all(exchange, app, _context(site), stop, line, waiting, look=look, turns=turns)
            except (UnreachableError, MalformedError) as error:
                line.broke(error)
                stop.wait(line.delay())


class _Line:
    """The connection's state: whether the server can be reached. It logs changes, not every attempt."""

    def __init__(self, place: SiteFolder, watch: Watch) -> None:
        self._place, self._watch = place, watch
        self.status = ""  # logged when the connection is up
        self._said = ""  # why it is down, without numbers and quotations
        self._delay = _FIRST_DELAY

    def check(self) -> bool:
        """Return whether the server answers and accepts this site.

        Raises:
            AuthenticityError: if the server or this site fails authentication; trying again would not help.
        """
        try:
            reach(self._place.settings.server, self._place.tls, self._place.proxy, self._place.signer)
        except UnreachableError as error:
            self.broke(error)
            return False
        return True

    def stands(self) -> None:
        """Log that the connection is up. It may not last, so the delay is not reset."""
        way = f" through {proxy}" if (proxy := self._place.proxy) else ""
        log.info("online at %s%s; %s", self._place.settings.server, way, self.status)
        self._said = self._watch.trouble = ""

    def works(self) -> None:
        """Note that a message got through: if the connection breaks now, the delay starts over."""
        self._delay = _FIRST_DELAY

    def broke(self, error: Exception) -> None:
        """Log why the connection is down, once for each cause."""
        if self._said != (said := re.sub(r"\d|“.*?”", "", str(error))):
            log.warning("%s; retrying until it answers", error)
        self._said, self._watch.trouble = said, str(error)

    def delay(self) -> float:
        """Return how many seconds to wait: longer each time, and randomised per agent."""
        self._delay = min(2 * self._delay, _LONGEST_DELAY)
        return self._delay * random.uniform(0.5, 1.0)  # noqa: S311 - guards nothing


def answer_all(
    exchange: Exchange,
    app: App,
    context: Context,
    stop: Event,
    line: _Line | None = None,
    waiting: list[Callable[[], None]] | None = None,
    *,
    look: Callable[[], None] = lambda: None,
    turns: AbstractContextManager[Any] = _ALONE,
) -> None:
    """Pull messages and push what the app makes of them, until `stop` is set.

    Args:
        exchange: with the server.
        app: answers messages.
        context: the node's.
        stop: ends this.
        line: logs whether the connection is up.
        waiting: work to which the app adds, to be done once its answer is delivered.
        look: called before each wait for a message.
        turns: entered while the app works.

    Raises:
        CloisterError: if the connection breaks, the server refuses the site, or sends something that is not a message.
    """
    wait, worked = 0.0, False  # the first answer comes at once, and shows that gRPC gets through
    look()
    while not stop.is_set():
        data = exchange.pull(wait)
        if line and not wait:
            line.stands()
        if data is None:
            look()
            if worked:  # in mid-round, the next message needs what this one took
                trim()
                worked = False
        else:
            message, data = decode_instruction(data), None  # free the raw bytes, which may be large
            failpoint("agent-asked")
            with turns:
                reply = encode(answer(app, message, context))
            failpoint("agent-answers")
            _deliver(exchange, reply, message.metadata.message_id, stop)
            del message, reply
            worked = True
        while waiting and not stop.is_set():
            with turns:
                waiting.pop(0)()
        if line and (wait or data is not None):
            line.works()
        wait = WAIT_SECONDS


def _deliver(exchange: Exchange, reply: tuple[bytes, ...], reply_to: str, stop: Event) -> None:
    try:
        # If the connection breaks here, the server offers the message again, and the outbox has the same update.
        if not exchange.push(reply, reply_to):
            log.info("a reply came too late: the round had closed")
        failpoint("agent-answered")
    except ProtocolError as error:
        # The server offers the message again until its round closes, and the reply will be the same: no hurry.
        log.warning("%s", error)
        stop.wait(_REFUSED_DELAY)


@contextmanager
def _turn(path: Path, stop: Event) -> Iterator[None]:
    """Wait until no other agent of this site runs: two would make two updates for one plan."""
    with path.open("ab") as file:  # the lock lasts until the file is closed, at the latest when the process ends
        while not locked(file) and not stop.is_set():
            log.info("another agent of this site is running; this one takes over when it ends")
            while not locked(file) and not stop.wait(_TURN_SECONDS):
                pass
        yield


def _context(site: Site) -> Context:
    return Context(
        run_id=0,
        node_id=site.roster.member(site.name).node_id,
        node_config={},
        state=RecordDict(),
        run_config={},
    )


def _limits(site: Site) -> str:
    budget, policy = site.settings.budget, site.settings.policy
    spent = site.ledger.spent(budget.delta)
    return f"spent ε {spent:.2f} of {budget.epsilon:.2f}, cohort ≥ {policy.minimum_cohort}, encryption always"
