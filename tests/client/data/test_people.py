"""What a person adds is bounded: at most `records_per_person` records, all trained on or all held out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import TensorDataset
from typing_extensions import override

from client.data.held_out import split_held_out
from client.data.own_records import check_loaded
from client.data.people import People, divide
from client.flower import open_site
from client.task.probe import Example
from privacy.accounting.accounting import Mechanism, epsilon
from privacy.errors import DataError
from simulations.engine.federation import SiteTerms
from tests.federations import task_name
from tests.studies import QUOTE, Asked, Tiny
from tests.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.federations import FederationMaker

SITE = "north"
NAMES = st.lists(st.sampled_from("abcdefgh"), max_size=60)


def named(names: Sequence[str]) -> People:
    people = People.named(list(names))
    assert people is not None
    return people


@given(NAMES, st.floats(0, 1), st.integers(1, 5))
def test_each_person_is_on_one_side_with_the_first_of_their_records(names: list[str], part: float, most: int) -> None:
    used, held_out = (side.tolist() for side in divide(len(names), part, named(names), most))
    assert used == sorted(used)
    assert held_out == sorted(held_out)
    assert not {names[place] for place in used} & {names[place] for place in held_out}
    assert len({names[place] for place in held_out}) == round(len(set(names)) * part)
    for name, count in Counter(names).items():
        own = [place for place, person in enumerate(names) if person == name]
        assert sorted({*used, *held_out} & {*own}) == own[: min(most, count)]


@given(st.integers(0, 200), st.floats(0, 1))
def test_persons_with_one_record_each_are_divided_as_records_are(count: int, part: float) -> None:
    people = People.named(np.arange(count) + 7)
    for one, other in zip(divide(count, part, people), split_held_out(count, part), strict=True):
        assert one.tolist() == other.tolist()


@given(NAMES, st.integers(1, 3))
def test_which_records_of_a_person_are_used_depends_on_no_other_person(names: list[str], most: int) -> None:
    kept = named(names).first(most).tolist()
    for name in set(names):
        alone = [place for place, person in enumerate(names) if person == name]
        assert [place for place in kept if names[place] == name] == [
            alone[place] for place in named([name] * len(alone)).first(most).tolist()
        ]


PERSONS: dict[str, Any] = {
    "texts": ["ann", "bob", "ann"],
    "numbers": [3, 1, 3],
    "tensor": torch.tensor([3, 1, 3]),
    "array": np.array(["ann", "bob", "ann"]),
    "objects": np.array(["ann", "bob", "ann"], dtype=object),
}


@pytest.mark.parametrize("persons", PERSONS.values(), ids=PERSONS)
@pytest.mark.parametrize("stored", [False, True])
def test_persons_follow_the_records(persons: object, stored: bool) -> None:  # noqa: FBT001 - a parameter
    parts = torch.rand(3, 2), torch.rand(3, 1)
    loaded = (TensorDataset(*parts), persons) if stored else (*parts, persons)
    people = check_loaded(loaded, "package:Class", Example.of(Tiny()), Path("records")).people
    assert people is not None
    assert people.of.tolist() == [0, 1, 0]


WRONG: dict[str, tuple[object, str]] = {
    "fractions": (torch.rand(3), "does not name persons; return one whole number or text for each record"),
    "a table": (torch.ones(3, 1).long(), "does not name persons"),
    "nothing": (None, "does not name persons"),
    "lists": ([[QUOTE], [QUOTE, "x"], []], "does not name persons"),
    "too few": (["ann", "bob"], "names 2 persons for 3 records; name one for each"),
}


@pytest.mark.parametrize(("persons", "message"), WRONG.values(), ids=WRONG)
def test_malformed_persons_are_refused_in_a_sentence(persons: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        check_loaded(
            (torch.rand(3, 2), torch.rand(3, 1), persons), "package:Class", Example.of(Tiny()), Path("records")
        )
    assert message in str(caught.value)
    assert QUOTE not in str(caught.value)


class Several(Tiny):
    """Every person has two records, but the first one, who has seven."""

    @override
    def load(self, path: Path) -> Any:
        inputs, targets = super().load(path)
        return inputs, targets, persons(len(inputs))


class AskedOfSeveral(Asked):
    """The same people, in a survey."""

    @override
    def load(self, path: Path) -> Any:
        values, labels = super().load(path)
        return values, labels, persons(len(np.asarray(values)))


def persons(count: int) -> list[str]:
    return [f"person {max(0, place - 5) // 2}" for place in range(count)]


def site_with(make_federation: FederationMaker, task: type, most: int) -> Any:  # noqa: ANN401 - a Site
    terms = SiteTerms(tasks=(task_name(task),), file="records.csv", device="cpu")
    federation = make_federation(terms={SITE: terms})
    file = federation.paths[SITE] / "site.toml"
    file.write_text(file.read_text(encoding="utf-8").replace("held_out =", f"records_per_person = {most}\nheld_out ="))
    return open_site(federation.paths[SITE])


@pytest.mark.parametrize("most", [1, 3])
def test_a_site_uses_no_more_records_of_a_person_than_its_ledger_counts(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture, most: int
) -> None:
    site = site_with(make_federation, Several, most)
    study = site.study(task_name(Several))
    everything = persons(25)
    study.count()
    used = [Counter(everything[number - 1] for number in side.numbers) for side in study._sides]
    assert not set(used[0]) & set(used[1])
    assert max((used[0] + used[1]).values()) == most
    assert len(table(study.training)[0]) == used[0].total()
    left_out = 25 - used[0].total() - used[1].total()
    assert f"{left_out} of 25 records are left out: records_per_person = {most} in [data] of site.toml" in caplog.text
    spent = [Mechanism(1.0, sample_rate=0.1, steps=10)]
    assert site.ledger.cost(spent, 1e-5) == epsilon(spent, 1e-5, group=most)


def test_a_survey_sums_no_more_records_of_a_person_either(make_federation: FederationMaker) -> None:
    site = site_with(make_federation, AskedOfSeveral, 1)
    values, labels = site._work("statistics", task_name(AskedOfSeveral)).records
    assert len(values) == len(labels) == round(len(set(persons(25))) * 0.8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(lambda _: [1.5], "does not name persons"), (lambda count: [1] * (count + 1), "persons for 25")],
)
def test_persons_of_a_survey_are_checked(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[int], list[Any]], message: str
) -> None:
    monkeypatch.setattr("tests.client.data.test_people.persons", wrong)
    with pytest.raises(DataError, match=message):
        site_with(make_federation, AskedOfSeveral, 1).check_records()
