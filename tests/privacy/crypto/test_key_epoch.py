"""Letters give every member the same keys, and nobody else any; altered or misdirected letters are refused."""

from __future__ import annotations

import json
import time
from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import replace
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.crypto.key_epoch import KIND, EpochKeys, SealingKey, read_letter, seal, write_letters
from privacy.crypto.signing import SignedDocument
from privacy.errors import AuthenticityError, CloisterError, KeyFileError, MalformedError, ProtocolError
from privacy.run.roster import Member, Roster, open_roster, sign_roster
from tests.privacy.consortium import authority_key, few, public_hex, signing_key

if TYPE_CHECKING:
    from collections.abc import Callable

SITES = ("north", "south", "west")


@cache
def sealing_key(site: str) -> SealingKey:
    del site  # each has its own
    return SealingKey.generate()


def roster_of(*sites: str, **changes: Any) -> Roster:  # noqa: ANN401 - any field
    members = tuple(
        Member(site, f"{number:064x}", public_hex(site), sealing_key(site).public) for number, site in enumerate(sites)
    )
    return replace(Roster("clinics", 3, time.time() + 600, (), members), **changes)


@cache
def keys() -> EpochKeys:
    return EpochKeys.generate(5)


@cache
def roster() -> Roster:
    return roster_of(*SITES)


@cache
def letters() -> dict[str, bytes]:
    return write_letters(keys(), roster(), "north", signing_key("north"))


def payload_of(letter: bytes) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(letter.partition(b"\n")[2])
    return payload


def signed(payload: object, signer: str = "north", kind: str = KIND) -> bytes:
    data = payload if isinstance(payload, bytes) else json.dumps(payload, sort_keys=True).encode()
    return SignedDocument.make(signing_key(signer), kind, data).to_bytes()


def read(letter: bytes, site: str = "south", leader: str = "north", by: Roster | None = None) -> EpochKeys:
    return read_letter(letter, leader, by or roster(), site, sealing_key(site))


def test_every_member_opens_its_letter_to_the_same_keys() -> None:
    assert set(letters()) == set(SITES)
    opened = {site: read(letter, site) for site, letter in letters().items()}
    assert {epoch_keys.fingerprint for epoch_keys in opened.values()} == {keys().fingerprint}
    assert {epoch_keys.to_bytes() for epoch_keys in opened.values()} == {keys().to_bytes()}
    assert {epoch_keys.epoch for epoch_keys in opened.values()} == {5}


def test_letters_hold_nothing_of_the_keys_in_the_clear() -> None:
    secrets = keys().secret, keys().decryption.to_bytes()[:32]
    for letter in letters().values():
        everything = letter + b64decode(payload_of(letter)["sealed"])
        assert not any(secret in everything for secret in secrets)
        assert not any(secret.hex().encode() in everything for secret in secrets)


def test_two_epochs_share_nothing() -> None:
    other = EpochKeys.generate(5)
    assert other.fingerprint != keys().fingerprint
    assert other.secret != keys().secret
    assert other.decryption.to_bytes() != keys().decryption.to_bytes()


def test_no_other_site_and_no_stranger_opens_a_letter() -> None:
    letter = letters()["south"]
    sealed = b64decode(payload_of(letter)["sealed"])
    with pytest.raises(ProtocolError, match="recipient"):
        read(letter, "west")
    for key in (sealing_key("west"), sealing_key("north"), SealingKey.generate()):  # the leader's neither
        with pytest.raises(AuthenticityError, match="does not open"):
            read_letter(letter, "north", roster(), "south", key)
        with pytest.raises(AuthenticityError):
            key.open(sealed, b"")


def test_keys_sealed_to_a_substituted_recipient_key_do_not_open() -> None:
    mallory = SealingKey.generate()
    members = (
        replace(member, sealing_key=mallory.public) if member.site == "south" else member for member in roster().members
    )
    forged = replace(roster(), members=tuple(members))
    letter = write_letters(keys(), forged, "north", signing_key("north"))["south"]
    with pytest.raises(AuthenticityError, match="does not open"):
        read(letter)
    with pytest.raises(AuthenticityError):  # nor does a site take such a roster in the first place
        open_roster(sign_roster(forged, authority_key("mallory")).to_bytes(), authority_key().public_key())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"consortium": "others"}, ProtocolError),
        ({"roster": 2}, ProtocolError),
        ({"roster": 4}, ProtocolError),
        ({"leader": "west"}, ProtocolError),
        ({"recipient": "west"}, ProtocolError),
        ({"recipient": "../x"}, MalformedError),
        ({"epoch": 6}, AuthenticityError),
        ({"epoch": 0}, MalformedError),
        ({"epoch": 5.0}, MalformedError),
        ({"epoch": 10**30}, AuthenticityError),
        ({"fingerprint": "0" * 64}, AuthenticityError),
        ({"fingerprint": "zz"}, MalformedError),
        ({"sealed": ""}, AuthenticityError),
        ({"sealed": "!!"}, MalformedError),
        ({"sealed": "é"}, MalformedError),
        ({"sealed": b64encode(bytes(1136)).decode()}, AuthenticityError),
        ({"sealed": b64encode(bytes(40_000)).decode()}, AuthenticityError),
        ({"format": 2}, MalformedError),
        ({"note": "more"}, MalformedError),
    ],
    ids=str,
)
def test_a_letter_whose_leader_signed_something_else_is_refused(
    changes: dict[str, Any], error: type[CloisterError]
) -> None:
    with pytest.raises(error):
        read(signed(payload_of(letters()["south"]) | changes))


