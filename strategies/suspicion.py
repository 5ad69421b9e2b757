"""Find out which sites spoil rounds, by group testing over rounds that go on releasing models.

A round is spoiled if its sites reject its model or its sum does not open. Either a contributor lied or it was bad luck;
nobody can see which. So every set of sites that may lie together, up to the number of liars that the run must tolerate,
is weighed against "nobody lies", by its log-odds:

    spoiled, with one of the set in it   rise by ln(½ / ⅒): a liar spoils half of its rounds, bad luck one in ten
    sound, with one of the set in it     fall by ln((1 − ⅒) / (1 − ½)), but not below the start: good conduct is not
                                         saved up (a cumulative sum: Page, Biometrika 1954)
    sound, without any of the set        fade slowly: a suspicion that nothing confirms is tested again

The next cohort excludes

- sites that have been found;
- if one site stands out: the sites that could have spoiled all rounds instead of it, but not that site;
- otherwise the likeliest sets, until the rest is more likely sound than not.

A site is *found* when it lies with probability 90 % and no set without it explains all spoiled rounds. As long as bad
luck spoils no round, a liar can delay this by behaving in some rounds, but no honest site is found in its place. In 50
rounds of which bad luck spoils one in ten, an honest site is found in about 1 % of runs; with one in five, in 25 %.

Limits: if the present sites are no more than the minimum, none can be left out and nothing is learnt. For a round to be
sound at all, there must be room to leave out all liars.
"""

from __future__ import annotations

from itertools import combinations
from math import comb, log
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

_LIES, _LUCK = 0.5, 0.1  # how often a liar spoils a round it is in; how often bad luck does
_PRIOR = 0.1  # the prior odds that one of all sites lies
_SPOILED, _SOUND, _FADED = log(_LIES / _LUCK), log((1 - _LUCK) / (1 - _LIES)), 0.05
_FOUND, _LIKELY, _STANDS_OUT = 0.9, 0.5, 0.3
_MOST_SETS = 5_000  # to weigh


class Suspicion:
    """Infers from the outcomes of rounds which of a run's sites lie."""

    def __init__(self, sites: Sequence[str], liars: int) -> None:
        self._place = {site: place for place, site in enumerate(sorted(sites))}
        self._names = sorted(sites)
        self._more = liars  # liars that may still be found
        self.excluded: tuple[str, ...] = ()
        self.outcomes: tuple[tuple[bool, tuple[str, ...]], ...] = ()  # noted so far: whether sound, and contributors
        sets = [(), *_sets(len(sites), liars)]  # the first: nobody lies
        self._members = np.zeros((len(sets), len(sites)), bool)
        for row, members in enumerate(sets):
            self._members[row, list(members)] = True
        self._score = np.zeros(len(sets))
        self._unexplained = np.zeros(len(sets), int)  # spoiled rounds without any of a set

    def spoiled(self, sites: Collection[str]) -> None:
        """Note that a round with these contributors was spoiled."""
        self.outcomes += ((False, tuple(sites)),)
        hit = self._hit(sites)
        self._score[hit] += _SPOILED
        self._unexplained[~hit] += 1
        self._judge()

    def sound(self, sites: Collection[str]) -> None:
        """Note that a round with these contributors was sound."""
        if not self.outcomes:
            return  # nothing was suspected
        self.outcomes += ((True, tuple(sites)),)
        self._score -= np.where(self._hit(sites), _SOUND, _FADED)
        np.maximum(self._score, 0.0, out=self._score)
        if not self._score.any():
            self._unexplained[:] = 0  # all is forgiven
            if not self.excluded:
                self.outcomes = ()
        self._judge()

    def choose(self, present: Collection[str], minimum: int) -> list[str]:
        """Return which of the present sites to plan the next round with.

        Returns:
            None of the sites found; at least the minimum of the others, if there are enough.
        """
        trusted = [site for site in present if site not in self.excluded]
        room = len(trusted) - minimum
        out = self._rivals(trusted, room) or self._suspects(trusted, room)
        return [site for site in trusted if site not in out]

    def can_part(self, present: Collection[str], minimum: int) -> bool:
        """Whether a round can spare one of the present sites; if not, its outcome tells nothing."""
        return len(set(present) - set(self.excluded)) > minimum

    def _rivals(self, trusted: Collection[str], room: int) -> set[str]:
        """Return suspects other than the site that stands out, first those that could have spoiled all rounds."""
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
        """Return the likeliest liars: enough, room permitting, that a round without them is more likely sound."""
        out, weights = set[str](), self._weights()
        for row in np.argsort(-weights[1:], kind="stable") + 1:
            if weights[~self._hit(set(trusted) - out)].sum() >= _LIKELY:
                break
            if len(wider := out | self._named(row, trusted)) <= room:
                out = wider
        return out

    def _judge(self) -> None:
        """Find sites that lie beyond doubt; then weigh which others lie as well."""
        while self._more:
            likely = self._weights() @ self._members
            place = int(np.argmax(likely))
            rows = self._members[:, place]
            if likely[place] < _FOUND or not self._unexplained[~rows].all():
                return
            self.excluded, self._more = (*self.excluded, self._names[place]), self._more - 1
            self._members, self._unexplained = self._members[rows], self._unexplained[rows]
            self._score = np.maximum(self._score[rows] - self._score[rows][0], 0.0)
            self._members[:, place] = False

    def _weights(self) -> NDArray[np.float64]:
        """Return the probability of each set: `(sets,)`, summing to 1."""
        odds = self._score + self._members.sum(axis=1) * log(_PRIOR / len(self._names))
        weights = np.exp(odds - odds.max())
        return np.asarray(weights / weights.sum())

    def _hit(self, sites: Collection[str]) -> NDArray[np.bool_]:
        """Return which sets contain one of these sites: `(sets,)`."""
        return np.asarray(self._members[:, [self._place[site] for site in sites]].any(axis=1))

    def _named(self, row: int, among: Collection[str]) -> set[str]:
        return {self._names[place] for place in np.flatnonzero(self._members[row])} & set(among)


def _sets(sites: int, liars: int) -> Iterator[tuple[int, ...]]:
    """Yield all sets of up to `liars` sites, smallest first; stop before a size that has too many to weigh."""
    total = 0
    for size in range(1, liars + 1):
        total += comb(sites, size)
        if total > _MOST_SETS:
            return
        yield from combinations(range(sites), size)
