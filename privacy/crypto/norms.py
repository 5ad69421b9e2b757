"""Bound the norm of each site's update: all other sites check the bound without seeing the update.

A site's update is a vector v of integers, counted in half levels: 2·level − (L − 1). The sum V of these vectors over
the contributors S opens at every site. All of S sign S and store the digest of the sum's ciphertexts; then each site
reveals the seed of its own mask, to which its header commits. The projections are derived from all of these, so nobody
knows them before V is fixed, not even a server with colluding sites.

1. Each site of S commits to k random projections of its v (`privacy.crypto.projections`), C = commit(y, ρ), and proves
   that Σ y² is at most what the run allows (`privacy.crypto.norm_proof`). The ρ are derived from the secrets that the
   sites of S share in pairs, and add up to zero.
2. Every site that has V checks every proof, and that the commitments add up to the projections of V with blinding 0.

So the projections to which liars committed add up to the projections of the sum of what they sent, whatever each of
them claims. By the triangle inequality, and except with probability p, the norm of that sum is at most
`caught_from(k, p)` times the sum of their allowed norms. A site that commits to projections of another vector than its
update spoils the sum without being identified, like a site that masks garbage.

The proofs reveal that each bound holds, and nothing about the updates beyond V. Any two honest sites of S share a
blinding that nobody else knows, so each commitment alone is uniform and only their sum carries information. A
commitment must therefore follow the rules for a mask's seed: a site reveals it only after all of S have signed S, and
for one plan per round (`privacy.crypto.agreement`). An attacker that computes discrete logarithms, with a quantum
computer, can make false proofs, but learns nothing from honest ones.
"""

from __future__ import annotations

from hashlib import sha256
from math import ceil, isqrt
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.codec.packing import half_levels
from privacy.crypto.norm_proof import Proof, Statement, all_hold, commit, prove
from privacy.crypto.pedersen import BYTES, ORDER, combine
from privacy.crypto.projections import DEFAULT, Projection, stretch
from privacy.errors import MalformedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from privacy.codec.packing import Packing


def context_of(subject: bytes, seeds: Mapping[str, bytes]) -> bytes:
    """Return the context that a round's proofs are bound to and its projections are derived from, 32 bytes.

    Args:
        subject: the identity of the sum (`privacy.crypto.norm_signature`).
        seeds: the seed of every contributor's own mask, 32 bytes each, to which its header commits.
    """
    return sha256(b"cloister norm" + subject + b"".join(seeds[site] for site in sorted(seeds))).digest()


def longest(packing: Packing, size: int, weight: float, update_norm: float) -> int:
    """Return the largest L2 norm, in half levels, of a site's packed update of n parameters.

    Args:
        packing: the round's packing.
        size: n.
        weight: the site's weight.
        update_norm: the largest L2 norm of an update before it is weighted and rounded.
    """
    top, root = packing.levels - 1, isqrt(size) + 1
    half_levels = update_norm * weight * top / (packing.update_bound * packing.max_weight)
    # Stochastic rounding moves each value by less than two; none is more than `top` in the end.
    return min(ceil(half_levels) + 2 * root, top * root)


def state(context: bytes, site: str, length: int, projections: int = DEFAULT) -> Statement:
    """Return the statement that a site must prove: its projections are those of a vector of at most this L2 norm."""
    return Statement(context, site, projections, stretch(projections) * length * length)


def projection(context: bytes, projections: int = DEFAULT) -> Projection:
    """Start the projection of an update or a sum in a context."""
    return Projection(sha256(b"cloister norm signs" + context).digest(), projections)


def watched(
    blocks: Iterable[NDArray[np.uint64]], size: int, contributors: int, packing: Packing, into: Projection
) -> Iterator[NDArray[np.uint64]]:
    """Pass on the blocks `(n, 4096)` of a packed sum, and project each into `into`."""
    left = size
    for block in blocks:
        values = half_levels(block, contributors, packing)[:left]
        left -= values.size
        into.add(values)
        yield block


def prove_norm(statement: Statement, numbers: Sequence[int], secrets: Mapping[str, bytes]) -> bytes:
    """Prove that a site's own update is not too long.

    Args:
        statement: this site's statement.
        numbers: the projections of its packed update.
        secrets: the secret that it shares with each other contributor, and no others.

    Raises:
        ProtocolError: if the update is too long.
    """
    return prove(statement, numbers, _blinding(secrets, statement.context, statement.site)).to_bytes()


def read_proofs(statements: Iterable[Statement], proofs: Mapping[str, bytes]) -> dict[str, Proof]:
    """Return the proofs that hold, by site. A missing site gave no proof or a false one."""
    read = dict[str, tuple[Statement, Proof]]()
    for statement in statements:
        try:
            read[statement.site] = statement, Proof.read(proofs.get(statement.site, b""), statement)
        except MalformedError:
            continue
    if not all_hold(read.values()):
        read = {site: pair for site, pair in read.items() if all_hold([pair])}
    return {site: proof for site, (_, proof) in read.items()}


def add_up(proofs: Iterable[Proof], numbers: Sequence[int]) -> bool:
    """Return whether the commitments in these proofs add up to these projections of the sum."""
    return combine((1, proof.commitment) for proof in proofs) == commit(numbers, 0)


def _blinding(secrets: Mapping[str, bytes], context: bytes, site: str) -> int:
    """Return a site's ρ. Over all contributors ρ adds up to zero: of each pair, one adds what the other subtracts."""
    info = b"cloister norm blinding" + context
    shared = (
        (other, HKDF(hashes.SHA256(), 2 * BYTES, salt=None, info=info + " ".join(sorted((site, other))).encode()))
        for other in secrets
    )
    drawn = ((other, int.from_bytes(key.derive(secrets[other]), "little")) for other, key in shared)
    return sum(number if site < other else -number for other, number in drawn) % ORDER
