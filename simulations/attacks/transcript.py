"""A server's view of a round: its plan, the sites' signed updates, and arithmetic that needs no key."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.ciphertext import COEFF_MODULUS, Ciphertexts, add_residues, pack60
from privacy.codec.envelope import Contribution
from privacy.codec.packing import BLOCK, RING_DEGREE
from privacy.crypto.expansion import add_expanded
from privacy.crypto.summation import EncryptedSum
from privacy.run.manifest import open_run
from privacy.run.plan import MOST_SEEDS

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    from privacy.codec.envelope import SignedUpdate
    from privacy.run.manifest import Manifest
    from privacy.run.plan import RoundPlan
    from privacy.run.roster import Roster

    Polynomials = NDArray[np.uint64]  # (parts + 1, ciphertexts, 4096): c0; c1 if the server expands seeds; codes


@dataclass
class Run:
    """A signed run, the number of its planned rounds, and its last honest round."""

    document: bytes
    manifest: Manifest
    digest: str
    rounds: int = 0
    last: Transcript | None = None

    @classmethod
    def read(cls, document: bytes, roster: Roster) -> Self:
        """Read a manifest."""
        return cls(*open_run(document, roster)[:3])

    @property
    def honest(self) -> Transcript:
        """The last honest round.

        Raises:
            LookupError: if there is none.
        """
        if self.last is None:
            raise LookupError
        return self.last

    @property
    def masked(self) -> bool:
        """Whether sites mask their updates."""
        return self.manifest.settings.encryption.collusion_resistant

    @property
    def minimum(self) -> int:
        """The minimum number of sites in a sum."""
        return self.manifest.settings.cohort.minimum


@dataclass(frozen=True)
class Transcript:
    """One round as the server sees it."""

    run: Run
    plan: RoundPlan
    updates: dict[str, SignedUpdate]
    signatures: dict[str, bytes] = field(default_factory=dict)  # of the set of contributors
    pairs: dict[str, bytes] = field(default_factory=dict)  # seeds of shared masks, sealed
    reveals: dict[str, bytes] = field(default_factory=dict)  # seeds of sites' own masks, sealed

    @cached_property
    def parts(self) -> int:
        """The number of polynomials per ciphertext that the server controls: c0, and c1 if it expands the seeds."""
        return 2 if len(self.plan.cohort) > MOST_SEEDS else 1

    def term(self, site: str) -> Polynomials:
        """Return the polynomials of a site's update; the last one has only one coefficient, the code."""
        ciphertexts = Ciphertexts(self.updates[site].chunks)
        result = np.zeros((self.parts + 1, ciphertexts.count, RING_DEGREE), dtype=np.uint64)
        for index, block in enumerate(ciphertexts.residues()):
            result[0, index * BLOCK : (index + 1) * BLOCK] = block
        if self.parts > 1:
            add_expanded(result[1], ciphertexts.seeds)
        result[-1, :, 0] = np.frombuffer(ciphertexts.codes, dtype="<u8")
        return result

    def total(self, *sites: str) -> Polynomials:
        """Add up sites' updates; a site given twice counts twice."""
        return added(*(self.term(site) for site in sites))

    def contributions(self, *sites: str) -> tuple[Contribution, ...]:
        """Return the parts of a sum that belong to these contributors."""
        contributions = []
        for site in sites:
            update = self.updates[site]
            seeds = b"" if self.parts > 1 else Ciphertexts(update.chunks).seeds
            opened = self.reveals.get(site, b""), self.pairs.get(site, b"")
            contributions.append(Contribution(update.header, update.signature, seeds, *opened))
        return tuple(contributions)

    def sum(self, total: Polynomials, contributions: tuple[Contribution, ...]) -> EncryptedSum:
        """Make a sum for this round's plan from polynomials and contributions."""
        c0, *c1 = ((pack60(part.reshape(-1)),) for part in total[:-1])
        codes = total[-1, :, 0].astype("<u8").tobytes()
        return EncryptedSum(self.plan.to_bytes(), contributions, c0, codes, c1[0] if c1 else ())


def added(*terms: Polynomials) -> Polynomials:
    """Add polynomials modulo q."""
    total = np.zeros_like(terms[0])
    for term in terms:
        add_residues(total, term)
    return total


def times(total: Polynomials, factor: int) -> Polynomials:
    """Multiply polynomials by a number modulo q."""
    result: Polynomials = (total.astype(object) * factor % COEFF_MODULUS).astype(np.uint64)
    return result
