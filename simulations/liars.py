"""Members that lie, among honest ones, to the real server: whom it blames.

Each plays one round of a masked run, in which one member lies. It must be named, and nobody else; the others must go on
without it.
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
from privacy.errors import CloisterError
from privacy.plan import read_plan
from privacy.signing import digest, sign
from privacy.verdict import sign_verdict
from server.settings import read_consortium
from simulations import spoilers
from simulations.inline import serve_inline
from simulations.results import journal_path, read_events
from strategies.judging import JUDGE
from strategies.masking import REVEAL
from transport.contents import OPENED, pack_opened, pack_update, read_opened, read_plan_of_sum, read_train, read_update
from transport.flower import reply
from transport.masking import (
    CODES,
    REFUSAL,
    Refusal,
    Verdict,
    pack_refusal,
    pack_revealed,
    pack_verdict,
    read_body,
    read_contributors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flwr.app import Context, Message, RecordDict

    from privacy.envelope import SignedUpdate
    from privacy.plan import RoundPlan
    from privacy.settings import RunSettings
    from simulations.federation import Federation

    Lie = Callable[[Site, Message, Callable[[], Message]], RecordDict]  # what a site says instead of its genuine reply
    Spoiler = Callable[[Site, RoundPlan, SignedUpdate], SignedUpdate]


def _sending(change: Spoiler) -> Lie:
    """Send another update, and stand by it."""

    def lie(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
        plan = read_plan(read_train(message.content)[0])
        changed, made = change(site, plan, read_update(genuine().content)[0]), site.outbox.last(plan.run)
        site.outbox.keep(plan, changed, made.mask if made else b"")
        return pack_update(changed, {})

    return lie


def _reveal_another(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
    genuine()
    return pack_revealed(spoilers.false_seed(site, read_plan(read_contributors(message.content)[0])))


def _call_others_wrong(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
    del genuine
    plan, body, _ = read_body(message.content)
    right = bool(json.loads(body.header)["site"] == site.name)
    signature = sign_verdict(site.signing_key, read_plan(plan), body.header, right=right)
    return pack_verdict(Verdict(right=right, signature=signature))


def _refuse(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
    del genuine
    refusal, plan = Refusal(CODES, []), digest("plan", read_plan_of_sum(message.content))
    return pack_refusal(replace(refusal, signature=sign(site.signing_key, REFUSAL, refusal.signed_part(plan))))


def _open_another(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
    plan = digest("plan", read_plan_of_sum(message.content))
    true, _ = read_opened(genuine().content)
    opened = replace(true, model="0" * 64)
    return pack_opened(replace(opened, signature=sign(site.signing_key, OPENED, opened.signed_part(plan))), {})


LIARS: dict[str, Mapping[str, Lie]] = {
    "a wrong code": {MessageType.TRAIN: _sending(spoilers.wrong_code)},
    "a wrong tag": {MessageType.TRAIN: _sending(spoilers.wrong_tag)},
    "too much noise": {MessageType.TRAIN: _sending(spoilers.loud)},
    "a false seed": {REVEAL: _reveal_another},
    "a false commitment": {MessageType.TRAIN: _sending(spoilers.other_pairs)},
    "a range of its own": {MessageType.TRAIN: _sending(spoilers.other_range)},
    "a false digest": {MessageType.EVALUATE: _open_another},
    "a false refusal": {MessageType.EVALUATE: _refuse},
    "a wrong code, others accused": {
        MessageType.TRAIN: _sending(spoilers.wrong_code),
        JUDGE: _call_others_wrong,
    },
}
"""What a member says instead, by kind of message; by what the table calls it."""


@dataclass(frozen=True)
class Blame:
    """What came of a round in which a member lied."""

    named: frozenset[str]
    released: bool


class Members:
    """Sites of one consortium, of which any may lie."""

    def __init__(self, federation: Federation, settings: RunSettings) -> None:
        self._federation, self._settings = federation, settings
        roster = read_consortium(federation.server).roster()
        paths = federation.paths.items()
        self._sites = {roster.member(name).node_id: Site(read_site(path)) for name, path in paths}
        self._app = make_app(lambda context: self._sites[context.node_id])

    def play(self, liar: str, lies: Mapping[str, Lie]) -> Blame:
        """Take the members through one round with the real server, while one of them lies."""

        def answer(message: Message, context: Context) -> Message:
            site = self._sites[context.node_id]
            lie = lies.get(message.metadata.message_type) if site.name == liar else None
            if lie is None:
                return self._app(message, context)
            return reply(lie(site, message, lambda: self._app(message, context)), message)

        self._federation.sign(self._settings)
        with suppress(CloisterError):  # a run that failed released nothing
            serve_inline(self._federation, self._sites, answer)
        rounds = [event for event in read_events(journal_path(self._federation)) if event["event"] == "round"]
        named = frozenset(site for event in rounds for site in event["problems"])
        return Blame(named, bool(rounds) and all(event["released"] for event in rounds))
