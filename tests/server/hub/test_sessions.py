"""Who may sign in where TLS does not show who calls: one fresh challenge, one signature, one token, for a while."""

import struct
import time
from dataclasses import dataclass, replace
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.crypto.signing import sign
from privacy.errors import AuthenticityError, CloisterError, ProtocolError
from server.challenges import ANSWERS
from server.challenges import SECONDS as CHALLENGE_SECONDS
from server.hub.sessions import TOKEN_SECONDS, TOKENS, Sessions
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests.server.callers import SITES
from transport.pki import public_key_digest, read_certificate, read_signing_key
from transport.sign_in import (
    SIGN_IN,
    SignIn,
    authorization,
    challenge_request,
    read_challenge,
    read_token_answer,
    token_in,
)

NONCE = bytes(range(32))


@dataclass
class Server:
    """Sessions of one consortium, with a clock that a test moves."""

    federation: Federation
    now: float = 1000.0

    def __post_init__(self) -> None:
        place = read_consortium(self.federation.server)
        self.roster, self.tls = place.roster(), place.tls
        self.sessions = Sessions(self.tls, self.roster, lambda: self.now)

    def challenge(self, site: str = "north") -> bytes:
        return read_challenge(self.sessions.challenge(challenge_request(NONCE, site))).challenge

    def answer(self, challenge: bytes, site: str = "north", key: Ed25519PrivateKey | None = None,
               late: float = 0.0) -> SignIn:  # fmt: skip
        """What a site answers, with a clock that is late."""
        authority = read_certificate(self.tls.authority).fingerprint(hashes.SHA256())
        server = bytes.fromhex(public_key_digest(read_certificate(self.tls.certificate)))
        answer = SignIn(site, challenge, time.time() - late, self.roster.version)
        key = key or read_signing_key(self.federation.paths[site] / "keys" / "signing.key")
        return replace(answer, signature=sign(key, SIGN_IN, answer.signed_part(authority, server)))

    def token(self, site: str = "north") -> bytes:
        return read_token_answer(self.sessions.sign_in(self.answer(self.challenge(site), site).to_bytes()))[0]

    def site(self, token: bytes) -> str | None:
        member = self.sessions.member(token)
        return member.site if member else None


@pytest.fixture
def server(federation: Federation) -> Server:
    return Server(federation)


