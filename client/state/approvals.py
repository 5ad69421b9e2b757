"""A site's decisions about runs, if its policy has `approval = true`, and the signed runs that wait for one.

    approvals/RUN.manifest   a signed run, as the server sent it or as a person at the site named it
    approvals/RUN.decision   what the site decided about it, and when, signed with the site's signing key

A decision is about one run, by its digest. The server's first message brings the run; it waits here until the site
decides.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.clock import date
from privacy.crypto.signing import SignedDocument
from privacy.errors import AuthenticityError, ConfigError, MalformedError, PolicyError
from privacy.storage import read_document, read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from privacy.run.manifest import SignedRun

FOLDER = "approvals"
"""The folder in a site's folder."""

MOST_WAITING = 16
"""Runs that wait for a decision; a further one replaces the oldest, whose next message brings it back."""

_KIND = "decision"
_SHORTEST_NAME = 8  # digits of a run's digest


@dataclass(frozen=True)
class Decision:
    """What a site decided about a run."""

    run: str  # its digest
    approved: bool  # False: withdrawn
    time: str  # ISO 8601


class Approvals:
    """The decisions of one site."""

    def __init__(self, folder: Path, key: Ed25519PrivateKey) -> None:
        self._folder, self._key = folder / FOLDER, key

    def check(self, site: str, signed: SignedRun) -> None:
        """Refuse a run that is not approved, and keep it until it is.

        Raises:
            PolicyError: if it is not approved.
            KeyFileError: if the decision about it was altered.
        """
        decision = self.decision(signed.digest)
        if decision and decision.approved:
            return
        has = "has withdrawn its approval of" if decision else "has not approved"
        if decision is None and time.time() <= signed.manifest.expires:
            self._keep(signed)
        text = (
            f"{site} {has} the run {signed.manifest.settings.name}, {signed.digest[:_SHORTEST_NAME]}; somebody at the "
            f"site looks at it and approves it with: cloister approve {signed.digest[:_SHORTEST_NAME]} {site}"
        )
        raise PolicyError(text, rule="approval")

    def decision(self, run: str) -> Decision | None:
        """Return the decision about a run, by its digest, or None.

        Raises:
            KeyFileError: if it was altered, or is another run's.
        """

        def opened(data: bytes) -> Decision:
            try:
                decision = Decision(**json.loads(SignedDocument.open(data, _KIND, self._key.public_key()).payload))
            except (AuthenticityError, MalformedError, ValueError, TypeError) as error:
                raise MalformedError(altered) from error
            if decision.run != run:
                raise MalformedError(altered)
            return decision

        altered = "this decision about a run was altered, or is not this site's; remove the file, and decide again"
        path = self._path(run, "decision")
        return read_document(path, opened, "remove it, and decide again") if path.exists() else None

    def decide(self, signed: SignedRun, *, approved: bool) -> Decision:
        """Approve a run, or withdraw that; keep the run beside the decision."""
        decision = Decision(signed.digest, approved, date())
        document = SignedDocument.make(self._key, _KIND, json.dumps(vars(decision)).encode())
        write_atomically(self._path(signed.digest, "manifest"), signed.document)
        write_atomically(self._path(signed.digest, "decision"), document.to_bytes())
        return decision

    def kept(self) -> Iterator[bytes]:
        """Yield all signed runs that are kept, the latest first."""
        for path in reversed(self._manifests()):
            yield read_file(path)

    def find(self, start: str) -> Path:
        """Return the file of the one kept run whose digest starts so.

        Raises:
            ConfigError: if there is no such run, or more than one.
        """
        matching = [path for path in self._manifests() if path.stem.startswith(start[:16].lower())]
        if len(start) < _SHORTEST_NAME or len(matching) != 1:
            problem = "several runs start so" if len(matching) > 1 else "no such file, and no such run waits here"
            msg = f"{start}: {problem}; name a signed run, or the first 8 digits of one that `cloister approve` lists"
            raise ConfigError(msg)
        return matching[0]

    def _keep(self, signed: SignedRun) -> None:
        path = self._path(signed.digest, "manifest")
        if path.exists():
            return
        waiting = [other for other in self._manifests() if not other.with_suffix(".decision").exists()]
        for oldest in waiting[: max(0, len(waiting) - MOST_WAITING + 1)]:
            oldest.unlink(missing_ok=True)
        write_atomically(path, signed.document)

    def _manifests(self) -> list[Path]:
        """Return the files of all runs that are kept, the oldest first."""
        return sorted(self._folder.glob("*.manifest"), key=lambda path: (path.stat().st_mtime_ns, path.name))

    def _path(self, run: str, suffix: str) -> Path:
        return self._folder / f"{run[:16]}.{suffix}"
