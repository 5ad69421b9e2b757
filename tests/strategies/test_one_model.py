"""All sites start from one model and end with one, also those that missed a sum; else the run ends."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message

from client.flower import app as client_app
from client.flower import open_site
from client.round.admission import admit
from client.round.readiness import get_ready
from privacy.crypto.signing import digest, sign
from privacy.errors import RunError
from simulations.engine.federation import Federation
from simulations.engine.results import read_events, read_results
from strategies.membership import APART
from tests.federations import (
    SETTINGS,
    SITES,
    SIZES,
    Answer,
    FederationMaker,
    charges_of,
    models_of,
    node_of,
    run_with,
    signed_run,
    with_deadline,
)
from tests.strategies.hostile import EVALUATE, HONEST, HOSTILE, NOWHERE, QUERY, answering, lost
from transport.flower import reply
from transport.run_messages import (
    Opened,
    pack_opened,
    pack_readiness,
    read_opened,
    read_readiness,
    read_sum,
)

RUN = with_deadline(SETTINGS, 20.0)  # seconds; a tenth of them is how long its end waits for sites that are behind


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(RUN)


def with_model(federation: Federation, message: Message, genuine: Message, model: str, bound: float = 1.0) -> Message:
    """Let a site say, and sign, that it has a certain model."""
    readiness = read_readiness(genuine.content)
    claimed = replace(readiness, model=model, update_bound=bound * readiness.update_bound)
    signed = claimed.signed_part(signed_run(federation)[2], message.metadata.dst_node_id)
    key = open_site(federation.paths[readiness.site]).signing_key
    return reply(pack_readiness(replace(claimed, signature=sign(key, "readiness", signed))), message)


def opening(federation: Federation, *sites: str, model: str = "", bound: float = 1.0, plan: str = "") -> Answer:
    """Let some sites say, and sign, that they arrived at another model each, or another range, or by another plan."""
    liars = {node_of(federation, site): site for site in sites}

    def answer(message: Message, context: Context) -> Message:
        site = liars.get(message.metadata.dst_node_id)
        if site is None or message.metadata.message_type != EVALUATE:
            return client_app(message, context)
        digest_ = digest("plan", read_sum(message.content).plan)
        opened, metrics = read_opened(client_app(message, context).content)
        lie = Opened(model or site.encode().hex().ljust(64, "0"), bound * opened.update_bound)
        signed = lie.signed_part(plan or digest_)
        signature = sign(open_site(federation.paths[site]).signing_key, "opened", signed)
        return reply(pack_opened(replace(lie, signature=signature), metrics.numbers), message)

    return answer


@pytest.mark.parametrize("site", [HOSTILE, "east"], ids=["the last to answer", "the first to answer"])
@pytest.mark.parametrize("bound", [1.0, 0.5], ids=["another model", "another range"])
def test_a_site_that_starts_from_something_else_is_named_and_the_others_go_on(
    federation: Federation, site: str, bound: float
) -> None:
    def differ(message: Message, genuine: Message) -> Message:
        model = NOWHERE if bound == 1 else read_readiness(genuine.content).model
        return with_model(federation, message, genuine, model, bound)

    (event,) = run_with(federation, answering(federation, QUERY, site, differ))
    assert "starts from a different model than most sites" in event["problems"].pop(site)
    assert event["problems"] == {}
    assert event["released"]
    assert sorted(event["sites"]) == sorted(set(SITES) - {site})
    assert charges_of(federation, site) == 0


def test_sites_that_start_from_two_models_end_the_run_before_anything_is_spent(federation: Federation) -> None:
    def answer(message: Message, context: Context) -> Message:
        genuine, two = client_app(message, context), {node_of(federation, site) for site in ("east", HOSTILE)}
        if message.metadata.message_type == QUERY and message.metadata.dst_node_id in two:
            return with_model(federation, message, genuine, NOWHERE)
        return genuine

    with pytest.raises(
        RunError, match=r"start from a different model than most sites; install the same versions of torch"
    ):
        run_with(federation, answer)
    assert {charges_of(federation, site) for site in SITES} == {0}
    assert models_of(federation) == {}


def test_a_run_continues_if_a_site_claims_another_model_and_an_honest_one_is_late(
    make_federation: FederationMaker,
) -> None:
    federation, late = make_federation(replace(RUN, rounds=2)), list[int]()

    def answer(message: Message, context: Context) -> Message:
        genuine, node = client_app(message, context), message.metadata.dst_node_id
        if message.metadata.message_type != QUERY:
            return genuine
        if node == node_of(federation, "south") and not late:
            late.append(node)
            return reply(Error(1, "the line broke"), message)
        return with_model(federation, message, genuine, NOWHERE) if node == node_of(federation, HOSTILE) else genuine

    first, second = run_with(federation, answer)
    assert (first["released"], second["released"]) == (False, True)
    assert sorted(second["sites"]) == HONEST
    assert {charges_of(federation, site) for site in HONEST} == {1}


@pytest.mark.parametrize("site", [HOSTILE, "east"], ids=["the last to answer", "the first to answer"])
@pytest.mark.parametrize(
    "lie", [{"model": NOWHERE}, {"model": "", "bound": 0.5}], ids=["another model", "another range"]
)
def test_a_site_that_ends_with_something_else_is_named_and_the_others_go_on(
    make_federation: FederationMaker, site: str, lie: dict[str, Any]
) -> None:
    federation = make_federation(replace(RUN, rounds=2))
    rounds = run_with(federation, opening(federation, site, **lie))
    for event in rounds:
        assert event["problems"] == {site: APART}
        assert (event["released"], sorted(event["sites"])) == (True, sorted(SITES))  # it has the run's model after all
    assert read_results(federation).model == rounds[-1]["model"]
    assert {charges_of(federation, name) for name in SITES} == {2}


def test_a_digest_that_was_signed_for_another_plan_or_by_nobody_does_not_count(federation: Federation) -> None:
    (event,) = run_with(federation, opening(federation, HOSTILE, plan=NOWHERE))
    assert "signature of this opened is not valid" in event["problems"][HOSTILE]
    assert event["released"]


def test_sites_that_end_with_two_models_end_the_run(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(RUN, rounds=3))
    pattern = f"round 1 left the sites with different models: .*{HOSTILE} 000000000000"
    with pytest.raises(RunError, match=pattern):
        run_with(federation, opening(federation, "east", HOSTILE, model=NOWHERE))
    assert read_events(federation)[-1]["event"] == "failed"


def test_a_member_of_the_consortium_that_the_run_does_not_name_takes_no_part(make_federation: FederationMaker) -> None:
    sizes = {site: size for site, size in SIZES.items() if site != HOSTILE}
    federation = make_federation(replace(RUN, cohort=replace(RUN.cohort, sizes=sizes)))
    document, _, run = signed_run(federation)

    def claim(message: Message, genuine: Message) -> Message:
        assert genuine.has_error()  # by its own policy
        node = message.metadata.dst_node_id
        readiness = replace(get_ready(admit(open_site(federation.paths["north"]), document), node), site=HOSTILE)
        signature = sign(
            open_site(federation.paths[HOSTILE]).signing_key, "readiness", readiness.signed_part(run, node)
        )
        return reply(pack_readiness(replace(readiness, signature=signature)), message)

    (event,) = run_with(federation, answering(federation, QUERY, HOSTILE, claim))
    assert "is not a member of this run" in event["problems"][HOSTILE]
    assert sorted(event["sites"]) == HONEST


def test_a_site_with_a_model_that_the_run_never_had_is_named_and_the_others_go_on(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(replace(RUN, rounds=2))
    calls: list[int] = []

    def differ(message: Message, genuine: Message) -> Message:
        calls.append(1)
        return with_model(federation, message, genuine, NOWHERE) if len(calls) > 1 else genuine

    def both(message: Message, context: Context) -> Message:
        if message.metadata.message_type == EVALUATE:
            return answering(federation, EVALUATE, HOSTILE, lost)(message, context)
        return answering(federation, QUERY, HOSTILE, differ)(message, context)

    first, second = run_with(federation, both)
    assert sorted(first["sites"]) == sorted(SITES)
    assert "has a model that this run never had" in second["problems"][HOSTILE]
    assert sorted(second["sites"]) == HONEST


class Losing:
    """Loses what goes to or from some sites in the first evaluation: the sum on its way, or the answer to it."""

    def __init__(self, federation: Federation, sites: tuple[str, ...], *, delivered: bool, times: int = 1) -> None:
        self._left = {node_of(federation, site): times for site in sites}
        self._delivered = delivered

    def __call__(self, message: Message, context: Context) -> Message:
        node = message.metadata.dst_node_id
        if message.metadata.message_type != EVALUATE or self._left.get(node, 0) == 0:
            return client_app(message, context)
        self._left[node] -= 1
        if self._delivered:
            client_app(message, context)
        return reply(Error(1, "the line broke"), message)


@pytest.mark.parametrize("delivered", [True, False], ids=["the answer is lost", "the sum is lost"])
@pytest.mark.parametrize("sites", [("west",), ("east", "west"), ("north", "south", "east"), SITES], ids=len)
def test_sites_that_miss_a_sum_catch_up_and_end_with_the_same_file(
    make_federation: FederationMaker, undisturbed: str, sites: tuple[str, ...], *, delivered: bool
) -> None:
    federation = make_federation(replace(RUN, rounds=4))
    rounds = run_with(federation, Losing(federation, sites, delivered=delivered))
    assert set(rounds[0]["problems"]) == set(sites)
    assert rounds[0]["released"]
    assert sorted(rounds[-1]["sites"]) == sorted(SITES)
    assert rounds[-1]["problems"] == {}
    results = read_results(federation)
    assert set(results.digests) == set(SITES)
    assert len(set(results.digests.values())) == 1
    assert results.model == undisturbed  # no site's update was lost or made twice


@pytest.fixture(scope="module")
def undisturbed(federation_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The model of four rounds in which nothing went wrong."""
    federation = FederationMaker(federation_keys, tmp_path_factory.mktemp("undisturbed"))(replace(RUN, rounds=4))
    run_with(federation)
    return read_results(federation).model


@pytest.mark.parametrize("sites", [("west",), ("east", "west")], ids=len)
def test_a_site_that_misses_two_sums_opens_both_in_order(
    make_federation: FederationMaker, sites: tuple[str, ...]
) -> None:
    federation = make_federation(replace(RUN, rounds=4))
    run_with(federation, Losing(federation, sites, delivered=False, times=2))
    assert len(set(models_of(federation).values())) == 1
    assert len(models_of(federation)) == 4


def test_a_site_that_misses_the_last_sum_gets_it_before_the_run_ends(make_federation: FederationMaker) -> None:
    federation = make_federation()
    run_with(federation, Losing(federation, ("west",), delivered=False))
    assert len(models_of(federation)) == 4
    assert len(set(models_of(federation).values())) == 1
