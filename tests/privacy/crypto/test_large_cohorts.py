"""For more than 32 sites the server expands the seeds itself: the sum contains c1, as exact and as well protected."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from privacy.codec.ciphertext import C0_BYTES, CODE_BYTES, COEFF_MODULUS, SEED_BYTES, add_residues, pack60, residues
from privacy.codec.envelope import sign_update, verify_update
from privacy.codec.packing import PLAIN_MODULUS, Profile, unpack
from privacy.crypto.encryption import DecryptionKey
from privacy.crypto.expansion import expand
from privacy.crypto.summation import EncryptedSum, RunningSum, check_sum
from privacy.errors import AuthenticityError, CloisterError, MalformedError, ProtocolError
from privacy.ledger.ledger import Charge, Release
from privacy.noise.randomness import Randomness
from privacy.run.plan import MOST_SEEDS
from tests.privacy.consortium import (
    PARAMETERS,
    Round,
    decryption_key,
    joined,
    mac_key,
    make_round,
    nonce_of,
    nonces_of,
    packed,
    protect,
    resigned,
    run_settings,
    signing_key,
    tag_key,
    unmasked,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGE = MOST_SEEDS + 1
LAST = 4095
STEP = COEFF_MODULUS // PLAIN_MODULUS


class CohortSum(NamedTuple):
    """A round's sum, and the coefficients that it should decrypt to, but for the tags."""

    of: Round
    total: EncryptedSum
    exact: NDArray[np.uint64]
    vectors: NDArray[np.float32]


def make_sum(sites: int, *, profile: Profile = "compact", size: int = PARAMETERS, absent: int = 0) -> CohortSum:
    """Let this many sites contribute, with a few absent, and the server add."""
    sizes = {f"site-{number}": 100 + number for number in range(sites + absent)}
    of = make_round(run_settings(sizes=sizes, minimum=sites, profile=profile), size=size)
    packing, running = of.manifest.packing, RunningSum(of.plan)
    exact = np.zeros((packing.ciphertexts(size), 4096), np.uint64)
    vectors = np.random.default_rng(sites).normal(scale=0.4, size=(sites, size)).astype(np.float32)
    for number, vector in enumerate(vectors):
        site = f"site-{number}"
        weight = of.manifest.weight(site)
        coefficients = packed(vector, weight, packing, Randomness.seeded(number))
        exact += coefficients
        charge = Charge(Release(of.run, of.plan.round, of.plan.attempt), of.manifest.round_cost, "0" * 64)
        update = sign_update(
            protect(unmasked(coefficients, charge), of.plan, site),
            of.plan,
            of.model.layout,
            site,
            signing_key(site),
            weight=weight,
            update_bound=packing.update_bound,
            mask="",
        )
        running.add(verify_update(update, site, of.plan, of.manifest, of.roster))
    return CohortSum(of, running.close(), exact, vectors)


@cache
def large() -> CohortSum:
    return make_sum(LARGE)


@cache
def small() -> CohortSum:
    return make_sum(MOST_SEEDS)


def opened(total: EncryptedSum, of: Round) -> NDArray[np.uint64]:
    """Check and decrypt a sum as a site does; return its coefficients."""
    plan, headers = check_sum(total, of.run, of.manifest, of.roster)
    # Every site opens it by itself: with its own copy of the key.
    key = DecryptionKey.from_bytes(decryption_key().to_bytes())
    chunks = mac_key().check(total.ciphertexts, plan, nonces_of(headers))
    return joined(tag_key().check(key.decrypt(chunks), plan, nonces_of(headers)))


def is_exact(sum_: CohortSum) -> bool:
    return bool((opened(sum_.total, sum_.of)[:, :LAST] == sum_.exact[:, :LAST]).all())


def seedless(total: EncryptedSum) -> EncryptedSum:
    return replace(total, contributions=tuple(replace(part, seeds=b"") for part in total.contributions))


def expanded(total: EncryptedSum) -> tuple[bytes]:
    """Add up c1 of a sum with one ciphertext, from its seeds."""
    c1 = np.zeros((1, 4096), np.uint64)
    for part in total.contributions:
        add_residues(c1, expand(part.seeds).reshape(1, -1))
    return (pack60(c1.reshape(-1)),)


# --- As it should go -----------------------------------------------------------------------------------------------