def test_a_letter_with_anothers_sealed_part_is_refused() -> None:
    other = payload_of(letters()["west"])["sealed"]
    with pytest.raises(AuthenticityError, match="does not open"):
        read(signed(payload_of(letters()["south"]) | {"sealed": other}))


def test_a_sealed_part_of_another_epoch_is_refused() -> None:
    later = write_letters(EpochKeys.generate(6), roster(), "north", signing_key("north"))["south"]
    with pytest.raises(AuthenticityError, match="does not open"):
        read(signed(payload_of(letters()["south"]) | {"sealed": payload_of(later)["sealed"]}))


@pytest.mark.parametrize("named", [{"epoch": 6}, {"fingerprint": "0" * 64}], ids=str)
def test_a_leader_that_names_other_keys_than_it_sealed_is_refused(named: dict[str, Any]) -> None:
    payload = payload_of(letters()["south"]) | named
    bound = [payload[name] for name in ("consortium", "roster", "epoch", "fingerprint", "leader", "recipient")]
    info = b"cloister epoch " + json.dumps(bound).encode()
    sealed = seal(sealing_key("south").public, keys().to_bytes(), info)
    with pytest.raises(AuthenticityError, match="not those that the letter names"):
        read(signed(payload | {"sealed": b64encode(sealed).decode()}))


def with_digest(data: bytes) -> bytes:
    return data + sha256(data).digest()


@pytest.mark.parametrize(
    "sealed_bytes",
    [b"", b"x" * 40, with_digest(b""), with_digest(bytes(8)), with_digest(bytes(40) + with_digest(b"\xff" * 32768))],
    ids=["nothing", "rubbish", "digest alone", "epoch alone", "no residues"],
)
def test_sealed_rubbish_of_a_member_is_an_error_of_ours(sealed_bytes: bytes) -> None:
    payload = payload_of(letters()["south"])
    bound = [payload[name] for name in ("consortium", "roster", "epoch", "fingerprint", "leader", "recipient")]
    sealed = seal(sealing_key("south").public, sealed_bytes, b"cloister epoch " + json.dumps(bound).encode())
    with pytest.raises(CloisterError):
        read(signed(payload | {"sealed": b64encode(sealed).decode()}))


def test_a_letter_signed_by_anyone_but_the_leader_it_came_from_is_refused() -> None:
    letter = letters()["south"]
    with pytest.raises(AuthenticityError, match="signature"):
        read(letter, leader="west")  # a member, but not the one that signed
    with pytest.raises(AuthenticityError, match="signature"):
        read(signed(payload_of(letter), signer="mallory"))
    with pytest.raises(ProtocolError, match="not a member"):
        read(signed(payload_of(letter) | {"leader": "mallory"}, signer="mallory"), leader="mallory")
    with pytest.raises(ProtocolError, match="not a member"):
        read(letter, by=roster_of("south", "west"))
    with pytest.raises(MalformedError):
        read(signed(payload_of(letter), kind="roster"))


@few
@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_letter_in_which_any_bit_was_flipped_is_refused(place: int, bit: int) -> None:
    data = bytearray(letters()["south"])
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(CloisterError):
        read(bytes(data))


@few
@given(data=st.binary(max_size=200) | st.just(b""))
def test_arbitrary_bytes_raise_only_errors_of_ours(data: bytes) -> None:
    tries: list[Callable[[], object]] = [
        lambda: read(data),
        lambda: read(letters()["south"][: len(data)] + data),
        lambda: read(signed(data)),
        lambda: read(signed(payload_of(letters()["south"]) | {"sealed": b64encode(data).decode()})),
        lambda: sealing_key("south").open(data, b""),
        lambda: EpochKeys.from_bytes(data),
        lambda: SealingKey(data),
        lambda: seal(data.decode("latin-1"), b"", b""),
    ]
    for attempt in tries:
        with pytest.raises(CloisterError):
            attempt()


@few
@given(values=st.dictionaries(st.sampled_from(["consortium", "roster", "epoch", "leader", "sealed", "format"]),
                              st.none() | st.integers() | st.text() | st.lists(st.integers(), max_size=2)))  # fmt: skip
def test_signed_letters_of_any_content_raise_only_errors_of_ours(values: dict[str, Any]) -> None:
    with suppress(CloisterError):
        assert read(signed(payload_of(letters()["south"]) | values)).fingerprint == keys().fingerprint


def test_an_unusable_key_in_the_roster_is_malformed() -> None:
    good = b64decode(sealing_key("south").public)
    for bad in (b"", good[:-1], good + b"\0", good[:1184] + bytes(32), b"\xff" * 1216):
        with pytest.raises(MalformedError, match="sealing key"):
            seal(b64encode(bad).decode(), b"", b"")


def test_a_sealing_key_survives_its_bytes() -> None:
    key = SealingKey.generate()
    again = SealingKey(key.to_bytes())
    assert again.public == key.public
    assert again.open(seal(key.public, b"secret", b"info"), b"info") == b"secret"
    with pytest.raises(AuthenticityError):
        again.open(seal(key.public, b"secret", b"info"), b"another")
    for wrong in (key.to_bytes()[:-1], key.to_bytes() + b"\0", b""):
        with pytest.raises(KeyFileError, match="backup"):
            SealingKey(wrong)


@pytest.mark.parametrize("place", [0, 7, 8, 39, 40, 20_000, -1])
def test_keys_in_which_a_byte_was_damaged_are_refused(place: int) -> None:
    data = bytearray(keys().to_bytes())
    data[place] ^= 1
    with pytest.raises(KeyFileError, match="backup"):
        EpochKeys.from_bytes(bytes(data))
