"""A bound of how long each site's update is, checked by all others, who see no update.

A site's update is a vector v of whole numbers: its levels, doubled, less what stands for zero. Their sum V over the
contributors S opens at every site. All of S sign S, and write down the sum's ciphertexts; then each reveals the seed of
its own mask, to which its header commits. The projections follow from all of these: nobody knows them before V is
fixed, not even a server and colluding sites.

1. Each site of S commits to k random projections of its v (`privacy.crypto.projections`), C = commit(y, ρ), and proves
   that Σ y² is no more than a run allows (`privacy.crypto.norm_proof`). The ρ come from the secrets that the sites of S
   share in pairs, and add up to zero.
2. Whoever has V checks every proof, and that the commitments add up to the projections of V, without any blinding.

So the projections that liars committed to add up to those of what they really sent, whatever they claim one by one: it
is, by the triangle inequality, no longer than all of them may be together, `caught_from(k, p)` times over at most, but
for a probability p. Who commits to other projections than its update's spoils the sum, and is not named by that, as
nobody is who masks garbage.

What it tells: that each proof holds, and of V no more than V. Between two honest sites of S one blinding is known to
nobody else: each commitment by itself is uniform, and only their sum says something. A commitment must therefore be
shown under the rules of a mask's seed: after all of S have signed S, and for one plan a round
(`privacy.crypto.agreement`). Whoever breaks discrete logarithms, with a quantum computer, makes false proofs; what
honest ones hide stays hidden.
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
    """Return what a round's proofs are bound to and its projections follow from, 32 bytes.

    Args:
        subject: of which sum they are (`privacy.crypto.norm_signature`).
        seeds: of every contributor's own mask, 32 bytes each, to which its header commits.
    """
    return sha256(b"cloister norm" + subject + b"".join(seeds[site] for site in sorted(seeds))).digest()


def longest(packing: Packing, size: int, weight: float, update_norm: float) -> int:
    """Return how long, in half levels, a site's packed update of n parameters may be.

    Args:
        packing: the round's.
        size: n.
        weight: the site's.
        update_norm: the largest L2 norm of an update, before it is weighed and rounded.
    """
    top, root = packing.levels - 1, isqrt(size) + 1
    half_levels = update_norm * weight * top / (packing.update_bound * packing.max_weight)
    # Stochastic rounding moves each value by less than two; none is more than `top` in the end.
    return min(ceil(half_levels) + 2 * root, top * root)


def state(context: bytes, site: str, length: int, projections: int = DEFAULT) -> Statement:
    """Return what a site has to prove: that its projections are those of a vector of at most this length."""
    return Statement(context, site, projections, stretch(projections) * length * length)


def projection(context: bytes, projections: int = DEFAULT) -> Projection:
    """Start to project an update, or a sum, in a context."""
    return Projection(sha256(b"cloister norm signs" + context).digest(), projections)


def watched(
    blocks: Iterable[NDArray[np.uint64]], size: int, contributors: int, packing: Packing, into: Projection
) -> Iterator[NDArray[np.uint64]]:
    """Project a packed sum, `(n, 4096)` a block, as its blocks are passed on."""
    left = size
    for block in blocks:
        values = half_levels(block, contributors, packing)[:left]
        left -= values.size
        into.add(values)
        yield block


def prove_norm(statement: Statement, numbers: Sequence[int], secrets: Mapping[str, bytes]) -> bytes:
    """Prove that a site's own update is not too long.

    Args:
        statement: of this site.
        numbers: the projections of its packed update.
        secrets: what it shares with every other contributor, and only with those.

    Raises:
        ProtocolError: if it is too long.
    """
    return prove(statement, numbers, _blinding(secrets, statement.context, statement.site)).to_bytes()


def read_proofs(statements: Iterable[Statement], proofs: Mapping[str, bytes]) -> dict[str, Proof]:
    """Return the proofs that hold, by site: who is missing has given none, or a false one."""
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
    """Say whether what sites proved something of are updates whose sum has these projections."""
    return combine((1, proof.commitment) for proof in proofs) == commit(numbers, 0)


def _blinding(secrets: Mapping[str, bytes], context: bytes, site: str) -> int:
    """Return a site's ρ. Over all contributors they add up to zero: what one of two adds, the other takes away."""
    info = b"cloister norm blinding" + context
    shared = (
        (other, HKDF(hashes.SHA256(), 2 * BYTES, salt=None, info=info + " ".join(sorted((site, other))).encode()))
        for other in secrets
    )
    drawn = ((other, int.from_bytes(key.derive(secrets[other]), "little")) for other, key in shared)
    return sum(number if site < other else -number for other, number in drawn) % ORDER
