"""The server adds genuine updates of this round alone: whatever else a node sends is refused by name, and others go on.

Every node here is the real client app on the inline grid; a hostile one changes what the real app answered, with
everything that its site has: its keys, its records, its word.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Error, Message, MessageType, RecordDict

from client.acceptance import get_ready
from client.app import app as client_app
from client.site import open_site
from privacy.accounting import Mechanism, epsilon
from privacy.ciphertext import COEFF_MODULUS, Ciphertexts, pack60, seeds_digest, unpack60
from privacy.envelope import SignedUpdate
from privacy.errors import RunError
from privacy.ledger import Release
from privacy.manifest import RunSettings
from privacy.signing import sign
from simulations.federation import Federation, SiteTerms
from simulations.results import journal_path, read_events, read_results
from tests import studies
from tests.federations import (
    NOISY,
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
    task_name,
    with_deadline,
)
from transport.contents import (
    Readiness,
    pack_opened,
    pack_readiness,
    pack_update,
    read_opened,
    read_readiness,
    read_update,
)
from transport.flower import reply

TRAIN, EVALUATE, QUERY = MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY
HOSTILE = "west"
HONEST = ["east", "north", "south"]
BRIEF = 0.2  # seconds; the deadline of a round that will not find enough sites
COST = epsilon([Mechanism(2.0, 1.0, 1)], TERMS.delta)  # of a round of NOISY

Change = Callable[[Federation, SignedUpdate], SignedUpdate]


def answering(federation: Federation, kind: str, site: str, change: Callable[[Message, Message], Message]) -> Answer:
    """Let one site's node change what the real app answered to messages of one kind."""
    node = node_of(federation, site)

    def answer(message: Message, context: Context) -> Message:
        genuine = client_app(message, context)
        if (message.metadata.dst_node_id, message.metadata.message_type) == (node, kind):
            return change(message, genuine)
        return genuine

    return answer


def sending(federation: Federation, change: Change, site: str = HOSTILE) -> Answer:
    """Let one site's node change its updates."""

    def changed(message: Message, genuine: Message) -> Message:
        update, report = read_update(genuine.content)
        return reply(pack_update(change(federation, update), report), message)

    return answering(federation, TRAIN, site, changed)


def lost(message: Message, genuine: Message) -> Message:
    """Put an error in the place of an answer, as when the line breaks after the work was done."""
    del genuine
    return reply(Error(1, "the line broke"), message)


def resigned(federation: Federation, update: SignedUpdate, *chunks: bytes, **header: object) -> SignedUpdate:
    """Change an update's header or chunks, and sign it as its own site does."""
    fields = json.loads(update.header)
    if chunks:
        ciphertexts = Ciphertexts(chunks)
        header |= {"ciphertexts": ciphertexts.digest, "seeds": seeds_digest(ciphertexts.seeds)}
    data = json.dumps(fields | header, sort_keys=True, separators=(",", ":")).encode()
    key = open_site(federation.paths[fields["site"]]).signing_key
    return SignedUpdate(data, sign(key, "update", data), chunks or update.chunks)


# --- Updates that must not be added ---------------------------------------------------------------------------------


def _by_another_key(federation: Federation, update: SignedUpdate) -> SignedUpdate:
    del federation
    return replace(update, signature=sign(Ed25519PrivateKey.generate(), "update", update.header))


def _as_another_kind(federation: Federation, update: SignedUpdate) -> SignedUpdate:
    key = open_site(federation.paths[HOSTILE]).signing_key
    return replace(update, signature=sign(key, "manifest", update.header))


def _out_of_range(federation: Federation, update: SignedUpdate) -> SignedUpdate:
    (chunk,) = update.chunks
    words = unpack60(chunk[:-64]).copy()
    words[1234] = COEFF_MODULUS
    return resigned(federation, update, pack60(words) + chunk[-64:])


def _header(**changes: object) -> Change:
    return lambda federation, update: resigned(federation, update, **changes)


