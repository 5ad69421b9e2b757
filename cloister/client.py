"""`cloister.Client`: submit signed runs to a server and follow them, from Python.

    with cloister.Client("ana") as client:        # the folder that `cloister person join` made, or coordinator/
        run = client.submit("run.manifest")
        for event in client.follow(run.digest):
            print(event["event"])

The server has to show a certificate of the authority in that folder; the client signs in with the key there. What the
server says is data, never trusted further: text is made plain, sizes are bounded, a manifest is checked again.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from client.person import is_person, read_person
from cloister.api_session import ApiSession
from cloister.event_stream import EventStream
from cloister.run_status import STATUSES, RunStatus
from privacy.crypto.signing import digest
from privacy.errors import AuthenticityError, ConfigError, MalformedError, UnreachableError
from privacy.run.manifest import KIND, open_run
from privacy.run.roster import open_roster
from privacy.storage import read_document
from privacy.untrusted_text import plain_values
from transport.api import LARGEST_RUN, MOST_EVENTS, MOST_RUNS
from transport.pki import read_authority_key, read_roster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from privacy.run.manifest import SignedRun

T = TypeVar("T")

_NUMBER = re.compile(r"[0-9]{1,18}")  # of an event
_PATIENCE = 300.0  # seconds for a server that was restarted
_PAUSES = (0.2, 1.0, 2.0, 5.0, 10.0)  # seconds between attempts


@dataclass(frozen=True)
class _Runs:
    runs: list[RunStatus]
    next: str | None


@dataclass(frozen=True)
class _Numbered:
    number: int
    event: dict[str, Any]


@dataclass(frozen=True)
class _Events:
    events: list[_Numbered]
    next: int | None


class Client:
    """A person's connection to the API of their consortium's server."""

    def __init__(self, folder: str | Path = "coordinator", api: str | None = None, *, proxy: str | None = None) -> None:
        """Take a person's folder; nothing is sent yet.

        Args:
            folder: the person's own, or the coordinator's.
            api: the API's address, `host:port`; by default the one that was used before, or port 9442 of the server.
            proxy: an HTTP proxy, or `none`; by default the environment's.

        Raises:
            ConfigError: if it is no such folder, or no proxy.
            KeyFileError: if a key or certificate in it cannot be read.
            MalformedError: if the address is not one.
        """
        self._session = ApiSession(Path(folder), api, proxy)

    @property
    def api(self) -> str:
        """The API's address."""
        return self._session.api

    @property
    def token(self) -> str:
        """The session's token, for other HTTP clients; empty before one has signed in."""
        return self._session.token

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The session stays, for the next client with this folder."""
        self._session.close()

    def login(self, *, account: bool = False) -> dict[str, Any]:
        """Sign in, and return who one is; other methods do so by themselves.

        Args:
            account: whether to sign in with one's organisation's account, in a browser, and not with the key.

        Raises:
            CloisterError: as every method, if the server cannot be reached, is another, or refuses.
        """
        self._session.sign_in(account=account)
        return self._json("GET", "/v1/sessions/current")

    def take_roster(self) -> int:
        """Take the server's roster into the folder, if it is newer and the authority signed it; return its version.

        A coordinator's folder has none of its own.
        """
        data, folder = self._session.ask("GET", "/v1/roster"), self._session.identity.folder
        if is_person(folder):
            return read_person(folder).take_roster(data).version
        return open_roster(data, read_authority_key(self._session.identity.authority)).version

    def logout(self) -> None:
        """End the session, here and at the server."""
        self._session.sign_out()

    def submit(self, run: str | Path | bytes) -> RunStatus:
        """Submit a signed run: its file, or its bytes. The same one again changes nothing."""
        advice = "name a signed run; `cloister sign RUN.toml` makes one"
        document = run if isinstance(run, bytes) else read_document(Path(run), bytes, advice)
        if not isinstance(run, bytes) and Path(run).suffix == ".toml":
            msg = f"{run} is not signed; submit what `cloister sign {run}` writes"
            raise MalformedError(msg)
        if len(document) > LARGEST_RUN:
            msg = f"a signed run has at most {LARGEST_RUN >> 20} MiB; name the file that `cloister sign` wrote"
            raise MalformedError(msg)
        status = self._read(RunStatus, self._session.ask("POST", "/v1/runs", content=document))
        if status.digest != digest(KIND, document.partition(b"\n")[2]):
            msg = f"{self.api} answers with another run than was submitted; tell the coordinator"
            raise AuthenticityError(msg)
        return status

    def runs(self, status: str | None = None) -> Iterator[RunStatus]:
        """Return the server's runs, the newest first; only those with this status, if given.

        Raises:
            ConfigError: if there is no such status.
        """
        if status is not None and status not in STATUSES:
            msg = f"{status!a} is no status of a run; write {', '.join(STATUSES[:-1])} or {STATUSES[-1]}"
            raise ConfigError(msg)
        before: str | None = ""
        while before is not None:
            given = {"status": status, "before": before or None, "limit": MOST_RUNS}
            page = self._read(_Runs, self._session.ask("GET", "/v1/runs", _given(given)))
            yield from page.runs
            before = page.next if page.runs else None  # not for ever, whatever the server says

    def run(self, run: str) -> RunStatus:
        """Return how a run stands, given its digest, or what its digest or name begins with."""
        return self._read(RunStatus, self._session.ask("GET", f"/v1/runs/{_named(run)}"))

    def manifest(self, run: str) -> SignedRun:
        """Fetch a run as it was signed; its signature is checked against the roster in the folder."""
        identity = self._session.identity
        roster = read_roster(identity.roster, identity.authority)
        signed = open_run(self._session.ask("GET", f"/v1/runs/{_named(run)}/manifest"), roster)
        if not (signed.digest.startswith(run) or signed.manifest.settings.name.startswith(run)):
            msg = f"{self.api} answers with another run than {run}; tell the coordinator"
            raise AuthenticityError(msg)
        return signed

    def events(self, run: str, after: int = 0) -> Iterator[dict[str, Any]]:
        """Return the events of a run so far, the oldest first; only those after the one with this number."""
        following: int | None = after
        while following is not None:
            given = {"after": following, "limit": MOST_EVENTS}
            page = self._read(_Events, self._session.ask("GET", f"/v1/runs/{_named(run)}/events", given))
            yield from (each.event for each in page.events)
            if page.next is not None and page.next <= following:  # it would never end
                self._unfit()
            following = page.next if page.events else None

    def statement(self, run: str) -> dict[str, Any]:
        """Return a run's statement: what was signed, its cost to a site, and what came of it, as the server says."""
        from cloister.run_statement import run_statement  # noqa: PLC0415 - scipy takes a while

        status = self.run(run)
        signed = self.manifest(status.digest)
        try:
            return run_statement(status, signed, self.events(status.digest))
        except (KeyError, TypeError, ValueError, AttributeError):
            self._unfit()

    def follow(
        self, run: str, after: int = 0, *, on_lost: Callable[[], object] = lambda: None
    ) -> Iterator[dict[str, Any]]:
        """Return the events of a run as they happen, until it ends; then, `run` says how.

        A lost connection is made again, for five minutes, without losing an event: a server may be restarted.

        Args:
            run: its digest, or what its digest or name begins with.
            after: the number of the last event that one has.
            on_lost: called once whenever the connection is lost.
        """
        lost, attempts, said = time.monotonic(), 0, False
        while True:
            try:
                for number, event in self._stream(run, after):
                    if number is None:
                        return
                    after, lost, attempts, said = number, time.monotonic(), 0, False
                    yield event
                attempts = 0
            except UnreachableError:
                if time.monotonic() > lost + _PATIENCE:
                    raise
                if not said:
                    on_lost()
                said = True
            else:
                lost = time.monotonic()
            time.sleep(_PAUSES[min(attempts, len(_PAUSES) - 1)])
            attempts += 1

    def _stream(self, run: str, after: int) -> Iterator[tuple[int | None, dict[str, Any]]]:
        """Return events with their numbers, from one connection; at the run's end, None and how it stands."""
        stream = EventStream()
        for part in self._session.stream(f"/v1/runs/{_named(run)}/follow", {"after": after}):
            for sent in stream.feed(part):
                event = self._object(sent.data.encode())
                if sent.kind == "end":
                    yield None, event
                    return
                if not _NUMBER.fullmatch(sent.number):
                    self._unfit()
                yield int(sent.number), event

    def stop(self, run: str, reason: str = "") -> RunStatus:
        """Stop a run; the sites keep the last model that it released."""
        path = f"/v1/runs/{self.run(run).digest}/stop"
        return self._read(RunStatus, self._session.ask("POST", path, json={"reason": reason}))

    def retry(self, run: str) -> RunStatus:
        """Let a run that failed or was stopped go on where it ended."""
        return self._read(RunStatus, self._session.ask("POST", f"/v1/runs/{self.run(run).digest}/retry"))

    def status(self) -> dict[str, Any]:
        """Return what the server does now: which sites are connected, which runs go on."""
        return self._json("GET", "/v1/status")

    def ledger_heads(self) -> dict[str, Any]:
        """Return the last head of each site's ledger that the server has, with its signature: for auditors."""
        heads: dict[str, Any] = self._json("GET", "/v1/ledger-heads").get("heads", {})
        return heads

    def _json(self, method: str, path: str) -> dict[str, Any]:
        return self._object(self._session.ask(method, path))

    def _object(self, data: bytes) -> dict[str, Any]:
        try:
            value = plain_values(json.loads(data))
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._unfit()
        return value

    def _read(self, kind: type[T], data: bytes) -> T:
        try:
            return TypeAdapter(kind).validate_python(self._object(data))
        except ValidationError:
            self._unfit()

    def _unfit(self) -> NoReturn:
        msg = f"{self.api} answers in a form that this version of Cloister does not know; install the server's version"
        raise MalformedError(msg)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _named(run: str) -> str:
    """Return a run's name, if it can be one: it becomes a part of a path."""
    if not run[:1].isalnum() or not all(
        character.isascii() and (character.isalnum() or character in "-_.") for character in run
    ):
        msg = f"{run!a} is no run; name one by its digest, or by what its digest or name begins with"
        raise MalformedError(msg)
    return run
