"""Invitations, requests and welcomes: what is read back is what was written, and nothing else is taken."""

import time

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import AuthenticityError, CloisterError, MalformedError
from privacy.run.enrolment import (
    Invitation,
    JoinRequest,
    number_of,
    open_request,
    open_welcome,
    read_invitation,
    write_request,
    write_welcome,
)

AUTHORITY = ec.generate_private_key(ec.SECP256R1())
INVITATION = Invitation("lungs", "north", "fed.example.org:9440", "a certificate", "ab" * 32, time.time() + 60)
REQUEST = JoinRequest("north", "a certificate request", "cd" * 32, "a sealing key")
SIGNED = write_request(REQUEST, INVITATION)
WELCOME = write_welcome("north", "a certificate", b"a roster", AUTHORITY)


def test_documents_are_read_back_as_written() -> None:
    assert read_invitation(INVITATION.to_text()) == INVITATION
    assert number_of(SIGNED) == INVITATION.number
    assert open_request(SIGNED, INVITATION) == REQUEST
    assert open_welcome(WELCOME, AUTHORITY.public_key()).roster_file == b"a roster"


@pytest.mark.parametrize("around", ["\ufeff{}", "  {}\r\n", "\n{}\n\n"])
def test_mail_programs_may_add_white_space_to_an_invitation(around: str) -> None:
    text = INVITATION.to_text()
    broken = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    assert read_invitation(around.format(broken)) == INVITATION


def _opened(data: bytes) -> JoinRequest:
    """Open a request as the coordinator does: by its number, find the invitation."""
    if number_of(data) != INVITATION.number:
        raise AuthenticityError
    return open_request(data, INVITATION)


@given(place=st.integers(0, len(SIGNED) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_request_is_noticed(place: int, bit: int) -> None:
    damaged = bytearray(SIGNED)
    damaged[place] ^= 1 << bit
    with pytest.raises((AuthenticityError, MalformedError)):
        _opened(bytes(damaged))


@given(place=st.integers(0, len(WELCOME) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_welcome_is_noticed(place: int, bit: int) -> None:
    damaged = bytearray(WELCOME)
    damaged[place] ^= 1 << bit
    with pytest.raises((AuthenticityError, MalformedError)):
        open_welcome(bytes(damaged), AUTHORITY.public_key())


@given(st.text() | st.text().map("cloister-invitation-1.".__add__))
def test_other_text_is_no_invitation(text: str) -> None:
    with pytest.raises(CloisterError):
        read_invitation(text)


@given(st.binary() | st.binary().map(b"cloister-request-1 ".__add__))
def test_other_bytes_are_no_request(data: bytes) -> None:
    with pytest.raises(CloisterError):
        number_of(data)


def test_a_request_needs_its_own_invitation() -> None:
    other = Invitation("lungs", "south", "fed.example.org:9440", "a certificate", "ef" * 32, time.time() + 60)
    with pytest.raises(AuthenticityError, match="does not come from the site that was invited as south"):
        open_request(SIGNED, other)
    renamed = write_request(JoinRequest("south", "a request", "cd" * 32, "a"), INVITATION)
    with pytest.raises(AuthenticityError, match="each site needs its own"):
        open_request(renamed, INVITATION)


def test_an_invitation_expires() -> None:
    old = Invitation("lungs", "north", "fed.example.org:9440", "a certificate", "ab" * 32, time.time() - 1)
    with pytest.raises(AuthenticityError, match="has expired; ask the coordinator"):
        old.check_valid()