def refused(server: Server, answer: SignIn, kind: type[CloisterError], text: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        server.sessions.sign_in(answer.to_bytes())
    assert "\n" not in str(caught.value)


def test_a_token_belongs_to_the_site_that_signed_and_ends_after_a_while(server: Server) -> None:
    north, south = server.token("north"), server.token("south")
    assert (server.site(north), server.site(south), server.site(bytes(32))) == ("north", "south", None)
    server.now += TOKEN_SECONDS - 1
    assert server.site(north) == "north"
    server.now += 2
    assert server.site(north) is None


def test_both_sign_the_bytes_that_the_protocol_fixes(server: Server) -> None:
    """Written out here by hand, after docs/protocol.md."""

    def bound(kind: bytes, payload: bytes) -> bytes:
        return b"cloister" + struct.pack(">H", len(kind)) + kind + struct.pack(">Q", len(payload)) + payload

    authority = sha256(read_certificate(server.tls.authority).public_bytes(Encoding.DER)).digest()
    raw = server.sessions.challenge(struct.pack(">I", 1) + NONCE + b"north")
    challenge, times, (length,) = raw[:56], raw[56:72], struct.unpack_from(">H", raw, 72)
    certificate, signature = x509.load_der_x509_certificate(raw[74 : 74 + length]), raw[74 + length :]
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    payload = authority + NONCE + challenge + times + b"north"
    key.verify(signature, bound(b"challenge", payload), ec.ECDSA(hashes.SHA256()))

    public = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    times = struct.pack(">dQ", time.time(), 1)
    payload = authority + sha256(public).digest() + challenge + times + b"north"
    own = read_signing_key(server.federation.paths["north"] / "keys" / "signing.key").sign(bound(b"sign-in", payload))
    token = server.sessions.sign_in(struct.pack(">I", 1) + challenge + times + own + b"north")
    assert len(token) == 36
    assert server.site(token[:32]) == "north"


def test_the_server_keeps_no_token_itself(server: Server) -> None:
    token = server.token()
    assert token not in repr(vars(server.sessions)).encode()
    assert token not in server.sessions._tokens


def test_a_challenge_is_answered_once_and_soon(server: Server) -> None:
    answer = server.answer(server.challenge())
    server.sessions.sign_in(answer.to_bytes())
    refused(server, answer, ProtocolError, "this challenge of north was answered before, so this may be a replay")
    server.now += CHALLENGE_SECONDS + 1
    refused(server, answer, ProtocolError, "older than 60 s; ask for a new one")


def test_a_challenge_of_another_server_or_site_is_refused(server: Server, federation: Federation) -> None:
    other = Server(federation)  # the same consortium, another process: as after a restart
    text = "a challenge of another server or name"
    refused(server, server.answer(other.challenge()), ProtocolError, text)
    refused(server, server.answer(server.challenge("south"), "north"), ProtocolError, text)
    refused(server, server.answer(bytes(56)), ProtocolError, text)


def test_a_signature_for_another_consortium_or_with_another_key_is_refused_as_a_strangers_is(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> None:
    strangers = Server(Federation.create(tmp_path_factory.mktemp("strangers"), SITES))
    key = read_signing_key(server.federation.paths["north"] / "keys" / "signing.key")
    text = "roster 1 lists no site north with the key of this signature; ask the coordinator to add this site"
    refused(server, strangers.answer(server.challenge(), key=key), AuthenticityError, text)
    refused(server, server.answer(server.challenge(), key=Ed25519PrivateKey.generate()), AuthenticityError, text)
    stranger = server.answer(server.challenge("east"), "east", key)
    refused(server, stranger, AuthenticityError, text.replace("north", "east"))


@pytest.mark.parametrize("late", [600.0, -600.0])
def test_a_clock_ten_minutes_off_is_named(server: Server, late: float) -> None:
    answer = server.answer(server.challenge(), late=late)
    way = "behind" if late > 0 else "ahead of"
    refused(server, answer, ProtocolError, f"north's clock is (599|600|601) s {way} the server's")


def test_a_site_that_left_or_has_new_keys_loses_its_tokens_at_once(server: Server) -> None:
    north, south = server.token("north"), server.token("south")
    stays = tuple(member for member in server.roster.members if member.site != "north")
    server.sessions.admit(replace(server.roster, version=2, members=stays))
    assert (server.site(north), server.site(south)) == (None, "south")
    refused(server, server.answer(server.challenge()), AuthenticityError, "roster 2 lists no site north")
    anew = replace(stays[0], signing_key=Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex())
    server.sessions.admit(replace(server.roster, version=3, members=(anew,)))
    assert server.site(south) is None


def test_callers_take_no_memory_before_they_have_signed_in_and_members_little(server: Server) -> None:
    def kept() -> int:
        return len(server.sessions._tokens) + server.sessions._challenges.kept

    for _ in range(1000):
        server.challenge()
    assert kept() == 0
    for _ in range(ANSWERS):
        server.token()
    assert kept() == TOKENS + ANSWERS
    refused(server, server.answer(server.challenge()), ProtocolError, "north signed in 64 times within 60 s")
    assert server.site(server.token("south")) == "south"
    server.now += CHALLENGE_SECONDS + 1
    assert server.site(server.token()) == "north"
    assert kept() == TOKENS + 3  # two of south's


@given(edit=st.tuples(st.integers(0, 10_000), st.integers(0, 7)))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_of_an_answer_is_refused(server: Server, edit: tuple[int, int]) -> None:
    data = bytearray(server.answer(server.challenge()).to_bytes())
    data[edit[0] % len(data)] ^= 1 << edit[1]
    with pytest.raises(CloisterError):
        server.sessions.sign_in(bytes(data))


def test_a_token_has_only_one_form() -> None:
    ((name, text),) = authorization(NONCE)
    assert token_in([(name, text)]) == NONCE
    for other in (text[:-1], f"{text}A", f"{text}=", text.replace("Bearer", "Basic"), "Bearer ", "Bearer " + "é" * 43):
        assert token_in([(name, other)]) == b""
    assert token_in([(name, text), (name, text)]) == b""
    assert token_in([("other", text)]) is None
