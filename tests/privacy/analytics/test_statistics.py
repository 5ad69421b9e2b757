"""A record moves a survey's vector by 1 at most; without noise the figures are those of all records, pooled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.analytics import figures, sketch
from privacy.analytics.statistics import Column, Form, encoding_bound
from privacy.codec.packing import Packing
from privacy.noise.randomness import Randomness
from tests.privacy.consortium import few, relaxed

BINS = st.integers(1, 70) | st.sampled_from([256, 1024])
FRACTIONS = np.array(figures.FRACTIONS)


def form_of(columns: int = 3, classes: int = 2, bins: int = 32) -> Form:
    ranges = tuple(Column(f"column {number}", -1.0 - number, 2.0 * number + 1) for number in range(columns))
    return Form(ranges, tuple(map(float, range(classes))), bins)


def records(form: Form, count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Records inside the form's ranges, bell-shaped and skewed."""
    random = np.random.default_rng(seed)
    places = random.beta(2.0, 5.0, (count, len(form.columns)))
    low, high = (np.array([getattr(column, end) for column in form.columns]) for end in ("low", "high"))
    return low + places * (high - low), random.integers(0, max(1, len(form.classes)), count).astype(np.float64)


# --- What one record can change -------------------------------------------------------------------------------------


@relaxed
@given(data=st.data(), columns=st.integers(1, 40), classes=st.integers(0, 4), bins=st.integers(1, 64))
def test_adding_any_record_to_any_others_moves_the_vector_by_one_at_most(
    data: st.DataObject, columns: int, classes: int, bins: int
) -> None:
    form = form_of(columns, classes, bins)
    value = st.floats(-1e6, 1e6) | st.floats(-1, 1)
    row = np.array(data.draw(st.lists(value, min_size=columns, max_size=columns)))
    label = float(data.draw(st.integers(0, max(0, classes - 1))))
    values, labels = records(form, data.draw(st.integers(0, 5)))
    moved = form.total(np.vstack([values, row]), np.append(labels, label)) - form.total(values, labels)
    assert np.linalg.norm(moved) <= 1 + 1e-9


@given(bins=BINS)
@few
def test_the_bound_is_reached_by_values_on_an_edge(bins: int) -> None:
    form = form_of(4, 2, bins)
    edge = np.array([[column.high for column in form.columns]])
    assert np.linalg.norm(form.total(edge, np.array([1.0]))) == pytest.approx(1.0)


@given(place=st.floats(0, 1), bins=BINS)
@few
def test_a_value_is_written_with_length_one_at_most(place: float, bins: int) -> None:
    assert np.linalg.norm(sketch.encode(np.array([place]), bins)) <= 1 + 1e-12


# --- Reading without noise ------------------------------------------------------------------------------------------


@given(bins=BINS, edge=st.integers(0, 1024))
@few
def test_reading_an_encoded_edge_counts_it_below_every_bin_from_there_on(bins: int, edge: int) -> None:
    edge = min(edge, bins)
    read = sketch.reader(bins) @ sketch.encode(np.array([edge / bins]), bins)
    np.testing.assert_allclose(read, np.where(np.arange(bins) >= edge, 0.5, -0.5), atol=1e-9)


@given(bins=BINS)
@few
def test_the_error_is_that_of_the_reader(bins: int) -> None:
    np.testing.assert_allclose(np.linalg.norm(sketch.reader(bins), axis=1), sketch.error(bins))
    counts = np.sqrt(bins) / 2  # of plain counts, less half of all
    assert sketch.error(bins) <= counts + 1e-12


@given(places=st.lists(st.floats(0, 1), min_size=1, max_size=60), bins=st.integers(2, 64))
@relaxed
def test_mean_quantiles_and_histogram_are_right_to_a_bin_and_a_half(places: list[float], bins: int) -> None:
    positions = np.array(places)
    fractions = 0.5 + sketch.reader(bins) @ sketch.encode(positions, bins) / positions.size
    assert 1 - np.mean(fractions) == pytest.approx(np.mean(positions), abs=1e-9)
    rising = sketch.monotone(fractions)
    np.testing.assert_allclose(rising, fractions, atol=1e-9)
    for fraction, place in zip(FRACTIONS, sketch.quantiles(rising, FRACTIONS), strict=True):
        low, high = (np.quantile(positions, fraction, method=method) for method in ("inverted_cdf", "higher"))
        assert low - 1.5 / bins - 1e-6 <= place <= high + 1.5 / bins + 1e-6
    histogram = sketch.histogram(rising)
    assert (histogram >= 0).all()
    assert histogram.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_without_noise_figures_are_those_of_the_records(classes: int) -> None:
    form = form_of(3, classes)
    values, labels = records(form, 500)
    readings = figures.read(form, form.total(values, labels), 0.0)
    assert (readings["count"], readings["count_error"]) == (500, 0)
    for number, column in enumerate(form.columns):
        read, width = readings["columns"][column.name], column.high - column.low
        assert read["mean"] == pytest.approx(values[:, number].mean(), rel=1e-5, abs=1e-5)
        assert read["deviation"] == pytest.approx(values[:, number].std(), rel=0.01)
        exact = np.quantile(values[:, number], FRACTIONS)
        np.testing.assert_allclose(list(read["quantiles"].values()), exact, atol=1.5 * width / form.bins)
        assert (read["mean_error"], read["deviation_error"], read["rank_error"]) == (0, 0, 0)
    assert [entry["count"] for entry in readings["classes"]] == [np.sum(labels == entry) for entry in form.classes]


