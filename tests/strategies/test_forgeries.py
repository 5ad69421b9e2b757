"""The server adds genuine updates of this round alone: whatever else a node sends is refused by name, and others go on.

Every node here is the real client app on the inline grid; a hostile one changes what the real app answered, with
everything that its site has: its keys, its records, its word.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Error, Message, RecordDict

from client.flower import app as client_app
from client.flower import open_site
from privacy.codec.ciphertext import C0_BYTES, CODE_BYTES, COEFF_MODULUS, pack60, unpack60
from privacy.codec.envelope import SignedUpdate
from privacy.crypto.signing import sign
from privacy.errors import RunError
from simulations.engine.federation import Federation
from simulations.engine.results import read_events, read_results
from tests.federations import (
    SETTINGS,
    SITES,
    FederationMaker,
    charges_of,
    models_of,
    node_of,
    run_with,
    sums_of,
)
from tests.strategies.hostile import HONEST, HOSTILE, NOWHERE, TRAIN, Change, answering, resigned, sending
from transport.flower import reply
from transport.run_messages import (
    Opened,
    Readiness,
    pack_opened,
    pack_readiness,
    pack_update,
    read_update,
)


def _by_another_key(federation: Federation, update: SignedUpdate) -> SignedUpdate:
    del federation
    return replace(update, signature=sign(Ed25519PrivateKey.generate(), "update", update.header))


def _as_another_kind(federation: Federation, update: SignedUpdate) -> SignedUpdate:
    key = open_site(federation.paths[HOSTILE]).signing_key
    return replace(update, signature=sign(key, "manifest", update.header))


def _out_of_range(federation: Federation, update: SignedUpdate) -> SignedUpdate:
    (chunk,) = update.chunks
    words = unpack60(chunk[:C0_BYTES]).copy()
    words[1234] = COEFF_MODULUS
    return resigned(federation, update, pack60(words) + chunk[C0_BYTES:])


def _code_out_of_range(federation: Federation, update: SignedUpdate) -> SignedUpdate:
    (chunk,) = update.chunks
    return resigned(federation, update, chunk[:-CODE_BYTES] + COEFF_MODULUS.to_bytes(CODE_BYTES, "little"))


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


FORGERIES: dict[str, tuple[Change, str]] = {
    "signed with another key": (_by_another_key, "signature of this update is not valid"),
    "signed as another kind of document": (_as_another_kind, "signature of this update is not valid"),
    "not signed": (lambda _, update: replace(update, signature=b""), "signature of this update is not valid"),
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
    "with a flipped bit in its body": (_flipped("chunks", 1_000), "not those that it signed"),
    "with a flipped bit in its seed": (_flipped("chunks", 8 * C0_BYTES), "not those that it signed"),
    "with a flipped bit in its code": (_flipped("chunks", -1), "not those that it signed"),
    "with a flipped bit in its header": (_flipped("header", 100), "signature of this update is not valid"),
    "with a flipped bit in its signature": (_flipped("signature", 5), "signature of this update is not valid"),
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
    "with a code out of range": (_code_out_of_range, "not below the modulus"),
}  # fmt: skip


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation()


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_update_is_refused_with_its_site_and_the_run_continues(federation: Federation, forgery: str) -> None:
    change, reason = FORGERIES[forgery]
    (event,) = run_with(federation, sending(federation, change))
    assert reason in event["problems"].pop(HOSTILE)
    assert event["problems"] == {}
    assert event["released"]
    assert sorted(event["sites"]) == HONEST
    models = models_of(federation)
    assert set(models) == set(SITES)  # the hostile site was in the cohort and may open the sum
    assert len(set(models.values())) == 1


def test_a_replayed_update_of_another_site_is_refused(federation: Federation) -> None:
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
    assert "signature of this update is not valid" in event["problems"][HOSTILE]
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
        pack_opened(Opened(NOWHERE, 1.0), {}),
        pack_readiness(Readiness(HOSTILE, NOWHERE, 3, NOWHERE, 1.0, 0, "", 0, [], 0.0, b"")),
    ],
    ids=["empty", "an evaluation", "a readiness"],
)
def test_a_reply_that_is_not_an_update_is_refused_by_name(federation: Federation, content: RecordDict) -> None:
    node = answering(federation, TRAIN, HOSTILE, lambda message, _: reply(content, message))
    (event,) = run_with(federation, node)
    assert "run the same version everywhere" in event["problems"][HOSTILE]
    assert sorted(event["sites"]) == HONEST


@pytest.mark.parametrize(
    "site",
    [HOSTILE, "east"],
    ids=["after the others", "before the others"],
)
def test_an_update_of_a_model_with_other_tensors_is_refused(federation: Federation, site: str) -> None:
    (event,) = run_with(federation, sending(federation, _header(layout=NOWHERE), site))
    assert "its tensors differ from" in event["problems"].pop(site)
    assert event["problems"] == {}
    assert len(event["sites"]) == 3


@pytest.mark.parametrize("site", [HOSTILE, "east"], ids=["after the others", "before the others"])
def test_an_update_in_another_range_than_the_others_is_refused_whenever_it_comes(
    federation: Federation, site: str
) -> None:
    (event,) = run_with(federation, sending(federation, _header(update_bound=0.5), site))
    assert "the range of its values differs" in event["problems"].pop(site)
    assert event["problems"] == {}
    assert len(event["sites"]) == 3


def test_below_the_minimum_nothing_is_released_and_no_model_is_written(federation: Federation) -> None:
    hostile = {node_of(federation, site): site for site in ("east", "west")}

    def answer(message: Message, context: Context) -> Message:
        genuine = client_app(message, context)
        if message.metadata.message_type == TRAIN and message.metadata.dst_node_id in hostile:
            update, report = read_update(genuine.content)
            return reply(pack_update(replace(update, chunks=(b"",)), report.numbers), message)
        return genuine

    with pytest.raises(RunError, match=r"nothing was trained.*no model was saved"):
        run_with(federation, answer)
    *_, event, failed = read_events(federation)
    assert not event["released"]
    assert set(event["problems"]) == {"east", "west"}
    assert "2 of the 3 sites that the round needs" in event["reason"]
    assert failed["event"] == "failed"
    assert models_of(federation) == {}
    assert sums_of(federation) == []
    with pytest.raises(RunError, match="nothing was trained"):
        read_results(federation)


def test_three_rounds_without_a_release_end_the_run(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(SETTINGS, rounds=9))
    hostile = {node_of(federation, site) for site in ("east", "west")}

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == TRAIN and message.metadata.dst_node_id in hostile:
            return reply(Error(1, "not today"), message)
        return client_app(message, context)

    with pytest.raises(RunError, match="3 rounds in a row released nothing: east: “not today”; west: “not today”"):
        run_with(federation, answer)
    assert [event["released"] for event in read_events(federation) if event["event"] == "round"] == [False] * 3
    assert models_of(federation) == {}
    assert {charges_of(federation, site) for site in ("north", "south")} == {3}  # each round was a release of its own
