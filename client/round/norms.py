"""The norms of updates at a site: scaled before packing, proved before the sum opens, checked when it opens.

`privacy.crypto.norms` says what is proved. The seed of the projections is derived from the seeds of all contributors'
own masks. Headers commit to these, and a site reveals its own for one plan per round, having recorded for which sum. So
an attacker who wants to know the projections in advance has one try per round, and only after the sum is fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privacy.crypto.agreement import set_digest
from privacy.crypto.norm_signature import sign_proof, subject_of, verify_proof
from privacy.crypto.norms import add_up, context_of, longest, projection, prove_norm, read_proofs, state, watched
from privacy.errors import AuthenticityError, MalformedError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from client.site import Site
    from privacy.codec.header import UpdateHeader
    from privacy.codec.packing import Packing
    from privacy.crypto.agreement import Record
    from privacy.crypto.norm_proof import Proof
    from privacy.crypto.summation import EncryptedSum
    from privacy.run.plan import RoundPlan

_BLOCK = 1 << 16  # values whose squares are added at a time, in double precision


def shorten(vector: NDArray[np.float32], update_norm: float | None) -> None:
    """Scale an update `(n,)` down to the L2 norm that the run allows, in place. The rest is not carried over."""
    if update_norm is None:
        return
    parts = (vector[start : start + _BLOCK].astype(np.float64) for start in range(0, vector.size, _BLOCK))
    norm = float(np.sqrt(sum(float(part @ part) for part in parts)))
    if norm > update_norm:
        vector *= np.float32(update_norm / norm)


def fix_sum(record: Record, plan: RoundPlan, summed: str) -> None:
    """Record the sum for which a site is about to reveal its seed: it proves nothing for another.

    Raises:
        ProtocolError: if the site has revealed its seed for another sum of this plan, or no sum is named.
    """
    if not summed:
        msg = (
            f"the server does not say for which sum of round {plan.round} it needs the seed of the mask; no seed is "
            "revealed"
        )
        raise ProtocolError(msg)
    record.note(plan.run, f"revealing for the sum of plan {plan.digest}", summed)


class Lengths:
    """The bounds on the norms of one sum's updates, and the proofs that they hold."""

    def __init__(
        self, plan: RoundPlan, headers: Mapping[str, UpdateHeader], summed: str, seeds: Mapping[str, bytes],
        packing: Packing, update_norm: float,
    ) -> None:  # fmt: skip
        """Compute what every contributor must prove.

        Args:
            plan: the round's plan.
            headers: the contributors' headers, verified, in the order of the sum.
            summed: the sum's digest.
            seeds: seeds of the contributors' own masks, checked against the headers.
            packing: the round's packing.
            update_norm: the run's bound on the L2 norm.
        """
        self._headers, self._packing, self._keys = headers, packing, plan.keys
        signed = {site: header.to_bytes() for site, header in headers.items()}
        self._subject = subject_of(plan.digest, set_digest(signed), summed)
        context = context_of(self._subject, seeds)
        self._statements = {
            site: state(context, site, longest(packing, header.size, header.weight, update_norm))
            for site, header in headers.items()
        }
        self._into = projection(context)
        self._proofs: list[Proof] = []

    def prove(self, site: Site, blocks: Iterable[NDArray[np.uint64]], secrets: Mapping[str, bytes]) -> bytes:
        """Return the signed proof that this site's packed update is not too long.

        Raises:
            ProtocolError: if it is too long.
        """
        for _ in watched(blocks, self._headers[site.name].size, 1, self._packing, self._into):
            pass
        proof = prove_norm(self._statements[site.name], self._into.numbers, secrets)
        return sign_proof(proof, self._subject, site.signing_key)

    def check(self, total: EncryptedSum, site: Site, liars: list[str]) -> None:
        """Check every contributor's proof.

        Raises:
            AuthenticityError: if a proof is not signed; or if signed proofs are invalid: `liars` then gets the names of
                all sites that signed one.
        """
        if len(total.proofs) != len(self._headers):
            msg = "the sum comes without the norm proofs of its updates"
            raise AuthenticityError(msg)
        proofs = dict[str, bytes]()
        for name, signed in zip(self._headers, total.proofs, strict=True):
            key = site.roster_under(self._keys).member(name).verification_key
            proofs[name] = verify_proof(signed, self._subject, key)
        read = read_proofs(self._statements.values(), proofs)
        liars += [name for name in self._headers if name not in read]
        if liars:
            msg = f"{', '.join(liars)} sent no valid proof that the norm of the update is within the run's update_norm"
            raise AuthenticityError(msg)
        self._proofs = list(read.values())

    def watch(self, blocks: Iterable[NDArray[np.uint64]]) -> Iterator[NDArray[np.uint64]]:
        """Project the sum as it is read."""
        size = next(iter(self._headers.values())).size
        return watched(blocks, size, len(self._headers), self._packing, self._into)

    def check_sum(self) -> None:
        """Check that the sum that was read is the sum of the updates in the proofs.

        Raises:
            MalformedError: if it is not: some site's update differs, and nobody can tell whose.
        """
        if not add_up(self._proofs, self._into.numbers):
            msg = "the sum is not the sum of the updates whose norms were proved"
            raise MalformedError(msg)
