"""Forged sums: what a server can make, without a key, of updates that sites signed.

Each function takes the server's transcripts of this round and of an earlier one, and chooses a variant at random. Where
the server expands the seeds (more than 32 sites), it changes c0 and c1 alike, so that the result decrypts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.codec.ciphertext import COEFF_MODULUS
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.run.plan import read_plan
from simulations.attacks.transcript import added, times

if TYPE_CHECKING:
    from collections.abc import Callable

    from privacy.codec.envelope import Contribution
    from privacy.crypto.summation import EncryptedSum
    from simulations.attacks.transcript import Transcript

    Rng = np.random.Generator
    Lie = Callable[[Transcript, Transcript, Rng], EncryptedSum]

STEP = COEFF_MODULUS // PLAIN_MODULUS + 1  # a plaintext's 1, in c0; rounding removes much smaller changes, as noise


def _shuffled(now: Transcript, rng: Rng) -> list[str]:
    return [str(site) for site in rng.permutation(list(now.updates))]


def one_alone(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Return one site's update as the sum."""
    del earlier
    site, *_ = everyone = _shuffled(now, rng)
    return [
        lambda: now.sum(now.term(site), now.contributions(*everyone)),
        lambda: now.sum(now.term(site), now.contributions(site, site, site)),
        lambda: now.sum(now.term(site), now.contributions(site)),
        lambda: now.sum(times(now.term(site), len(everyone)), now.contributions(*everyone)),
    ][rng.integers(4)]()


