"""Every parser of bytes from outside, by name, and inputs that it accepts: where the fuzzing starts.

A parser behind a signature or a digest gets whatever it is fed signed, or with the right digest: else nothing that is
fuzzed would ever reach it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.ciphertext import CIPHERTEXT_BYTES, Ciphertexts
from privacy.codec.header import verify_header
from privacy.codec.packing import RING_DEGREE
from privacy.crypto.encryption import DecryptionKey
from privacy.crypto.key_epoch import EpochKeys, SealingKey, read_letter, seal, write_letters
from privacy.crypto.norm_proof import Proof, Statement, all_hold, prove
from privacy.crypto.signing import SignedDocument, sign
from privacy.run.manifest import open_run
from privacy.run.new_manifest import sign_manifest
from privacy.run.plan import read_plan
from privacy.run.roster import open_roster, sign_roster
from tests.fuzz.files import file_parsers
from tests.fuzz.joining import joining_parsers
from tests.fuzz.messages import message_parsers
from tests.privacy.consortium import (
    PARAMETERS,
    authority_key,
    decryption_key,
    make_roster,
    make_round,
    run_settings,
    sealing_key,
    signing_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Entry = tuple[str, Callable[[bytes], object], list[bytes]]

# What parsers of several kinds have stumbled over.
TRICKY = [
    b"", b"\0", b"\n", b"\r", b"\xff" * 8, b"\x80" * 9 + b"\x01", b"\xed\xa0\x80", b'"', b"\\ud800", b"-1", b"null",
    b"true", b"[]", b"{}", b"NaN", b"1e999", b"9" * 400, b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"=", b" ",
]  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """Whatever bytes it is given, it returns something or raises a `CloisterError`."""

    parse: Callable[[bytes], object]
    seeds: list[bytes]


@cache
def parsers() -> dict[str, Parser]:
    """Return all of them; making the seeds takes a moment."""
    entries = (*_documents(), *_updates(), *_keys(), *message_parsers(), *file_parsers(), *joining_parsers())
    return {name: Parser(parse, seeds) for name, parse, seeds in entries}


def _documents() -> Iterator[Entry]:
    coordinator, authority, roster = signing_key("coordinator"), authority_key(), make_roster()
    manifest = sign_manifest(run_settings(), coordinator, roster_version=3)

    def signed_manifest(data: bytes) -> bytes:
        return SignedDocument.make(coordinator, "manifest", data).to_bytes()

    def signed_roster(data: bytes) -> bytes:
        return SignedDocument.make(authority, "roster", data).to_bytes()

    yield ("signed document", lambda data: SignedDocument.open(data, "manifest", coordinator.public_key()),
           [manifest.to_bytes()])  # fmt: skip
    yield ("signed document, P-256", lambda data: SignedDocument.open(data, "roster", authority.public_key()),
           [sign_roster(roster, authority).to_bytes()])  # fmt: skip
    yield ("manifest", lambda data: open_run(signed_manifest(data), roster),
           [manifest.payload])  # fmt: skip
    yield ("roster", lambda data: open_roster(signed_roster(data), authority.public_key()),
           [sign_roster(roster, authority).payload])  # fmt: skip


def _updates() -> Iterator[Entry]:
    trip = make_round()
    update = trip.update("north", np.linspace(-1, 1, PARAMETERS))
    north = signing_key("north")
    norm = Statement(bytes(32), "north", 8, 200)
    yield (
        "proof of a norm",
        lambda data: all_hold([(norm, Proof.read(data, norm))]),
        [prove(norm, [1] * 8, 5).to_bytes()],
    )
    yield "plan", read_plan, [trip.plan.to_bytes()]
    yield ("header", lambda data: verify_header(data, sign(north, "update", data), "north", trip.plan, trip.manifest,
                                                trip.roster), [update.header])  # fmt: skip
    yield ("header's signature", lambda data: verify_header(update.header, data, "north", trip.plan, trip.manifest,
                                                            trip.roster), [update.signature])  # fmt: skip
    yield (
        "ciphertexts",
        lambda data: list(Ciphertexts.read([data], len(data) // CIPHERTEXT_BYTES).residues()),
        [*update.chunks],
    )


def _keys() -> Iterator[Entry]:
    roster, north, key = make_roster(), signing_key("north"), sealing_key("south")
    keys = EpochKeys.generate(2)
    letter = write_letters(keys, roster, "north", north)["south"]
    sealed = seal(key.public, b"keys", b"info")

    def read(data: bytes) -> EpochKeys:
        return read_letter(data, "north", roster, "south", key)

    def decryption(data: bytes) -> DecryptionKey:
        words = data.ljust(8 * RING_DEGREE, b"\0")[: 8 * RING_DEGREE]
        return DecryptionKey.from_bytes(words + sha256(words).digest())

    yield "letter", read, [letter]
    yield ("letter, signed", lambda data: read(SignedDocument.make(north, "epoch", data).to_bytes()),
           [letter.partition(b"\n")[2]])  # fmt: skip
    yield "letter, sealed part", lambda data: key.open(data, b"info"), [sealed]
    yield "sealing key", SealingKey, [key.to_bytes()]
    yield "sealing key, public", lambda data: seal(data.decode("latin-1"), b"keys", b"info"), [key.public.encode()]
    yield "epoch keys", EpochKeys.from_bytes, [keys.to_bytes()]
    yield ("epoch keys, right digest", lambda data: EpochKeys.from_bytes(data + sha256(data).digest()),
           [keys.to_bytes()[:-32]])  # fmt: skip
    yield "decryption key", DecryptionKey.from_bytes, [decryption_key().to_bytes()]
    yield "decryption key, right digest", decryption, [decryption_key().to_bytes()[:-32]]
