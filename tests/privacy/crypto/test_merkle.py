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
    path = proof(values, index)
    assert len(path) == proof_bytes(len(values))
    assert root_of(values[index], index, path) == root(values)
    assert root_of(values[index] + b"x", index, path) != root(values)
    if path:
        place = data.draw(st.integers(0, len(path) - 1))
        broken = bytearray(path)
        broken[place] ^= 1
        assert root_of(values[index], index, bytes(broken)) != root(values)
        assert root_of(values[index], index, path[:-32]) != root(values)


@relaxed
@given(VALUES, VALUES)
def test_other_values_have_another_root(one: list[bytes], other: list[bytes]) -> None:
    assert (root(one) == root(other)) == (one == other)


def test_a_node_is_not_accepted_as_a_value() -> None:
    values = [b"a", b"b", b"c", b"d"]
    left, right = (root(values[:2]), root(values[2:]))
    assert root([left, right]) != root(values)
