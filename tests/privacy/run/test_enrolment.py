"""Invitations, requests and welcomes: what is read back is what was written, and nothing else is taken."""

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import AuthenticityError, CloisterError, MalformedError
from privacy.run.enrolment import (
    AnyRequest,
    JoinRequest,
    PersonRequest,
    authority_in,
    number_of,
    open_request,
    open_welcome,
    write_request,
    write_welcome,
)
from privacy.run.invitation import Invitation, read_invitation, read_record

AUTHORITY = ec.generate_private_key(ec.SECP256R1())
SOON = int(time.time()) + 60
INVITATION = Invitation("north", "fed.example.org:9440", 9441, "0f" * 32, "ab" * 32, SOON)
RECORD = INVITATION.record
REQUEST = JoinRequest("north", "a certificate request", "cd" * 32, "a sealing key")
SIGNED = write_request(REQUEST, INVITATION)
WELCOME = write_welcome("north", "a certificate", b"a roster", AUTHORITY, b"the authority's certificate")


def test_documents_are_read_back_as_written() -> None:
    assert read_invitation(INVITATION.to_text()) == INVITATION
    assert number_of(SIGNED) == INVITATION.number
    assert open_request(SIGNED, RECORD) == REQUEST
    certificate, document = authority_in(WELCOME)
    assert certificate == b"the authority's certificate"
    assert open_welcome(document, AUTHORITY.public_key()).roster_file == b"a roster"
    assert read_record(RECORD.to_bytes(), "here") == RECORD
    assert RECORD.proved_by(INVITATION.proof)


def test_a_persons_documents_are_read_back_as_written() -> None:
    invitation = replace(INVITATION, name="ana", role="researcher")
    assert read_invitation(invitation.to_text()) == invitation
    assert read_record(invitation.record.to_bytes(), "here") == invitation.record
    assert invitation.record.role == "researcher"
    request = PersonRequest("ana", "cd" * 32)
    assert open_request(write_request(request, invitation), invitation.record) == request
    welcome = write_welcome("ana", None, b"a roster", AUTHORITY, b"the authority's certificate")
    assert open_welcome(authority_in(welcome)[1], AUTHORITY.public_key()).certificate is None


def test_a_site_cannot_ask_with_a_persons_invitation_nor_a_person_with_a_sites() -> None:
    person = replace(INVITATION, role="auditor")
    with pytest.raises(MalformedError, match="this request to join is damaged"):
        open_request(write_request(REQUEST, person), person.record)
    with pytest.raises(MalformedError, match="this request to join is damaged"):
        open_request(write_request(PersonRequest("north", "cd" * 32), INVITATION), RECORD)


@pytest.mark.parametrize("role", ["director", "Auditor", "auditor "])
def test_an_invitation_with_an_unknown_role_is_damaged(role: str) -> None:
    text = replace(INVITATION, role="auditor").to_text().partition(".")[2]
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))[:-4]
    data = data.replace(b"\x07auditor", bytes([len(role)]) + role.encode())
    forged = urlsafe_b64encode(data + sha256(data).digest()[:4]).decode().rstrip("=")
    with pytest.raises(MalformedError, match="the invitation is damaged"):
        read_invitation(f"cloister-invitation-3.{forged}")


@pytest.mark.parametrize("around", ["\ufeff{}", "  {}\r\n", "\n{}\n\n"])
def test_mail_programs_may_add_white_space_to_an_invitation(around: str) -> None:
    text = INVITATION.to_text()
    broken = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    assert read_invitation(around.format(broken)) == INVITATION


def _opened(data: bytes) -> AnyRequest:
    """Open a request as the coordinator does: by its number, find the invitation."""
    if number_of(data) != INVITATION.number:
        raise AuthenticityError
    return open_request(data, RECORD)


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
        _welcomed(bytes(damaged))


def _welcomed(data: bytes) -> None:
    """Open a welcome as a site does: it knows the digest of the authority's certificate."""
    certificate, document = authority_in(data)
    if certificate != b"the authority's certificate":
        raise AuthenticityError
    open_welcome(document, AUTHORITY.public_key())


@given(place=st.integers(0, len(INVITATION.to_text()) - 1), other=st.characters(codec="ascii"))
def test_a_changed_character_of_an_invitation_is_noticed(place: int, other: str) -> None:
    text = INVITATION.to_text()
    damaged = text[:place] + other + text[place + 1 :]
    if "".join(damaged.split()) == text:
        return
    with pytest.raises(MalformedError):
        read_invitation(damaged)


@given(end=st.integers(0, len(INVITATION.to_text()) - 1))
def test_a_cut_invitation_is_noticed(end: int) -> None:
    with pytest.raises(MalformedError):
        read_invitation(INVITATION.to_text()[:end])


def test_an_invitation_of_another_version_says_so() -> None:
    with pytest.raises(MalformedError, match="of another version of Cloister"):
        read_invitation(INVITATION.to_text().replace("-3.", "-2."))


def test_what_is_kept_of_an_invitation_lets_nobody_join() -> None:
    kept = RECORD.to_bytes()
    for secret in (bytes.fromhex(INVITATION.secret), INVITATION.proof, INVITATION.key.private_bytes_raw()):
        assert secret not in kept
        assert secret.hex().encode() not in kept


@given(st.text() | st.text().map("cloister-invitation-3.".__add__))
def test_other_text_is_no_invitation(text: str) -> None:
    with pytest.raises(CloisterError):
        read_invitation(text)


@given(st.binary() | st.binary().map(b"cloister-request-3 ".__add__))
def test_other_bytes_are_no_request(data: bytes) -> None:
    with pytest.raises(CloisterError):
        number_of(data)


def test_a_request_needs_its_own_invitation() -> None:
    other = Invitation("south", "fed.example.org:9440", 9441, "0f" * 32, "ef" * 32, SOON)
    with pytest.raises(AuthenticityError, match="does not come from whoever was invited as south"):
        open_request(SIGNED, other.record)
    renamed = write_request(JoinRequest("south", "a request", "cd" * 32, "a"), INVITATION)
    with pytest.raises(AuthenticityError, match="each needs its own"):
        open_request(renamed, RECORD)


def test_an_invitation_expires() -> None:
    old = Invitation("north", "fed.example.org:9440", 9441, "0f" * 32, "ab" * 32, int(time.time()) - 1)
    for check in (old.check_valid, old.record.check_open):
        with pytest.raises(AuthenticityError, match="has expired; ask the coordinator"):
            check()
