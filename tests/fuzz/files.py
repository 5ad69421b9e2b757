"""The parsers of files that a site or the coordinator keeps, edits, or gets from others."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from client.data.records import read_csv
from client.person import PersonSettings
from client.settings import SiteSettings
from client.state.checkpoint import Checkpoint, CheckpointStore
from client.state.commitments import Commitments
from client.state.initial_model import find_model
from client.state.outbox import Outbox
from privacy.accounting.accounting import Mechanism
from privacy.config import read_toml
from privacy.ledger.ledger import Budget, Ledger, Release
from privacy.run.settings import RunSettings
from strategies.ledger_heads import LedgerHeads
from tests.privacy.consortium import LAYOUT, MODEL, PARAMETERS, chained, make_round, signing_key
from transport.pki import Authority, certificate_pem, key_pem, read_authority_key, read_certificate, read_signing_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from privacy.run.plan import RoundPlan

    Entry = tuple[str, Callable[[bytes], object], list[bytes]]

_RUN = "ab" * 32
_RUN_TOML = Path(__file__).parent.parent.parent / "simulations" / "tasks" / "diagnosis.toml"
_PERSON_TOML = b'name = "ines"\nserver = "fed.example.org:9440"\n'
_SITE_TOML = b"""\
site = "north"
server = "localhost:9092"
[data]
file = "patients.csv"
lineage = "north-patients"
[budget]
epsilon = 3.0
delta = 1e-5
[policy]
tasks = ["simulations.tasks.diagnosis:Diagnosis"]
maximum_epsilon = 3
disclose = ["epsilon", "loss"]
"""
_CSV = b'size,"age",ill,note\r\n1.5,40,0,"says ""no"""\n\n-2e3,.5,1,\n'


_HEADS = b'{"north": {"head": "%s", "signature": "%s"}}' % (b"0f" * 32, b"00" * 64)


def file_parsers() -> Iterator[Entry]:
    """Yield name, parser and seeds of each."""
    certificate = certificate_pem(Authority.create("clinics").certificate)
    yield "run.toml", _of_file(lambda path: read_toml(path, RunSettings)), [_RUN_TOML.read_bytes()]
    yield "person.toml", _of_file(lambda path: read_toml(path, PersonSettings)), [_PERSON_TOML]
    yield "site.toml", _of_file(lambda path: read_toml(path, SiteSettings)), [_SITE_TOML]
    yield "records", _of_file(lambda path: read_csv(path, features=["size", "age"], target="ill")), [_CSV]
    yield "certificate", _of_file(read_certificate), [certificate]
    yield "authority's certificate", _of_file(read_authority_key), [certificate]
    yield "signing key", _of_file(read_signing_key), [key_pem(signing_key("north"))]
    yield "ledgers' heads", _of_file(LedgerHeads), [_HEADS]
    yield from _ledgers()
    yield from _rounds()


def _of_file(read: Callable[[Path], object], name: str = "file") -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        with TemporaryDirectory() as folder:
            path = Path(folder, name)
            path.write_bytes(data)
            return read(path)

    return parse


def _ledgers() -> Iterator[Entry]:
    def read(path: Path) -> object:
        ledger = Ledger(path, "north", "patients", signing_key("north"))
        return ledger.mechanisms(), ledger.runs()

    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder, "ledger"), "north", "patients", signing_key("north"))
        for number in (1, 2):
            ledger.reserve(Release(_RUN, number, 1), Mechanism(1.0, 0.1, 5, number == 2), Budget(10.0, 1e-5))
        written = ledger.path.read_bytes()
    entries = b"\n".join(line.split(b" ", 2)[2] for line in written.splitlines())
    yield "ledger", _of_file(read), [written]
    yield "ledger, rightly signed", lambda data: _of_file(read)(_chained(data)), [entries]


def _chained(entries: bytes) -> bytes:
    return chained(entries.split(b"\n"), signing_key("north"))


def _start(path: Path) -> object:
    return find_model(path.parent, sha256(path.read_bytes()).hexdigest(), MODEL, "north")


def _rounds() -> Iterator[Entry]:
    trip = make_round()

    def find(plan: RoundPlan, path: Path) -> object:
        return Outbox(path.parent).find(plan)

    def load(path: Path) -> object:
        return CheckpointStore(path.parent).load("study", _RUN, LAYOUT)

    with TemporaryDirectory() as folder:
        outbox, store = Outbox(Path(folder)), CheckpointStore(Path(folder))
        outbox.keep(trip.plan, trip.update("north", np.linspace(-1, 1, PARAMETERS)), b"")
        update = outbox._path(trip.plan.run)
        checkpoint = store.save("study", Checkpoint(_RUN, 3, MODEL, 0.5))
        yield (
            "once",
            _of_file(lambda path: Commitments(path.parent).note(_RUN, "update", "1"), f"{_RUN[:16]}.commitments"),
            [b"update: 1\n"],
        )
        yield "outbox", _of_file(partial(find, trip.plan), update.name), [update.read_bytes()]
        yield "checkpoint", _of_file(load, checkpoint.name), [checkpoint.read_bytes()]
        yield "model to start from", _of_file(_start, "public.safetensors"), [checkpoint.read_bytes()]
