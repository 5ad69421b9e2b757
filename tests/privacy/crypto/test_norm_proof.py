"""A proof of an honest site holds; whatever else is shown does not, and each of its checks is needed for that."""

from __future__ import annotations

import json
import secrets
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.crypto import norm_proof
from privacy.crypto.norm_proof import ROWS, Proof, Statement, _Relation, all_hold, commit, prove
from privacy.crypto.pedersen import BYTES, IDENTITY, ORDER, combine, generator
from privacy.errors import ConfigError, MalformedError, ProtocolError
from privacy.noise.randomness import Randomness

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT = sha256(b"a plan and its contributors").digest()
NUMBERS = [3, -1, 4, -1, 5, -9, 2, 6]
LIMIT = 200  # 173 are used
STATEMENT = Statement(CONTEXT, "north", 8, LIMIT)
BLINDING = 2**200 + 17
GOLDEN = Path(__file__).parent / "norm_proof.json"


@pytest.fixture(scope="module")
def proof() -> Proof:
    return prove(STATEMENT, NUMBERS, BLINDING)


def _draws(number: int) -> Callable[[int], int]:
    """Return a `randbelow` that always draws the same."""
    stream = Randomness.seeded(number, "norm proof")
    return lambda bound: int.from_bytes(stream.bytes(64), "little") % bound


def _holds(statement: Statement, proof: Proof) -> bool:
    return all_hold([(statement, proof)])


def test_an_honest_proof_holds_after_encoding(proof: Proof) -> None:
    data = proof.to_bytes()
    assert len(data) == STATEMENT.proof_bytes
    assert Proof.read(data, STATEMENT) == proof
    assert _holds(STATEMENT, proof)
    assert proof.commitment == commit(NUMBERS, BLINDING)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(-(2**44), 2**44), min_size=8, max_size=8), st.integers(0, 2**60))
def test_every_update_within_the_limit_can_be_proved(numbers: list[int], slack: int) -> None:
    statement = replace(STATEMENT, limit=max(1, sum(number**2 for number in numbers) + slack))
    assert _holds(statement, prove(statement, numbers, BLINDING))


def test_the_limit_may_be_met_exactly_and_not_passed() -> None:
    squares = sum(number * number for number in NUMBERS)
    exact = replace(STATEMENT, limit=squares)
    assert _holds(exact, prove(exact, NUMBERS, BLINDING))
    with pytest.raises(ProtocolError, match="the norm of north's update exceeds"):
        prove(replace(STATEMENT, limit=squares - 1), NUMBERS, BLINDING)


@pytest.mark.parametrize(("numbers", "limit"), [(0, 9), (12, 9), (1032, 9), (8, 0), (8, -1), (8, 1 << 100)])
def test_a_statement_whose_sums_could_overflow_is_refused(numbers: int, limit: int) -> None:
    with pytest.raises(ConfigError, match="cannot be proved to be within"):
        Statement(CONTEXT, "north", numbers, limit)


def test_the_largest_statement_cannot_carry() -> None:
    most = norm_proof._MOST_NUMBERS
    assert most * norm_proof._MASKS**2 + (2 << norm_proof._MOST_BITS) < ORDER
    # Numbers that keep a limit are at most √(k·B) together: what is shown of them stays in range.
    assert most << norm_proof._MOST_BITS <= norm_proof._MARGIN**2


# --- Another statement, another proof -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"context": sha256(b"another plan").digest()}, {"site": "south"}, {"limit": 201}, {"limit": 255}]
)
def test_a_proof_is_for_one_statement_alone(proof: Proof, changes: dict[str, object]) -> None:
    assert not _holds(replace(STATEMENT, **changes), proof)  # type: ignore[arg-type]


def test_a_proof_depends_on_the_count_of_numbers() -> None:
    wider = replace(STATEMENT, numbers=16)
    proof = prove(wider, [*NUMBERS, *[0] * 8], BLINDING)
    assert proof.commitment == commit(NUMBERS, BLINDING)
    with pytest.raises(MalformedError, match="are not a proof of the norm of north's update"):
        Proof.read(proof.to_bytes(), STATEMENT)


# --- Forgeries that only one check finds -----------------------------------------------------------------------------


def _other_point(point: bytes) -> bytes:
    return combine([(1, point), (1, generator("value"))])


def _plus_one(numbers: tuple[int, ...], index: int) -> tuple[int, ...]:
    return (*numbers[:index], (numbers[index] + 1) % ORDER, *numbers[index + 1 :])


