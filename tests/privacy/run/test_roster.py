"""Members and their keys come from the consortium's authority, and only for as long as it says."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.crypto.signing import SignedDocument
from privacy.errors import AuthenticityError, MalformedError, ProtocolError
from privacy.run.roster import open_roster, roster_digest, sign_roster
from tests.privacy.consortium import PEOPLE, SITES, authority_key, make_roster, member, public_hex, relaxed, signing_key

AUTHORITY = authority_key()
GOOD = sign_roster(make_roster(), AUTHORITY).to_bytes()


def signed(data: bytes) -> bytes:
    return SignedDocument.make(AUTHORITY, "roster", data).to_bytes()


def test_a_roster_comes_back_as_it_was_signed() -> None:
    assert open_roster(GOOD, AUTHORITY.public_key()) == make_roster()


def test_members_are_found_by_name_and_their_keys_verify() -> None:
    roster = make_roster()
    for site in SITES:
        assert roster.member(site) == member(site)
        assert roster.member(site).verification_key == signing_key(site).public_key()
    ana = roster.person("ana")
    assert ana is not None
    assert ana.verification_key == signing_key("coordinator").public_key()
    assert roster.person("nobody") is None


@pytest.mark.parametrize("count", [1_000, 10_000])
def test_a_consortium_may_have_thousands_of_members(count: int) -> None:
    north = member("north")
    keys = ["tls_key", "signing_key"]
    members = [
        replace(north, site=f"site-{number}", **{key: sha256(f"{key} {number}".encode()).hexdigest() for key in keys})
        for number in range(count)
    ]
    roster = replace(make_roster(), members=tuple(members))
    assert open_roster(sign_roster(roster, AUTHORITY).to_bytes(), AUTHORITY.public_key()) == roster
    assert roster.member(f"site-{count - 1}") == members[-1]


@pytest.mark.parametrize("site", ["stranger", "North", "", "north "])
def test_nobody_else_is_a_member(site: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        make_roster().member(site)
    assert str(caught.value) == (f"{site!r} is not a member of clinics (roster 3); ask the coordinator to add it")


def test_a_node_id_belongs_to_a_name_and_fits_into_flowers_numbers() -> None:
    numbers = [member(f"s{number}").node_id for number in range(1_000)]
    assert len(set(numbers)) == 1_000
    assert all(0 < number < 1 << 62 for number in numbers)
    assert replace(member("north"), signing_key="0" * 64).node_id == member("north").node_id


def test_an_expired_roster_is_refused() -> None:
    expired = sign_roster(make_roster(expires=time.time() - 1), AUTHORITY).to_bytes()
    with pytest.raises(AuthenticityError) as caught:
        open_roster(expired, AUTHORITY.public_key())
    assert str(caught.value) == "roster 3 of clinics has expired; ask the coordinator for a newer one"


@pytest.mark.parametrize("signer", [authority_key("impostor"), signing_key("coordinator")])
def test_only_the_authority_can_sign_one(signer: object) -> None:
    document = sign_roster(make_roster(), signer).to_bytes()  # type: ignore[arg-type]
    with pytest.raises(AuthenticityError, match="the signature of this roster is not valid"):
        open_roster(document, AUTHORITY.public_key())


@relaxed
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused(where: float, bit: int) -> None:
    data = bytearray(GOOD)
    data[int(where * len(data))] ^= 1 << bit
    with pytest.raises((AuthenticityError, MalformedError)):
        open_roster(bytes(data), AUTHORITY.public_key())


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": "3"},
        {"expires": float("nan")},
        {"expires": float("inf")},
        {"expires": "never"},
        {"people": [asdict(PEOPLE[0]) | {"signing_key": "Z" * 64}]},
        {"people": [asdict(PEOPLE[0]), asdict(PEOPLE[0])]},
        {"people": [asdict(PEOPLE[0]) | {"name": "auditor"}]},
        {"people": [asdict(PEOPLE[0]) | {"name": "north"}]},
        {"people": [asdict(PEOPLE[0]) | {"signing_key": public_hex("north")}]},
        {"people": [asdict(PEOPLE[0]) | {"role": "director"}]},
        {"members": [asdict(member("north")), asdict(member("north"))]},
        {"members": [asdict(member("north")) | {"site": "North"}]},
        {"members": [asdict(member("north")) | {"site": "north\n"}]},
        {"members": [asdict(member("north")) | {"role": "admin"}]},
        {"format": 2},
        {"extra": 1},
    ],
    ids=repr,
)
def test_a_genuine_roster_of_another_form_is_refused(changes: dict[str, object]) -> None:
    data = json.dumps(asdict(make_roster()) | changes).encode()
    with pytest.raises(MalformedError, match="this roster does not fit this version of Cloister"):
        open_roster(signed(data), AUTHORITY.public_key())


@relaxed
@given(st.binary(max_size=100) | st.text(max_size=50).map(str.encode))
def test_arbitrary_signed_bytes_are_not_a_roster(data: bytes) -> None:
    with pytest.raises(MalformedError, match="this roster does not fit this version of Cloister"):
        open_roster(signed(data), AUTHORITY.public_key())


@relaxed
@given(st.binary(min_size=32, max_size=32))
def test_any_32_bytes_can_be_read_as_a_key_without_a_crash(key: bytes) -> None:
    from privacy.crypto.signing import verify  # noqa: PLC0415

    listed = replace(member("north"), signing_key=key.hex())
    with pytest.raises(AuthenticityError):
        verify(listed.verification_key, "update", b"payload", b"\1" * 64)


def test_a_roster_may_begin_with_people_alone() -> None:
    roster = replace(make_roster(), members=())
    assert open_roster(sign_roster(roster, AUTHORITY).to_bytes(), AUTHORITY.public_key()) == roster


def test_two_rosters_of_one_version_have_two_digests_however_often_they_are_signed() -> None:
    again = sign_roster(make_roster(), AUTHORITY).to_bytes()
    assert again != GOOD  # ECDSA draws a number
    assert roster_digest(again) == roster_digest(GOOD)
    other = sign_roster(replace(make_roster(), people=PEOPLE[:1]), AUTHORITY).to_bytes()
    assert roster_digest(other) != roster_digest(GOOD)
