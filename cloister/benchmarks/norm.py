"""`cloister bench norm`: the cost of norm proofs in a round.

Measures real rounds, as `cloister bench round` does, with `update_norm` and without in turn. It also measures the parts
of the difference (`privacy.crypto.norms`) in one process, in CPU time: the minimum of several tries, because other load
on the machine only ever adds to it.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from cloister.benchmarks.pipelines import UPDATE_BOUND, charge_for_nobody
from cloister.benchmarks.round import in_turn
from privacy.codec.ciphertext import Accumulator, Ciphertexts, SummedCiphertexts
from privacy.codec.packing import Packing, pack
from privacy.codec.update import PrivateUpdate
from privacy.crypto.agreement import set_digest
from privacy.crypto.key_epoch import EpochKeys
from privacy.crypto.masking import SEED_BYTES, Masks, mask, unmask_sum
from privacy.crypto.norm_signature import subject_of
from privacy.crypto.norms import add_up, context_of, longest, projection, prove_norm, read_proofs, state, watched
from privacy.crypto.projections import DEFAULT, caught_from, refused_though_short
from privacy.errors import RunError
from privacy.noise.randomness import Randomness
from privacy.run.plan import RoundPlan
from privacy.run.settings import Encryption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_ZERO = "0" * 64
_SPREAD = 0.2  # standard deviation of the synthetic updates
_PROBABILITY = 2.0**-20
STEPS = {
    "recover": "decrypt and unmask the site's own update",
    "prove": "project it and prove its norm",
    "check": "check all proofs and the sum's projections, at a site",
}
_TRIES = 3


def measure(parameters: int, rounds: int, sites: int) -> dict[str, Any]:
    """Measure rounds with and without proofs, then their parts one by one.

    Raises:
        ConfigError: if there is no room for this many sites.
        RunError: if a round failed, or a proof is refused.
    """
    plain, proved = Encryption(update_bound=1.0), Encryption(update_bound=1.0, update_norm=1.0)
    reports, _ = in_turn({"with proofs": proved, "without": plain}, parameters, rounds, sites)
    with_proofs, without = reports.values()
    return parts(parameters, sites) | {
        "parameters": parameters,
        "sites": sites,
        "rounds": rounds,
        "median_ms": with_proofs["median_ms"],
        "plain_median_ms": without["median_ms"],
        "ratio": round(with_proofs["median_ms"] / without["median_ms"], 3),
        "bytes_down": with_proofs["bytes_down"] - without["bytes_down"],
        "projections": DEFAULT,
        "refused_though_short": refused_though_short(DEFAULT),
        "caught_from": round(caught_from(DEFAULT, _PROBABILITY), 2),
    }


def parts(parameters: int, sites: int) -> dict[str, Any]:
    """Return the time of each step at one site, and the size of a proof."""
    tries = [_Round(parameters, sites) for _ in range(_TRIES)]
    sizes = {once.run() for once in tries}
    spent = {step: min(once.spent[step] for once in tries) for step in STEPS}
    return {f"{step}_ms": round(1000 * seconds, 1) for step, seconds in spent.items()} | {"proof_bytes": max(sizes)}


def table(report: dict[str, Any]) -> str:
    """Format a report as text."""
    odds = f"a probability below {report['refused_though_short']:.0e}"
    lines = [
        f"{report['parameters']:,} parameters, {report['sites']} agents, TLS, encryption and masks on, no training",
        "",
        f"{'a round with update_norm, the median, ms':<68}{report['median_ms']:>8,.0f}",
        f"{'without':<68}{report['plain_median_ms']:>8,.0f}",
        f"{'times as long':<68}{report['ratio']:>8.2f}",
        "",
        *(f"{label + ', ms of CPU':<68}{report[f'{step}_ms']:>8,.1f}" for step, label in STEPS.items()),
        "",
        f"A proof has {report['proof_bytes']:,} bytes.",
        f"An honest update is refused with {odds};",
        f"one whose norm is {report['caught_from']} times the limit passes with one below {_PROBABILITY:.0e}.",
    ]
    return "\n".join(lines)


class _Round:
    """One round, and the time of each step at one site."""

    def __init__(self, parameters: int, sites: int) -> None:
        self._size = parameters
        self._names = [f"site-{number:03}" for number in range(sites)]
        self._packing = Packing.of("compact", cohort=sites, update_bound=UPDATE_BOUND, max_weight=1.0)
        self._keys, self._charge = EpochKeys.generate(1), charge_for_nobody()
        self._plan = RoundPlan(
            run=_ZERO, round=1, attempt=1, cohort=tuple(self._names), roster_version=1, epoch=1,
            keys=self._keys.fingerprint, minimum_cohort=sites, deadline=0.0, base_model=_ZERO,
        )  # fmt: skip
        self._pairs = {
            (one, other): os.urandom(SEED_BYTES) for one in self._names for other in self._names if one < other
        }
        self._seeds = {name: os.urandom(SEED_BYTES) for name in self._names}
        self.spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def _timed(self, step: str, times: int) -> Iterator[None]:
        start = time.process_time()
        yield
        self.spent[step] += (time.process_time() - start) / times

    def run(self) -> int:
        """Run the round from updates to the checks of the sum; return the size of a proof, in bytes."""
        packing, sites = self._packing, len(self._names)
        total, sent, nonces = Accumulator(packing.ciphertexts(self._size)), dict[str, Ciphertexts](), dict[str, str]()
        for number, name in enumerate(self._names):
            packed = pack(PrivateUpdate(self._update(number), self._charge), 1.0, packing, Randomness.fresh())
            tagged = self._keys.tag.tag(mask(packed, self._masks(name)), self._plan, name)
            authenticated = self._keys.mac.authenticate(self._keys.decryption.encrypt(tagged), self._plan, name)
            sent[name], nonces[name] = authenticated.ciphertexts, authenticated.nonce
            total.add(authenticated.ciphertexts)
        summed, agreed = sha256(b"".join(total.chunks())).hexdigest(), {name: name.encode() for name in self._names}
        context = context_of(subject_of(self._plan.digest, set_digest(agreed), summed), self._seeds)
        length = longest(packing, self._size, 1.0, 2 * _SPREAD * self._size**0.5)
        statements = {name: state(context, name, length) for name in self._names}
        proofs = dict[str, bytes]()
        for name in self._names:
            with self._timed("recover", sites):
                blocks = [*self._masks(name).unmask(self._decrypted(sent[name].alone, {name: nonces[name]}))]
            with self._timed("prove", sites):
                proofs[name] = prove_norm(statements[name], self._projected(blocks, context, 1), self._shared(name))
        seeds = tuple(sent[name].seeds for name in self._names)
        masked = self._decrypted(SummedCiphertexts(tuple(total.chunks()), seeds, (), total.code_bytes), nonces)
        blocks = [*unmask_sum(masked, self._seeds, {}, self._plan)]
        with self._timed("check", 1):
            read = read_proofs(statements.values(), proofs)
            right = len(read) == sites and add_up(read.values(), self._projected(blocks, context, sites))
        if not right:
            msg = "a proof that this process made does not hold; test this machine's memory"
            raise RunError(msg)
        return len(proofs[self._names[0]])

    def _projected(self, blocks: list[NDArray[np.uint64]], context: bytes, contributors: int) -> list[int]:
        into = projection(context)
        for _ in watched(blocks, self._size, contributors, self._packing, into):
            pass
        return into.numbers

    def _update(self, number: int) -> NDArray[np.float32]:
        drawn = np.random.default_rng(number).standard_normal(self._size, dtype=np.float32) * np.float32(_SPREAD)
        return np.clip(drawn, -UPDATE_BOUND, UPDATE_BOUND, out=drawn)

    def _masks(self, name: str) -> Masks:
        return Masks(self._shared(name), self._seeds[name], self._plan, name)

    def _shared(self, name: str) -> dict[str, bytes]:
        return {other: self._pairs[min(name, other), max(name, other)] for other in self._names if other != name}

    def _decrypted(self, ciphertexts: SummedCiphertexts, nonces: dict[str, str]) -> Iterator[NDArray[np.uint64]]:
        chunks = self._keys.mac.check(ciphertexts, self._plan, nonces)
        return self._keys.tag.check(self._keys.decryption.decrypt(chunks), self._plan, nonces)
