"""Small federations for tests: real keys, certificates, records and settings, and runs with any nodes one likes."""

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from math import inf
from pathlib import Path
from shutil import copytree
from threading import Event
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from client.flower import app as client_app
from client.flower import open_site
from client.site import Site
from client.state.keyring import Keyring
from client.task.task import Task
from client.work.survey import StatisticsQuery, Survey
from client.work.training import Study
from privacy.crypto.key_epoch import EpochKeys
from privacy.crypto.summation import EncryptedSum
from privacy.run.manifest import Manifest, SignedRun
from privacy.run.new_manifest import sign_manifest
from privacy.run.roster import Roster
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training
from server.app import app as server_app
from server.settings import read_consortium, read_run
from server.store.store import Store
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.inline import InlineGrid
from simulations.engine.results import opened_store, read_events
from strategies.registry import completed
from tests import studies
from transport.channel import TlsFiles
from transport.flower import SERVER_NODE, quieten
from transport.parcel import decode_arrays
from transport.pki import Authority, certificate_pem, key_pem, read_certificate, read_signing_key
from transport.run_messages import sum_from_arrays

SITES = ("north", "south", "east", "west")
SIZES = {"north": 20, "south": 20, "east": 10, "west": 10}

Answer = Callable[[Message, Context], Message]


def task_name(task: type[Task | Survey]) -> str:
    """The name under which a run asks for a task."""
    return f"{task.__module__}:{task.__name__}"


SETTINGS = RunSettings(
    name="study",
    task=task_name(studies.Tiny),
    rounds=1,
    training=Training(steps_per_round=1, sample_rate=1.0, learning_rate=0.1),
    privacy=Privacy(max_grad_norm=1.0, noise_multiplier=0.0),
    encryption=Encryption(update_bound=1.0, collusion_resistant=False),
    cohort=Cohort(sizes=SIZES, minimum=3, round_deadline_seconds=60.0),
    seed=5,
)
"""One repeatable round without noise, for four sites of which three suffice."""

NOISY = replace(SETTINGS, privacy=Privacy(max_grad_norm=1.0, noise_multiplier=2.0), seed=None)
"""The same with noise."""

TERMS = SiteTerms(
    tasks=(SETTINGS.task,),
    epsilon=inf,
    maximum_epsilon=inf,
    minimum_noise_multiplier=0.0,
    collusion_resistant=False,
    file="records.csv",
    device="cpu",
)
"""A site that allows everything."""


def with_deadline(settings: RunSettings, seconds: float) -> RunSettings:
    """The same run with another deadline of its rounds."""
    return replace(settings, cohort=replace(settings.cohort, round_deadline_seconds=seconds))


