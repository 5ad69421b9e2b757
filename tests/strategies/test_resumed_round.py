"""An open round goes on at the next server, even if a member lies, sites come late, or the deadline has passed."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from flwr.app import Context, Error, Message, RecordDict

from client.flower import app as client_app
from privacy.errors import RunError
from privacy.run import plan
from privacy.run.settings import RunSettings
from server.coordinator import Coordinator
from simulations.attacks import spoilers
from simulations.engine.federation import Federation
from simulations.engine.inline import serve_inline
from simulations.engine.results import read_results
from strategies import encrypted_strategy, judging, masking, open_round, run_memory
from tests.federations import (
    SITES,
    Answer,
    FederationMaker,
    change_store,
    charges_of,
    context_of,
    models_of,
    node_of,
    rounds_of,
    run_with,
    with_deadline,
)
from tests.strategies.hostile import EVALUATE, HONEST, HOSTILE, TRAIN, resigned
from tests.strategies.hostile import sending as sending_updates
from tests.strategies.test_killed_server import MASKED, PLAIN, Killed
from tests.strategies.test_liars import lying, sending
from transport.flower import reply
from transport.messages import AGREE, JUDGE, REVEAL
from transport.run_messages import read_train


def killed_at(kind: str, count: int, sites: Answer = client_app) -> Answer:
    """Kill the server once messages of a kind have been answered this often."""
    left = [count]

    def answer(message: Message, context: Context) -> Message:
        response = sites(message, context)
        if message.metadata.message_type == kind:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
        return response

    return answer


def without(federation: Federation, *absent: str, kind: str = "", sites: Answer = client_app) -> Answer:
    """Some sites do not answer messages of a kind, or any."""
    nodes = {node_of(federation, site) for site in absent}

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.dst_node_id in nodes and kind in {"", message.metadata.message_type}:
            return reply(Error(1, "the line broke"), message)
        return sites(message, context)

    return answer


def away_until(federation: Federation, *absent: str, rounds: int) -> Answer:
    """Some sites do not answer until this many rounds have ended."""
    away = without(federation, *absent)

    def answer(message: Message, context: Context) -> Message:
        return (client_app if len(rounds_of(federation)) >= rounds else away)(message, context)

    return answer


def kill(federation: Federation, answer: Answer) -> None:
    with pytest.raises(Killed):
        run_with(federation, answer)


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on, plans are read by clocks that are ahead."""
    ahead = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic)
    for module in (plan, run_memory, masking, open_round):
        monkeypatch.setattr(module, "time", ahead)


def check_whole(federation: Federation) -> None:
    events = rounds_of(federation)
    assert [(event["round"], event["released"]) for event in events] == [(1, True), (2, True)]
    assert {charges_of(federation, site) for site in SITES} == {2}


def steady_liar(federation: Federation) -> Answer:
    """A site spoils each sum, and sends the same wrong update if it is asked again."""
    sites, node = lying(federation, HOSTILE, sending(spoilers.wrong_code)), node_of(federation, HOSTILE)
    sent: dict[bytes, RecordDict] = {}

    def answer(message: Message, context: Context) -> Message:
        if (message.metadata.dst_node_id, message.metadata.message_type) != (node, TRAIN):
            return sites(message, context)
        asked = read_train(message.content)[0]
        if asked not in sent:
            sent[asked] = sites(message, context).content
        return reply(sent[asked], message)

    return answer


@pytest.mark.parametrize(("kind", "count"), [(EVALUATE, 2), (EVALUATE, 4), (JUDGE.name, 2), (REVEAL.name, 6)])
def test_a_liar_is_found_although_the_server_is_killed_meanwhile(
    make_federation: FederationMaker, kind: str, count: int
) -> None:
    federation = make_federation(MASKED)
    sites = steady_liar(federation)
    kill(federation, killed_at(kind, count, sites))
    first, second = run_with(federation, sites)
    for event in (first, second):
        assert (event["released"], event["sites"]) == (True, HONEST)
    assert first["problems"][HOSTILE] == judging._WRONG
    assert {charges_of(federation, site) for site in HONEST} == {2}


def test_if_a_liar_does_not_send_its_update_again_only_that_round_is_lost(make_federation: FederationMaker) -> None:
    federation = make_federation(MASKED)
    sites = steady_liar(federation)
    kill(federation, killed_at(EVALUATE, 4, sites))
    first, second = run_with(federation, without(federation, HOSTILE, kind=TRAIN, sites=sites))
    assert (first["released"], second["released"], second["sites"]) == (False, True, HONEST)
    assert "not all updates in it came again" in first["reason"]


@pytest.mark.parametrize(("kind", "count"), [(TRAIN, 1), (AGREE.name, 4)])
def test_a_masked_round_whose_deadline_has_passed_goes_on_in_another_attempt(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, kind: str, count: int
) -> None:
    federation = make_federation(MASKED)
    kill(federation, killed_at(kind, count))
    later(monkeypatch, 3600)
    first, _ = run_with(federation)
    assert first["attempts"] == 2
    check_whole(federation)


@pytest.mark.parametrize(("settings", "kind"), [(PLAIN, TRAIN), (MASKED, REVEAL.name)], ids=["plain", "masked"])
def test_a_round_that_can_no_longer_be_summed_does_not_end_the_run(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, settings: RunSettings, kind: str
) -> None:
    federation = make_federation(settings)
    kill(federation, killed_at(kind, 2))
    later(monkeypatch, 3600)
    first, second = run_with(federation)
    assert (first["released"], second["released"]) == (False, True)