def _flipped(part: str, bit: int) -> Change:
    def change(_: Federation, update: SignedUpdate) -> SignedUpdate:
        data = bytearray(update.chunks[0] if part == "chunks" else getattr(update, part))
        data[bit // 8] ^= 1 << bit % 8
        changes: dict[str, Any] = {part: (bytes(data),) if part == "chunks" else bytes(data)}
        return replace(update, **changes)

    return change


def _body(change: Callable[[bytes], tuple[bytes, ...]]) -> Change:
    return lambda _, update: replace(update, chunks=change(update.chunks[0]))


def _no_json(federation: Federation, update: SignedUpdate) -> SignedUpdate:
    key = open_site(federation.paths[HOSTILE]).signing_key
    return SignedUpdate(b"{", sign(key, "update", b"{"), update.chunks)


NOWHERE = "0" * 64

FORGERIES: dict[str, tuple[Change, str]] = {
    "signed with another key": (_by_another_key, "signature of this update does not hold"),
    "signed as another kind of document": (_as_another_kind, "signature of this update does not hold"),
    "not signed": (lambda _, update: replace(update, signature=b""), "signature of this update does not hold"),
    "for another round": (_header(round=2), "another round"),
    "for another attempt": (_header(attempt=2), "another attempt"),
    "for another run": (_header(run=NOWHERE), "another run"),
    "for another plan": (_header(plan=NOWHERE), "another plan"),
    "from another model": (_header(base_model=NOWHERE), "another base model"),
    "under another site's name": (_header(site="north"), "another site"),
    "of an old roster": (_header(roster_version=2), "another roster version"),
    "under an old key": (_header(keys="0" * 64), "another keys than the round's"),
    "with twice its weight": (_header(weight=1.0), "another weight"),
    "with no weight": (_header(weight=0.0), "malformed"),
    "with a negative weight": (_header(weight=-1.0), "malformed"),
    "with an infinite weight": (_header(weight=float("inf")), "malformed"),
    "with a weight that is no number": (_header(weight=float("nan")), "malformed"),
    "of another size": (_header(size=20_000), "cut or padded"),
    "of no size": (_header(size=0), "malformed"),
    "with another field": (_header(more=1), "malformed"),
    "with a header that is no JSON": (_no_json, "malformed"),
    "with a flipped bit in its body": (_flipped("chunks", 1_000), "not the ones that it signed"),
    "with a flipped bit in its seed": (_flipped("chunks", -1), "not the ones that it signed"),
    "with a flipped bit in its header": (_flipped("header", 100), "signature of this update does not hold"),
    "with a flipped bit in its signature": (_flipped("signature", 5), "signature of this update does not hold"),
    "cut": (_body(lambda body: (body[:-1],)), "cut or padded"),
    "empty": (_body(lambda _: (b"",)), "cut or padded"),
    "without a body": (_body(lambda _: ()), "cut or padded"),
    "too long": (_body(lambda body: (body + b"\0",)), "cut or padded"),
    "twice as long": (_body(lambda body: (2 * body,)), "cut or padded"),
    "of two bodies": (_body(lambda body: (body, body)), "cut or padded"),
    "in two": (_body(lambda body: (body[:500], body[500:])), "cut or padded"),
    "of a size beyond all memory": (_header(size=2**62), "cut or padded"),
    "with no range": (_header(update_bound=0.0), "malformed"),
    "with an infinite range": (_header(update_bound=float("inf")), "malformed"),
    "out of range": (_out_of_range, "not below the modulus"),
}  # fmt: skip


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation()


@pytest.mark.parametrize("forgery", FORGERIES)
def test_an_update_that_is_forged_is_refused_by_name_and_the_others_go_on(federation: Federation, forgery: str) -> None:
    change, reason = FORGERIES[forgery]
    (event,) = run_with(federation, sending(federation, change))
    assert reason in event["problems"].pop(HOSTILE)
    assert event["problems"] == {}
    assert event["released"]
    assert sorted(event["sites"]) == HONEST
    models = models_of(federation)
    assert set(models) == set(SITES)  # the hostile site was in the cohort and may open the sum
    assert len(set(models.values())) == 1


def test_another_sites_update_is_refused_from_whoever_replays_it(federation: Federation) -> None:
    seen: list[RecordDict] = []
    east, west = node_of(federation, "east"), node_of(federation, HOSTILE)

    def answer(message: Message, context: Context) -> Message:
        genuine = client_app(message, context)
        if message.metadata.message_type == TRAIN and message.metadata.dst_node_id == east:
            seen.append(genuine.content)
        if message.metadata.message_type == TRAIN and message.metadata.dst_node_id == west:
            return reply(seen[0], message)
        return genuine

    (event,) = run_with(federation, answer)
    assert "signature of this update does not hold" in event["problems"][HOSTILE]
    assert sorted(event["sites"]) == HONEST


def test_an_update_of_an_earlier_round_is_refused_in_the_next(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(SETTINGS, rounds=2))
    sent: list[SignedUpdate] = []

    def first_again(_: Federation, update: SignedUpdate) -> SignedUpdate:
        sent.append(update)
        return sent[0]

    first, second = run_with(federation, sending(federation, first_again))
    assert sorted(first["sites"]) == sorted(SITES)
    assert "another round" in second["problems"][HOSTILE]
    assert sorted(second["sites"]) == HONEST


def test_an_update_of_another_run_is_refused(federation: Federation) -> None:
    earlier: list[SignedUpdate] = []

    def keep(_: Federation, update: SignedUpdate) -> SignedUpdate:
        earlier.append(update)
        return update

    run_with(federation, sending(federation, keep))
    federation.sign(SETTINGS)  # the same settings are another run
    (event,) = run_with(federation, sending(federation, lambda *_: earlier[0]))
    assert "another run" in event["problems"][HOSTILE]
    assert sorted(event["sites"]) == HONEST


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        pack_opened(NOWHERE, {}),
        pack_readiness(Readiness(HOSTILE, NOWHERE, 3, NOWHERE, 0, "", 0, b"")),
    ],
    ids=["empty", "an evaluation", "a readiness"],
)
def test_a_reply_that_is_no_update_is_refused_by_name(federation: Federation, content: RecordDict) -> None:
    node = answering(federation, TRAIN, HOSTILE, lambda message, _: reply(content, message))
    (event,) = run_with(federation, node)
    assert "must run the same version" in event["problems"][HOSTILE]
    assert sorted(event["sites"]) == HONEST