def test_a_sum_contains_every_seed_for_up_to_32_sites_and_only_c1_beyond() -> None:
    assert [len(part.seeds) for part in small().total.contributions] == [SEED_BYTES] * MOST_SEEDS
    assert small().total.c1 == ()
    assert {part.seeds for part in large().total.contributions} == {b""}
    assert [len(chunk) for chunk in large().total.c1] == [len(chunk) for chunk in large().total.c0] == [C0_BYTES]
    assert large().total.size == 2 * C0_BYTES + CODE_BYTES
    assert is_exact(small())
    assert is_exact(large())


@pytest.mark.parametrize("profile", ["compact", "precise", "dense"])
def test_a_large_cohorts_sum_of_more_than_one_chunk_is_exact(profile: Profile) -> None:
    # The cohort decides, not who came: 5 contributors of 33 get c1 too.
    sum_ = make_sum(5, profile=profile, size=33 * 4 * LAST, absent=28)
    assert len(sum_.total.c1) == len(sum_.total.c0) > 1
    assert is_exact(sum_)


def test_every_site_arrives_at_the_same_mean_of_the_contributors() -> None:
    of, total, _, vectors = large()
    _, headers = check_sum(total, of.run, of.manifest, of.roster)
    weights = [header.weight for header in headers.values()]
    means = [unpack([opened(total, of)], PARAMETERS, weights, of.manifest.packing).vector for _ in range(2)]
    assert means[0].tobytes() == means[1].tobytes()
    expected = np.clip(np.array(vectors) * np.array(weights)[:, None], -1, 1).sum(axis=0) / sum(weights)
    np.testing.assert_allclose(means[0], expected, rtol=0, atol=of.manifest.packing.max_error(weights) + 1e-6)