def test_a_plan_stays_open_until_enough_of_its_sites_are_back(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(with_deadline(replace(PLAIN, rounds=1), 2.0))
    kill(federation, killed_at(TRAIN, 4))
    monkeypatch.setattr(encrypted_strategy, "_MOST_FAILURES", 1)
    with pytest.raises(RunError, match="released nothing"):
        run_with(federation, without(federation, "east", "west"))
    _, last = run_with(federation, retry=True)
    assert (last["round"], last["released"], sorted(last["sites"])) == (1, True, sorted(SITES))
    assert {charges_of(federation, site) for site in SITES} == {1}


def test_a_plan_that_waits_for_its_sites_uses_up_no_other_round(make_federation: FederationMaker) -> None:
    federation = make_federation(with_deadline(PLAIN, 1.0))
    kill(federation, killed_at(TRAIN, 4))
    events = run_with(federation, away_until(federation, "east", "west", rounds=1))
    assert [event["round"] for event in events if event["released"]] == [1, 2]


def test_a_site_that_was_away_since_the_server_was_killed_gets_the_last_model(make_federation: FederationMaker) -> None:
    federation = make_federation(with_deadline(PLAIN, 4.0))
    kill(federation, killed_at(EVALUATE, 4))
    run_with(federation, away_until(federation, "west", rounds=2))
    models = models_of(federation)
    assert (len(models), len(set(models.values()))) == (4, 1)


def test_a_last_sum_counts_though_the_first_replies_about_it_are_lost(make_federation: FederationMaker) -> None:
    federation, asked = make_federation(replace(PLAIN, rounds=1)), set[int]()

    def answer(message: Message, context: Context) -> Message:
        response, first = client_app(message, context), context.node_id not in asked
        if message.metadata.message_type == EVALUATE and first:
            asked.add(context.node_id)
            return reply(Error(1, "the line broke"), message)
        return response

    run_with(federation, answer)
    results = read_results(federation)
    assert (results.rounds, len(set(results.digests.values()))) == (1, 1)


def test_a_third_server_asks_no_site_to_sign_another_set(make_federation: FederationMaker) -> None:
    """All four sign that they are the set; then one is away, and a second server is killed in the next attempt."""
    federation = make_federation(MASKED)
    kill(federation, killed_at(AGREE.name, 4))
    kill(federation, killed_at(TRAIN, 5, without(federation, "west", kind=TRAIN)))
    first, second = run_with(federation, without(federation, "west", kind=TRAIN))
    assert (first["released"], first["attempts"], second["released"]) == (True, 2, True)


def test_a_site_that_sends_the_next_server_another_update_for_the_plan_is_left_out_and_named(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(MASKED)
    kill(federation, killed_at(AGREE.name, 2))
    other = sending_updates(federation, lambda own, update: resigned(own, update, ledger_head="ab" * 32))
    first, _ = run_with(federation, other)
    assert first["problems"][HOSTILE] == "it sent two different updates for the same plan; only the first one counts"
    assert (first["released"], first["attempts"], sorted(first["sites"])) == (True, 2, HONEST)


def test_a_stored_sum_does_not_bind_the_next_round_to_its_contributors(make_federation: FederationMaker) -> None:
    federation = make_federation(MASKED)
    kill(federation, killed_at(EVALUATE, 1, without(federation, "west", kind=TRAIN)))
    first, second = run_with(federation)
    assert "no longer knows why" in first["problems"]["west"]
    assert sorted(second["sites"]) == sorted(SITES)


def test_a_run_whose_state_is_lost_is_refused_with_what_to_do(make_federation: FederationMaker) -> None:
    federation = make_federation(PLAIN)
    kill(federation, killed_at(TRAIN, 5))
    change_store(federation, "DELETE FROM states")
    with pytest.raises(RunError, match=r"store.sqlite, run .*: the run's state is lost.*restore the newest copy"):
        run_with(federation)


@pytest.mark.parametrize("settings", [PLAIN, MASKED], ids=["plain", "masked"])
def test_a_run_goes_on_without_a_site_that_left_while_no_server_ran(
    make_federation: FederationMaker, settings: RunSettings
) -> None:
    federation = make_federation(settings)
    kill(federation, killed_at(TRAIN, 4))
    contexts = {node_of(federation, site): context_of(federation, site) for site in SITES if site != "west"}
    Coordinator(federation.folder / "coordinator").remove("west")
    serve_inline(federation, contexts, lambda message, context: client_app(message, contexts[context.node_id]))
    first, _ = rounds_of(federation)
    assert (first["released"], sorted(first["sites"])) == (True, ["east", "north", "south"])
    assert first["problems"]["west"] == "west is no longer in the roster"


def test_a_run_of_which_too_few_sites_are_left_in_the_roster_ends_at_once(make_federation: FederationMaker) -> None:
    federation = make_federation(PLAIN)
    contexts = {node_of(federation, site): context_of(federation, site) for site in ("north", "south")}
    coordinator = Coordinator(federation.folder / "coordinator")
    coordinator.remove("west")
    coordinator.remove("east")
    with pytest.raises(RunError, match="needs 3 sites, and roster 3 has only 2 of those that it names"):
        serve_inline(federation, contexts, lambda message, context: client_app(message, contexts[context.node_id]))
    assert charges_of(federation, "north") == charges_of(federation, "south") == 0
