"""A site's part in signing in where TLS is ended on the way: check the server's proof, give its own, keep the token."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
from cryptography.hazmat.primitives import hashes

from privacy.crypto.signing import sign, verify
from privacy.errors import AuthenticityError, CloisterError, ProtocolError, UnreachableError
from privacy.run.clocks import MOST_APART, check_clock
from privacy.untrusted_text import quoted
from transport.channel import SERVICE
from transport.pki import key_digest, open_server_certificate, read_certificate
from transport.sign_in import (
    CHALLENGE,
    NONCE_BYTES,
    SIGN_IN,
    SignIn,
    authorization,
    carrying,
    challenge_request,
    read_challenge,
    read_token_answer,
)

if TYPE_CHECKING:
    from cryptography import x509
    from grpc import UnaryUnaryMultiCallable

    from transport.sign_in import Challenge, Signer

_SECONDS = 10.0
_REFUSALS = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}

BY_A_PROXY = "with status: "
"""So gRPC quotes an answer that is a web server's and not gRPC's."""


class Session:
    """The token of one site at one server, over one channel."""

    def __init__(self, channel: grpc.Channel, address: str, signer: Signer) -> None:
        self._address, self._signer = address, signer
        self._challenge: UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{SERVICE}/Challenge", bytes, bytes
        )
        self._answer: UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/SignIn", bytes, bytes)
        self._token, self._renew_at = b"", 0.0  # by the monotonic clock

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what to send with a call, having signed in if two thirds of the token's life are over.

        Raises:
            UnreachableError: if the server does not answer, or the clocks differ too much.
            AuthenticityError: if the server does not prove that it is the consortium's, or refuses this site.
        """
        if not time.monotonic() < self._renew_at:
            self._sign_in()
        return authorization(self._token)

    def drop(self) -> None:
        """Sign in again before the next call: the server knows the token no longer."""
        self._renew_at = 0.0

    def _sign_in(self) -> None:
        signer, nonce, start = self._signer, os.urandom(NONCE_BYTES), time.time()
        challenge = read_challenge(self._call(self._challenge, challenge_request(nonce, signer.site)))
        authority = read_certificate(signer.authority)
        fingerprint = authority.fingerprint(hashes.SHA256())
        server_key = self._proved(challenge, challenge.signed_part(fingerprint, nonce, signer.site), authority)
        here = time.time()
        try:
            check_clock(signer.site, start, challenge.clock - (here - start), challenge.clock, MOST_APART)
        except ProtocolError as error:  # the clock may be set right: the agent tries again
            raise UnreachableError(str(error)) from error
        answer = SignIn(signer.site, challenge.challenge, time.time(), signer.roster_version)
        answer = replace(answer, signature=sign(signer.key, SIGN_IN, answer.signed_part(fingerprint, server_key)))
        since = time.monotonic()
        self._token, seconds = read_token_answer(self._call(self._answer, answer.to_bytes()))
        self._renew_at = since + seconds * 2 / 3

    def _proved(self, challenge: Challenge, signed: bytes, authority: x509.Certificate) -> bytes:
        """Return the digest of the server's key, which the authority certified and which signed this challenge.

        Raises:
            AuthenticityError: if either is not so.
        """
        try:
            key = open_server_certificate(challenge.certificate, authority)
            verify(key, CHALLENGE, signed, challenge.signature)
        except AuthenticityError as error:
            msg = (
                f"the server behind {self._address} does not prove who it is: {error}; check the address with the "
                "coordinator"
            )
            raise AuthenticityError(msg) from error
        return bytes.fromhex(key_digest(key))

    def _call(self, call: UnaryUnaryMultiCallable[bytes, bytes], request: bytes) -> bytes:
        try:
            return call(b"", timeout=_SECONDS, metadata=carrying(request))
        except grpc.RpcError as error:
            raise self._named(error) from error

    def _named(self, error: grpc.RpcError) -> CloisterError:
        code, details = error.code(), quoted(error.details() or "no reason given")
        if code in _REFUSALS and BY_A_PROXY not in details:
            return AuthenticityError(f"the server behind {self._address} refuses to let this site sign in: {details}")
        if code is grpc.StatusCode.UNIMPLEMENTED or BY_A_PROXY in details:
            return UnreachableError(
                f"TLS is ended at {self._address}, and behind it nobody lets sites sign in ({details}): have the "
                "server run with [signature] in consortium.toml, and the proxy pass gRPC on to its `listen`"
            )
        return UnreachableError(f"cannot sign in at {self._address}: {details}")
