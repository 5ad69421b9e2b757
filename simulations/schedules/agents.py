"""A site's agent: answers messages until it is killed, and starts anew from what its disk has."""

from __future__ import annotations

import random
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict

from client.app import make_app
from client.settings import SiteFolder, read_site
from privacy.errors import CloisterError
from simulations.schedules.disk import Killed
from simulations.schedules.work import CountingSite
from transport.flower import answer, reply
from transport.parcel import decode_instruction

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flwr.app import Message

    from client.settings import SiteSettings
    from client.site import Site
    from simulations.schedules.clock import Clock
    from simulations.schedules.disk import Disk
    from simulations.schedules.faults import Fault
    from simulations.schedules.watch import Watch

    Lie = Callable[[Site, Message, Callable[[], Message]], RecordDict]


@cache
def _settings(folder: Path) -> SiteSettings:
    """Return a site's settings, which no schedule changes."""
    return read_site(folder).settings


class Agent:
    """One site's agent."""

    def __init__(self, name: str, node: int, disk: Disk, clock: Clock, watch: Watch) -> None:
        self.name, self.node, self.disk = name, node, disk
        self.away_until, self.crashes = 0.0, 0
        self.lies: dict[str, Lie] = {}  # instead of the true answer, by kind of message
        self._clock, self._watch = clock, watch
        self._crashes: dict[int, Fault] = {}
        self._site: Site | None = None
        self._app = make_app(lambda _: self.site)

    def plan(self, crashes: list[Fault]) -> None:
        """Take the crashes that are to come."""
        self._crashes = {fault.place: fault for fault in crashes}
        self.disk.kill_at = set(self._crashes)

    def calm_down(self) -> None:
        """Crash no more."""
        self.disk.kill_at.clear()
        self.lies.clear()

    @property
    def site(self) -> Site:
        """The site, opened if it is not."""
        if self._site is None:
            self._site = CountingSite(SiteFolder(self.disk.folder, _settings(self.disk.folder)), self._watch)
        return self._site

    def answer(self, data: bytes) -> Message | None:
        """Answer a message; return None if the site was killed."""
        context = Context(0, self.node, {}, RecordDict(), {})
        message = decode_instruction(data)
        kind = message.metadata.message_type
        try:
            answered = self._false(self.lies[kind], message, context) if kind in self.lies else None
            answered = answered or self._true(message, context)
        except Killed:
            answered = None
        if self.disk.dead or answered is None:
            self._crash()
            return None
        if not answered.has_error() and self.name != self._watch.liar:
            self._watch.leaves(self.site, kind, message.content, answered.content)
        return answered

    def _false(self, lie: Lie, message: Message, context: Context) -> Message | None:
        """Return the lie; None if there is nothing to lie about, because the true answer is an error."""
        with suppress(ValueError, LookupError, CloisterError):
            return reply(lie(self.site, message, lambda: self._true(message, context)), message)
        return None

    def _true(self, message: Message, context: Context) -> Message:
        answered = answer(self._app, message, context)
        if broken := self._watch.broken:
            raise broken
        return answered

    def _crash(self) -> None:
        fault = self._crashes[self.disk.operations]
        self.disk.restart(random.Random(fault.choice) if fault.kind == "cut" else None)  # noqa: S311 - guards nothing
        self._site, self.crashes = None, self.crashes + 1
        self.away_until = self._clock.now + fault.seconds
