"""A body is right if its code, its tag and its noise are: then sums of such bodies open."""

from __future__ import annotations

import json

import numpy as np
import pytest

from privacy.codec.ciphertext import C0_BYTES, COEFF_MODULUS, SEED_BYTES, pack60, unpack60
from privacy.codec.envelope import SignedUpdate, verify_update
from privacy.codec.packing import RING_DEGREE
from privacy.crypto.encryption import EncryptedUpdate
from privacy.crypto.key_epoch import EpochKeys
from privacy.crypto.verdict import is_right, sign_verdict, verify_verdict
from privacy.errors import AuthenticityError, MalformedError
from privacy.run.plan import MOST_SEEDS
from tests.privacy.consortium import (
    CHARGE,
    SECRET,
    Round,
    decryption_key,
    mac_key,
    make_round,
    parts_of,
    resigned,
    run_settings,
    signing_key,
)

KEYS = EpochKeys(2, decryption_key(), SECRET)


def judged(of: Round, update: SignedUpdate, site: str = "north") -> bool:
    return is_right(verify_update(update, site, of.plan, of.manifest, of.roster), of.plan, KEYS)


def shifted(of: Round, update: SignedUpdate, by: int, place: int | None = None) -> SignedUpdate:
    """Add to one coefficient of c0, or to all, and adapt the code."""
    words = unpack60(parts_of(update).c0).copy()
    chosen = slice(None) if place is None else slice(place, place + 1)
    words[chosen] = (words[chosen] + np.uint64(by % COEFF_MODULUS)) % np.uint64(COEFF_MODULUS)
    nonce = json.loads(update.header)["nonce"]
    changed = EncryptedUpdate(iter([(pack60(words), parts_of(update).seed)]), CHARGE, nonce)
    (chunk,) = mac_key().authenticate(changed, of.plan, "north").ciphertexts.chunks
    return resigned(update, "north", {}, chunk)


@pytest.mark.parametrize("size", [20, 12_285 * 33 + 1], ids=["one ciphertext", "two chunks"])
def test_an_honest_update_is_right(size: int) -> None:
    of = make_round(size=size)
    assert judged(of, of.update("north", np.linspace(-1, 1, size)))


def test_an_honest_update_is_right_in_a_large_cohort() -> None:
    sites = [f"site-{number}" for number in range(MOST_SEEDS + 1)]
    of = make_round(run_settings(sizes=dict.fromkeys(sites, 100)))
    assert of.plan.expanded
    assert judged(of, of.update("site-3", np.zeros(20)), "site-3")


def test_a_code_or_a_tag_that_is_off_by_one_is_wrong() -> None:
    of = make_round()
    update = of.update("north", np.zeros(20))
    (chunk,) = update.chunks
    code = (int.from_bytes(parts_of(update).code, "little") + 1) % COEFF_MODULUS
    assert not judged(of, resigned(update, "north", {}, chunk[: C0_BYTES + SEED_BYTES] + code.to_bytes(8, "little")))
    assert not judged(of, shifted(of, update, COEFF_MODULUS >> 48, RING_DEGREE - 1))
    assert not judged(of, shifted(of, update, COEFF_MODULUS >> 48, 7))  # a value, under the tag of another


@pytest.mark.parametrize("noise", [60, -60, 500, 2000, -2000])
def test_noise_that_only_a_sum_would_not_bear_is_wrong(noise: int) -> None:
    of = make_round()
    update = of.update("north", np.zeros(20))
    for place in (None, 0, RING_DEGREE - 1):
        assert not judged(of, shifted(of, update, noise, place))


@pytest.mark.parametrize("noise", [3, -3])
def test_noise_as_an_honest_site_may_have_is_right(noise: int) -> None:
    of = make_round()
    assert judged(of, shifted(of, of.update("north", np.zeros(20)), noise))


def test_a_malformed_body_is_not_judged() -> None:
    of = make_round()
    update = of.update("north", np.zeros(20))
    words = unpack60(parts_of(update).c0).copy()
    words[5] = COEFF_MODULUS
    with pytest.raises(MalformedError, match="not below the modulus"):
        judged(of, resigned(update, "north", {}, pack60(words) + b"".join(parts_of(update)[1:])))


def test_a_verdict_applies_to_one_plan_and_header_and_has_one_meaning() -> None:
    of, other = make_round(), make_round(number=2)
    key = signing_key("south").public_key()
    signature = sign_verdict(signing_key("south"), of.plan, b"header", right=False)
    verify_verdict(key, of.plan, b"header", signature, right=False)
    for plan, header, right in (
        (other.plan, b"header", False),
        (of.plan, b"another", False),
        (of.plan, b"header", True),
    ):
        with pytest.raises(AuthenticityError):
            verify_verdict(key, plan, header, signature, right=right)
