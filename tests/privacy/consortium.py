"""A consortium of three sites with fixed keys, for the tests of this room."""

from __future__ import annotations

import json
import struct
import time
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings

from privacy.accounting.accounting import Mechanism
from privacy.codec.ciphertext import C0_BYTES, CODE_BYTES, SEED_BYTES, Ciphertexts, SummedCiphertexts, seeds_digest
from privacy.codec.envelope import Contribution, SignedUpdate, sign_update, verify_update
from privacy.codec.packing import BLOCK, RING_DEGREE, pack
from privacy.codec.update import Layout, Model, PackedUpdate, Update, privatise
from privacy.crypto.encryption import DecryptionKey
from privacy.crypto.key_epoch import SealingKey
from privacy.crypto.mac import MacKey
from privacy.crypto.masking import MaskedUpdate, mask
from privacy.crypto.signing import sign
from privacy.crypto.summation import EncryptedSum, RunningSum
from privacy.crypto.tag import KEY_BYTES, TaggedUpdate, TagKey
from privacy.ledger.ledger import Charge, Release
from privacy.noise.randomness import Randomness
from privacy.run.manifest import Manifest, open_manifest
from privacy.run.new_manifest import sign_manifest
from privacy.run.people import Person
from privacy.run.plan import RoundPlan
from privacy.run.roster import Member, Roster
from privacy.run.settings import Cohort, Encryption, Privacy, RunSettings, Training

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from privacy.codec.header import UpdateHeader
    from privacy.codec.packing import Packing, Profile
    from privacy.codec.update import PrivateUpdate
    from privacy.crypto.encryption import EncryptedUpdate
    from privacy.crypto.mac import AuthenticatedUpdate

SIZES = {"north": 300, "south": 200, "west": 100}  # weights 1, 2/3 and 1/3
SITES = tuple(SIZES)
PARAMETERS = 20
LAYOUT = Layout((("weight", (4, 4)), ("bias", (4,))))
MODEL = Model(np.linspace(-1, 1, PARAMETERS, dtype=np.float32), LAYOUT)
SECRET = b"t" * KEY_BYTES
KEYS = sha256(b"the keys of epoch 2").hexdigest()  # where nothing is encrypted
CHARGE = Charge(Release("0" * 64, 1, 1), Mechanism(1.0, 0.1, 5), "0" * 64)

# Hypothesis' deadline is for hunting slow code; on a busy machine it only makes tests flaky.
relaxed = settings(deadline=None)
few = settings(deadline=None, max_examples=25)


def signing_key(name: str) -> Ed25519PrivateKey:
    """Return the Ed25519 key that belongs to a name in every test. Nothing outside of tests may use it."""
    return Ed25519PrivateKey.from_private_bytes(sha256(b"test signing key " + name.encode()).digest())


def chained(events: Iterable[bytes], key: Ed25519PrivateKey, owner: str = "north patients") -> bytes:
    """Return a ledger of these events, as docs/protocol.md says, rather than by the code under test."""
    head, signature, lines = "0" * 64, b"", b""
    for event in events:
        head = sha256(bytes.fromhex(head) + signature + event).hexdigest()
        signed = f"{owner} {head}".encode()
        bound = b"cloister" + struct.pack(">H", 6) + b"ledger" + struct.pack(">Q", len(signed)) + signed
        signature = key.sign(bound).hex().encode()
        lines += b"%s %s %s\n" % (head.encode(), signature, event)
    return lines


def authority_key(name: str = "authority") -> EllipticCurvePrivateKey:
    """Return the P-256 key that belongs to a name in every test."""
    return derive_private_key(int.from_bytes(sha256(name.encode()).digest()) >> 1, SECP256R1())


def public_hex(name: str) -> str:
    return signing_key(name).public_key().public_bytes_raw().hex()


def member(site: str) -> Member:
    tls_key = sha256(b"tls" + site.encode()).hexdigest()
    return Member(
        site=site,
        tls_key=tls_key,
        signing_key=public_hex(site),
        sealing_key=sealing_key(site).public,
    )


def shared_secrets(site: str, sites: Sequence[str] = SITES) -> dict[str, bytes]:
    """Return what a site shares with each other in every test."""
    return {other: sha256(f"pair {sorted((site, other))}".encode()).digest() for other in sites if other != site}


@cache
def sealing_key(site: str) -> SealingKey:
    """Return the HPKE key that belongs to a site in every test."""
    return SealingKey(b"".join(sha256(f"sealing {part} {site}".encode()).digest() for part in range(3)))


