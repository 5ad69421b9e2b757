"""An update counts for one site, plan and model; the server adds nothing else.

The attacker here is a site that the roster names, or whoever stands between: it may send any bytes, and sign with its
own key.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.codec.ciphertext import COEFF_MODULUS, Ciphertexts, pack60, residues, seeds_digest
from privacy.codec.envelope import SignedUpdate, sign_update, verify_update
from privacy.codec.header import verify_header
from privacy.crypto.signing import sign
from privacy.crypto.summation import RunningSum
from privacy.errors import AuthenticityError, MalformedError, ProtocolError
from tests.privacy.consortium import (
    CHARGE,
    KEYS,
    LAYOUT,
    MODEL,
    PARAMETERS,
    SITES,
    contribution,
    encrypt,
    header_of,
    make_roster,
    parts_of,
    plan_with,
    relaxed,
    resigned,
    signing_key,
)

if TYPE_CHECKING:
    from privacy.run.plan import RoundPlan

from tests.privacy.honest import OTHER, VECTORS, honest_sum, this_round, updates


def verify(update: SignedUpdate, site: str = "north", plan: RoundPlan | None = None) -> None:
    verify_update(update, site, plan or this_round().plan, this_round().manifest, this_round().roster)


# --- What a site signs ---------------------------------------------------------------------------------------------


def test_the_header_carries_what_the_design_promises() -> None:
    update, plan = updates()["south"], this_round().plan
    ciphertexts = Ciphertexts.read(update.chunks, 1)
    assert header_of(update) == {
        "attempt": 1,
        "base_model": MODEL.digest,
        "ciphertexts": ciphertexts.digest,
        "keys": KEYS,
        "layout": MODEL.layout.digest,
        "mask": "",
        "pairs": "",
        "nonce": header_of(update)["nonce"],
        "ledger_head": header_of(update)["ledger_head"],
        "plan": plan.digest,
        "roster_version": 3,
        "round": 1,
        "run": this_round().run,
        "seeds": seeds_digest(ciphertexts.seeds),
        "site": "south",
        "size": PARAMETERS,
        "update_bound": 1.0,
        "version": 1,
        "weight": 2 / 3,
    }


@pytest.mark.parametrize("changes", [{"run": OTHER}, {"round": 1}, {"round": 3}, {"attempt": 1}])
def test_an_update_is_only_signed_for_the_release_that_it_was_charged_for(changes: dict[str, object]) -> None:
    of = this_round()
    plan = plan_with(of.plan, round=2, attempt=2)
    release = replace(CHARGE.release, run=of.run, round=2, attempt=2)
    encrypted = encrypt(VECTORS["north"], 1.0, of.manifest.packing, replace(CHARGE, release=release),
                        plan=plan, site="north")  # fmt: skip

    def signed(plan: RoundPlan) -> SignedUpdate:
        return sign_update(
            encrypted, plan, LAYOUT, "north", signing_key("north"), weight=1.0, update_bound=1.0, mask=""
        )

    for attempt in (2, 3):  # a later attempt at the round sends what an earlier one was charged for
        assert header_of(signed(plan_with(plan, attempt=attempt)))["attempt"] == attempt
    with pytest.raises(ProtocolError, match="charged for round 2 cannot be sent for round"):
        signed(plan_with(plan, **changes))


# --- What the server refuses to add --------------------------------------------------------------------------------


def test_an_honest_update_is_verified_and_its_ciphertexts_kept() -> None:
    of = this_round()
    verified = verify_update(updates()["north"], "north", of.plan, of.manifest, of.roster)
    assert verified.header.site == "north"
    assert verified.ciphertexts.chunks == updates()["north"].chunks
    assert verified.contribution == contribution(updates()["north"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("site", "south", "site"),
        ("run", OTHER, "run"),
        ("round", 2, "round"),
        ("attempt", 2, "attempt"),
        ("plan", OTHER, "plan"),
        ("roster_version", 2, "roster version"),
        ("roster_version", 4, "roster version"),
        ("keys", OTHER, "keys"),
        ("base_model", OTHER, "base model"),
        ("weight", 0.999, "weight"),
        ("weight", 5e-324, "weight"),
    ],
)
def test_a_genuine_header_about_anything_else_is_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        verify(resigned(updates()["north"], "north", {field: value}))
    assert str(caught.value) == f"north's update is for another {message} than the round's; it was not added"


@pytest.mark.parametrize(
    "changes",
    [
        {"weight": 0},
        {"weight": -1.0},
        {"weight": 1.01},
        {"weight": 1e300},
        {"weight": float("nan")},
        {"weight": float("inf")},
        {"weight": "1"},
        {"size": 0},
        {"size": -1},
        {"size": 20.5},
        {"site": "North"},
        {"site": ""},
        {"site": "north\n"},
        {"run": "F" * 64},
        {"run": "f" * 63},
        {"round": True},
        {"round": "1"},
        {"round": None},
        {"version": 2},
        {"update_bound": 0.0},
        {"update_bound": -1.0},
        {"update_bound": float("nan")},
        {"update_bound": float("inf")},
        {"update_bound": "1"},
        {"seeds": ""},
        {"extra": 1},
    ],
)
def test_a_genuine_header_of_another_form_is_malformed(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedError, match="the header of north's update is malformed"):
        verify(resigned(updates()["north"], "north", changes))


def test_every_field_of_the_header_is_needed() -> None:
    update = updates()["north"]
    for name in set(header_of(update)) - {"version"}:
        left = update.header.decode().replace(f'"{name}":', f'"no-{name}":').encode()
        broken = SignedUpdate(left, sign(signing_key("north"), "update", left), update.chunks)
        with pytest.raises(MalformedError, match="the header of north's update is malformed"):
            verify(broken)


@relaxed
@given(st.binary(max_size=300))
def test_arbitrary_signed_bytes_are_not_a_header(data: bytes) -> None:
    with pytest.raises(MalformedError, match="the header of north's update is malformed"):
        verify(SignedUpdate(data, sign(signing_key("north"), "update", data), ()))


@pytest.mark.parametrize("signer", ["south", "coordinator", "stranger"])
def test_nobody_can_sign_for_another_site(signer: str) -> None:
    with pytest.raises(AuthenticityError, match="the signature of this update is not valid"):
        verify(resigned(updates()["north"], signer, {}))


def test_an_update_of_one_site_is_not_taken_from_another() -> None:
    with pytest.raises(AuthenticityError):
        verify(updates()["north"], "south")


def test_a_site_that_the_roster_does_not_name_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"'stranger' is not a member of clinics \(roster 3\)"):
        verify(resigned(updates()["north"], "stranger", {"site": "stranger"}), "stranger")


def test_a_member_outside_of_the_cohort_is_refused() -> None:
    of = this_round()
    plan = plan_with(of.plan, cohort=("north", "south"))
    update = resigned(updates()["west"], "west", {"plan": plan.digest})
    with pytest.raises(ProtocolError, match="west is not in the cohort of round 1; its update was not added"):
        verify_update(update, "west", plan, of.manifest, of.roster)


def test_a_member_whom_the_run_does_not_name_is_refused_even_if_the_plan_names_it() -> None:
    of = this_round()
    plan = plan_with(of.plan, cohort=(*SITES, "east"))
    update = resigned(updates()["north"], "east", {"site": "east", "plan": plan.digest})
    with pytest.raises(ProtocolError, match="east is not in the cohort of round 1"):
        verify_header(update.header, update.signature, "east", plan, of.manifest, make_roster(*SITES, "east"))


@pytest.mark.parametrize("changes", [{"round": 2}, {"attempt": 2}, {"minimum_cohort": 4}, {"deadline": 0.0}])
def test_an_update_replayed_under_another_plan_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="north's update is for another"):
        verify(updates()["north"], plan=plan_with(this_round().plan, **changes))


@relaxed
@given(
    part=st.sampled_from(["header", "signature", "chunks"]),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_is_refused(part: str, where: float, bit: int) -> None:
    update = updates()["north"]
    data = bytearray(update.chunks[0] if part == "chunks" else getattr(update, part))
    data[int(where * len(data))] ^= 1 << bit
    changes: dict[str, Any] = {part: (bytes(data),) if part == "chunks" else bytes(data)}
    with pytest.raises(AuthenticityError):
        verify(replace(update, **changes))


@relaxed
@given(
    header=st.binary(max_size=100),
    signature=st.binary(max_size=100),
    chunks=st.lists(st.binary(max_size=100), max_size=3).map(tuple),
)
def test_arbitrary_bytes_are_refused_with_our_errors(
    header: bytes, signature: bytes, chunks: tuple[bytes, ...]
) -> None:
    for update in (SignedUpdate(header, signature, chunks), replace(updates()["north"], chunks=chunks)):
        with pytest.raises((AuthenticityError, MalformedError, ProtocolError)):
            verify(update)


@pytest.mark.parametrize(
    "lengths", [(), (0,), (30_720,), (30_784,), (30_791,), (30_793,), (61_584,), (30_792, 30_792), (30_792, 0)]
)
def test_a_body_of_another_length_is_malformed(lengths: tuple[int, ...]) -> None:
    update = updates()["north"]
    chunks = tuple((update.chunks[0] * 2)[:length] for length in lengths)
    with pytest.raises(MalformedError, match=r"1 ciphertexts take 30,792 bytes, not [\d,]+; they were cut or padded"):
        verify(replace(update, chunks=chunks))


@pytest.mark.parametrize("size", [12_286, 1 << 62, 10**30])
def test_a_body_of_another_size_than_its_genuine_header_says_is_malformed(size: int) -> None:
    with pytest.raises(MalformedError, match="they were cut or padded"):
        verify(resigned(updates()["north"], "north", {"size": size}))


def test_another_update_of_the_same_site_cannot_be_put_under_a_header() -> None:
    second = this_round().update("north", VECTORS["north"])
    with pytest.raises(AuthenticityError, match="not those that it signed; the update was altered in transit"):
        verify(replace(updates()["north"], chunks=second.chunks))


def test_a_header_whose_seeds_differ_from_the_bodys_is_refused_before_it_can_spoil_the_sum() -> None:
    with pytest.raises(AuthenticityError, match="not those that it signed"):
        verify(resigned(updates()["north"], "north", {"seeds": OTHER}))


@pytest.mark.parametrize("value", [COEFF_MODULUS, (1 << 60) - 1])
def test_a_coefficient_of_q_or_more_is_not_added_though_its_digest_is_signed(value: int) -> None:
    of, update = this_round(), updates()["north"]
    c0, seed, code = parts_of(update)
    words = residues(c0).copy().reshape(-1)
    words[77] = value
    bad = resigned(update, "north", {}, pack60(words) + seed + code)
    running = RunningSum(of.plan)
    with pytest.raises(MalformedError, match="a coefficient is not below the modulus q"):
        running.add(verify_update(bad, "north", of.plan, of.manifest, of.roster))
    assert running.sites == ()
    for site, honest in updates().items():
        running.add(verify_update(honest, site, of.plan, of.manifest, of.roster))
    assert running.close() == honest_sum()
