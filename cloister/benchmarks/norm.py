"""`cloister bench norm`: what it costs a round to check that no site's update is too long.

The cryptography of a round of n sites by the functions that sites and server run, in one process, with masks: each site
packs, masks, tags and encrypts its update, the server adds, each site decrypts, checks and unpacks the sum. Beside it,
what a check of lengths adds (`privacy.norms`): each site takes its own update out of its ciphertexts again, projects it
and proves; whoever opens the sum checks all proofs and that they are of it. All in CPU time, the least of several
rounds: what else the machine does only ever adds to it. The command then takes real rounds, as `cloister bench round`
does, and says how much longer they would be. Runs do not use the proofs yet.
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
from privacy.agreement import set_digest
from privacy.ciphertext import Accumulator, Ciphertexts, SummedCiphertexts
from privacy.epoch import EpochKeys
from privacy.errors import RunError
from privacy.masking import SEED_BYTES, Masks, mask, unmask_sum
from privacy.norms import add_up, context_of, longest, prove_norm, read_proofs, state
from privacy.packing import Packing, half_levels, pack, unpack
from privacy.plan import RoundPlan
from privacy.projections import DEFAULT, caught_from, refused_though_short
from privacy.randomness import Randomness
from privacy.update import PrivateUpdate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_ZERO = "0" * 64
_SPREAD = 0.2  # standard deviation of the made-up updates
_PROBABILITY = 2.0**-20
WITHOUT = ("encrypt", "add", "open")
ADDED = ("recover", "prove", "check")
_SAID = {
    "encrypt": "pack, mask, tag and encrypt an update, at its site",
    "add": "read and add it, at the server",
    "open": "decrypt, check, unmask and unpack the sum, at a site",
    "recover": "decrypt and unmask its own update, at its site",
    "prove": "project it and prove its length",
    "check": "check all proofs, and the sum's projections, at a site",
}


def measure(parameters: int, sites: int, rounds: int) -> dict[str, Any]:
    """Take the cryptography of rounds through, with proofs.

    Raises:
        ConfigError: if there is no room for so many sites.
        RunError: if a proof is refused, or the sum is not that of the updates.
    """
    least, proof_bytes = dict.fromkeys((*WITHOUT, *ADDED), float("inf")), 0
    for _ in range(rounds):
        once = _Round(parameters, sites)
        proof_bytes = once.run()
        least = {step: min(least[step], once.spent[step]) for step in least}
    return {
        "parameters": parameters,
        "sites": sites,
        "rounds": rounds,
        **{f"{step}_ms": round(1000 * seconds, 1) for step, seconds in least.items()},
        "proof_bytes": proof_bytes,
        "projections": DEFAULT,
        "refused_though_short": refused_though_short(DEFAULT),
        "caught_from": round(caught_from(DEFAULT, _PROBABILITY), 2),
    }


def beside(report: dict[str, Any], round_ms: float, cores: int) -> dict[str, Any]:
    """Add what proofs cost to a whole round's time, when all its sites share this machine's cores."""
    added = sum(report[f"{step}_ms"] for step in ADDED) * report["sites"] / min(cores, report["sites"])
    return report | {"round_ms": round_ms, "added_ms": round(added, 1), "ratio": round(1 + added / round_ms, 2)}


def table(report: dict[str, Any]) -> str:
    """Write a report for people."""
    odds = f"a probability below {report['refused_though_short']:.0e}"
    lines = [
        f"{report['parameters']:,} parameters, {report['sites']} sites; least CPU of {report['rounds']} rounds, ms",
        "",
        *(f"{_SAID[step]:<62}{report[f'{step}_ms']:>8,.1f}" for step in WITHOUT),
        "",
        *(f"{_SAID[step]:<62}{report[f'{step}_ms']:>8,.1f}" for step in ADDED),
        "",
        f"{'a whole round of processes, without proofs, by the clock':<62}{report['round_ms']:>8,.1f}",
        f"{'which proofs make longer by':<62}{report['added_ms']:>8,.1f}",
        f"{'so that it takes this many times as long':<62}{report['ratio']:>8.2f}",
        "",
        f"A proof has {report['proof_bytes']:,} bytes. An honest update is refused with {odds}.",
        f"One that is {report['caught_from']} times too long passes with one below {_PROBABILITY:.0e}.",
    ]
    return "\n".join(lines)


class _Round:
    """One round, and what each step took at one site."""

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
        """Take it from updates to the mean; return how many bytes a proof has."""
        sites, size, packing = len(self._names), self._size, self._packing
        total, sent, nonces = Accumulator(packing.ciphertexts(size)), dict[str, Ciphertexts](), dict[str, str]()
        for number, name in enumerate(self._names):
            update = self._update(number)
            with self._timed("encrypt", sites):
                packed = pack(PrivateUpdate(update, self._charge), 1.0, packing, Randomness.fresh())
                tagged = self._keys.tag.tag(mask(packed, self._masks(name)), self._plan, name)
                made = self._keys.mac.authenticate(self._keys.decryption.encrypt(tagged), self._plan, name)
                sent[name], nonces[name] = made.ciphertexts, made.nonce
            with self._timed("add", sites):
                total.add(Ciphertexts.read(sent[name].chunks, packing.ciphertexts(size)))
        opened = SummedCiphertexts(
            tuple(total.chunks()), tuple(sent[name].seeds for name in self._names), (), total.code_bytes
        )
        with self._timed("open", 1):
            blocks = unmask_sum(self._decrypted(opened, nonces), self._seeds, {}, self._plan)
            unpack(blocks, size, [1.0] * sites, packing)
        return self._norms(opened, sent, nonces)

    def _norms(self, opened: SummedCiphertexts, sent: dict[str, Ciphertexts], nonces: dict[str, str]) -> int:
        agreed, summed = (
            set_digest({name: name.encode() for name in self._names}),
            sha256(b"".join(opened.c0)).hexdigest(),
        )
        context = context_of(self._plan.digest, agreed, summed, self._seeds)
        length = longest(self._packing, self._size, 1.0, 2 * _SPREAD * self._size**0.5)
        statements = {name: state(context, name, length) for name in self._names}
        proofs = dict[str, bytes]()
        for name in self._names:
            with self._timed("recover", len(self._names)):
                one = self._decrypted(sent[name].alone, {name: nonces[name]})
                own = [*half_levels(self._masks(name).unmask(one), self._size, 1, self._packing)]
            with self._timed("prove", len(self._names)):
                proofs[name] = prove_norm(statements[name], own, self._shared(name))
        masked = self._decrypted(opened, nonces)
        unmasked = unmask_sum(masked, self._seeds, {}, self._plan)
        total = [*half_levels(unmasked, self._size, len(self._names), self._packing)]
        with self._timed("check", 1):
            read = read_proofs(statements.values(), proofs)
            right = len(read) == len(self._names) and add_up(read.values(), total, context, DEFAULT)
        if not right:
            msg = "a proof that this process made does not hold; test this machine's memory"
            raise RunError(msg)
        return len(proofs[self._names[0]])

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
