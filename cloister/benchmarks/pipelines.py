"""The pipelines that benchmarks compare: ways to add updates that only the sites can read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.accounting.accounting import Mechanism
from privacy.codec.ciphertext import C0_BYTES, SEED_BYTES, Accumulator, Ciphertexts, SummedCiphertexts
from privacy.codec.packing import BLOCK, RING_DEGREE, Packing, Profile, pack, unpack
from privacy.codec.update import PrivateUpdate
from privacy.crypto.encryption import EncryptedUpdate
from privacy.crypto.key_epoch import EpochKeys
from privacy.crypto.masking import MaskedUpdate, mask
from privacy.errors import AuthenticityError
from privacy.ledger.ledger import Budget, Ledger, Release
from privacy.noise.randomness import Randomness
from privacy.run.plan import RoundPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from privacy.codec.update import PackedUpdate
    from privacy.ledger.ledger import Charge

UPDATE_BOUND = 1.0
_ZERO = "0" * 64


def charge_for_nobody() -> Charge:
    """Return a charge to a scratch ledger: even in a benchmark, nothing is packed without one."""
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger", "bench", "nobody", Ed25519PrivateKey.generate())
        return ledger.reserve(Release(_ZERO, 1, 1), Mechanism(1.0, 0.5, 0), Budget(1.0, 1e-5))


class Pipeline(ABC):
    """A pipeline from all sites' updates to their mean, one round after another."""

    name: str

    @abstractmethod
    def encrypt(self, update: NDArray[np.float32], weight: float) -> list[bytes]:
        """Return a site's upload for its update `(n,)`."""

    @abstractmethod
    def tag(self) -> None:
        """Repeat the authentication that `encrypt` does, to measure it separately."""

    @abstractmethod
    def add(self, upload: list[bytes]) -> None:
        """Add a site's upload to the server's sum."""

    @abstractmethod
    def close(self) -> list[bytes]:
        """Return the server's download for each site, and reset the sum."""

    @abstractmethod
    def decrypt(self, download: list[bytes]) -> NDArray[Any]:
        """Return the weighted mean of all updates `(n,)`."""


class Cloister(Pipeline):
    """Cloister's pipeline, with the functions that sites and server run: seeded symmetric BFV over packed integers."""

    def __init__(self, profile: Profile, size: int, weights: Sequence[float], charge: Charge) -> None:
        self.name, self._size, self._weights, self._charge = profile, size, weights, charge
        self.packing = Packing.of(profile, cohort=len(weights), update_bound=UPDATE_BOUND, max_weight=1.0)
        self._keys = EpochKeys.generate(1)
        self._plan = RoundPlan(
            run=_ZERO, round=1, attempt=1, cohort=("a",), roster_version=1, epoch=1, keys=self._keys.fingerprint,
            minimum_cohort=1, deadline=0.0, base_model=_ZERO,
        )  # fmt: skip
        self._sent = 0
        self._sites = [f"site-{number}" for number in range(len(weights))]
        self._count = self.packing.ciphertexts(size)
        self._total = Accumulator(self._count)
        self._seeds: list[bytes] = []
        self._nonces: dict[str, str] = {}

    def encrypt(self, update: NDArray[np.float32], weight: float) -> list[bytes]:
        """Pack, tag and encrypt; add the digest that a site signs."""
        return self.protect(pack(PrivateUpdate(update, self._charge), weight, self.packing, Randomness.fresh()))

    def protect(self, packed: PackedUpdate) -> list[bytes]:
        """Tag and encrypt a packed update; add the digest that a site signs."""
        site = self._sites[self._sent % len(self._sites)]
        self._sent += 1
        encrypted = self._keys.decryption.encrypt(self._keys.tag.tag(mask(packed, None), self._plan, site))
        authenticated = self._keys.mac.authenticate(encrypted, self._plan, site)
        ciphertexts, self._nonces[site] = authenticated.ciphertexts, authenticated.nonce
        return [*ciphertexts.chunks, ciphertexts.digest.encode()]

    def tag(self) -> None:
        """Tag as many coefficients, and authenticate as many ciphertexts, as an update has."""
        rows = np.zeros((self._count, RING_DEGREE), dtype=np.uint64)
        blocks = (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
        tagged = self._keys.tag.tag(MaskedUpdate(blocks, self._charge), self._plan, self._sites[0])
        chunks = ((bytes(len(block) * C0_BYTES), bytes(len(block) * SEED_BYTES)) for block in tagged.blocks)
        update = EncryptedUpdate(chunks, self._charge, tagged.nonce)
        self._keys.mac.authenticate(update, self._plan, self._sites[0])

    def add(self, upload: list[bytes]) -> None:
        """Check length, digest and range, then add.

        Raises:
            AuthenticityError: if the digest differs.
        """
        *chunks, digest = upload
        ciphertexts = Ciphertexts.read(chunks, self._count)
        if ciphertexts.digest.encode() != digest:
            msg = "this process changed an update; test this machine's memory"
            raise AuthenticityError(msg)
        self._total.add(ciphertexts)
        self._seeds.append(ciphertexts.seeds)

    def close(self) -> list[bytes]:
        """Return the sum's c0 and codes, and every site's seeds."""
        download = [*self._total.chunks(), self._total.code_bytes, *self._seeds]
        self._total, self._seeds = Accumulator(self._count), []
        return download

    def decrypt(self, download: list[bytes]) -> NDArray[Any]:
        """Decrypt, check the tag and unpack."""
        return unpack(self.opened(download), self._size, self._weights, self.packing).vector

    def opened(self, download: list[bytes]) -> Iterator[NDArray[np.uint64]]:
        """Decrypt and check the tag."""
        (*c0, codes), seeds = download[: -len(self._sites)], download[-len(self._sites) :]
        total = SummedCiphertexts(tuple(c0), tuple(seeds), (), codes)
        blocks = self._keys.decryption.decrypt(self._keys.mac.check(total, self._plan, self._nonces))
        return self._keys.tag.check(blocks, self._plan, self._nonces)

    def total(self, updates: Iterable[PackedUpdate]) -> Iterator[NDArray[np.uint64]]:
        """Take packed updates, one per site, through the whole pipeline except the codec."""
        for packed in updates:
            self.add(self.protect(packed))
        return self.opened(self.close())
