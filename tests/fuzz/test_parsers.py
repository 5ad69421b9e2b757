"""Whatever bytes come from outside: a result or an error of ours, and no more memory than they are worth."""

from __future__ import annotations

import ssl
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import CloisterError, KeyFileError, LedgerError
from tests.fuzz.parsers import TRICKY, parsers

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

MEMORY = 4 << 20  # bytes that any parser may take, whatever it is given
FOR_EACH_BYTE = 64  # and this much more for each byte of its input


@dataclass(frozen=True)
class Case:
    parser: str
    data: bytes

    def __repr__(self) -> str:
        return f"Case({self.parser!r}, {self.data[:2000]!r}) of {len(self.data):,} bytes"


@st.composite
def cases(draw: DrawFn) -> Case:
    """A parser's name, and bytes that are mostly like those that it accepts."""
    name = draw(st.sampled_from(sorted(parsers())))
    seeds = parsers()[name].seeds
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        data = draw(edits(data, draw(st.sampled_from(seeds))))
    return Case(name, data)


@st.composite
def edits(draw: DrawFn, data: bytes, other: bytes) -> bytes:
    start = draw(st.integers(0, len(data)))
    end = draw(st.integers(start, min(len(data), start + 40)) | st.integers(start, len(data)))
    before, between, after = data[:start], data[start:end], data[end:]
    middle = draw(
        st.sampled_from(TRICKY)  # also cuts, with nothing in its place
        | st.binary(max_size=16)
        | st.integers(2, 20).map(lambda times: between * times)
        | st.integers(0, len(other)).map(lambda place: other[place : place + 40])
        | st.integers(0, 7).map(lambda bit: bytes([between[0] ^ 1 << bit]) + between[1:] if between else b"")
    )
    return draw(st.sampled_from([before + middle + after, before + middle, middle + after, middle]))


def test_the_seeds_of_the_fuzzing_are_accepted() -> None:
    for parser in parsers().values():
        for seed in parser.seeds:
            parser.parse(seed)


@pytest.mark.filterwarnings("ignore")  # odd certificates, for example, only deserve a warning
@settings(max_examples=600)  # `make fuzz` tries as many as there is time for
@given(cases())
def test_any_bytes_are_parsed_or_refused_and_take_little_memory(case: Case) -> None:
    tracemalloc.start()
    try:
        parsers()[case.parser].parse(case.data)
    except CloisterError as error:
        assert str(error), "an error without a word"  # noqa: PT017 - any of ours will do
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY + FOR_EACH_BYTE * len(case.data)


P256 = bytes.fromhex("2a8648ce3d030107")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x42"),  # a version that there is not
        (P256, b"\0" + P256[1:]),  # a curve that nobody knows
        (P256 + b"\x03\x42\0\x04", P256 + b"\x03\x42\0\x05"),  # a point that is none
    ],
)
def test_a_certificate_that_cannot_be_used_is_refused_in_our_words(before: bytes, after: bytes) -> None:
    parser = parsers()["authority's certificate"]
    certificate = ssl.PEM_cert_to_DER_cert(parser.seeds[0].decode())
    assert before in certificate
    with pytest.raises(KeyFileError, match="not a readable PEM certificate"):
        parser.parse(ssl.DER_cert_to_PEM_cert(certificate.replace(before, after)).encode())


@pytest.mark.parametrize("kind", ["MC4CAQAwBQYDK3VwBCIEIAYh", "MC4CAQAwBQYDK2VvBCIEIAYh"])  # unknown; X448, too short
def test_a_signing_key_of_another_kind_is_refused_in_our_words(kind: str) -> None:
    pem = f"-----BEGIN PRIVATE KEY-----\n{kind}UYxpXPi1KVf9VVGqeCoz6xb9iwBPawp09FxMHkAs\n-----END PRIVATE KEY-----\n"
    with pytest.raises(KeyFileError, match="not a readable private key"):
        parsers()["signing key"].parse(pem.encode())


def test_a_ledger_of_brackets_is_refused_in_our_words() -> None:
    with pytest.raises(LedgerError, match="cannot read this entry"):
        parsers()["ledger, rightly signed"].parse(b"[" * 100_000)


@pytest.mark.parametrize(("before", "after"), [(rb'"run\"', rb'"ran\"'), (rb"round\": 3", rb"round\":[]")])
def test_a_checkpoint_with_an_incomplete_note_is_refused_with_our_own_message(before: bytes, after: bytes) -> None:
    parser = parsers()["checkpoint"]
    assert before in parser.seeds[0]
    with pytest.raises(KeyFileError, match="damaged"):
        parser.parse(parser.seeds[0].replace(before, after))
