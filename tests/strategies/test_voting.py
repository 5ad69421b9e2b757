"""A round that half of the votes reject is undone at every site, also one that was away; whoever spoils is found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MessageType

from client.flower import app as client_app
from client.flower import open_site
from privacy.errors import RunError
from privacy.run.settings import RunSettings
from privacy.run.tables import Vote as VoteSettings
from privacy.run.votes import Question, cast
from simulations.engine.federation import Federation
from simulations.engine.results import read_events
from tests.federations import (
    SETTINGS,
    SITES,
    TERMS,
    Answer,
    FederationMaker,
    charges_of,
    models_of,
    node_of,
    run_with,
    signed_run,
)
from transport.flower import reply
from transport.messages import UNDO
from transport.vote_messages import put_vote

Rejects = Callable[[int, str], bool]  # of a round's number and a site

VOTED = replace(SETTINGS, rounds=3, vote=VoteSettings(epsilon=1.0, tolerance=0.0))
CONSENT = replace(TERMS, vote_epsilon=1.0)
WEST = "west"


def voting(
    federation: Federation, rejects: Rejects, around: Callable[[Message, Message], Message] | None = None
) -> Answer:
    """Let every site vote as given, not by its records and chance; let `around` change its replies."""
    _, manifest, run = signed_run(federation)
    names = {node_of(federation, site): site for site in SITES}

    def answer(message: Message, context: Context) -> Message:
        answer_, name = client_app(message, context), names[context.node_id]
        if message.metadata.message_type == MessageType.EVALUATE and answer_.has_content():
            site = open_site(federation.paths[name])
            now, before = site.checkpoint(manifest, run), site.before(manifest, run)
            question = Question(run, now.round, before.digest, now.digest)
            put_vote(answer_.content, cast(question, site.signing_key, reject=rejects(now.round, name)))
        return around(message, answer_) if around else answer_

    return answer


def consenting(make_federation: FederationMaker, settings: RunSettings = VOTED) -> Federation:
    return make_federation(settings, dict.fromkeys(SITES, CONSENT))


def final(federation: Federation) -> dict[str, Any]:
    """The last event of the run."""
    return read_events(federation)[-1]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_an_undone_round_leaves_all_sites_with_the_model_before_it(
    make_federation: FederationMaker, number: int, *, masked: bool
) -> None:
    encryption = replace(SETTINGS.encryption, collusion_resistant=masked)
    federation = consenting(make_federation, replace(VOTED, encryption=encryption))
    events = run_with(federation, voting(federation, lambda at, name: at == number and name in {"north", "east"}))
    assert [event.get("undone", False) for event in events] == [at == number for at in (1, 2, 3)]
    assert events[number - 1]["votes"]["reject"] == events[number - 1]["votes"]["keep"] == 2
    models = [event["model"] for event in events]
    if number > 1:
        assert models[number - 1] == models[number - 2]
    assert len(set(models)) == (3 if number == 1 else 2)
    assert len(set(models_of(federation).values())) == 1
    assert {charges_of(federation, site) for site in SITES} == {3}  # what was charged stays
    assert final(federation)["rounds"] == 2
    assert final(federation)["model"] == models[-1]


@pytest.mark.parametrize("number", [2, 3])
def test_a_site_that_missed_an_undo_applies_it_when_it_returns(make_federation: FederationMaker, number: int) -> None:
    federation, groups = consenting(make_federation), list[str]()

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == UNDO.name and context.node_id == node_of(federation, WEST):
            groups.append(message.metadata.group_id)
            if len(groups) == 1:
                return reply(Error(1, "the line broke"), message)
        return honest(message, context)

    honest = voting(federation, lambda at, _: at == number)
    events = run_with(federation, answer)
    assert groups == [str(number)] * 2
    assert [WEST in event["sites"] for event in events] == [True, True, True]
    assert len(set(models_of(federation).values())) == 1


def test_a_site_that_missed_the_undone_sum_undoes_nothing(make_federation: FederationMaker) -> None:
    federation = consenting(make_federation)

    def answer(message: Message, context: Context) -> Message:
        missed = message.metadata.message_type == MessageType.EVALUATE and message.metadata.group_id == "2"
        if missed and context.node_id == node_of(federation, WEST):
            return reply(Error(1, "the line broke"), message)
        return honest(message, context)

    honest = voting(federation, lambda at, _: at == 2)
    events = run_with(federation, answer)
    assert [event.get("undone", False) for event in events] == [False, True, False]
    assert len(set(models_of(federation).values())) == 1


def test_votes_of_fewer_than_the_minimum_or_signed_by_others_do_not_count(make_federation: FederationMaker) -> None:
    federation = consenting(make_federation)

    def spoiled(message: Message, response: Message) -> Message:
        if message.metadata.message_type == MessageType.EVALUATE and response.has_content():
            if message.metadata.dst_node_id == node_of(federation, "south"):
                del response.content["vote"]
            elif message.metadata.dst_node_id == node_of(federation, WEST):
                response.content["vote"] = ConfigRecord({"vote": b"\1" + bytes(64)})
        return response

    events = run_with(federation, voting(federation, lambda *_: True, spoiled))
    assert not any(event.get("undone") for event in events)
    assert [event["votes"] for event in events] == [{"keep": 0, "reject": 2, "worse": 3.16}] * 3
    assert final(federation)["rounds"] == 3


def test_a_site_that_contributed_nothing_has_no_vote(make_federation: FederationMaker) -> None:
    """West sends no update, and votes against what the others made: it would never come under suspicion."""
    federation = consenting(make_federation)

    def silent(message: Message, response: Message) -> Message:
        trains = message.metadata.message_type == MessageType.TRAIN
        if trains and message.metadata.dst_node_id == node_of(federation, WEST):
            return reply(Error(1, "the line broke"), message)
        return response

    events = run_with(federation, voting(federation, lambda _, name: name in {"north", WEST}, silent))
    assert [event["votes"] for event in events] == [{"keep": 2, "reject": 1, "worse": 0.42}] * 3
    assert not any(event.get("undone") for event in events)


def test_a_site_that_spoils_rounds_is_named_and_left_out_and_the_run_goes_on(make_federation: FederationMaker) -> None:
    federation, cohorts = consenting(make_federation, replace(VOTED, rounds=16)), dict[int, bool]()

    def watched(message: Message, response: Message) -> Message:
        if message.metadata.message_type == MessageType.TRAIN and message.metadata.dst_node_id == west:
            cohorts[int(message.metadata.group_id)] = True
        return response

    west = node_of(federation, WEST)
    events = run_with(federation, voting(federation, lambda at, name: name != WEST and at in cohorts, watched))
    findings = [event for event in events if event.get("found")]
    assert [event["found"] for event in findings] == [[WEST]]
    assert "west spoiled this round and earlier ones, and is left out from now on" in findings[0]["reason"]
    later = [event for event in events if event["round"] > findings[0]["round"]]
    assert later
    assert all(WEST not in event["sites"] and "spoils the rounds" in event["problems"][WEST] for event in later)
    assert not any(event.get("undone") for event in later)


def test_if_no_site_can_be_spared_a_run_of_spoiled_rounds_ends_with_the_reason(
    make_federation: FederationMaker,
) -> None:
    settings = replace(VOTED, rounds=9, cohort=replace(SETTINGS.cohort, minimum=4))
    federation = consenting(make_federation, settings)
    with pytest.raises(RunError, match=r"3 rounds in a row released nothing: .*its round was undone"):
        run_with(federation, voting(federation, lambda *_: True))
    assert "the minimum cohort can spare no site" in read_events(federation)[-2]["reason"]
