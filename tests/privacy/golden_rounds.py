"""Two rounds from models to models, for the golden files: a masked one that a site dropped out of, and a large cohort.

`golden.py` writes them. Everything that a second implementation needs to do the same is in there, secrets included.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.ciphertext import Ciphertexts
from privacy.codec.envelope import sign_update, verify_update
from privacy.codec.packing import pack, unpack
from privacy.codec.update import Layout, Model, PackedUpdate
from privacy.crypto.agreement import absent_from, agree, set_digest
from privacy.crypto.masking import (
    Masks,
    commitment,
    mask,
    open_pairs,
    open_seed,
    seal_pairs,
    seal_seed,
    sign_pairs,
    sign_seed,
    unmask_sum,
    verify_pairs,
    verify_seed,
)
from privacy.crypto.summation import RunningSum, check_sum
from privacy.crypto.tag import TagKey
from privacy.ledger.ledger import Charge, Release
from privacy.noise.randomness import Randomness
from privacy.run.manifest import open_manifest
from privacy.run.new_manifest import sign_manifest
from privacy.run.plan import MOST_SEEDS, RoundPlan
from privacy.run.roster import sign_roster
from privacy.run.settings import Encryption
from strategies.advance import average
from strategies.averaging import next_bound
from tests.privacy.consortium import (
    SECRET,
    authority_key,
    joined,
    mac_key,
    make_roster,
    member,
    nonces_of,
    private,
    run_settings,
    shared_secrets,
    signing_key,
    tag_key,
)
from transport.run_messages import sum_to_arrays

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from privacy.codec.header import UpdateHeader
    from privacy.crypto.key_epoch import EpochKeys
    from privacy.crypto.signing import SignedDocument
    from privacy.crypto.summation import EncryptedSum
    from privacy.run.manifest import Manifest
    from privacy.run.roster import Roster
    from privacy.run.settings import RunSettings

DEADLINE = 1_800_000_000.5
SHOWN = 4  # values of each long vector
_SIZES = {"east": 300, "north": 250, "south": 200, "west": 150}
_ABSENT = "north"
_SMALL, _LARGE = 20_000, 500  # scales of updates; with the second, some are out of range and cut


@dataclass(frozen=True)
class Golden:
    """A round, with what its sites know."""

    roster: Roster
    manifest: Manifest
    plan: RoundPlan
    model: Model
    keys: EpochKeys
    total: EncryptedSum
    bound: float
    commitments: Mapping[str, bytes]

    @property
    def headers(self) -> dict[str, UpdateHeader]:
        """What the contributors signed."""
        return check_sum(self.total, self.plan.run, self.manifest, self.roster)[1]


def masked_round(keys: EpochKeys) -> tuple[dict[str, object], Golden]:
    """Return a round of four sites with masks, of whom one sent nothing: of two ciphertexts, all fields in use."""
    sites, bound = tuple(_SIZES), 0.125
    settings = replace(run_settings(sizes=_SIZES), encryption=Encryption(update_bound=0.5))
    model = model_of(Layout((("hidden.weight", (120, 110)), ("hidden.bias", (120,)), ("scale", ()))))
    roster = make_roster(*sites)
    document, manifest, plan = _planned(settings, keys, model, number=2, attempt=2)
    running, masks = RunningSum(plan), dict[str, Masks]()
    by_site: dict[str, dict[str, object]] = {}
    for number, site in enumerate(sites):
        if site == _ABSENT:
            continue
        seed = sha256(f"mask of {site}".encode()).digest()
        masks[site] = Masks(shared_secrets(site, sites), seed, plan, site)
        values = values_of(model.layout.size, number + 3, _SMALL)
        charge = Charge(Release(plan.run, 2, 1), manifest.round_cost, sha256(site.encode()).hexdigest())
        packing = replace(manifest.packing, update_bound=bound)
        rounding = Randomness.seeded(7, site)
        packed = pack(private(values, charge), manifest.weight(site), packing, rounding)
        blocks = joined(packed.blocks)
        digest = words_digest(blocks)
        masked = mask(PackedUpdate(iter([blocks]), packed.charge), masks[site])
        authenticated = mac_key().authenticate(keys.decryption.encrypt(tag_key().tag(masked, plan, site)), plan, site)
        update = sign_update(
            authenticated, plan, model.layout, site, signing_key(site), weight=manifest.weight(site),
            update_bound=bound, mask=commitment(seed), commitments=masks[site].commitments,
        )  # fmt: skip
        running.add(verify_update(update, site, plan, manifest, roster))
        by_site[site] = {
            "values": [number + 3, _SMALL],
            "rounding_key": sha256(repr((7, site)).encode()).hexdigest(),
            "packed": digest,
            "pair_secrets": {other: secret.hex() for other, secret in shared_secrets(site, sites).items()},
            "seed": seed.hex(),
            "header": update.header.decode(),
            "signature": update.signature.hex(),
            "commitments": update.commitments.hex(),
        }
    closed = running.close()
    headers = {site: part.header for site, part in zip(running.sites, closed.contributions, strict=True)}
    absent, parts = absent_from(plan, headers), []
    for site, part in zip(running.sites, closed.contributions, strict=True):
        sealed, pairs = (
            sign_seed(
                seal_seed(masks[site]._own, SECRET, plan, site), plan, running.headers[site].mask, signing_key(site)
            ),
            sign_pairs(
                seal_pairs(masks[site], absent, SECRET, plan, site), plan, running.headers[site].pairs, absent,
                signing_key(site),
            ),
        )  # fmt: skip
        by_site[site] |= {
            "agreed": agree(Nothing(), plan, headers, signing_key(site)).hex(),
            "reveal": sealed.hex(),
            "pairs": pairs.hex(),
        }
        parts.append(replace(part, reveal=sealed, pairs=pairs))
    total = replace(closed, contributions=tuple(parts))
    golden = Golden(roster, manifest, plan, model, keys, total, bound, running.commitments)
    return {
        **_documents(golden, document),
        "absent": absent,
        "set": set_digest(headers),
        "sites": by_site,
        "sum": sum_parts(total),
        "opened": opened(golden, *seeds_of(golden)),
    }, golden  # fmt: skip


def large_round(keys: EpochKeys) -> tuple[dict[str, object], Golden]:
    """Return a round of 33 sites without masks, in which the server expands the seeds: three sent something."""
    first = ("north", "south", "west")
    sites = tuple(sorted((*first, *(f"site-{number:02}" for number in range(MOST_SEEDS - 2)))))
    settings = run_settings(sizes=dict.fromkeys(sites, 100), profile="precise", update_bound=0.25)
    model = model_of(Layout((("weight", (5000,)),)))
    members = tuple(member(site) if site in first else replace(member(site), sealing_key="") for site in sites)
    roster = replace(make_roster(), members=members)
    document, manifest, plan = _planned(settings, keys, model, number=1, attempt=1)
    running, by_site = RunningSum(plan), dict[str, dict[str, object]]()
    for number, site in enumerate(first):
        charge = Charge(Release(plan.run, 1, 1), manifest.round_cost, sha256(site.encode()).hexdigest())
        packed = pack(
            private(values_of(5000, number + 3, _LARGE), charge), 1.0, manifest.packing, Randomness.seeded(7, site)
        )
        tagged = tag_key().tag(mask(packed, None), plan, site)
        authenticated = mac_key().authenticate(keys.decryption.encrypt(tagged), plan, site)
        update = sign_update(
            authenticated, plan, model.layout, site, signing_key(site), weight=1.0, update_bound=0.25, mask=""
        )  # fmt: skip
        running.add(verify_update(update, site, plan, manifest, roster))
        by_site[site] = {
            "values": [number + 3, _LARGE],
            "rounding_key": sha256(repr((7, site)).encode()).hexdigest(),
            "seeds": Ciphertexts(update.chunks).seeds.hex(),
            "header": update.header.decode(),
            "signature": update.signature.hex(),
        }
    golden = Golden(roster, manifest, plan, model, keys, running.close(), 0.25, running.commitments)
    parts = sum_parts(golden.total)
    del parts["c1-0"]  # follows from the seeds
    return {
        **_documents(golden, document),
        "sites": by_site,
        "sum": parts,
        "c1": sha256(golden.total.c1[0]).hexdigest(),
        "opened": opened(golden, {}, {}),
    }, golden


def opened(golden: Golden, seeds: Mapping[str, bytes], pairs: Mapping[str, Mapping[str, bytes]]) -> dict[str, object]:
    """Return what a site finds in a sum, step by step, to its new model."""
    chunks = mac_key().check(golden.total.ciphertexts, golden.plan, nonces_of(golden.headers))
    tags = TagKey(SECRET).check(golden.keys.decryption.decrypt(chunks), golden.plan, nonces_of(golden.headers))
    decrypted = joined(tags)
    unmasked = joined(unmask_sum([decrypted.copy()], seeds, pairs, golden.plan)) if seeds else decrypted
    size, weights = golden.model.layout.size, [header.weight for header in golden.headers.values()]
    packing = replace(golden.manifest.packing, update_bound=golden.bound)
    mean = unpack([unmasked], size, weights, packing)
    values: dict[str, object] = {
        "decrypted": words_digest(decrypted),
        "unmasked": words_digest(unmasked),
        "coefficients": unmasked[0, :SHOWN].tolist(),
        "mean": floats_digest(mean.vector),
        "first_of_mean": mean.vector[:SHOWN].tolist(),
        "next_update_bound": next_bound(mean, len(weights), golden.manifest.packing.update_bound),
    }
    model = average(golden.model, mean)
    return values | {"model_digest": model.digest, "first_of_model": model.vector[:SHOWN].tolist()}


def seeds_of(golden: Golden) -> tuple[dict[str, bytes], dict[str, dict[str, bytes]]]:
    """Return the seeds that the sites showed for a sum: of their own masks, and of those shared with who is absent."""
    own, pairs, absent = {}, {}, absent_from(golden.plan, golden.headers)
    for header, part in zip(golden.headers.values(), golden.total.contributions, strict=True):
        if header.mask:
            key, plan = golden.roster.member(header.site).verification_key, golden.plan
            sealed = (
                verify_seed(part.reveal, plan, header.mask, key),
                verify_pairs(part.pairs, plan, header.pairs, absent, key),
            )  # fmt: skip
            own[header.site] = open_seed(sealed[0], SECRET, plan, header.site, header.mask)
            pairs[header.site] = open_pairs(sealed[1], absent, SECRET, plan, header.site, header.pairs)
    return own, pairs


def model_of(layout: Layout) -> Model:
    """Return a model that is easily written down: value j is ((7919·j) mod 2001 − 1000)/1000, in float32."""
    numbers = (7919 * np.arange(layout.size)) % 2001 - 1000
    return Model((numbers / 1000).astype(np.float32), layout)


def values_of(size: int, factor: int, scale: float) -> NDArray[np.float32]:
    """Return an update that is easily written down: value j is ((31·factor·j) mod 401 − 200)/scale, in float32."""
    return (((31 * factor * np.arange(size)) % 401 - 200) / scale).astype(np.float32)


def words_digest(words: NDArray[np.uint64]) -> str:
    """SHA-256 of integers as little-endian words of 64 bits."""
    return sha256(words.astype("<u8").tobytes()).hexdigest()


def floats_digest(values: NDArray[np.floating]) -> str:
    """SHA-256 of values as little-endian float32."""
    return sha256(values.astype("<f4").tobytes()).hexdigest()


def text(data: bytes) -> str:
    """Return bytes in base64."""
    return b64encode(data).decode()


def sum_parts(total: EncryptedSum) -> dict[str, str]:
    """Return a sum's arrays in base64, by name and in order."""
    return {name: text(array.data) for name, array in sum_to_arrays(total).items()}


