"""A consortium with a person of every role, and its API on a free port, over TLS, in front of a real store."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from shutil import copytree
from typing import TYPE_CHECKING, Any

import httpx
from cryptography.hazmat.primitives.serialization import Encoding

from client.joining import finish, prepare
from privacy.crypto.signing import sign
from privacy.errors import RunError
from privacy.run.manifest import open_run
from privacy.run.new_manifest import sign_manifest
from privacy.run.people import read_role
from server.api.listening import ApiPort
from server.coordinator import Coordinator
from server.settings import read_consortium
from server.store.store import Store
from strategies.registry import completed
from tests.federations import SETTINGS, SITES
from transport.api import SIGN_IN, sign_in_payload
from transport.channel import authority_context
from transport.pki import read_certificate, read_signing_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from privacy.run.roster import Roster
    from server.store.store import StoredRun

SECONDS = 30.0  # for an answer, of a busy machine
PEOPLE = {"founder": "coordinator", "rosa": "researcher", "otto": "operator", "aude": "auditor"}


@dataclass(frozen=True)
class Status:
    """What the service does now."""

    members: tuple[str, ...] = SITES
    online: tuple[str, ...] = ("north",)
    running: tuple[str, ...] = ()
    paused: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Queue:
    """Keeps submitted runs, and never runs one: the service without its agents."""

    folder: Path
    store: Store
    stopped: list[tuple[str, str, str]] = field(default_factory=list)

    def roster(self) -> Roster:
        return read_consortium(self.folder).roster()

    def submit(self, document: bytes, by: str) -> StoredRun:
        assert by in PEOPLE
        return self.store.submit(open_run(document, self.roster()))

    def stop(self, name: str, by: str, reason: str = "") -> StoredRun:
        run = self.store.run(name)
        if run.status not in {"waiting", "running"}:
            msg = f"{run.name} has already {run.status}, so it cannot be stopped"
            raise RunError(msg)
        self.stopped.append((run.digest, by, reason))
        self.store.mark(run.digest, "stopped", reason)
        return self.store.run(run.digest)

    def retry(self, name: str, by: str) -> StoredRun:
        assert by in PEOPLE
        run = self.store.run(name)
        if run.status == "finished":
            msg = f"{run.name} has finished; to train again, sign a new run"
            raise RunError(msg)
        self.store.mark(run.digest, "waiting")
        return self.store.run(run.digest)

    def status(self) -> Status:
        return Status()


@dataclass(frozen=True)
class Consortium:
    """The folders of a consortium."""

    folder: Path

    @classmethod
    def make(cls, keys: Path, folder: Path) -> Consortium:
        """Copy a federation's keys, and let a person of every role join."""
        copytree(keys, folder)
        coordinator = Coordinator(folder / "coordinator")
        names = {name: role for name, role in PEOPLE.items() if name != "founder"}
        requests = [
            prepare(folder / name, coordinator.invite(name, role=read_role(role))) for name, role in names.items()
        ]
        for approval in coordinator.approve(requests)[1]:
            finish(folder / approval.name, approval.welcome)
        return cls(folder)

    @property
    def server(self) -> Path:
        return self.folder / "server"

    def path(self, person: str) -> Path:
        return self.folder / ("coordinator" if person == "founder" else person)

    def key(self, person: str) -> Ed25519PrivateKey:
        own = self.path(person) / ("signing.key" if person == "founder" else "keys/signing.key")
        return read_signing_key(own)

    def sign(self, name: str = "lungs", person: str = "rosa") -> bytes:
        """Return a signed run."""
        return sign_manifest(completed(replace(SETTINGS, name=name)), self.key(person), roster_version=1).to_bytes()

    def remove(self, name: str) -> None:
        Coordinator(self.folder / "coordinator").remove(name)


@dataclass
class Server:
    """The API of a consortium."""

    consortium: Consortium
    queue: Queue
    port: ApiPort

    @property
    def store(self) -> Store:
        return self.queue.store

    @property
    def address(self) -> str:
        return f"localhost:{self.port.port}"

    @contextmanager
    def http(self, token: str = "") -> Iterator[httpx.Client]:
        """Return a client that trusts the consortium's authority, and shows a token."""
        authority = read_certificate(self.consortium.server / "authority.pem").public_bytes(Encoding.DER)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(
            base_url=f"https://{self.address}", verify=authority_context(authority), headers=headers, trust_env=False,
            timeout=SECONDS,
        ) as client:  # fmt: skip
            yield client

    def sign_in(self, person: str, **changes: Any) -> httpx.Response:  # noqa: ANN401 - of several kinds
        """Sign in as a client does, but for what is changed."""
        with self.http() as http:
            given = http.post("/v1/challenges", json={"person": person}).json()
            fields = {"challenge": given["challenge"], "host": "localhost", "person": person} | changes
            key = fields.pop("key", None) or self.consortium.key(person)
            kind = fields.pop("kind", SIGN_IN)
            stated = {"authority": given["authority"], "consortium": given["consortium"]} | fields.pop("stated", {})
            signature = fields.pop("signature", None) or sign(key, kind, sign_in_payload(**stated, **fields)).hex()
            return http.post("/v1/sessions", json={**fields, "signature": signature})

    def token(self, person: str) -> str:
        answer = self.sign_in(person)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])


def set_api(consortium: Consortium, text: str = "") -> None:
    """Have the server serve an API on a free port."""
    file = consortium.server / "consortium.toml"
    file.write_text(file.read_text(encoding="utf-8") + f'\n[api]\nlisten = "localhost:0"\n{text}', encoding="utf-8")


@contextmanager
def serving(consortium: Consortium, **changes: Any) -> Iterator[Server]:  # noqa: ANN401
    """Serve the API of a consortium that has one, with changes to the settings in `[api]`."""
    place = read_consortium(consortium.server)
    assert place.settings.api is not None
    place = replace(place, settings=replace(place.settings, api=replace(place.settings.api, **changes)))
    with Store.open(place) as store:
        queue = Queue(consortium.server, store)
        port = ApiPort(place, queue)  # type: ignore[arg-type]  # its status is a part of a service's
        try:
            yield Server(consortium, queue, port)
        finally:
            port.stop()
