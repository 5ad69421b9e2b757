"""Choose a round's cohort among the sites that are present.

Sites found to spoil rounds are left out for good, suspects in turn (`strategies.suspicion`). Sites that let an earlier
round down are left out if enough others remain.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from flwr.app import MessageType

from strategies.run_state import Conduct
from strategies.suspicion import Suspicion

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from strategies.membership import Membership

_LEFT_OUT = "left out: it failed an earlier round"
_FOUND = "left out: it spoils the rounds to which it contributes"
_DISPUTES = (
    "left out: its masks disagree with those of more members than may collude; if its keys/epochs is from an old "
    "backup, `--new-epoch` makes new keys"
)
_SUSPECTED = "left out to test whether rounds are spoiled without it"


class Selection:
    """Chooses cohorts, and remembers failures, disputes about masks, and suspicions."""

    def __init__(self, members: Membership, minimum: int, liars: int) -> None:
        self._members, self._minimum, self._liars = members, minimum, max(1, liars)
        self._suspicion = Suspicion(members.listed, self._liars)
        self._withheld: dict[str, int] = {}  # how often a site withheld its agreement, seed or proof
        self._left_out: dict[str, int] = {}  # the last round that it is left out of for that
        self._disputes = set[tuple[str, str]]()

    def conduct(self) -> Conduct:
        """Return what was noted about sites, to keep in a run's state."""
        return Conduct(
            dict(self._withheld), dict(self._left_out), tuple(sorted(self._disputes)), self._suspicion.outcomes
        )

    def restore(self, conduct: Conduct) -> None:
        """Take over what an earlier process noted."""
        self._withheld, self._left_out = dict(conduct.withheld), dict(conduct.left_out)
        self._disputes = set(conduct.disputes)
        for sound, sites in conduct.outcomes:
            (self._suspicion.sound if sound else self._suspicion.spoiled)(sites)

    def withheld(self, sites: Iterable[str], number: int) -> None:
        """Leave sites that withheld something out of the next two rounds, then four, and so on."""
        for site in sites:
            self._withheld[site] = self._withheld.get(site, 0) + 1
            self._left_out[site] = number + 2 ** self._withheld[site]

    def disputed(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Note pairs of sites that disagree on their shared mask: one of each lies, and they are chosen in turn.

        A site that disputes with more members than may lie together, over all rounds, lies itself: it is never chosen
        again.
        """
        self._disputes |= set(pairs)

    def spoiled(self, sites: Collection[str]) -> None:
        """Note that a round with these contributors was spoiled by an unknown one."""
        self._suspicion.spoiled(sites)

    def sound(self, sites: Collection[str]) -> None:
        """Note that a round with these contributors was sound."""
        self._suspicion.sound(sites)

    @property
    def excluded(self) -> tuple[str, ...]:
        """The sites found to spoil rounds: left out from now on."""
        return self._suspicion.excluded

    def can_part(self, present: Collection[str]) -> bool:
        """Whether a round can spare one of the present sites, so that its outcome tells something."""
        return self._suspicion.can_part(set(present) - self._quarrelsome, self._minimum)

    def choose(self, present: list[str], number: int, problems: dict[str, str]) -> list[str]:
        """Return the sites to plan a round with; note in `problems` why others are left out.

        Returns:
            The cohort: at least the minimum, unless too many sites are absent or were found to lie or to spoil rounds.
        """
        problems |= {site: _DISPUTES for site in present if site in self._quarrelsome}
        present = [site for site in present if site not in self._quarrelsome]
        suspects = set(present) - set(trusted := self._suspicion.choose(present, self._minimum))
        problems |= {site: _FOUND if site in self.excluded else _SUSPECTED for site in suspects}
        present = trusted
        busy = self._members.attention.unanswered(MessageType.TRAIN)  # with an earlier round
        in_turn = {sorted(pair)[number % 2] for pair in self._disputes if set(pair) <= set(present)}
        reliable = [site for site in present if self._left_out.get(site, 0) < number and site not in in_turn]
        chosen = self._enough(reliable, present)
        chosen = self._enough([site for site in chosen if self._members.nodes[site] not in busy], chosen)
        problems |= {site: _LEFT_OUT for site in present if site not in set(chosen) | problems.keys()}
        return chosen

    @property
    def _quarrelsome(self) -> set[str]:
        """The sites that dispute masks with more members than may lie together, and so lie themselves."""
        counts = Counter(site for pair in self._disputes for site in pair)
        return {site for site, count in counts.items() if count > self._liars}

    def _enough(self, some: list[str], others: list[str]) -> list[str]:
        return some if len(some) >= self._minimum else others