def doubled(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Add one site's update twice: in addition to all others, or in another's place."""
    del earlier
    site, _, *rest = everyone = _shuffled(now, rng)
    return [
        lambda: now.sum(now.total(*everyone, site), now.contributions(*everyone)),
        lambda: now.sum(now.total(*everyone, site), now.contributions(*everyone, site)),
        lambda: now.sum(now.total(site, site, *rest), now.contributions(*everyone)),
        lambda: now.sum(now.total(site, site, *rest), now.contributions(site, site, *rest)),
    ][rng.integers(4)]()


def omitted(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Leave out an update, a header, or an update and another site's header."""
    del earlier
    _, *rest = everyone = _shuffled(now, rng)
    return [
        lambda: now.sum(now.total(*rest), now.contributions(*everyone)),
        lambda: now.sum(now.total(*everyone), now.contributions(*rest)),
        lambda: now.sum(now.total(*everyone[:3]), now.contributions(*everyone[1:])),
    ][rng.integers(3)]()


def replayed(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Replace an update, or all, with those of an earlier round, under this round's headers or their own."""
    site, *rest = everyone = _shuffled(now, rng)
    old = added(now.total(*rest), earlier.term(site))
    return [
        lambda: now.sum(old, now.contributions(*everyone)),
        lambda: now.sum(old, (*now.contributions(*rest), *earlier.contributions(site))),
        lambda: now.sum(earlier.total(*everyone), now.contributions(*everyone)),
        lambda: now.sum(earlier.total(*everyone), earlier.contributions(*everyone)),
    ][rng.integers(4)]()


def constant_added(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Add a constant to one coefficient: some steps of the plaintext, or any number, however small."""
    del earlier
    total = now.total(*now.updates)
    part, row, place = (int(rng.integers(size)) for size in total.shape)
    place = place if part < now.parts else 0  # a code has only one number
    step = int(rng.choice([1, 2, 1 << 16, 1 << 32, int(rng.integers(1, PLAIN_MODULUS))]))
    constant = int(rng.choice([step * STEP, int(rng.integers(1, STEP)), int(rng.integers(1, COEFF_MODULUS))]))
    total[part, row, place] = (int(total[part, row, place]) + constant) % COEFF_MODULUS
    return now.sum(total, now.contributions(*now.updates))


def scaled(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Multiply the sum by 2, 3, −1, or any number."""
    del earlier
    factor = int(rng.choice([2, 3, COEFF_MODULUS - 1, int(rng.integers(2, COEFF_MODULUS))]))
    return now.sum(times(now.total(*now.updates), factor), now.contributions(*now.updates))


def swapped(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Exchange ciphertexts, repeat one, multiply all by a power of x, or cut the chunks elsewhere."""
    del earlier
    total, contributions = now.total(*now.updates), now.contributions(*now.updates)
    turned = int(rng.integers(1, RING_DEGREE))
    wrapped = np.roll(total, turned, axis=2)
    wrapped[-1] = total[-1]  # codes are not polynomials
    wrapped[:-1, :, :turned] = (COEFF_MODULUS - wrapped[:-1, :, :turned]) % COEFF_MODULUS  # x^4096 = −1
    whole = now.sum(total, contributions)
    half = len(whole.c0[0]) // 2
    return [
        lambda: now.sum(total[:, ::-1], contributions),
        lambda: now.sum(total[:, [0] * total.shape[1]], contributions),
        lambda: now.sum(wrapped, contributions),
        lambda: replace(whole, c0=(whole.c0[0][:half], whole.c0[0][half:])),
    ][rng.integers(4)]()


def invented(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Make up a sum: c0 zero, or a plaintext, which needs no key where c1 is the server's."""
    del earlier
    total = np.zeros_like(now.total(*now.updates))
    if rng.integers(2):
        plain = rng.integers(0, len(now.updates) * 1000, total[0].shape, dtype=np.uint64)
        total[0] = plain * np.uint64(STEP)
    return now.sum(total, now.contributions(*now.updates))


def reseeded(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Replace or drop a site's seeds; or use c1 of other updates, or none."""
    site, other, *_ = everyone = _shuffled(now, rng)
    total = now.sum(now.total(*everyone), now.contributions(*everyone))
    if now.parts > 1:
        without = now.sum(now.total(*everyone[1:]), total.contributions)
        old = earlier.sum(earlier.total(*everyone), total.contributions)
        return replace(total, c1=[without.c1, old.c1, ()][rng.integers(3)])
    mine, theirs, *rest = total.contributions
    before = earlier.contributions(site)[0].seeds
    crossed = (replace(mine, seeds=theirs.seeds), replace(theirs, seeds=mine.seeds), *rest)
    changed = [crossed, (replace(mine, seeds=before), theirs, *rest), (replace(mine, seeds=b""), theirs, *rest)]
    del other
    return replace(total, contributions=changed[rng.integers(3)])


def relabelled(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Edit a header, or exchange signatures."""
    del earlier
    everyone = _shuffled(now, rng)
    total = now.sum(now.total(*everyone), now.contributions(*everyone))
    mine, theirs, *rest = total.contributions
    if rng.integers(4) == 0:
        crossed = (replace(mine, signature=theirs.signature), replace(theirs, signature=mine.signature))
        return replace(total, contributions=(*crossed, *rest))
    return replace(total, contributions=(_edited(mine, everyone[1], rng), theirs, *rest))


def _edited(part: Contribution, other: str, rng: Rng) -> Contribution:
    header: dict[str, Any] = json.loads(part.header)
    changes: dict[str, Any] = {
        "site": other, "weight": header["weight"] / 2, "round": header["round"] - 1, "attempt": 2, "size": 1,
        "update_bound": header["update_bound"] * 2, "mask": "" if header["mask"] else "0" * 64, "seeds": "0" * 64,
        "ledger_head": "0" * 64,
    }  # fmt: skip
    name = str(rng.choice(list(changes)))
    header[name] = changes[name]
    return replace(part, header=json.dumps(header, sort_keys=True, separators=(",", ":")).encode())


def replanned(now: Transcript, earlier: Transcript, rng: Rng) -> EncryptedSum:
    """Deliver the true sum under an edited plan."""
    total, plan = now.sum(now.total(*now.updates), now.contributions(*now.updates)), now.plan
    changes: list[dict[str, Any]] = [
        {"cohort": plan.cohort[:-1]}, {"cohort": plan.cohort[::-1]}, {"base_model": "0" * 64}, {"attempt": 2},
        {"round": plan.round + 1}, {"minimum_cohort": 1}, {"deadline": plan.deadline + 1}, {"keys": "0" * 64},
        {"run": "0" * 64}, {"epoch": plan.epoch + 1},
    ]  # fmt: skip
    del earlier
    edited = replace(read_plan(total.plan), **changes[rng.integers(len(changes))])
    return replace(total, plan=edited.to_bytes())


FORGED_SUMS: dict[str, Lie] = {
    "one site's update as the sum": one_alone,
    "an update doubled": doubled,
    "an update left out": omitted,
    "an update of another round": replayed,
    "a constant added": constant_added,
    "the sum scaled": scaled,
    "ciphertexts swapped": swapped,
    "a sum made up": invented,
    "other seeds": reseeded,
    "a header edited": relabelled,
    "a plan edited": replanned,
}
"""The forgeries, by their name in the table."""