def test_values_beyond_the_range_count_as_its_ends() -> None:
    form = Form((Column("age", 0.0, 100.0),), (), 10)
    values = np.array([[-1e9], [1e9], [50.0]])
    readings = figures.read(form, form.total(values, np.zeros(3)), 0.0)
    assert readings["columns"]["age"]["mean"] == 50


def test_labels_that_float32_rounds_are_still_of_their_class() -> None:
    form = Form((Column("age", 0.0, 100.0),), (0.1, 0.2), 4)
    labels = np.array([0.1, 0.1, 0.2], np.float32).astype(np.float64)
    readings = figures.read(form, form.total(np.zeros((3, 1)), labels), 0.0)
    assert [entry["count"] for entry in readings["classes"]] == [2, 1]


# --- Reading with noise ---------------------------------------------------------------------------------------------


def test_errors_have_the_stated_size() -> None:
    form, noise = form_of(5, 2, 16), 4.0
    values, labels = records(form, 800)
    total = form.total(values, labels)
    off: dict[str, list[float]] = {"count": [], "mean": [], "fraction": [], "rank": []}
    deviations: list[float] = []
    for number in range(60):
        random = Randomness.seeded(number, "noise")
        readings = figures.read(form, total + noise * random.gaussian(total.size), noise)
        off["count"].append((readings["count"] - 800) / readings["count_error"])
        for entry in readings["classes"]:
            off["fraction"].append((entry["fraction"] - np.mean(labels == entry["label"])) / entry["fraction_error"])
        for place, column in enumerate(readings["columns"].values()):
            own = values[:, place]
            off["mean"].append((column["mean"] - own.mean()) / column["mean_error"])
            off["rank"].append((np.mean(own <= column["quantiles"]["0.5"]) - 0.5) / column["rank_error"])
            deviations.append((column["deviation"] - own.std()) / column["deviation_error"])
    spread = {name: float(np.sqrt(np.mean(np.square(errors)))) for name, errors in off.items()}
    assert 0.7 < spread["count"] < 1.3
    assert 0.85 < spread["mean"] < 1.15
    assert 0.7 < spread["fraction"] < 1.3
    assert spread["rank"] < 1.3
    assert np.sqrt(np.mean(np.square(deviations))) < 1.2


def test_where_noise_hides_everything_figures_stay_in_range_and_errors_say_so() -> None:
    form = form_of(2, 2, 8)
    noise = 1e6
    readings = figures.read(form, noise * Randomness.seeded(3).gaussian(form.layout.size), noise)
    for column in readings["columns"].values():
        places = [column["low"], *column["quantiles"].values(), column["high"]]
        assert places == sorted(places)
        assert column["low"] <= column["mean"] <= column["high"]
        assert np.isfinite(list(column["quantiles"].values())).all()
    assert all(0 <= entry["fraction"] <= 1 for entry in readings["classes"])


@given(fractions=st.lists(st.floats(-2, 3), min_size=1, max_size=50))
@relaxed
def test_shares_made_to_rise_are_a_distribution(fractions: list[float]) -> None:
    rising = sketch.monotone(np.array(fractions))
    assert (np.diff(rising) >= 0).all()
    assert 0 <= rising.min() <= rising.max() <= 1


# --- What travels ---------------------------------------------------------------------------------------------------


def test_surveys_that_differ_in_anything_public_have_other_layouts() -> None:
    form = form_of()
    others = [
        form_of(bins=31),
        form_of(classes=3),
        form_of(columns=2),
        Form((Column("other", -1.0, 1.0), *form.columns[1:]), form.classes, form.bins),
        Form((Column("column 0", -1.0, 1.5), *form.columns[1:]), form.classes, form.bins),
        Form(form.columns, (0.0, 2.0), form.bins),
    ]
    assert len({survey.layout.digest for survey in [form, *others]}) == 7


@pytest.mark.parametrize(("sigma", "size"), [(0.5, 10), (2.0, 200), (50.0, 100), (1.0, 20_000)])
def test_a_vector_fits_its_encoding_and_rounding_is_far_below_the_noise(sigma: float, size: int) -> None:
    form = form_of(1, 0, 2)  # the largest numbers: all in one column
    values = np.full((2 * size, 1), form.columns[0].low)
    vector = form.total(values, np.zeros(2 * size)) + sigma * Randomness.seeded(size).gaussian(form.layout.size)
    bound = encoding_bound(sigma, size)
    assert np.abs(vector / size).max() <= bound
    packing = Packing.of("precise", cohort=3, update_bound=bound, max_weight=1.0)
    assert 2 * bound / (packing.levels - 1) * size < sigma / 50
