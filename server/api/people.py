"""People who signed in: by a signed challenge, or by their organisation's word. A token of a session is a secret.

The store has the digest of a token; sessions that are in use are in memory, too: only one process serves the API. A
session holds while the roster lists the person with the key that they had when
they signed in: who is removed, or gets another key, is out with the next request, also after they are listed again, and
a new role counts at once.
"""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from threading import Lock
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from privacy.crypto.signing import verify
from privacy.errors import AuthenticityError, MalformedError, ProtocolError
from privacy.run.clocks import MOST_APART
from server.api.problems import RefusalError, log
from server.challenges import Challenges
from server.store.sessions import Session
from transport.address import read_host
from transport.api import SIGN_IN, sign_in_payload
from transport.pki import read_certificate

if TYPE_CHECKING:
    from collections.abc import Callable

    from privacy.run.people import Person
    from privacy.run.roster import Roster
    from server.api.runs import Runs
    from transport.channel import TlsFiles

SESSION_SECONDS = 3600.0
ACCOUNT_SECONDS = 600.0
"""For somebody to sign in to their organisation's account."""

MOST_SESSIONS = 16
"""How many sessions a person has at a time; another ends the oldest."""

_TOKEN_BYTES = 32
_ACCOUNT = "an account"  # no person's name
_PURGE_SECONDS = 600.0


@dataclass(frozen=True)
class SignedIn:
    """Who makes a request."""

    person: Person
    session: Session