@pytest.mark.parametrize(
    "site",
    [HOSTILE, "east"],
    ids=["after the others", "before the others"],
)
def test_an_update_of_a_model_with_other_tensors_is_refused(federation: Federation, site: str) -> None:
    (event,) = run_with(federation, sending(federation, _header(layout=NOWHERE), site))
    assert "other tensors" in event["problems"].pop(site)
    assert event["problems"] == {}
    assert len(event["sites"]) == 3


def test_an_update_in_another_range_than_the_others_is_refused(federation: Federation) -> None:
    (event,) = run_with(federation, sending(federation, _header(update_bound=0.5)))
    assert "its values another range" in event["problems"].pop(HOSTILE)
    assert event["problems"] == {}
    assert sorted(event["sites"]) == HONEST


def test_below_the_minimum_nothing_is_released_and_no_model_is_written(federation: Federation) -> None:
    hostile = {node_of(federation, site): site for site in ("east", "west")}

    def answer(message: Message, context: Context) -> Message:
        genuine = client_app(message, context)
        if message.metadata.message_type == TRAIN and message.metadata.dst_node_id in hostile:
            update, report = read_update(genuine.content)
            return reply(pack_update(replace(update, chunks=(b"",)), report), message)
        return genuine

    with pytest.raises(RunError, match=r"nothing was trained.*no model was saved"):
        run_with(federation, answer)
    *_, event, failed = read_events(journal_path(federation))
    assert not event["released"]
    assert set(event["problems"]) == {"east", "west"}
    assert "2 of the 3 sites that it needs" in event["reason"]
    assert failed["event"] == "failed"
    assert models_of(federation) == {}
    assert list(journal_path(federation).parent.glob("sums/*")) == []
    with pytest.raises(RunError, match="nothing was trained"):
        read_results(federation)


def test_three_rounds_without_a_release_end_the_run(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(SETTINGS, rounds=9))
    hostile = {node_of(federation, site) for site in ("east", "west")}

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == TRAIN and message.metadata.dst_node_id in hostile:
            return reply(Error(1, "not today"), message)
        return client_app(message, context)

    with pytest.raises(RunError, match="3 rounds in a row released nothing: east: not today; west: not today"):
        run_with(federation, answer)
    assert [event["released"] for event in read_events(journal_path(federation)) if event["event"] == "round"] == [
        False
    ] * 3
    assert models_of(federation) == {}
    assert {charges_of(federation, site) for site in ("north", "south")} == {3}  # each round was a release of its own


# --- Nodes that fail ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [QUERY, TRAIN, EVALUATE])
def test_a_node_that_raises_is_named_and_the_others_go_on(federation: Federation, kind: str) -> None:
    def fail(message: Message, genuine: Message) -> Message:
        raise RuntimeError(message, genuine)

    (event,) = run_with(federation, answering(federation, kind, HOSTILE, fail))
    assert "unexpected error" in event["problems"][HOSTILE]
    assert event["released"]
    expected = sorted(SITES) if kind == EVALUATE else HONEST
    assert sorted(event["sites"]) == expected
    honest = {models_of(federation)[site] for site in HONEST}
    assert len(honest) == 1


