"""Whoever spoils rounds is found from their outcomes, in a bounded number of them, and nobody else is."""

from collections.abc import Callable
from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.suspicion import Suspicion

Spoils = Callable[[set[str], int], bool]  # whether a round is spoiled, of its contributors and its number

MOST_SPOILED = {1: 10, 2: 30}  # by how many lie
MOST_ROUNDS = 80


def names(count: int) -> list[str]:
    return [f"site-{number:02d}" for number in range(count)]


def always(*liars: str) -> Spoils:
    """Liars that spoil all that they are in."""
    return lambda sites, _: not sites.isdisjoint(liars)


def every_other_time(*liars: str) -> Spoils:
    """Liars that each spoil every other of the rounds that they are in."""
    turns = dict.fromkeys(liars, 0)

    def spoils(sites: set[str], _: int) -> bool:
        for liar in sites & turns.keys():
            turns[liar] += 1
        return any(turns[liar] % 2 for liar in sites & turns.keys())

    return spoils


def play(suspicion: Suspicion, sites: list[str], minimum: int, spoils: Spoils, rounds: int) -> list[bool]:
    """Play rounds with all sites there; return which were spoiled."""
    outcomes = list[bool]()
    for number in range(rounds):
        cohort = suspicion.choose(sites, minimum)
        assert minimum <= len(cohort)
        outcomes.append(spoils(set(cohort), number))
        (suspicion.spoiled if outcomes[-1] else suspicion.sound)(cohort)
    return outcomes


@pytest.mark.parametrize("spoiler", [always, every_other_time])
@pytest.mark.parametrize("count", range(4, 13))
def test_one_liar_is_found_and_left_out(count: int, spoiler: Callable[..., Spoils]) -> None:
    sites = names(count)
    for liar in sites:
        suspicion = Suspicion(sites, 1)
        outcomes = play(suspicion, sites, 3, spoiler(liar), MOST_ROUNDS)
        assert suspicion.excluded == (liar,)
        assert suspicion.choose(sites, 3) == [site for site in sites if site != liar]
        assert sum(outcomes) <= MOST_SPOILED[1]


@pytest.mark.parametrize("spoiler", [always, every_other_time])
@pytest.mark.parametrize("count", range(5, 13))
def test_two_liars_are_found_and_left_out(count: int, spoiler: Callable[..., Spoils]) -> None:
    sites = names(count)
    for liars in combinations(sites, 2):
        suspicion = Suspicion(sites, 2)
        outcomes = play(suspicion, sites, 3, spoiler(*liars), MOST_ROUNDS)
        assert sorted(suspicion.excluded) == sorted(liars)
        assert sum(outcomes) <= MOST_SPOILED[2]


@pytest.mark.parametrize("before", [1, 30])
def test_good_rounds_do_not_offset_later_spoiled_rounds(before: int) -> None:
    sites = names(4)
    suspicion = Suspicion(sites, 1)
    outcomes = play(suspicion, sites, 3, lambda cohort, number: number >= before and sites[0] in cohort, before + 30)
    assert suspicion.excluded == (sites[0],)
    assert sum(outcomes) <= MOST_SPOILED[1]


@pytest.mark.parametrize("first", range(10))
@pytest.mark.parametrize("count", [4, 5, 8, 12])
def test_occasional_spoiled_rounds_exclude_no_site(count: int, first: int) -> None:
    sites = names(count)
    suspicion = Suspicion(sites, 1)
    play(suspicion, sites, 3, lambda _, number: number % 10 == first, 100)
    assert suspicion.excluded == ()


@given(st.integers(4, 9), st.randoms())
def test_without_accidents_only_liars_are_excluded_whatever_rounds_they_spoil(count: int, rng: Random) -> None:
    sites = names(count)
    liar, victim = rng.sample(sites, 2)
    suspicion = Suspicion(sites, 1)
    kinds: list[Spoils] = [
        lambda cohort, _: {liar, victim} <= cohort,
        lambda cohort, _: liar in cohort and rng.random() < 0.5,
        lambda cohort, _: liar in cohort and len(cohort) < count,
        lambda cohort, _: liar in cohort and len(cohort) == count,
    ]
    play(suspicion, sites, 3, rng.choice(kinds), 200)
    assert set(suspicion.excluded) <= {liar}


def test_no_site_is_excluded_if_all_are_needed() -> None:
    sites = names(3)
    suspicion = Suspicion(sites, 1)
    play(suspicion, sites, 3, always(sites[0]), 20)
    assert not suspicion.can_part(sites, 3)
    assert suspicion.choose(sites, 3) == sites
    assert suspicion.excluded == ()


def test_an_excluded_site_stays_out_even_if_too_few_remain() -> None:
    sites = names(4)
    suspicion = Suspicion(sites, 1)
    play(suspicion, sites, 3, always(sites[1]), 30)
    assert suspicion.choose(sites[:3], 3) == [sites[0], sites[2]]


@given(st.randoms(use_true_random=True))
def test_sites_that_are_away_are_neither_blamed_nor_waited_for(rng: Random) -> None:
    sites = names(6)
    suspicion, liar = Suspicion(sites, 1), sites[2]
    for _ in range(200):
        present = rng.sample(sites, rng.randint(3, 6))
        cohort = suspicion.choose(present, 3)
        assert set(cohort) <= set(present)
        if len(cohort) >= 3:
            (suspicion.spoiled if liar in cohort else suspicion.sound)(cohort)
    assert suspicion.excluded == (liar,)


def test_among_many_sites_one_liar_is_found_where_not_all_pairs_can_be_weighed() -> None:
    sites = names(200)
    suspicion = Suspicion(sites, 3)  # 20,100 sets of up to two
    play(suspicion, sites, 3, always(sites[150]), 40)
    assert suspicion.excluded == (sites[150],)
