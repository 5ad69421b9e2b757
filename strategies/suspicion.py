"""Who spoils rounds: group testing by the server, over rounds that release models all the while.

A round that is spoiled, whose model its sites reject or whose sum does not open, had a liar among its contributors, or
bad luck. Nobody sees which. So every set of sites that may lie together, of as many as a run is to bear, is weighed
against "nobody lies", by the logarithm of its odds:

    spoiled, with one of the set in it   rises by ln(½ / ⅒): a liar spoils every other round it is in, luck one in ten
    sound, with one of the set in it     falls by ln((1 − ⅒) / (1 − ½)), but not below where it began: good conduct is
                                         not saved up (a cumulative sum: Page, Biometrika 1954)
    sound, without any of the set        fades, slowly: a suspicion that nothing confirms is tried again

The next cohort is, in this order,

- without whoever was found;
- if one site stands out: with it, and without those who could have done all of it instead;
- else without the likeliest sets, until the rest is more likely sound than not.

A site is *found* when it lies with 90 %, and no set without it explains all spoiled rounds. As long as luck spoils
none, a liar that behaves in the rounds that it chooses delays this, but no honest site is found in its place. In 50
rounds of which luck spoils one in ten, an honest site is found about once in a hundred times; of one in five, in every
fourth.

What cannot be done: a cohort of the minimum has no smaller part, so that nothing is learnt where none can be left out;
and for a round to be sound at all, there must be room to leave out as many as lie.
"""

from __future__ import annotations

from itertools import combinations
from math import comb, log
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

_LIES, _LUCK = 0.5, 0.1  # how often a liar spoils a round that it is in; how often luck spoils one
_PRIOR = 0.1  # the odds that one of all sites lies, before anything was seen
_SPOILED, _SOUND, _FADED = log(_LIES / _LUCK), log((1 - _LUCK) / (1 - _LIES)), 0.05
_FOUND, _LIKELY, _STANDS_OUT = 0.9, 0.5, 0.3
_MOST_SETS = 5_000  # to weigh


class Suspicion:
    """What the outcomes of rounds say of a run's sites."""

    def __init__(self, sites: Sequence[str], liars: int) -> None:
        self._place = {site: place for place, site in enumerate(sorted(sites))}
        self._names = sorted(sites)
        self._more = liars  # that may be found yet
        self.found: tuple[str, ...] = ()
        sets = [(), *_sets(len(sites), liars)]  # the first: nobody lies
        self._members = np.zeros((len(sets), len(sites)), bool)
        for row, members in enumerate(sets):
            self._members[row, list(members)] = True
        self._score = np.zeros(len(sets))
        self._unexplained = np.zeros(len(sets), int)  # spoiled rounds without any of a set

    def spoiled(self, sites: Collection[str]) -> None:
        """Note that a round over these contributors was spoiled."""
        hit = self._hit(sites)
        self._score[hit] += _SPOILED
        self._unexplained[~hit] += 1
        self._judge()

    def sound(self, sites: Collection[str]) -> None:
        """Note that a round over these contributors was sound."""
        self._score -= np.where(self._hit(sites), _SOUND, _FADED)
        np.maximum(self._score, 0.0, out=self._score)
        if not self._score.any():
            self._unexplained[:] = 0  # all is forgiven
        self._judge()

    def choose(self, present: Collection[str], minimum: int) -> list[str]:
        """Return whom of those present to plan the next round with.

        Returns:
            Nobody who was found. Of the others the minimum at least, if there are as many.
        """
        trusted = [site for site in present if site not in self.found]
        room = len(trusted) - minimum
        out = self._rivals(trusted, room) or self._suspects(trusted, room)
        return [site for site in trusted if site not in out]

    def can_part(self, present: Collection[str], minimum: int) -> bool:
        """Whether a round could do without one of those present; if not, none is learnt from."""
        return len(set(present) - set(self.found)) > minimum

    def _rivals(self, trusted: Collection[str], room: int) -> set[str]:
        """Return who else than the site that stands out may have done it; first who could have done all of it."""
        weights = self._weights()
        likely = weights @ self._members
        place = int(np.argmax(likely))
        if likely[place] < _STANDS_OUT or self._names[place] not in trusted:
            return set()
        others = np.flatnonzero(~self._members[:, place])
        excluded = self._unexplained[others] > 0
        out, learnt = set[str](), excluded.all()
        for row in others[np.lexsort((-weights[others], excluded))]:
            if len(wider := out | self._named(row, trusted)) <= room:
                out, learnt = wider, learnt or self._unexplained[row] == 0
        return out if learnt else set()

    def _suspects(self, trusted: Collection[str], room: int) -> set[str]:
        """Return the likeliest to lie, so many, if there is room, that a round without them is more likely sound."""
        out, weights = set[str](), self._weights()
        for row in np.argsort(-weights[1:], kind="stable") + 1:
            if weights[~self._hit(set(trusted) - out)].sum() >= _LIKELY:
                break
            if len(wider := out | self._named(row, trusted)) <= room:
                out = wider
        return out

    def _judge(self) -> None:
        """Find whoever is beyond doubt; what others may have done beside it is weighed on from there."""
        while self._more:
            likely = self._weights() @ self._members
            place = int(np.argmax(likely))
            rows = self._members[:, place]
            if likely[place] < _FOUND or not self._unexplained[~rows].all():
                return
            self.found, self._more = (*self.found, self._names[place]), self._more - 1
            self._members, self._unexplained = self._members[rows], self._unexplained[rows]
            self._score = np.maximum(self._score[rows] - self._score[rows][0], 0.0)
            self._members[:, place] = False

    def _weights(self) -> NDArray[np.float64]:
        """Return how likely each set is: `(sets,)`, 1 together."""
        odds = self._score + self._members.sum(axis=1) * log(_PRIOR / len(self._names))
        weights = np.exp(odds - odds.max())
        return np.asarray(weights / weights.sum())

    def _hit(self, sites: Collection[str]) -> NDArray[np.bool_]:
        """Return which sets have one of these sites in them: `(sets,)`."""
        return np.asarray(self._members[:, [self._place[site] for site in sites]].any(axis=1))

    def _named(self, row: int, among: Collection[str]) -> set[str]:
        return {self._names[place] for place in np.flatnonzero(self._members[row])} & set(among)


def _sets(sites: int, liars: int) -> Iterator[tuple[int, ...]]:
    """Yield the sets of up to so many liars, smaller ones first, and none of a size of which not all can be weighed."""
    total = 0
    for size in range(1, liars + 1):
        total += comb(sites, size)
        if total > _MOST_SETS:
            return
        yield from combinations(range(sites), size)