@dataclass(frozen=True)
class FederationMaker:
    """Makes federations of four sites with a few records each. Keys are made once, since making them takes long."""

    keys: Path  # a federation that has only its keys
    folder: Path

    def __call__(
        self,
        settings: RunSettings = SETTINGS,
        terms: Mapping[str, SiteTerms] | None = None,
        server: str = "localhost:1",
        name: str = "federation",
    ) -> Federation:
        """Make a federation with a signed run. Sites allow that run unless `terms` say otherwise."""
        federation = Federation(Path(copytree(self.keys, self.folder / name)), SITES)
        usual = replace(TERMS, tasks=(settings.task,))
        for number, site in enumerate(SITES):
            rows = [f"{i % 5},{i * number % 7},{i % 3}" for i in range(SIZES[site] * 5 // 4)]
            (federation.paths[site] / TERMS.file).write_text("\n".join(["a,b,y", *rows, ""]), encoding="utf-8")
            federation.write_settings(site, server, (terms or {}).get(site, usual))
        federation.sign(settings)
        return federation


def share_keys(federation: Federation) -> None:
    """Bring all sites the keys of epoch 1, as the ceremony does when a first run starts."""
    keys = EpochKeys.generate(1)
    for site, path in federation.paths.items():
        keyring = Keyring(path / "keys" / "epochs")
        keyring.take(keys, 1)
        keyring.keep_pairs(keys, {other: _shared(site, other) for other in federation.sites if other != site})


def _shared(*sites: str) -> bytes:
    """The secret of two sites' masks."""
    return sha256(repr(sorted(sites)).encode()).digest()


def keys_of(federation: Federation, site: str) -> EpochKeys:
    """The keys that a site has."""
    keys = open_site(federation.paths[site]).keyring.current(1)
    assert keys is not None
    return keys


def tls_of(federation: Federation, site: str) -> TlsFiles:
    """A site's TLS identity."""
    keys = federation.paths[site] / "keys"
    return TlsFiles(keys / "authority.pem", keys / "tls.pem", keys / "tls.key")


def roster_of(federation: Federation) -> Roster:
    """The federation's roster."""
    return read_consortium(federation.server).roster()


def node_of(federation: Federation, site: str) -> int:
    """Flower's number of a site."""
    return roster_of(federation).member(site).node_id


def signed_run(federation: Federation) -> tuple[bytes, Manifest, str]:
    """The signed run: its bytes, its content and its name."""
    return opened_run(federation)[:3]


def opened_run(federation: Federation) -> SignedRun:
    """The signed run, as whoever reads it has it."""
    return read_run(federation.manifest, roster_of(federation))


def signed_document(federation: Federation, settings: RunSettings) -> bytes:
    """Another run, as the coordinator signs it."""
    key = read_signing_key(federation.folder / "coordinator" / "signing.key")
    return sign_manifest(completed(settings), key, roster_version=1).to_bytes()


def context_of(federation: Federation, site: str) -> Context:
    """The context in which a site's node works."""
    return Context(0, node_of(federation, site), {"site": str(federation.paths[site])}, RecordDict(), {})


def restart(federation: Federation, site: str) -> Site:
    """Open a site as a new process would: with nothing in memory."""
    open_site.cache_clear()
    return open_site(federation.paths[site])


def run_with(
    federation: Federation,
    answer: Answer = client_app,
    nodes: Mapping[int, str] | None = None,
    make_grid: Callable[[int, dict[int, Context], Answer], Grid] = InlineGrid,
    *,
    retry: bool = False,
) -> list[dict[str, Any]]:
    """Run the signed run in this process, each node answering as `answer` says; return the events of its rounds.

    Args:
        federation: with a signed run.
        answer: what every node does with a message.
        nodes: further nodes by their number, and the sites whose folders they work with.
        make_grid: makes the grid from the run's number, the nodes' contexts and `answer`.
        retry: whether a run that failed goes on.
    """
    quieten()
    run_id = int(signed_run(federation)[2][:15], 16)
    contexts = {node_of(federation, site): context_of(federation, site) for site in SITES}
    contexts |= {node: replace(context_of(federation, site), node_id=node) for node, site in (nodes or {}).items()}
    config: dict[str, bool | float | int | str] = {
        "consortium": str(federation.server), "manifest": str(federation.manifest), "retry": retry
    }  # fmt: skip
    server_app(make_grid(run_id, contexts, answer), Context(run_id, SERVER_NODE, {}, RecordDict(), config))
    return rounds_of(federation)


def events_at(server: Path) -> list[dict[str, Any]]:
    """The events of the newest run in a server's folder."""
    with Store.open(read_consortium(server)) as store:
        return [event for _, event in store.events(store.newest().digest, limit=10_000)]


def sums_of(federation: Federation) -> list[EncryptedSum]:
    """The sums that the server keeps of the run, in the order of rounds."""
    with opened_store(federation) as (store, run):
        record = store.record(run)
        rounds = range(1, signed_run(federation)[1].settings.rounds + 1)
        return [sum_from_arrays(decode_arrays(record.read_sum(number))) for number in rounds if record.has_sum(number)]


def change_store(federation: Federation, statement: str) -> None:
    """Change the server's database as nobody should."""
    with closing(sqlite3.connect(federation.server / "store.sqlite")) as database, database:
        database.execute(statement)


def rounds_of(federation: Federation) -> list[dict[str, Any]]:
    """The events of the run's rounds, as far as the server wrote them."""
    return [event for event in read_events(federation) if event["event"] == "round"]


def own_metrics(federation: Federation, site: str) -> list[dict[str, Any]]:
    """What a site wrote into its own folder about its runs' rounds; strict JSON."""
    lines = [line for file in (federation.paths[site] / "metrics").glob("*") for line in file.read_text().splitlines()]
    return [json.loads(line, parse_constant=float.fromhex) for line in lines]


def models_of(federation: Federation) -> dict[str, bytes]:
    """The model files of the sites that have one."""
    return {
        site: file.read_bytes() for site, path in federation.paths.items() for file in path.glob("models/*.safetensors")
    }


def charges_of(federation: Federation, site: str) -> int:
    """How many releases are in a site's ledger."""
    lines = [line for file in (federation.paths[site] / "ledger").glob("*") for line in file.read_text().splitlines()]
    return sum('"steps"' in line for line in lines)


def watch_releases(monkeypatch: pytest.MonkeyPatch, work: type[Study | StatisticsQuery]) -> list[str]:
    """From now on, note what is in a site's ledger when the site begins to compute a release."""
    seen, release = list[str](), work.release

    def watched(self: Any, *arguments: Any) -> Any:  # noqa: ANN401 - of either kind
        seen.append("".join(file.read_text() for file in (self._site.place.folder / "ledger").glob("*-patients")))
        return release(self, *arguments)

    monkeypatch.setattr(work, "release", watched)
    return seen


def authority_of(federation: Federation) -> Authority:
    folder = federation.folder / "coordinator"
    key = load_pem_private_key((folder / "authority.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Authority(key, read_certificate(folder / "authority.pem"))


def certify(
    folder: Path, authority: Authority, *, name: str, days: float, server: bool, begins: float = -10.0
) -> TlsFiles:
    """Certify a new key for this many days from now, or until this many days ago."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    use = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=begins))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    folder.mkdir(parents=True)
    files = TlsFiles(folder / "authority.pem", folder / "tls.pem", folder / "tls.key")
    for path, data in zip(
        (files.authority, files.certificate, files.key),
        (certificate_pem(authority.certificate), certificate_pem(certificate), key_pem(key)),
        strict=True,
    ):
        path.write_bytes(data)
    return files


def await_condition(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return once it holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        Event().wait(0.01)
