"""Layouts and digests: two models have one digest exactly if they are equal bit for bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from privacy.codec.update import Layout, Model
from tests.privacy.consortium import LAYOUT, MODEL, relaxed

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
layouts = st.dictionaries(st.text(max_size=5), shapes, min_size=1, max_size=4)


@relaxed
@given(layouts)
def test_tensors_come_back_from_the_vector(named: dict[str, tuple[int, ...]]) -> None:
    generator = np.random.default_rng(1)
    tensors = {name: generator.normal(size=shape).astype(np.float32) for name, shape in named.items()}
    layout = Layout.of(tensors)
    vector = layout.flatten(tensors)
    assert vector.shape == (layout.size,)
    back = layout.unflatten(vector)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


@relaxed
@given(layouts, layouts)
def test_other_names_shapes_or_order_have_another_digest(
    one: dict[str, tuple[int, ...]], two: dict[str, tuple[int, ...]]
) -> None:
    first, second = Layout(tuple(one.items())), Layout(tuple(two.items()))
    assert (first.digest == second.digest) == (first.shapes == second.shapes)


@relaxed
@given(place=st.integers(0, 79), bit=st.integers(0, 7))
def test_a_models_digest_covers_every_bit(place: int, bit: int) -> None:
    data = bytearray(MODEL.vector.tobytes())
    data[place] ^= 1 << bit
    assert Model(np.frombuffer(bytes(data), np.float32), LAYOUT).digest != MODEL.digest


def test_a_models_digest_covers_its_layout_and_no_accident_of_memory() -> None:
    other = Layout((("weight", (2, 8)), ("bias", (4,))))
    assert other.size == LAYOUT.size
    assert Model(MODEL.vector, other).digest != MODEL.digest
    strided = np.repeat(MODEL.vector, 2)[::2]
    assert not strided.flags.contiguous
    assert Model(strided, LAYOUT).digest == Model(MODEL.vector.astype(">f4"), LAYOUT).digest == MODEL.digest
