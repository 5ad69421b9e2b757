"""Which sites a round is planned with, when pairs of them say different things of the mask that they share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from strategies.selection import _DISPUTES, Selection

if TYPE_CHECKING:
    from strategies.membership import Membership

SITES = ["east", "north", "south", "west", "york"]


def selection(liars: int) -> Selection:
    """Return the selection of a run over these sites, all of which answer."""
    attention = SimpleNamespace(unanswered=lambda _: set[int]())
    members = SimpleNamespace(
        listed=SITES, attention=attention, nodes={site: place for place, site in enumerate(SITES)}
    )
    return Selection(cast("Membership", members), 3, liars)


def test_two_sites_in_dispute_are_left_out_in_turn() -> None:
    chosen = selection(1)
    chosen.disputed([("east", "west")])
    assert [sorted(set(SITES) - set(chosen.choose(SITES, number, {}))) for number in (1, 2)] == [["west"], ["east"]]


def test_a_site_in_dispute_with_more_than_may_collude_is_left_out_alone() -> None:
    """Each of them by itself could as well be lying; with more than may lie together, it is its own doing."""
    chosen, problems = selection(1), dict[str, str]()
    chosen.disputed([("east", "west")])
    chosen.disputed([("east", "north")])
    for number in (1, 2):
        assert chosen.choose(SITES, number, problems) == SITES[1:]
    assert problems == {"east": _DISPUTES}


def test_the_tolerated_number_of_colluding_sites_cannot_exclude_an_honest_site_for_good() -> None:
    chosen, problems = selection(2), dict[str, str]()
    chosen.disputed([("east", "west"), ("north", "west")])
    assert "west" in chosen.choose(SITES, 2, problems) + chosen.choose(SITES, 1, problems)
    assert _DISPUTES not in problems.values()
