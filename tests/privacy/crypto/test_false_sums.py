"""A server that lies about c0 and codes, which nobody signed: nothing is decrypted of a sum that is another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest

from privacy.codec.ciphertext import COEFF_MODULUS, Accumulator, Ciphertexts, add_residues, pack60, residues
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE, Profile, unpack
from privacy.codec.update import Update
from privacy.crypto import encryption
from privacy.errors import AuthenticityError, CloisterError
from tests.privacy.consortium import (
    PARAMETERS,
    SITES,
    decryption_key,
    make_round,
    parts_of,
    run_settings,
)
from tests.privacy.honest import VECTORS, honest_sum, open_sum, this_round, updates

if TYPE_CHECKING:
    from privacy.codec.envelope import SignedUpdate
    from privacy.crypto.summation import EncryptedSum

PROFILES: tuple[Profile, ...] = get_args(Profile)


def _decrypt(key: bytes, chunk: object) -> None:
    del key, chunk
    pytest.fail("this was decrypted")


def claimed(total: EncryptedSum, *sent: SignedUpdate) -> EncryptedSum:
    """Put the sum of other updates, with their codes, into the place of a sum's."""
    added = Accumulator(1)
    for update in sent:
        added.add(Ciphertexts(update.chunks))
    return replace(total, c0=added.chunks(), codes=added.code_bytes)


def test_one_sites_update_is_not_accepted_as_the_sum_of_three() -> None:
    # Three times one ciphertext, with its seeds under everybody's header: were the seeds not signed, every site
    # would decrypt three times north's update, and the "mean" would be what north alone had sent.
    north = updates()["north"]
    parts = tuple(replace(part, seeds=parts_of(north).seed) for part in honest_sum().contributions)
    total = claimed(replace(honest_sum(), contributions=parts), *[north] * 3)
    opened = decryption_key().decrypt(total.ciphertexts.chunks())
    assert isinstance(unpack(opened, PARAMETERS, [1.0] * 3, this_round().manifest.packing), Update)
    with pytest.raises(AuthenticityError, match="the seeds of south's update are not those that it signed"):
        open_sum(total)


def test_an_update_of_an_earlier_round_cannot_take_the_place_of_this_rounds() -> None:
    north, south, west = (updates()[site] for site in SITES)
    earlier = make_round(number=1).update("north", VECTORS["north"])
    parts = list(honest_sum().contributions)
    parts[0] = replace(parts[0], seeds=parts_of(earlier).seed)
    lie = claimed(honest_sum(), earlier, south, west)
    with pytest.raises(AuthenticityError, match="the seeds of north's update"):
        open_sum(replace(lie, contributions=tuple(parts)))
    with pytest.raises(AuthenticityError, match="nothing was decrypted"):
        open_sum(lie)
    assert claimed(honest_sum(), north, south, west) == honest_sum()


@pytest.mark.parametrize(
    "sites",
    [
        pytest.param(("north",), id="one alone"),
        pytest.param(("north", "south"), id="one left out"),
        pytest.param(("north", "south", "west", "west"), id="one doubled"),
        pytest.param(("north", "north", "north"), id="one thrice"),
    ],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_a_c0_that_is_not_the_sum_of_all_is_refused_though_its_codes_fit(
    sites: tuple[str, ...], profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = make_round(run_settings(profile=profile))
    sent = {site: of.update(site, VECTORS[site]) for site in SITES}
    total = of.total(sent)
    assert isinstance(open_sum(total, of), Update)
    monkeypatch.setattr(encryption, "_decrypt", _decrypt)
    with pytest.raises(AuthenticityError, match="nothing was decrypted"):
        open_sum(claimed(total, *(sent[site] for site in sites)), of)


def test_a_server_that_adds_a_constant_to_the_sum_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "_decrypt", _decrypt)
    total = honest_sum()
    shift = np.zeros((1, RING_DEGREE), np.uint64)
    shift[0, 0] = 500 * (COEFF_MODULUS // PLAIN_MODULUS)  # 500 levels of the first parameter
    words = residues(total.c0[0]).copy()
    add_residues(words, shift)
    with pytest.raises(AuthenticityError, match="nothing was decrypted"):
        open_sum(replace(total, c0=(pack60(words.reshape(-1)),)))


@pytest.mark.parametrize("part", ["c0", "codes", "seeds"])
def test_a_sum_with_a_flipped_bit_is_not_decrypted(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    total, generator = honest_sum(), np.random.default_rng(3)
    assert isinstance(open_sum(total), Update)
    monkeypatch.setattr(encryption, "_decrypt", _decrypt)
    with pytest.raises(pytest.fail.Exception, match="this was decrypted"):
        open_sum(total)
    first, *others = total.contributions
    data = {"c0": total.c0[0], "codes": total.codes, "seeds": first.seeds}[part]
    for bit in [0, 8 * len(data) - 1, *generator.integers(0, 8 * len(data), 20).tolist()]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        changed = bytes(flipped)
        lie = {
            "c0": lambda changed=changed: replace(total, c0=(changed,)),
            "codes": lambda changed=changed: replace(total, codes=changed),
            "seeds": lambda changed=changed: replace(total, contributions=(replace(first, seeds=changed), *others)),
        }[part]()
        with pytest.raises(CloisterError):
            open_sum(lie)
