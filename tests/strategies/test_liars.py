"""A member of a masked run that spoils a sum is named, rightly, and the run of four goes on without it.

Every node is the real client app; a liar changes what the real app answered, with everything that its site has.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Context, Error, Message, MessageType, RecordDict

from client.flower import app as client_app
from client.flower import open_site
from client.round.admission import admit
from client.round.judging import judge
from client.site import Site
from privacy.crypto.signing import digest, sign
from privacy.crypto.summation import EncryptedSum, RunningSum
from privacy.crypto.verdict import sign_verdict
from privacy.errors import ProtocolError, RunError
from privacy.run.plan import RoundPlan, read_plan
from simulations.attacks import spoilers as liars
from simulations.engine.federation import Federation
from strategies import judging, masking
from strategies.selection import _FOUND
from tests.client.round.masked_rounds import MASKED
from tests.federations import SETTINGS, SITES, Answer, FederationMaker, charges_of, models_of, node_of, run_with
from tests.strategies.hostile import EVALUATE, HONEST, HOSTILE, TRAIN
from transport.flower import reply
from transport.mask_messages import (
    Refusal,
    Verdict,
    pack_refusal,
    pack_revealed,
    pack_verdict,
    read_body,
    read_contributors,
    read_revealed,
)
from transport.messages import JUDGE, REVEAL
from transport.run_messages import pack_update, read_manifest, read_sum, read_train, read_update

Lie = Callable[[Site, Message, Callable[[], Message]], RecordDict | None]  # what it says instead, if anything


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(MASKED)


def lying(federation: Federation, site: str, lies: dict[str, Lie]) -> Answer:
    """Let one site lie in its answers to some kinds of messages."""
    node = node_of(federation, site)

    def answer(message: Message, context: Context) -> Message:
        lie = lies.get(message.metadata.message_type) if message.metadata.dst_node_id == node else None
        response = (
            lie(open_site(federation.paths[site]), message, lambda: client_app(message, context)) if lie else None
        )
        return client_app(message, context) if response is None else reply(response, message)

    return answer


def sending(change: Callable[[Site, RoundPlan, Any], Any]) -> dict[str, Lie]:
    """Send other updates."""

    def lie(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
        plan = read_plan(read_train(message.content)[0])
        update, _ = read_update(genuine().content)
        changed, entry = change(site, plan, update), site.outbox.last(plan.run)
        assert entry is not None
        site.outbox.keep(plan, changed, entry.mask)  # it stands by it
        return pack_update(changed, {})

    return {TRAIN: lie}


def reveal_another(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict:
    genuine()
    return pack_revealed(liars.false_seed(site, read_plan(read_contributors(message.content)[0])))


def call_others_wrong(site: Site, message: Message, genuine: Callable[[], Message]) -> RecordDict | None:
    plan, body = read_body(message.content)[:2]
    if json.loads(body.header)["site"] == site.name:
        return call_all_right(site, message, genuine)
    signature = sign_verdict(site.signing_key, read_plan(plan), body.header, right=False)
    return pack_verdict(Verdict(right=False, signature=signature))


def call_all_right(site: Site, message: Message, _: Callable[[], Message]) -> RecordDict:
    plan, body = read_body(message.content)[:2]
    return pack_verdict(
        Verdict(right=True, signature=sign_verdict(site.signing_key, read_plan(plan), body.header, right=True))
    )


def refuse(site: Site, message: Message, _: Callable[[], Message]) -> RecordDict:
    refusal, plan = Refusal("codes", []), digest("plan", read_sum(message.content).plan)
    return pack_refusal(replace(refusal, signature=sign(site.signing_key, "refused", refusal.signed_part(plan))))


LIES: dict[str, tuple[dict[str, Lie], str]] = {
    "a wrong code": (sending(liars.wrong_code), judging._WRONG),
    "a wrong tag": (sending(liars.wrong_tag), judging._WRONG),
    "too much noise": (sending(liars.loud), judging._WRONG),
    "a wrong tag, and denies it": (sending(liars.wrong_tag) | {JUDGE.name: call_all_right}, judging._WRONG),
    "a false seed": ({REVEAL.name: reveal_another}, judging._FALSE_SEED),
    "a false commitment to masks": (sending(liars.other_pairs), masking._DISPUTE),
}


@pytest.mark.parametrize("site", [HOSTILE, "east"], ids=["last", "first"])
@pytest.mark.parametrize("lie", LIES)
def test_a_site_that_spoils_a_sum_is_named_and_the_round_goes_on_without_it(
    federation: Federation, lie: str, site: str
) -> None:
    lies, reason = LIES[lie]
    first, second = run_with(federation, lying(federation, site, lies))
    others = sorted(set(SITES) - {site})
    for event in (first, second):
        assert (event["released"], event["sites"]) == (True, others)
        assert set(event["problems"]) == {site}
    assert first["problems"][site] == reason
    assert first["attempts"] == 2
    assert {charges_of(federation, sibling) for sibling in others} == {2}  # nothing was charged twice
    models = models_of(federation)
    assert len({models[sibling] for sibling in others}) == 1


def test_a_false_judge_is_named_for_the_false_judgement(federation: Federation) -> None:
    """The first to judge has spoiled the sum, and says that all others did."""
    lies = sending(liars.wrong_code) | {JUDGE.name: call_others_wrong}
    first, second = run_with(federation, lying(federation, "east", lies))
    for event in (first, second):
        assert (event["released"], event["sites"]) == (True, ["north", "south", "west"])
    assert first["problems"] == {"east": judging._SLANDER}
    assert [charges_of(federation, site) for site in ("north", "south", "west")] == [2, 2, 2]


def test_a_seed_that_is_garbled_on_its_way_is_asked_for_again(federation: Federation) -> None:
    node, garbled = node_of(federation, HOSTILE), list[int]()

    def answer(message: Message, context: Context) -> Message:
        genuine = client_app(message, context)
        if (message.metadata.dst_node_id, message.metadata.message_type) == (node, REVEAL.name) and not garbled:
            garbled.append(1)
            return reply(pack_revealed(read_revealed(genuine.content)[:-1] + b"?"), message)
        return genuine

    for event in run_with(federation, answer):
        assert (event["released"], event["problems"]) == (True, {})
    assert garbled


def test_a_site_that_rejects_a_sum_which_others_opened_is_named(federation: Federation) -> None:
    rounds = run_with(federation, lying(federation, HOSTILE, {EVALUATE: refuse}))
    for event in rounds:
        assert event["released"]
        assert "does not open, but others opened it" in event["problems"][HOSTILE]
    assert {charges_of(federation, site) for site in HONEST} == {2}


def test_one_refusal_does_not_undo_a_sum_whose_other_replies_were_lost(federation: Federation) -> None:
    lies, lost = lying(federation, HOSTILE, {EVALUATE: refuse}), set[int]()

    def answer(message: Message, context: Context) -> Message:
        response, node = lies(message, context), message.metadata.dst_node_id
        if message.metadata.message_type == EVALUATE and node != node_of(federation, HOSTILE) and node not in lost:
            lost.add(node)
            return reply(Error(1, "the line broke"), message)
        return response

    first, second = run_with(federation, answer)
    assert "delivered again" in first["reason"]
    assert (second["released"], sorted(second["sites"])) == (True, HONEST)
    assert {charges_of(federation, site) for site in HONEST} == {2}
    models = models_of(federation)
    assert len({models[site] for site in HONEST}) == 1


def test_the_sender_of_wrong_values_under_masks_is_found_after_some_rounds(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(MASKED, rounds=14))
    rounds = run_with(federation, lying(federation, HOSTILE, sending(liars.garbage)))
    assert not rounds[0]["released"]
    assert "the values under the masks are wrong" in rounds[0]["reason"]
    assert rounds[-1]["released"]
    assert rounds[-1]["problems"] == {HOSTILE: _FOUND}
    assert all(HOSTILE not in event["sites"] for event in rounds if event["released"])
    assert charges_of(federation, "north") <= len(rounds)


def test_a_server_that_adds_up_wrongly_is_named_by_the_sites(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = RunningSum.close

    def wrongly(self: RunningSum) -> EncryptedSum:
        total = genuine(self)
        return replace(total, codes=bytes(len(total.codes)))

    monkeypatch.setattr(RunningSum, "close", wrongly)
    with pytest.raises(RunError, match="this server did not add them up"):
        run_with(federation)
    assert {charges_of(federation, site) for site in SITES} == {1}


# --- What a site must see before it judges ----------------------------------------------------------------------------


def test_no_site_receives_another_sites_update_without_masks(make_federation: FederationMaker) -> None:
    federation, types = make_federation(replace(SETTINGS, rounds=1)), list[str]()

    def answer(message: Message, context: Context) -> Message:
        types.append(message.metadata.message_type)
        if message.metadata.message_type == TRAIN and context.node_id == node_of(federation, HOSTILE):
            return reply(_spoiled(federation, message, client_app(message, context)), message)
        return client_app(message, context)

    with pytest.raises(RunError):
        run_with(federation, answer)
    assert JUDGE.name not in types


def _spoiled(federation: Federation, message: Message, genuine: Message) -> RecordDict:
    update, _ = read_update(genuine.content)
    plan = read_plan(read_train(message.content)[0])
    return pack_update(liars.wrong_code(open_site(federation.paths[HOSTILE]), plan, update), {})


def test_a_site_judges_no_update_unless_it_has_refused_a_sum_of_that_plan(federation: Federation) -> None:
    tried = list[str]()

    def answer(message: Message, context: Context) -> Message:
        genuine = client_app(message, context)
        if message.metadata.message_type == MessageType.TRAIN:
            plan, _ = read_train(message.content)
            update, _ = read_update(genuine.content)
            site = open_site(federation.paths["north"])
            with pytest.raises(ProtocolError, match="judges no update"):
                judge(admit(site, read_manifest(message.content)).round(read_plan(plan)), update)
            tried.append(str(context.node_id))
        return genuine

    run_with(federation, answer)
    assert len(tried) == 8
