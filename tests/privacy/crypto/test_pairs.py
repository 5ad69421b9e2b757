"""A secret is shared by the two sites that a letter names, under the keys that it was made for, and by nobody else."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.crypto.key_epoch import EpochKeys, seal
from privacy.crypto.pairs import KIND, SECRET_BYTES, _info, read_pair, write_pairs
from privacy.crypto.signing import sign
from privacy.errors import AuthenticityError, CloisterError, MalformedError, ProtocolError
from tests.privacy.consortium import SITES, few, make_roster, member, sealing_key, signing_key

ROSTER = make_roster()


@cache
def keys(epoch: int = 2) -> EpochKeys:
    return EpochKeys.generate(epoch)


@cache
def written(sender: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    return write_pairs(keys(), ROSTER, sender, signing_key(sender))


def read(letter: bytes, sender: str = "north", site: str = "south", by: EpochKeys | None = None) -> bytes:
    return read_pair(letter, by or keys(), ROSTER, sender, site, sealing_key(site))


def test_each_site_writes_to_those_with_greater_names_and_they_read_the_same() -> None:
    secrets = []
    for number, sender in enumerate(SITES):
        pair_secrets, letters = written(sender)
        assert set(pair_secrets) == set(letters) == set(SITES[number + 1 :])
        assert {site: read(letter, sender, site) for site, letter in letters.items()} == pair_secrets
        secrets += list(pair_secrets.values())
    assert len(set(secrets)) == 3
    assert {len(secret) for secret in secrets} == {SECRET_BYTES}


def test_a_letter_is_for_one_sender_recipient_and_epoch() -> None:
    letter = written("north")[1]["south"]
    with pytest.raises(AuthenticityError):
        read(letter, site="west")
    with pytest.raises(AuthenticityError):
        read(letter, sender="west", site="south")
    with pytest.raises(AuthenticityError):
        read(letter, by=keys(3))
    with pytest.raises(AuthenticityError):
        read_pair(letter, keys(), ROSTER, "north", "south", sealing_key("west"))
    with pytest.raises(AuthenticityError):
        read(written("north")[1]["west"])
    with pytest.raises(ProtocolError, match="is not a member"):
        read(letter, sender="mallory")


def test_a_site_takes_no_secret_from_one_that_it_writes_to_itself_and_none_of_another_length() -> None:
    def forged(sender: str, site: str, secret: bytes) -> bytes:
        info = _info(keys(), ROSTER, sender, site)
        sealed = seal(member(site).sealing_key, secret, info)
        return sign(signing_key(sender), KIND, info + sealed) + sealed

    assert read(forged("north", "south", bytes(32))) == bytes(32)
    for letter, sender, site in (
        (forged("north", "south", bytes(31)), "north", "south"),
        (forged("north", "south", bytes(33)), "north", "south"),
        (forged("south", "north", bytes(32)), "south", "north"),
    ):
        with pytest.raises(MalformedError, match="contains no usable secret"):
            read(letter, sender, site)


@few
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_an_altered_letter_is_refused(where: float, bit: int, *, cut: bool) -> None:
    letter = bytearray(written("north")[1]["south"])
    place = int(where * len(letter))
    letter[place] ^= 1 << bit
    with pytest.raises(CloisterError):
        read(bytes(letter[:place] if cut else letter))