FORGERIES: dict[str, Callable[[Proof], Proof]] = {
    "commitment": lambda p: replace(p, commitment=_other_point(p.commitment)),
    "hidden": lambda p: replace(p, hidden=_other_point(p.hidden)),
    "start of the numbers": lambda p: replace(p, starts=(_other_point(p.starts[0]), p.starts[1])),
    "start of the others": lambda p: replace(p, starts=(p.starts[0], _other_point(p.starts[1]))),
    "line": lambda p: replace(p, line=(_other_point(p.line[0]), p.line[1])),
    "line's end": lambda p: replace(p, line=(p.line[0], _other_point(p.line[1]))),
    "masked": lambda p: replace(p, masked=_plus_one(p.masked, 77)),
    "answer of a number": lambda p: replace(p, answers=_plus_one(p.answers, 0)),
    "answer of a mask": lambda p: replace(p, answers=_plus_one(p.answers, 8)),
    "answer of a bit": lambda p: replace(p, answers=_plus_one(p.answers, 8 + ROWS)),
    # Not in the transcript, so that each fails one equation and no other.
    "blinding of the numbers": lambda p: replace(p, blindings=_plus_one(p.blindings, 0)),  # type: ignore[arg-type]
    "blinding of the others": lambda p: replace(p, blindings=_plus_one(p.blindings, 1)),  # type: ignore[arg-type]
    "blinding of the equation": lambda p: replace(p, blindings=_plus_one(p.blindings, 2)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_proof_that_was_altered_does_not_hold(proof: Proof, forgery: str) -> None:
    assert not _holds(STATEMENT, FORGERIES[forgery](proof))


@pytest.mark.parametrize("place", range(3))
def test_each_equation_is_found_wrong_by_itself(proof: Proof, place: int) -> None:
    blindings = list(proof.blindings)
    blindings[place] += 1
    forged = replace(proof, blindings=(blindings[0], blindings[1], blindings[2]))
    wrong = [combine(terms) != IDENTITY for terms in norm_proof._equations(STATEMENT, forged)]
    assert wrong == [index == place for index in range(3)]


def test_two_wrong_proofs_do_not_make_up_for_each_other(proof: Proof) -> None:
    less = replace(proof, blindings=((proof.blindings[0] - 1) % ORDER, *proof.blindings[1:]))
    more = replace(proof, blindings=((proof.blindings[0] + 1) % ORDER, *proof.blindings[1:]))
    assert all_hold([(STATEMENT, proof)] * 2)
    assert not all_hold([(STATEMENT, less), (STATEMENT, more)])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_byte_of_a_proof_can_be_changed(proof: Proof, data: st.DataObject) -> None:
    altered = bytearray(proof.to_bytes())
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = Proof.read(bytes(altered), STATEMENT)
    except MalformedError:
        return
    assert not _holds(STATEMENT, read)


# --- Provers who lie: they know all secrets, and say what honest ones would -----------------------------------------


def _bits(number: int, count: int) -> list[int]:
    return [number >> place & 1 for place in range(count)]


def test_no_bits_prove_a_number_over_the_limit() -> None:
    long = [*NUMBERS[:-1], 30]
    left = LIMIT - sum(number * number for number in long)
    assert left < 0
    for bits in (_bits(left % 256, 8), [0] * 8, [left % ORDER, *[0] * 7], [left + 255, *[1] * 7]):
        assert not _holds(STATEMENT, norm_proof._prove(STATEMENT, long, BLINDING, bits))


def test_values_other_than_bits_would_prove_a_false_statement_if_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    long = [*NUMBERS[:-1], 30]
    left = LIMIT - sum(number * number for number in long)
    of = _Relation.of

    def without_bits(statement: Statement, *parts: object) -> _Relation:
        relation = of(statement, *parts)  # type: ignore[arg-type]
        first = len(relation.squares) - statement.bits
        linear = [*relation.linear[:first], *(1 << place for place in range(statement.bits))]
        return _Relation([*relation.squares[:first], *[0] * statement.bits], linear, relation.constant)

    monkeypatch.setattr(norm_proof._Relation, "of", without_bits)
    assert _holds(STATEMENT, norm_proof._prove(STATEMENT, long, BLINDING, [left % ORDER, *[0] * 7]))


def _roots_that_cancel() -> list[int]:
    """Return numbers whose squares add up to nothing modulo ℓ: a² + b² + c² + d² ≡ 0, as ℓ ≡ 1 modulo 4."""
    root = pow(2, (ORDER - 1) // 4, ORDER)  # of −1: 2 is not a square
    assert root * root % ORDER == ORDER - 1
    return [12345, 12345 * root % ORDER, *[0] * 6]


def test_numbers_that_carry_keep_the_limit_modulo_the_order_and_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = _roots_that_cancel()
    assert sum(number * number for number in numbers) % ORDER == 0
    # With masks that are in range, what they show is not; with what is cut to the range, nothing fits.
    monkeypatch.setattr(norm_proof, "_words", lambda masked: _words([word % norm_proof._MASKS for word in masked]))
    cheat = norm_proof._prove(STATEMENT, numbers, BLINDING, _bits(LIMIT, 8))
    assert _holds(STATEMENT, cheat)
    assert max(cheat.masked) >= norm_proof._MASKS
    cut = replace(cheat, masked=tuple(word % norm_proof._MASKS for word in cheat.masked))
    assert not _holds(STATEMENT, Proof.read(cut.to_bytes(), STATEMENT))


_words = norm_proof._words


# --- What it tells --------------------------------------------------------------------------------------------------


def test_two_proofs_of_one_statement_have_only_the_commitment_in_common(proof: Proof) -> None:
    other = prove(STATEMENT, NUMBERS, BLINDING)
    assert other.commitment == proof.commitment
    assert {other.hidden, *other.starts, *other.line}.isdisjoint({proof.hidden, *proof.starts, *proof.line})
    assert set(other.answers).isdisjoint(proof.answers)
    assert set(other.masked).isdisjoint(proof.masked)


def test_a_proof_can_be_simulated_from_the_challenges(proof: Proof, monkeypatch: pytest.MonkeyPatch) -> None:
    # The simulator of the zero-knowledge argument, for the commitment of a site whose numbers it has never seen.
    draw, challenge = _draws(5), 2**250 + 9
    rows = np.array([[draw(2) for _ in range(8)] for _ in range(ROWS)], dtype=np.uint8)
    monkeypatch.setattr(norm_proof._Transcript, "rows", lambda *_: rows)
    monkeypatch.setattr(norm_proof._Transcript, "scalar", lambda *_: challenge)
    w = tuple(draw(norm_proof._MASKS) for _ in range(ROWS))
    z = tuple(draw(ORDER) for _ in range(8 + ROWS + STATEMENT.bits))
    hidden, t1 = (combine([(draw(ORDER), generator("blinding"))]) for _ in range(2))
    first, second, third = (draw(ORDER) for _ in range(3))
    at = _Relation.of(STATEMENT, rows, w, challenge).at(z, challenge)
    starts = (
        combine([(1, commit(z[:8], first)), (-challenge, proof.commitment)]),
        combine([(1, norm_proof._commit_hidden(z[8:], second)), (-challenge, hidden)]),
    )
    line = t1, combine([(1, norm_proof._commit_value(at, third)), (-challenge, t1)])
    assert _holds(STATEMENT, Proof(proof.commitment, hidden, w, starts, line, z, (first, second, third)))


# --- The reader -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 6000))
def test_the_reader_takes_proofs_or_refuses_in_a_sentence(proof: Proof, junk: bytes, place: int) -> None:
    good = proof.to_bytes()
    for data in (junk, good[:place] + junk, (good[:place] + junk + good[place:])[: len(good)]):
        try:
            read = Proof.read(data, STATEMENT)
        except MalformedError:
            continue
        assert read.to_bytes() == data


@pytest.mark.parametrize("place", range(6))
def test_every_point_is_checked(proof: Proof, place: int) -> None:
    data = bytearray(proof.to_bytes())
    data[BYTES * place : BYTES * (place + 1)] = IDENTITY
    with pytest.raises(MalformedError, match="not a point of the group"):
        Proof.read(bytes(data), STATEMENT)


@pytest.mark.parametrize("place", range(1, 8 + ROWS + 8 + 3 + 1))
def test_every_scalar_is_checked(proof: Proof, place: int) -> None:
    data = bytearray(proof.to_bytes())
    first = len(data) - BYTES * place
    data[first : first + BYTES] = ORDER.to_bytes(BYTES, "little")
    with pytest.raises(MalformedError, match="too large"):
        Proof.read(bytes(data), STATEMENT)


def test_the_golden_proof_holds_and_is_made_again_from_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = json.loads(GOLDEN.read_text())
    statement = Statement(bytes.fromhex(golden["context"]), golden["site"], golden["numbers"], golden["limit"])
    proof = Proof.read(b64decode(golden["proof"]), statement)
    assert _holds(statement, proof)
    assert proof.commitment == commit(golden["y"], golden["blinding"])
    monkeypatch.setattr(secrets, "randbelow", _draws(golden["seed"]))
    assert prove(statement, golden["y"], golden["blinding"]) == proof


def write_golden() -> None:
    """Write the golden proof anew: `from tests.privacy.crypto.test_norm_proof import write_golden; write_golden()`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secrets, "randbelow", _draws(7))
        proof = prove(STATEMENT, NUMBERS, BLINDING)
    golden = {
        "context": CONTEXT.hex(), "site": "north", "numbers": 8, "limit": LIMIT, "y": NUMBERS, "blinding": BLINDING,
        "seed": 7, "proof": b64encode(proof.to_bytes()).decode(),
    }  # fmt: skip
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
