"""Sites that signed in, where TLS cannot tell who calls: challenges, their answers, and the tokens that these give.

What is kept is kept for members only, and is bounded for each: the challenges that it answered lately
(`server.challenges`), and the digests of its tokens. Not thread-safe: the hub's thread uses it.
"""

from __future__ import annotations

import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from privacy.crypto.signing import sign, verify
from privacy.errors import AuthenticityError
from privacy.run.clocks import MOST_APART, check_clock
from server.challenges import Challenges
from transport.pki import public_key_digest, read_certificate, read_tls_key
from transport.sign_in import (
    CHALLENGE,
    SIGN_IN,
    TOKEN_BYTES,
    Challenge,
    read_challenge_request,
    read_sign_in,
    token_answer,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from privacy.run.roster import Member, Roster
    from transport.channel import TlsFiles
    from transport.sign_in import SignIn

log = logging.getLogger("cloister.hub")

TOKEN_SECONDS = 600
TOKENS = 16
"""How many tokens a member may have at a time: its agent's, those of checks beside it, and what they had before."""


@dataclass(frozen=True)
class _Token:
    member: Member
    ends: float


class Sessions:
    """Knows the sites that signed in."""

    def __init__(self, tls: TlsFiles, roster: Roster, now: Callable[[], float] = time.monotonic) -> None:
        """Take the server's identity, the roster, and a clock that never goes back.

        Raises:
            KeyFileError: if the server's certificate or key cannot be read.
        """
        self._tls, self._now, self._challenges = tls, now, Challenges(now)
        self._authority = read_certificate(tls.authority).fingerprint(hashes.SHA256())
        self._known = b"", "", read_tls_key(tls.key)
        self._members = dict[str, "Member"]()
        self._tokens = dict[bytes, _Token]()  # by SHA-256
        self.admit(roster)

    def admit(self, roster: Roster) -> None:
        """Let the members of a newer roster sign in; end the tokens of those that left or have other keys."""
        self._members, self._version = {member.site: member for member in roster.members}, roster.version
        self._tokens = {
            digest: token
            for digest, token in self._tokens.items()
            if self._members.get(token.member.site) == token.member
        }
        self._challenges.keep(self._members)

    def member(self, token: bytes) -> Member | None:
        """Return the member that holds a token; None if nobody does, or no longer."""
        held = self._tokens.get(sha256(token).digest())
        return held.member if held and held.ends > self._now() else None

    def challenge(self, request: bytes) -> bytes:
        """Return a fresh challenge for a site, with the server's proof of who it is.

        Raises:
            MalformedError: if it is no request for one.
            KeyFileError: if the server's certificate or key cannot be read.
        """
        nonce, site = read_challenge_request(request)
        certificate, _, key = self._identity()
        answer = Challenge(self._challenges.issue(site), time.time(), self._version, certificate, b"")
        return replace(
            answer, signature=sign(key, CHALLENGE, answer.signed_part(self._authority, nonce, site))
        ).to_bytes()

    def sign_in(self, request: bytes) -> bytes:
        """Return a token for a site that answers a challenge.

        Raises:
            MalformedError: if it is no such answer.
            ProtocolError: if the challenge is not this server's, too old or used, or the site's clock is off.
            AuthenticityError: if the site is not a member, or signed with another key.
        """
        answer, now = read_sign_in(request), self._now()
        issued = self._challenges.issued(answer.challenge, answer.site)
        member, here = self._signer(answer), time.time()
        check_clock(answer.site, answer.clock, here - (now - issued), here, MOST_APART)
        self._challenges.use(answer.challenge, answer.site)
        return self._new_token(member, now)

    def _signer(self, answer: SignIn) -> Member:
        """Return the member that signed an answer. A wrong key is refused as a stranger is: nobody learns who is one.

        Raises:
            AuthenticityError: if no member did.
        """
        member, (_, server_key, _) = self._members.get(answer.site), self._identity()
        if member is not None:
            signed = answer.signed_part(self._authority, bytes.fromhex(server_key))
            with suppress(AuthenticityError):
                verify(member.verification_key, SIGN_IN, signed, answer.signature)
                return member
        msg = (
            f"roster {self._version} lists no site {answer.site} with the key of this signature; ask the coordinator "
            "to add this site"
        )
        raise AuthenticityError(msg)

    def _new_token(self, member: Member, now: float) -> bytes:
        self._tokens = {digest: token for digest, token in self._tokens.items() if token.ends > now}
        held = [digest for digest, token in self._tokens.items() if token.member.site == member.site]
        if not held:
            log.info("%s signed in", member.site)
        for digest in held[: max(0, len(held) + 1 - TOKENS)]:
            del self._tokens[digest]
        token = secrets.token_bytes(TOKEN_BYTES)
        self._tokens[sha256(token).digest()] = _Token(member, now + TOKEN_SECONDS)
        return token_answer(token, TOKEN_SECONDS)

    def _identity(self) -> tuple[bytes, str, EllipticCurvePrivateKey]:
        """Return the server's certificate, DER, the digest of its key, and its key; they may have been renewed."""
        certificate = read_certificate(self._tls.certificate)
        der = certificate.public_bytes(Encoding.DER)
        if der != self._known[0]:
            self._known = der, public_key_digest(certificate), read_tls_key(self._tls.key)
        return self._known
