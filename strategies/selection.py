"""Which of the sites that are there a round is planned with: not those that let an earlier one down, if others do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import MessageType

from privacy.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from strategies.membership import Membership

_LEFT_OUT = "left out: it let an earlier round down"


class Selection:
    """Chooses a round's cohort, and remembers who kept a mask, and whose masks did not fit."""

    def __init__(self, members: Membership, minimum: int) -> None:
        self._members, self._minimum = members, minimum
        self._withheld: dict[str, int] = {}  # how often a site let a round down by keeping its mask
        self._left_out: dict[str, int] = {}  # until which round it is left out for that
        self._disputes = set[tuple[str, str]]()
        self._liars = set[str]()

    def withheld(self, sites: Iterable[str], number: int) -> None:
        """Note who kept its mask in a round: it is left out of the next two, then four, and so on."""
        for site in sites:
            self._withheld[site] = self._withheld.get(site, 0) + 1
            self._left_out[site] = number + 2 ** self._withheld[site]

    def disputed(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Note pairs of sites of which one lies about the mask that they share: one of them is chosen at a time."""
        self._disputes |= set(pairs)

    def lied(self, sites: Iterable[str]) -> None:
        """Note who was proven to lie: it is chosen no more."""
        self._liars |= set(sites)

    def choose(self, present: list[str], number: int, problems: dict[str, str]) -> list[str]:
        """Return the sites to plan a round with; note in `problems` who is left out.

        Raises:
            RunError: if too few are left that were not proven to lie.
        """
        everybody, present = present, [site for site in present if site not in self._liars]
        if len(present) < self._minimum <= len(everybody):
            msg = f"too few sites are left: {', '.join(sorted(self._liars))} lied, as the others have checked"
            raise RunError(msg)
        busy = self._members.attention.asked(MessageType.TRAIN)  # with a round for which nobody waits any more
        in_turn = {sorted(pair)[number % 2] for pair in self._disputes if set(pair) <= set(present)}
        reliable = [site for site in present if self._left_out.get(site, 0) < number and site not in in_turn]
        chosen = self._enough(reliable, present)
        chosen = self._enough([site for site in chosen if self._members.nodes[site] not in busy], chosen)
        problems |= {site: _LEFT_OUT for site in everybody if site not in set(chosen) | problems.keys()}
        return chosen

    def _enough(self, some: list[str], others: list[str]) -> list[str]:
        return some if len(some) >= self._minimum else others