@pytest.mark.parametrize("sites", [200, pytest.param(1_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("profile", ["compact", pytest.param("precise", marks=pytest.mark.soak)])
def test_hundreds_of_sites_are_summed_exactly_through_encryption(profile: Profile, sites: int) -> None:
    sum_ = make_sum(sites, profile=profile)
    assert len(sum_.total.contributions) == sites
    assert sum_.total.size == 2 * C0_BYTES + CODE_BYTES
    assert is_exact(sum_)


# --- What is refused -----------------------------------------------------------------------------------------------


def refused(total: EncryptedSum, of: Round, error: type[CloisterError], message: str) -> None:
    with pytest.raises(error, match=message):
        check_sum(total, of.run, of.manifest, of.roster)


def test_a_small_cohorts_sum_with_c1_is_refused_with_its_seeds_or_without() -> None:
    of, total = small().of, small().total
    with_c1 = replace(total, c1=expanded(total))
    message = "has no part c1, or has one although its cohort is too small; it was not opened"
    refused(with_c1, of, MalformedError, message)
    refused(seedless(with_c1), of, AuthenticityError, "the seeds of site-0's update are not those that it signed")
    # It would decrypt: nothing but the rule refuses it.
    coefficients = joined(decryption_key().decrypt(seedless(with_c1).ciphertexts.chunks()))
    np.testing.assert_array_equal(coefficients[:, :LAST], small().exact[:, :LAST])


def test_a_large_cohorts_sum_without_c1_is_refused() -> None:
    of, total = large().of, large().total
    refused(replace(total, c1=()), of, MalformedError, "has no part c1")


def test_a_large_cohorts_sum_with_seeds_besides_is_refused() -> None:
    of, total = large().of, large().total
    parts = tuple(replace(part, seeds=bytes(SEED_BYTES)) for part in total.contributions)
    refused(replace(total, contributions=parts), of, MalformedError, "the seeds do not belong to a sum")
    one = (replace(total.contributions[0], seeds=b"x"), *total.contributions[1:])
    refused(replace(total, contributions=one), of, MalformedError, "the seeds do not belong to a sum")


@pytest.mark.parametrize("part", ["c0", "c1"])
@pytest.mark.parametrize("lengths", [(0,), (C0_BYTES - 15,), (C0_BYTES + 15,), (C0_BYTES, C0_BYTES)])
def test_a_part_that_was_cut_or_padded_is_refused(part: str, lengths: tuple[int, ...]) -> None:
    of, total = large().of, large().total
    changes: dict[str, Any] = {part: tuple((getattr(total, part)[0] * 2)[:length] for length in lengths)}
    refused(replace(total, **changes), of, MalformedError, "they were cut or padded")


def test_a_c1_of_no_residues_is_refused() -> None:
    of, total = large().of, large().total
    words = residues(total.c1[0]).copy()
    words[0, 17] = COEFF_MODULUS
    with pytest.raises(MalformedError, match="not below the modulus q"):
        opened(replace(total, c1=(pack60(words.reshape(-1)),)), of)


def shifted(total: EncryptedSum, part: str, shift: int, place: int = 3) -> EncryptedSum:
    """Add a number to one residue of a part, which takes no key."""
    words = residues(getattr(total, part)[0]).copy()
    constant = np.zeros_like(words)
    constant[0, place] = shift
    add_residues(words, constant)
    changes: dict[str, Any] = {part: (pack60(words.reshape(-1)),)}
    return replace(total, **changes)


@pytest.mark.parametrize("part", ["c0", "c1"])
@pytest.mark.parametrize("shift", [1, STEP // 4, 1 << 40, STEP, COEFF_MODULUS - (1 << 40), COEFF_MODULUS - 1])
def test_a_change_of_c0_or_c1_is_refused_however_small(part: str, shift: int) -> None:
    # A change as small as the noise changes no value: the tag would let it pass.
    changed = shifted(large().total, part, shift)
    with pytest.raises(AuthenticityError, match="nothing was decrypted"):
        opened(changed, large().of)
    if shift in {1, COEFF_MODULUS - 1}:
        plan, headers = check_sum(changed, large().of.run, large().of.manifest, large().of.roster)
        blocks = tag_key().check(decryption_key().decrypt(changed.ciphertexts.chunks()), plan, nonces_of(headers))
        np.testing.assert_array_equal(joined(blocks)[:, :LAST], large().exact[:, :LAST])


def test_refusals_of_disturbed_sums_do_not_reveal_the_key() -> None:
    # ¼ step on c1 adds ¼ step of each of the key's coefficients, −1, 0 or 1; with ⅜ more on one of them, that one is
    # rounded up if it is 1 in the key: by the tag alone, what opens tells the server the key, a coefficient a try.
    total, of = large().total, large().of
    plan, headers = check_sum(total, of.run, of.manifest, of.roster)
    by_tag_alone: list[bool] = []
    for place in np.random.default_rng(60).choice(LAST, 60, replace=False).tolist():
        disturbed = shifted(shifted(total, "c0", 3 * STEP // 8, place), "c1", STEP // 4, 0)
        with pytest.raises(AuthenticityError, match="nothing was decrypted"):
            opened(disturbed, of)
        blocks = tag_key().check(decryption_key().decrypt(disturbed.ciphertexts.chunks()), plan, nonces_of(headers))
        try:
            by_tag_alone.append(joined(blocks).size > 0)
        except AuthenticityError:
            by_tag_alone.append(False)
    assert 5 < sum(by_tag_alone) < 55


def test_the_code_and_the_tag_notice_a_server_that_leaves_a_site_out_of_both_parts() -> None:
    # Nobody but the server sees the seeds of a large cohort: c0 and c1 without one site fit each other.
    of, total, _, _ = make_sum(LARGE - 1, absent=1)
    _, headers = check_sum(total, of.run, of.manifest, of.roster)
    opened(total, of)
    nonces = nonces_of(headers)
    absent = next(site for site in of.plan.cohort if site not in nonces)
    for nonces_used in (nonces | {absent: nonce_of(absent)}, {site: nonces[site] for site in list(nonces)[1:]}):
        with pytest.raises(AuthenticityError, match="nothing was decrypted"):
            joined(decryption_key().decrypt(mac_key().check(total.ciphertexts, of.plan, nonces_used)))
        with pytest.raises(AuthenticityError, match="is not the sum of the updates"):
            joined(tag_key().check(decryption_key().decrypt(total.ciphertexts.chunks()), of.plan, nonces_used))


def test_a_header_that_was_signed_again_is_still_not_a_contribution_to_another_plan() -> None:
    of, total = large().of, large().total
    first = total.contributions[0]
    changed = first.header.replace(of.plan.digest.encode(), b"f" * 64)
    parts = (replace(first, header=changed), *total.contributions[1:])
    refused(replace(total, contributions=parts), of, AuthenticityError, "signature")
    refused(replace(total, contributions=parts[1:]), of, ProtocolError, "too few contributors")


def test_an_update_of_a_large_cohort_with_too_few_seeds_is_not_added() -> None:
    of = large().of
    update = of.update("site-0", np.zeros(PARAMETERS))
    (chunk,) = update.chunks
    cut = resigned(update, "site-0", {}, chunk[:-1])
    with pytest.raises(MalformedError, match="they were cut or padded"):
        RunningSum(of.plan).add(verify_update(cut, "site-0", of.plan, of.manifest, of.roster))
