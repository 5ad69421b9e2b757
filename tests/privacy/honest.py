"""One round of three honest sites, and what a site does with the sum that the server delivers."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from privacy.codec.packing import unpack
from privacy.crypto.summation import EncryptedSum, check_sum
from tests.privacy.consortium import (
    PARAMETERS,
    SITES,
    Round,
    decryption_key,
    mac_key,
    make_round,
    nonces_of,
    tag_key,
)

if TYPE_CHECKING:
    from privacy.codec.envelope import SignedUpdate
    from privacy.codec.update import Update

OTHER = "f" * 64
VECTORS = {site: np.linspace(-0.9, 0.9, PARAMETERS) * (place + 1) / 3 for place, site in enumerate(SITES)}


@cache
def this_round() -> Round:
    return make_round()


@cache
def updates() -> dict[str, SignedUpdate]:
    """One honest update of every site."""
    return {site: this_round().update(site, vector) for site, vector in VECTORS.items()}


@cache
def honest_sum() -> EncryptedSum:
    return this_round().total(updates())


def open_sum(total: EncryptedSum, of: Round | None = None) -> Update:
    """Do what a site does with a sum that the server delivers."""
    of = of or this_round()
    plan, headers = check_sum(total, of.run, of.manifest, of.roster)
    chunks = mac_key().check(total.ciphertexts, plan, nonces_of(headers))
    blocks = tag_key().check(decryption_key().decrypt(chunks), plan, nonces_of(headers))
    weights = [header.weight for header in headers.values()]
    return unpack(blocks, of.model.layout.size, weights, of.manifest.packing)