PEOPLE = (
    Person("ana", "coordinator", public_hex("coordinator")),
    Person("ines", "researcher", public_hex("ines")),
    Person("rui", "auditor", public_hex("rui")),
)


def make_roster(*sites: str, expires: float = 4102444800.0) -> Roster:  # the year 2100
    return Roster(
        consortium="clinics",
        version=3,
        expires=expires,
        people=PEOPLE,
        members=tuple(member(site) for site in sites or SITES),
    )


def run_settings(
    *,
    sizes: dict[str, int] | None = None,
    minimum: int = 3,
    profile: Profile = "compact",
    update_bound: float = 1.0,
    rounds: int = 10,
    steps: int = 5,
    privacy: Privacy | None = None,
    seed: int | None = None,
) -> RunSettings:
    return RunSettings(
        name="study",
        task="tasks.tumours:Tumours",
        rounds=rounds,
        training=Training(steps_per_round=steps, sample_rate=0.1, learning_rate=0.1),
        privacy=privacy or Privacy(max_grad_norm=1.0, noise_multiplier=1.0),
        encryption=Encryption(update_bound=update_bound, profile=profile, collusion_resistant=False),
        cohort=Cohort(sizes=SIZES if sizes is None else sizes, minimum=minimum),
        seed=seed,
    )


def make_manifest(wanted: RunSettings | None = None) -> tuple[Manifest, str]:
    """Sign and open a run's manifest; return it with the run's name."""
    document = sign_manifest(wanted or run_settings(), signing_key("coordinator"), roster_version=3)
    return open_manifest(document.to_bytes(), signing_key("coordinator").public_key())


def make_plan(
    run: str,
    *,
    number: int = 1,
    attempt: int = 1,
    cohort: tuple[str, ...] = SITES,
    minimum: int = 3,
    deadline: float | None = None,
    base_model: str = MODEL.digest,
    roster_version: int = 3,
    epoch: int = 2,
    keys: str | None = None,
) -> RoundPlan:
    return RoundPlan(
        run=run,
        round=number,
        attempt=attempt,
        cohort=cohort,
        roster_version=roster_version,
        epoch=epoch,
        keys=KEYS if keys is None else keys,
        minimum_cohort=minimum,
        deadline=time.time() + 600 if deadline is None else deadline,
        base_model=base_model,
    )


@cache
def decryption_key() -> DecryptionKey:
    """Return the consortium's key; the same in one test process."""
    return DecryptionKey.generate()


def private(vector: NDArray[np.floating], charge: Charge = CHARGE) -> PrivateUpdate:
    """Return an update that packing may consume: what it leaves over takes the place of a copy."""
    return privatise(Update(np.array(vector, np.float32)), charge)


