"""A root commits to every value at its place; a proof of one passes for no other value, place or length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from privacy.crypto.merkle import proof, proof_bytes, root, root_of
from tests.privacy.consortium import relaxed

VALUES = st.lists(st.binary(max_size=8), min_size=1, max_size=20)


@relaxed
@given(VALUES, st.data())
def test_a_proof_holds_for_its_own_value_and_no_other(values: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(values) - 1))
    shown = proof(values, index)
    assert len(shown) == proof_bytes(len(values))
    assert root_of(values[index], index, shown) == root(values)
    assert root_of(values[index] + b"x", index, shown) != root(values)
    if shown:
        place = data.draw(st.integers(0, len(shown) - 1))
        broken = bytearray(shown)
        broken[place] ^= 1
        assert root_of(values[index], index, bytes(broken)) != root(values)
        assert root_of(values[index], index, shown[:-32]) != root(values)


@relaxed
@given(VALUES, VALUES)
def test_other_values_have_another_root(one: list[bytes], other: list[bytes]) -> None:
    assert (root(one) == root(other)) == (one == other)


def test_a_node_passes_for_no_value() -> None:
    values = [b"a", b"b", b"c", b"d"]
    left, right = (root(values[:2]), root(values[2:]))
    assert root([left, right]) != root(values)
