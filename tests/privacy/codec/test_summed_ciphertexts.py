"""A sum as a site gets it: every chunk with its seeds, or c1, and codes; parts that do not fit are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from privacy.codec.ciphertext import (
    C0_BYTES,
    SEED_BYTES,
    SummedCiphertexts,
)
from privacy.codec.packing import BLOCK
from privacy.errors import MalformedError


def sum_of(count: int, sites: int = 2) -> SummedCiphertexts:
    blocks = [bytes(min(BLOCK, count - start) * C0_BYTES) for start in range(0, count, BLOCK)]
    seeds = tuple(bytes([site]) * count * SEED_BYTES for site in range(sites))
    codes = np.arange(count, dtype="<u8").tobytes()
    return SummedCiphertexts(tuple(blocks), seeds, (), codes)


def test_each_chunk_of_a_sum_comes_with_the_seeds_of_its_ciphertexts_by_site() -> None:
    count = 2 * BLOCK + 1
    generator = np.random.default_rng(1)
    seeds = tuple(generator.bytes(count * SEED_BYTES) for _ in range(3))
    total = replace(sum_of(count), seeds=seeds)
    total.check(count)
    chunks = list(total.chunks())
    assert [chunk.c0 for chunk in chunks] == list(total.c0)
    assert [len(chunk.seeds[0]) // SEED_BYTES for chunk in chunks] == [BLOCK, BLOCK, 1]
    assert tuple(map(b"".join, zip(*(chunk.seeds for chunk in chunks), strict=True))) == seeds
    assert {chunk.c1 for chunk in chunks} == {b""}
    assert [len(chunk.codes) for chunk in chunks] == [BLOCK, BLOCK, 1]
    assert [code for chunk in chunks for code in chunk.codes] == list(range(count))


def test_each_chunk_of_a_large_cohorts_sum_comes_with_its_c1_and_no_seed() -> None:
    total = sum_of(BLOCK + 1)
    total = replace(total, seeds=(b"",) * 40, c1=total.c0)
    total.check(BLOCK + 1)
    codes = [list(range(BLOCK)), [BLOCK]]
    assert list(total.chunks()) == [(c0, [], c0, code) for c0, code in zip(total.c0, codes, strict=True)]


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param((), id="no site"),
        pytest.param((b"",), id="empty seeds"),
        pytest.param((bytes(127),), id="a cut seed"),
        pytest.param((bytes(129),), id="a padded seed"),
        pytest.param((bytes(192),), id="seeds of three ciphertexts for two"),
        pytest.param((bytes(64),), id="seeds of one ciphertext for two"),
        pytest.param((bytes(128), bytes(127)), id="the second site's seed cut"),
        pytest.param((bytes(128), b""), id="the second site's seeds missing"),
        pytest.param((b"", bytes(128)), id="the first site's seeds missing"),
    ],
)
def test_seeds_that_do_not_belong_to_a_sum_are_refused(seeds: tuple[bytes, ...]) -> None:
    with pytest.raises(
        MalformedError, match="the seeds do not belong to a sum of 2 ciphertexts; the sum was not decrypted"
    ):
        replace(sum_of(2), seeds=seeds).check(2)


@pytest.mark.parametrize("length", [0, 8, 15, 17, 24])
def test_codes_that_do_not_belong_to_a_sum_are_refused(length: int) -> None:
    with pytest.raises(MalformedError, match=f"{length} bytes are the wrong length for the codes of 2 ciphertexts"):
        replace(sum_of(2), codes=bytes(length)).check(2)


def test_a_sum_with_both_seeds_and_c1_or_neither_is_refused() -> None:
    total = sum_of(2)
    for wrong in (replace(total, c1=total.c0), replace(total, seeds=(b"", b""))):
        with pytest.raises(MalformedError, match="the seeds do not belong"):
            wrong.check(2)


@pytest.mark.parametrize("part", ["c0", "c1"])
@pytest.mark.parametrize(
    "lengths", [(0,), (1,), (2 * C0_BYTES - 15,), (2 * C0_BYTES + 15,), (C0_BYTES, C0_BYTES), (2 * C0_BYTES, 0)]
)
def test_a_sum_that_was_cut_or_padded_is_refused(part: str, lengths: tuple[int, ...]) -> None:
    total = sum_of(2)
    total = replace(total, seeds=(), c1=total.c0)
    total.check(2)
    changes: dict[str, Any] = {part: tuple(bytes(length) for length in lengths)}
    with pytest.raises(MalformedError, match="they were cut or padded"):
        replace(total, **changes).check(2)