def test_a_task_that_meets_a_bug_is_named_and_the_others_go_on(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies.Broken, "bugs", 1)
    federation = make_federation(replace(SETTINGS, task=task_name(studies.Broken)))
    (event,) = run_with(federation)
    ((site, problem),) = event["problems"].items()
    assert "unexpected error" in problem
    assert len(event["sites"]) == 3
    assert site not in event["sites"]
    assert studies.QUOTE not in (journal_path(federation)).read_text()


# --- Sites that say no ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "terms", "reason"),
    [
        (SETTINGS, replace(TERMS, minimum_noise_multiplier=0.5), "does not allow a noise multiplier of 0"),
        (NOISY, replace(TERMS, maximum_epsilon=COST / 2), f"does not allow a run of ε {COST:.2f}"),
        (SETTINGS, replace(TERMS, maximum_epsilon=100.0), "does not allow a run of ε inf"),
        (SETTINGS, replace(TERMS, minimum_cohort=4), "does not allow a minimum cohort of 3"),
        (SETTINGS, replace(TERMS, tasks=(task_name(studies.Unlisted),)), "does not allow the task tests.studies:Tiny"),
        (NOISY, replace(TERMS, epsilon=COST / 2), "privacy budget does not cover"),
    ],
    ids=["noise too low", "epsilon too high", "no noise at all", "cohort too small", "unlisted task", "out of budget"],
)
def test_a_site_that_does_not_allow_the_run_is_named_with_its_reason_and_the_others_go_on(
    make_federation: FederationMaker, settings: RunSettings, terms: SiteTerms, reason: str
) -> None:
    federation = make_federation(settings, {HOSTILE: terms})
    (event,) = run_with(federation)
    assert reason in event["problems"].pop(HOSTILE)
    assert event["problems"] == {}
    assert event["cohort"] == event["sites"] == HONEST
    assert charges_of(federation, HOSTILE) == 0
    assert set(models_of(federation)) == set(HONEST)
    assert set(read_results(federation).digests) == set(HONEST)


def test_when_too_few_sites_allow_the_run_it_ends_and_says_why(make_federation: FederationMaker) -> None:
    careful = replace(TERMS, minimum_noise_multiplier=0.5)
    refusing = {"east": careful, "west": careful}
    settings = with_deadline(replace(SETTINGS, rounds=9), BRIEF)
    federation = make_federation(settings, refusing)
    with pytest.raises(RunError, match=r"east: east does not allow a noise multiplier.*west: west does not allow"):
        run_with(federation)
    assert models_of(federation) == {}
    assert {charges_of(federation, site) for site in SITES} == {0}


def test_a_site_whose_budget_runs_out_during_the_run_leaves_and_the_others_go_on(
    make_federation: FederationMaker,
) -> None:
    # Enough for this run by itself; after the first round, another run spends what is left.
    both = epsilon([Mechanism(2.0, 1.0, 3)], TERMS.delta)
    federation = make_federation(replace(NOISY, rounds=3), {HOSTILE: replace(TERMS, epsilon=both)})

    def spend(message: Message, genuine: Message) -> Message:
        site = open_site(federation.paths[HOSTILE])
        if charges_of(federation, HOSTILE) == 1:
            budget = site.settings.limit
            for number in (1, 2):
                site.ledger.reserve(Release(NOWHERE, number, 1), Mechanism(2.0, 1.0, 1), budget)
        return reply(genuine.content, message)

    first, second, third = run_with(federation, answering(federation, EVALUATE, HOSTILE, spend))
    assert sorted(first["sites"]) == sorted(SITES)
    for event in (second, third):
        assert "privacy budget does not cover" in event["problems"][HOSTILE]
        assert sorted(event["sites"]) == HONEST
    assert charges_of(federation, HOSTILE) == 3
    assert len(set(models_of(federation).values())) == 1  # it gave to one round and has every sum that followed


# --- Who speaks for a site ------------------------------------------------------------------------------------------


def test_a_node_that_repeats_another_nodes_word_does_not_speak_for_its_site(federation: Federation) -> None:
    document, _, _ = signed_run(federation)
    word = get_ready(open_site(federation.paths["north"]), document, node_of(federation, "north"))

    def answer(message: Message, context: Context) -> Message:
        return reply(pack_readiness(word), message) if context.node_id == 12345 else client_app(message, context)

    (event,) = run_with(federation, answer, {12345: "north"})
    assert "signature of this readiness does not hold" in event["problems"]["node 12345"]
    assert sorted(event["sites"]) == sorted(SITES)


