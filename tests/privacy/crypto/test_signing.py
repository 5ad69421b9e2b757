"""What is signed comes back unchanged; anything else is refused before a parser sees it."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privacy.crypto.signing import PrivateKey, SignedDocument, digest, sign, verify
from privacy.errors import AuthenticityError, MalformedError
from tests.privacy.consortium import authority_key, relaxed, signing_key

KINDS = ("manifest", "roster", "update", "readiness", "plan")
KEYS: dict[str, PrivateKey] = {"Ed25519": signing_key("north"), "P-256": authority_key()}
OTHERS: dict[str, PrivateKey] = {"Ed25519": signing_key("south"), "P-256": authority_key("impostor")}

curves = st.sampled_from(sorted(KEYS))
kinds = st.sampled_from(KINDS)
payloads = st.binary(max_size=200)
places = st.floats(0, 1, exclude_max=True)  # ECDSA's signatures differ in length from one to the next


@relaxed
@given(curve=curves, kind=kinds, payload=payloads)
@example(curve="Ed25519", kind="roster", payload=b"")
@example(curve="P-256", kind="roster", payload=b"\n\n")
def test_a_document_comes_back_as_it_was_signed(curve: str, kind: str, payload: bytes) -> None:
    document = SignedDocument.make(KEYS[curve], kind, payload)
    opened = SignedDocument.open(document.to_bytes(), kind, KEYS[curve].public_key())
    assert opened == document
    assert opened.payload == payload
    assert opened.digest == digest(kind, payload)


@relaxed
@given(curve=curves, payload=payloads, where=places, change=st.integers(1, 255))
def test_any_change_of_any_byte_is_refused(curve: str, payload: bytes, where: float, change: int) -> None:
    document = bytearray(SignedDocument.make(KEYS[curve], "roster", payload).to_bytes())
    document[int(where * len(document))] ^= change
    with pytest.raises((AuthenticityError, MalformedError)):
        SignedDocument.open(bytes(document), "roster", KEYS[curve].public_key())


@relaxed
@given(curve=curves, payload=payloads, where=places, more=st.binary(min_size=1, max_size=9))
def test_a_document_that_was_cut_or_added_to_is_refused(curve: str, payload: bytes, where: float, more: bytes) -> None:
    document = SignedDocument.make(KEYS[curve], "roster", payload).to_bytes()
    for broken in (document[: int(where * len(document))], document + more, more + document):
        with pytest.raises((AuthenticityError, MalformedError)):
            SignedDocument.open(broken, "roster", KEYS[curve].public_key())


@pytest.mark.parametrize("curve", KEYS)
def test_another_key_of_the_same_kind_does_not_verify(curve: str) -> None:
    document = SignedDocument.make(KEYS[curve], "roster", b"payload").to_bytes()
    with pytest.raises(AuthenticityError) as caught:
        SignedDocument.open(document, "roster", OTHERS[curve].public_key())
    assert str(caught.value) == (
        "the signature of this roster is not valid: the roster was altered, or signed with another key"
    )


@pytest.mark.parametrize(("curve", "other"), [("Ed25519", "P-256"), ("P-256", "Ed25519")])
def test_a_key_of_another_kind_does_not_verify(curve: str, other: str) -> None:
    document = SignedDocument.make(KEYS[curve], "roster", b"payload").to_bytes()
    with pytest.raises(AuthenticityError):
        SignedDocument.open(document, "roster", KEYS[other].public_key())


@relaxed
@given(curve=curves, signed=kinds, read=kinds, payload=payloads)
def test_one_kind_of_document_never_passes_for_another(curve: str, signed: str, read: str, payload: bytes) -> None:
    signature, public = sign(KEYS[curve], signed, payload), KEYS[curve].public_key()
    if signed == read:
        verify(public, read, payload, signature)
        return
    assert digest(signed, payload) != digest(read, payload)
    with pytest.raises(AuthenticityError):
        verify(public, read, payload, signature)
    document = SignedDocument(signed, payload, signature)
    with pytest.raises(MalformedError, match=f"this is a signed '{signed}'; a {read} is needed here"):
        SignedDocument.open(document.to_bytes(), read, public)
    with pytest.raises(AuthenticityError):
        SignedDocument.open(SignedDocument(read, payload, signature).to_bytes(), read, public)


@relaxed
@given(kind=st.text(max_size=9), payload=payloads, moved=st.integers(1, 4))
def test_bytes_cannot_move_between_kind_and_payload(kind: str, payload: bytes, moved: int) -> None:
    longer = kind + payload[:moved].decode("latin-1")
    if longer != kind:
        assert digest(kind, payload) != digest(longer, payload[moved:])


@relaxed
@given(payload=payloads, signature=st.binary(max_size=80))
def test_arbitrary_signatures_are_refused(payload: bytes, signature: bytes) -> None:
    for key in KEYS.values():
        with pytest.raises(AuthenticityError):
            verify(key.public_key(), "roster", payload, signature)


@relaxed
@given(
    st.binary(max_size=300)
    | st.binary(max_size=100).map(lambda rest: b"cloister-signed-1 roster " + rest)
    | st.text("0123456789abcdefABCDEF \t\n", max_size=150).map(
        lambda rest: b"cloister-signed-1 roster " + rest.encode()
    )
)
def test_arbitrary_bytes_are_not_a_document(data: bytes) -> None:
    for key in KEYS.values():
        with pytest.raises((AuthenticityError, MalformedError)):
            SignedDocument.open(data, "roster", key.public_key())


def test_the_first_line_has_one_form_only() -> None:
    magic, kind, signature = SignedDocument.make(KEYS["P-256"], "roster", b"x").to_bytes()[:-2].split(b" ")
    for rewritten in (
        b" ".join([magic, kind, signature.upper()]),
        b" ".join([magic, kind, signature[:2] + b"\t" + signature[2:]]),
        b" ".join([magic, kind, signature]) + b"\r",
    ):
        with pytest.raises(MalformedError, match="the first line of this roster was rewritten"):
            SignedDocument.open(rewritten + b"\nx", "roster", KEYS["P-256"].public_key())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "this is not a signed Cloister roster"),
        (b"cloister-signed-1 roster 00", "this is not a signed Cloister roster"),
        (b"cloister-signed-2 roster 00\nx", "this is not a signed Cloister roster"),
        (b"cloister-signed-1 roster 00 00\nx", "this is not a signed Cloister roster"),
        (b"cloister-signed-1 roster 0\nx", "the first line of this roster is damaged"),
        (b"cloister-signed-1 roster \xff\nx", "the first line of this roster is damaged"),
        (b"cloister-signed-1 r\xc3\xb6ster 00\nx", "the first line of this roster is damaged"),
        (b"cloister-signed-1 manifest 00\nx", "this is a signed 'manifest'; a roster is needed here"),
    ],
)
def test_a_faulty_document_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        SignedDocument.open(data, "roster", KEYS["P-256"].public_key())


def test_a_document_that_is_too_large_is_refused_with_its_size() -> None:
    key, room = KEYS["Ed25519"], 64 << 20
    largest = SignedDocument.make(key, "roster", b"x" * (room - 200)).to_bytes()
    assert SignedDocument.open(largest, "roster", key.public_key()).payload == b"x" * (room - 200)
    with pytest.raises(MalformedError, match="this roster has 64 MiB; the limit is 64 MiB"):
        SignedDocument.open(largest + bytes(200), "roster", key.public_key())