def blocks_of(coefficients: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    """Cut `(n, 4096)` into blocks, as packing makes them."""
    for start in range(0, len(coefficients), BLOCK):
        yield coefficients[start : start + BLOCK]


def joined(blocks: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Put blocks together again: `(n, 4096)`."""
    return np.concatenate([np.empty((0, RING_DEGREE), np.uint64), *blocks])


def packed(
    vector: NDArray[np.floating], weight: float, packing: Packing, randomness: Randomness | None = None
) -> NDArray[np.uint64]:
    """Pack values at once: `(n, 4096)`."""
    return joined(pack(private(vector), weight, packing, randomness or Randomness.fresh()).blocks)


def unmasked(coefficients: NDArray[np.uint64], charge: Charge = CHARGE) -> MaskedUpdate:
    """Return coefficients `(n, 4096)` as they are tagged in a run without masks."""
    return mask(PackedUpdate(blocks_of(coefficients), charge), None)


def nonce_of(site: str) -> str:
    """Return a nonce that belongs to a site, where a test needs the same one again."""
    return sha256(f"nonce {site}".encode()).hexdigest()


def nonces_of(headers: Mapping[str, UpdateHeader]) -> dict[str, str]:
    """Return what pads are checked with."""
    return {site: header.nonce for site, header in headers.items()}


def tagged(coefficients: NDArray[np.uint64]) -> TaggedUpdate:
    """Pretend that coefficients carry a tag."""
    return TaggedUpdate(blocks_of(coefficients), CHARGE, nonce_of("north"))


def decrypted(key: DecryptionKey, c0: Sequence[bytes], seeds: Sequence[bytes], count: int) -> NDArray[np.uint64]:
    """Check the form of a sum of `count` ciphertexts, and decrypt it whatever its codes: `(count, 4096)`."""
    total = SummedCiphertexts(tuple(c0), tuple(seeds), (), bytes(count * CODE_BYTES))
    total.check(count)
    return joined(key.decrypt(total.chunks()))


def uncoded(update: EncryptedUpdate) -> Ciphertexts:
    """Pretend that ciphertexts carry codes."""
    return Ciphertexts(tuple(c0 + seeds + bytes(len(c0) // C0_BYTES * CODE_BYTES) for c0, seeds in update.chunks))


@cache
def tag_key() -> TagKey:
    """Return the consortium's tag key."""
    return TagKey(SECRET)


@cache
def mac_key() -> MacKey:
    """Return the consortium's key for codes."""
    return MacKey(SECRET)


def encrypt(
    vector: NDArray[np.floating],
    weight: float,
    packing: Packing,
    charge: Charge = CHARGE,
    *,
    plan: RoundPlan,
    site: str,
) -> AuthenticatedUpdate:
    packed = pack(private(vector, charge), weight, packing, Randomness.fresh())
    return protect(mask(packed, None), plan, site)


def protect(update: MaskedUpdate, plan: RoundPlan, site: str) -> AuthenticatedUpdate:
    """Tag, encrypt and authenticate."""
    return mac_key().authenticate(decryption_key().encrypt(tag_key().tag(update, plan, site)), plan, site)


@dataclass(frozen=True)
class Round:
    """One round of one run, as server and sites see it."""

    manifest: Manifest
    run: str
    roster: Roster
    plan: RoundPlan
    model: Model

    def update(self, site: str, vector: NDArray[np.floating]) -> SignedUpdate:
        """Do what an honest site does."""
        release = Release(self.plan.run, self.plan.round, self.plan.attempt)
        charge = Charge(release, self.manifest.round_cost, sha256(site.encode()).hexdigest())
        weight = self.manifest.weight(site)
        encrypted = encrypt(vector, weight, self.manifest.packing, charge, plan=self.plan, site=site)
        return sign_update(
            encrypted,
            self.plan,
            self.model.layout,
            site,
            signing_key(site),
            weight=weight,
            update_bound=self.manifest.packing.update_bound,
            mask="",
        )

    def total(self, updates: dict[str, SignedUpdate]) -> EncryptedSum:
        """Do what an honest server does."""
        running = RunningSum(self.plan)
        for site, update in updates.items():
            running.add(verify_update(update, site, self.plan, self.manifest, self.roster))
        return running.close()


def make_round(wanted: RunSettings | None = None, *, number: int = 1, size: int = PARAMETERS) -> Round:
    manifest, run = make_manifest(wanted)
    sizes = manifest.settings.cohort.sizes
    model = MODEL if size == PARAMETERS else Model(np.zeros(size, np.float32), Layout((("all", (size,)),)))
    plan = make_plan(
        run, number=number, cohort=tuple(sizes), minimum=manifest.settings.cohort.minimum, base_model=model.digest
    )
    return Round(manifest, run, make_roster(*sizes), plan, model)


def header_of(update: SignedUpdate) -> dict[str, object]:
    header: dict[str, object] = json.loads(update.header)
    return header


def resigned(update: SignedUpdate, signer: str, changes: Mapping[str, object], *chunks: bytes) -> SignedUpdate:
    """Return the update with a changed header, or other chunks, signed again, as a dishonest site could."""
    header = header_of(update)
    if chunks:
        ciphertexts = Ciphertexts(chunks)
        header |= {"ciphertexts": ciphertexts.digest, "seeds": seeds_digest(ciphertexts.seeds)}
    data = json.dumps(header | dict(changes), sort_keys=True, separators=(",", ":")).encode()
    return SignedUpdate(data, sign(signing_key(signer), "update", data), chunks or update.chunks)


class Parts(NamedTuple):
    """What one ciphertext consists of."""

    c0: bytes
    seed: bytes
    code: bytes


def parts_of(update: SignedUpdate) -> Parts:
    """Take an update with one ciphertext apart."""
    (chunk,) = update.chunks
    code = C0_BYTES + SEED_BYTES
    return Parts(chunk[:C0_BYTES], chunk[C0_BYTES:code], chunk[code:])


def contribution(update: SignedUpdate, seeds: bytes | None = None) -> Contribution:
    """Return what of an update with one ciphertext travels on with the sum."""
    return Contribution(update.header, update.signature, parts_of(update).seed if seeds is None else seeds)


def plan_with(plan: RoundPlan, **changes: Any) -> RoundPlan:  # noqa: ANN401 - any field
    return RoundPlan(**(asdict(plan) | changes))