class Nothing:
    """A record that is not kept."""

    def note(self, run: str, action: str, value: str) -> None:
        """Do nothing."""

    def find(self, run: str, action: str) -> None:
        """Find nothing."""


def _planned(
    settings: RunSettings, keys: EpochKeys, model: Model, *, number: int, attempt: int
) -> tuple[SignedDocument, Manifest, RoundPlan]:
    document = sign_manifest(settings, signing_key("coordinator"), roster_version=3)
    manifest, run = open_manifest(document.to_bytes(), signing_key("coordinator").public_key())
    plan = RoundPlan(
        run=run,
        round=number,
        attempt=attempt,
        cohort=tuple(settings.cohort.sizes),
        roster_version=3,
        epoch=keys.epoch,
        keys=keys.fingerprint,
        minimum_cohort=3,
        deadline=DEADLINE,
        base_model=model.digest,
    )
    return document, manifest, plan


def _documents(golden: Golden, document: SignedDocument) -> dict[str, object]:
    return {
        "roster": sign_roster(golden.roster, authority_key()).to_bytes().decode(),
        "manifest": document.to_bytes().decode(),
        "plan": golden.plan.to_bytes().decode(),
        "plan_digest": golden.plan.digest,
        "layout": golden.model.layout.shapes,
        "layout_digest": golden.model.layout.digest,
        "update_bound": golden.bound,
    }