class People:
    """Signs people in, and recognises them. Thread-safe."""

    def __init__(self, runs: Runs, tls: TlsFiles, now: Callable[[], float] = time.time) -> None:
        """Take the service, the server's certificates, and the time since 1970.

        Raises:
            KeyFileError: if a certificate cannot be read.
        """
        self._runs, self._tls, self._now = runs, tls, now
        self._turn, self._purged = Lock(), 0.0  # of the sessions; whoever has it may wait for the store
        self._answering = Lock()
        self._known = dict[str, Session]()  # in use, by digest
        self._version = 0  # of the roster under which the store still had these
        self._challenges, self._nonces = Challenges(time.monotonic), Challenges(time.monotonic, ACCOUNT_SECONDS)
        self.authority = read_certificate(tls.authority).fingerprint(hashes.SHA256()).hex()

    def roster(self) -> Roster:
        """Return the roster that says who is who.

        Raises:
            RefusalError: if there is none yet.
        """
        roster = self._runs.roster()
        if roster is None:
            detail = "this consortium has no roster yet; once the first site or person has joined, try again"
            raise RefusalError(HTTPStatus.SERVICE_UNAVAILABLE, detail)
        return roster

    def challenge(self, name: str | None) -> tuple[str, float]:
        """Return a challenge for whoever says to be this person, and for how many seconds it is valid.

        Without a name, it is a nonce for a token of an organisation.
        """
        issuer = self._challenges if name else self._nonces  # the event loop calls this: it waits for nobody
        return issuer.issue(name or _ACCOUNT).hex(), issuer.seconds

    def by_signature(self, name: str, challenge: str, host: str, signature: bytes) -> tuple[str, SignedIn]:
        """Sign in a person who signed a challenge; return the session's token too.

        Raises:
            RefusalError: if the roster lists nobody with this name and key, or the challenge is not theirs.
        """
        roster = self.roster()
        person = roster.person(name)
        signed = sign_in_payload(
            authority=self.authority, consortium=roster.consortium, host=host, challenge=challenge, person=name
        )
        with suppress(AuthenticityError):
            if person is not None and self._is_ours(host):
                verify(person.verification_key, SIGN_IN, signed, signature)
                self._use(self._challenges, challenge, name, person)
                return self._open(person)
        raise unknown(roster, name)

    def by_account(self, person: Person, nonce: str) -> tuple[str, SignedIn]:
        """Sign in a person for whom an organisation vouches with this nonce; return the session's token too.

        Raises:
            RefusalError: if the nonce is not of this server, too old, or was used before.
        """
        self._use(self._nonces, nonce, _ACCOUNT, person)
        return self._open(person)

    def _use(self, issuer: Challenges, challenge: str, name: str, person: Person) -> None:
        try:
            with self._answering:
                issuer.issued(bytes.fromhex(challenge), name)
                issuer.use(bytes.fromhex(challenge), person.name)
        except ProtocolError as error:
            raise RefusalError(HTTPStatus.UNAUTHORIZED, str(error), BEARER) from error

    def _open(self, person: Person) -> tuple[str, SignedIn]:
        """Open a session; its token is kept nowhere."""
        token, now, sessions = secrets.token_hex(_TOKEN_BYTES), self._now(), self._runs.store.sessions
        session = Session(_digest(token), person.name, person.signing_key, now, now + SESSION_SECONDS)
        with self._turn:
            if now > self._purged + _PURGE_SECONDS:
                self._purged = now
                sessions.purge(now)
            for old in sessions.of(person.name)[: -MOST_SESSIONS + 1]:
                self._known.pop(old.token, None)
                sessions.revoke(old.token)
            self._known = {token: known for token, known in self._known.items() if known.ends > now}
            sessions.add(session)
        log.info("%s signed in", person.name)
        return token, SignedIn(person, session)

    def remembered(self, token: str) -> SignedIn | None:
        """Return who holds a token; None if `who` has to look into the store, or has to say why nobody does."""
        session = self._known.get(_digest(token))
        if session is None or self._version != self.roster().version:
            return None
        return self._holder(session)

    def who(self, token: str) -> SignedIn:
        """Return who holds a token.

        Raises:
            RefusalError: if nobody does, or no longer.
        """
        digest = _digest(token)
        if self._version != (version := self.roster().version):
            with self._turn:  # those of people who had left meanwhile have ended
                sessions = self._runs.store.sessions
                self._known = {token: known for token, known in self._known.items() if sessions.get(token)}
                self._version = version
        if (session := self._known.get(digest)) is None:
            with self._turn:
                if session := self._runs.store.sessions.get(digest):
                    self._known[digest] = session
        if session is None or (found := self._holder(session)) is None:
            detail = "this session has ended, or never was; sign in again (cloister login)"
            raise RefusalError(HTTPStatus.UNAUTHORIZED, detail, BEARER)
        return found

    def holds(self, session: Session) -> bool:
        """Return whether a session has not ended, and its person is still in the roster with the same key."""
        return self._holder(session) is not None

    def _holder(self, session: Session) -> SignedIn | None:
        person = self.roster().person(session.person)
        if person is None or person.signing_key != session.key:
            return None
        if not session.made - MOST_APART <= self._now() < session.ends:  # a clock that was set back lengthens none
            return None
        return SignedIn(person, session)

    def still_holds(self, session: Session) -> bool:
        """Return whether a session holds, and was not ended by hand."""
        return session.token in self._known and self.holds(session)

    def end(self, session: Session) -> None:
        """End a session."""
        with self._turn:
            self._known.pop(session.token, None)
            self._runs.store.sessions.revoke(session.token)
        log.info("%s signed out", session.person)

    def _is_ours(self, host: str) -> bool:
        """Return whether the server's certificate has this name or address."""
        try:
            host = read_host(host)
        except MalformedError:
            return False
        names = read_certificate(self._tls.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        dns, addresses = names.value.get_values_for_type(x509.DNSName), names.value.get_values_for_type(x509.IPAddress)
        return host in {*dns, *map(str, addresses)}


BEARER = {"WWW-Authenticate": 'Bearer realm="cloister"'}


def unknown(roster: Roster, name: str) -> RefusalError:
    """Return the refusal of somebody who may not sign in. A wrong key is refused as a stranger is."""
    detail = (
        f"roster {roster.version} of {roster.consortium} lists nobody called {name} with this key, or the server has "
        "another name; ask the coordinator for an invitation"
    )
    return RefusalError(HTTPStatus.UNAUTHORIZED, detail, BEARER)


def _digest(token: str) -> str:
    return sha256(token.encode()).hexdigest()
