"""Members that lie to the real server, among honest ones, to test whom it blames.

In one round of a masked run, one member lies. The server must name that member and nobody else, and the others must go
on without it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flwr.app import MessageType

from client.app import make_app
from client.settings import read_site
from client.site import Site
from privacy.crypto.signing import digest, sign
from privacy.crypto.verdict import sign_verdict
from privacy.errors import CloisterError
from privacy.run.plan import read_plan
from server.settings import read_consortium
from simulations.attacks import spoilers
from simulations.engine.inline import serve_inline
from simulations.engine.results import read_events
from transport.flower import reply
from transport.mask_messages import CODES, REFUSAL, Refusal, Verdict
from transport.messages import EVALUATE, JUDGE, REVEAL, TRAIN, RoundOutcome, Trained
from transport.run_messages import OPENED, read_opened, read_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flwr.app import Context, Message, RecordDict

    from privacy.codec.envelope import SignedUpdate
    from privacy.run.plan import RoundPlan
    from privacy.run.settings import RunSettings
    from simulations.engine.federation import Federation

    Lie = Callable[[Site, Message, Callable[[], Message]], RecordDict]  # replaces a site's genuine reply
    Spoiler = Callable[[Site, RoundPlan, SignedUpdate], SignedUpdate]


def _sending(change: Spoiler) -> Lie:
    """Return a lie that sends another update, and sticks to it."""

    def lie(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
        plan = read_plan(TRAIN.read(message.content).plan)
        changed = change(site, plan, TRAIN.read_reply(genuine().content).update)
        sent = site.outbox.last(plan.run)
        site.outbox.keep(plan, changed, sent.mask if sent else b"")
        return TRAIN.pack_reply(Trained(changed))

    return lie


def _reveal_another(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
    genuine()
    return REVEAL.pack_reply(spoilers.false_seed(site, read_plan(REVEAL.read(message.content).plan)))


def _call_others_wrong(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
    del genuine
    suspect = JUDGE.read(message.content)
    right = bool(json.loads(suspect.update.header)["site"] == site.name)
    signature = sign_verdict(site.signing_key, read_plan(suspect.plan), suspect.update.header, right=right)
    return JUDGE.pack_reply(Verdict(right=right, signature=signature))


def _refuse(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
    del genuine
    refusal, plan = Refusal(CODES, []), digest("plan", read_sum(message.content).plan)
    signature = sign(site.signing_key, REFUSAL, refusal.signed_part(plan))
    return EVALUATE.pack_reply(replace(refusal, signature=signature))


def _open_another(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
    plan = digest("plan", read_sum(message.content).plan)
    opened = replace(read_opened(genuine().content)[0], model="0" * 64)
    signature = sign(site.signing_key, OPENED, opened.signed_part(plan))
    return EVALUATE.pack_reply(RoundOutcome(replace(opened, signature=signature)))


LIARS: dict[str, Mapping[str, Lie]] = {
    "a wrong code": {MessageType.TRAIN: _sending(spoilers.wrong_code)},
    "a wrong tag": {MessageType.TRAIN: _sending(spoilers.wrong_tag)},
    "too much noise": {MessageType.TRAIN: _sending(spoilers.loud)},
    "a false seed": {REVEAL.name: _reveal_another},
    "a false commitment": {MessageType.TRAIN: _sending(spoilers.other_pairs)},
    "a range of its own": {MessageType.TRAIN: _sending(spoilers.other_range)},
    "a false digest": {MessageType.EVALUATE: _open_another},
    "a false refusal": {MessageType.EVALUATE: _refuse},
    "a wrong code, others accused": {
        MessageType.TRAIN: _sending(spoilers.wrong_code),
        JUDGE.name: _call_others_wrong,
    },
}
"""The lies, by their name in the table: what a member replies instead, by kind of message."""


@dataclass(frozen=True)
class Blame:
    """The outcome of a round in which a member lied."""

    named: frozenset[str]
    released: bool


class Members:
    """The sites of one consortium, any of which may lie."""

    def __init__(self, federation: Federation, settings: RunSettings) -> None:
        self._federation, self._settings = federation, settings
        roster = read_consortium(federation.server).roster()
        paths = federation.paths.items()
        self._sites = {roster.member(name).node_id: Site(read_site(path)) for name, path in paths}
        self._app = make_app(lambda context: self._sites[context.node_id])

    def play(self, liar: str, lies: Mapping[str, Lie]) -> Blame:
        """Play one round with the real server, in which one member lies."""

        def answer(message: Message, context: Context) -> Message:
            site = self._sites[context.node_id]
            lie = lies.get(message.metadata.message_type) if site.name == liar else None
            if lie is None:
                return self._app(message, context)
            return reply(lie(site, message, lambda: self._app(message, context)), message)

        self._federation.sign(self._settings)
        with suppress(CloisterError):  # a run that failed released nothing
            serve_inline(self._federation, self._sites, answer)
        rounds = [event for event in read_events(self._federation) if event["event"] == "round"]
        named = frozenset(site for event in rounds for site in event["problems"])
        return Blame(named, bool(rounds) and all(event["released"] for event in rounds))