def test_a_member_cannot_speak_for_another_member(federation: Federation) -> None:
    def claim(message: Message, genuine: Message) -> Message:
        readiness = read_readiness(genuine.content)
        run, node = signed_run(federation)[2], message.metadata.dst_node_id
        key, forged = open_site(federation.paths[HOSTILE]).signing_key, replace(readiness, site="north")
        forged = replace(forged, signature=sign(key, "readiness", forged.signed_part(run, node)))
        return reply(pack_readiness(forged), message)

    (event,) = run_with(federation, answering(federation, QUERY, HOSTILE, claim))
    assert "signature of this readiness does not hold" in event["problems"][HOSTILE]
    assert sorted(event["sites"]) == HONEST


def test_two_nodes_of_one_site_count_once(federation: Federation) -> None:
    (event,) = run_with(federation, nodes={12345: HOSTILE})
    assert sorted(event["sites"]) == sorted(event["cohort"]) == sorted(SITES)
    assert charges_of(federation, HOSTILE) == 1
    assert len(set(models_of(federation).values())) == 1


def test_a_node_that_speaks_for_nobody_is_named(federation: Federation) -> None:
    def claim(message: Message, genuine: Message) -> Message:
        return reply(pack_readiness(replace(read_readiness(genuine.content), site="nobody")), message)

    (event,) = run_with(federation, answering(federation, QUERY, HOSTILE, claim))
    assert "'nobody' is not a member" in event["problems"][HOSTILE]
    assert sorted(event["sites"]) == HONEST


# --- One model ------------------------------------------------------------------------------------------------------


def with_model(federation: Federation, message: Message, genuine: Message, model: str) -> Message:
    """Let a site say, and sign, that it has a certain model."""
    readiness = read_readiness(genuine.content)
    claimed = replace(readiness, model=model)
    signed = claimed.signed_part(signed_run(federation)[2], message.metadata.dst_node_id)
    key = open_site(federation.paths[readiness.site]).signing_key
    return reply(pack_readiness(replace(claimed, signature=sign(key, "readiness", signed))), message)


def test_sites_that_start_from_different_models_end_the_run_before_anything_is_spent(federation: Federation) -> None:
    def differ(message: Message, genuine: Message) -> Message:
        return with_model(federation, message, genuine, NOWHERE)

    with pytest.raises(RunError, match=r"starts from another model.*install the same versions of torch"):
        run_with(federation, answering(federation, QUERY, HOSTILE, differ))
    assert {charges_of(federation, site) for site in SITES} == {0}
    assert models_of(federation) == {}


def test_sites_that_end_with_different_models_end_the_run(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(SETTINGS, rounds=3))

    def differ(message: Message, genuine: Message) -> Message:
        _, metrics = read_opened(genuine.content)
        return reply(pack_opened(NOWHERE, metrics), message)

    with pytest.raises(RunError, match=f"round 1 left the sites with different models: .*{HOSTILE} 000000000000"):
        run_with(federation, answering(federation, EVALUATE, HOSTILE, differ))
    assert read_events(journal_path(federation))[-1]["event"] == "failed"


def test_a_site_with_a_model_that_the_run_never_had_is_named_and_the_others_go_on(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(replace(SETTINGS, rounds=2))
    asked: list[int] = []

    def differ(message: Message, genuine: Message) -> Message:
        asked.append(1)
        return with_model(federation, message, genuine, NOWHERE) if len(asked) > 1 else genuine

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
    federation = make_federation(replace(SETTINGS, rounds=4))
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
    federation = FederationMaker(federation_keys, tmp_path_factory.mktemp("undisturbed"))(replace(SETTINGS, rounds=4))
    run_with(federation)
    return read_results(federation).model


@pytest.mark.parametrize("sites", [("west",), ("east", "west")], ids=len)
def test_a_site_that_misses_two_sums_opens_both_in_order(
    make_federation: FederationMaker, sites: tuple[str, ...]
) -> None:
    federation = make_federation(replace(SETTINGS, rounds=4))
    run_with(federation, Losing(federation, sites, delivered=False, times=2))
    assert len(set(models_of(federation).values())) == 1
    assert len(models_of(federation)) == 4


def test_a_site_that_misses_the_last_sum_gets_it_before_the_run_ends(make_federation: FederationMaker) -> None:
    federation = make_federation()
    run_with(federation, Losing(federation, ("west",), delivered=False))
    assert len(models_of(federation)) == 4
    assert len(set(models_of(federation).values())) == 1
