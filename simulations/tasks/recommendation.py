"""Recommend films: how many stars would this person give each of them? Matrix factorisation of ratings.

A film has factors, which sites learn together. A person has factors too, but they are no parameters: `forward` computes
them from that person's own ratings and the films' factors, as the exact solution of a ridge regression, and keeps
nothing. So they never leave the site, get no noise, and exist for a person who was not trained on. Alternating least
squares computes them so (Chien et al. 2021, arXiv 2107.09802), and "reconstruction" (Singhal et al. 2021, arXiv
2102.03448). Trained, they would be mostly noise: a person's factors have the clipped gradient of one record.

One record is all that a person rated: the ratings of a person count together, as the unit of privacy.

The 118,071 ratings are made up, by `ratings` below: 6,000 persons of four tastes rate some of 60 films with 1 to 5
stars. A rating is the film's level, the person's, a product of three factors of each, and noise. Few films have most of
the ratings, and few persons rate many films. No person stands behind any record.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from client.data.columns import Category, Number
from client.data.sources.registry import Source
from client.data.sources.table_tensors import Declared, Findings, raise_first, read_tensors
from client.task.task import Task

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from client.data.inputs import Loaded

FILMS = tuple(f"film {number:02}" for number in range(1, 61))
"""The catalogue, the same at every site."""

_LOW, _HIGH = 1, 5  # stars; 0 stands for a film that a person did not rate
_MIDDLE = (_LOW + _HIGH) / 2
_COLUMNS = Declared((Number("stars", low=_LOW, high=_HIGH),), (Category("film", FILMS),), "person")
_FACTORS = 4
_PERSONAL = 0.8  # scale of a person's level, against the films' factors
_SEED, _PERSONS, _TASTES = 2028, 6000, 4


class Recommendation(Task):
    """Stars for each of 60 films, from four factors and a level of each: 300 parameters."""

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: stars `(n, 60)`, 0 where there are none, to stars `(n, 60)`."""
        return Factors()

    @override
    def load(self, path: Path) -> Loaded:
        return self.load_from(Source(path))

    @override
    def load_from(self, source: Source) -> Loaded:
        """Read a table with one rating per row, `person`, `film` and `stars`; of a pair that is there twice, the last.

        Returns:
            Stars as inputs and as targets, `(n, 60)`, one row per person, and the persons `(n,)`.

        Raises:
            DataError: if the table or a row of it cannot be used.
        """
        findings, table = Findings(), source.table()
        listed = read_tensors(table, _COLUMNS, findings)
        raise_first(table, findings)
        rows: dict[str, int] = {}
        row_of = [rows.setdefault(person, len(rows)) for person in listed.persons or ()]
        stars = np.zeros((len(rows), len(FILMS)), np.float32)
        stars[row_of, listed.targets.numpy()] = _MIDDLE + (_HIGH - _LOW) / 2 * listed.inputs[:, 0].numpy()
        return torch.from_numpy(stars), torch.from_numpy(stars), list(rows)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up eight persons, of whom the first rated one film and the last all of them."""
        rated = torch.rand(8, len(FILMS)) < torch.linspace(0, 1, 8).unsqueeze(1)
        rated[:, 0], rated[-1] = True, True
        stars = torch.randint(_LOW, _HIGH + 1, (8, len(FILMS))) * rated.float()
        return stars, stars.clone()

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over persons of the mean squared error of the films that they rated."""
        rated = (targets > 0).float()
        return (((outputs - targets) ** 2 * rated).sum(1) / rated.sum(1).clamp(min=1)).mean()

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return each person's share of rated films that are predicted within one star, `(n,)`."""
        rated = targets > 0
        near = ((outputs - targets).abs() <= 1) & rated
        return {"within_a_star": near.sum(1) / rated.sum(1).clamp(min=1)}


class LocalTaste(Recommendation):
    """The same, where persons of different sites differ: what the persons of a site like on average stays there too."""

    local = ("typical",)

    @override
    def model(self) -> nn.Module:
        """Make the untrained model, with five parameters that stay at the site."""
        return Factors(typical=True)


class Factors(nn.Module):
    """Films' levels and factors; predicts each rating from the other ratings of the same person."""

    def __init__(self, *, typical: bool = False) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(len(FILMS)))
        self.films = nn.Parameter(torch.randn(len(FILMS), _FACTORS) / 4)
        self.typical = nn.Parameter(torch.zeros(_FACTORS + 1)) if typical else None

    def forward(self, stars: Tensor) -> Tensor:
        """Map stars `(n, 60)`, 0 where there are none, to predictions `(n, 60)`.

        A film that a person rated is predicted from the person's other ratings, as if that one were not there, by the
        formula for leaving one out of a ridge regression. So inputs and targets may be the same.
        """
        rated = (stars > 0).float()
        of_films = torch.cat([torch.full((len(FILMS), 1), _PERSONAL, device=stars.device), self.films], 1)
        usual = _MIDDLE + self.level + (0 if self.typical is None else of_films @ self.typical)
        off = (stars - usual) * rated
        squares = torch.einsum("ia,ib->iab", of_films, of_films).flatten(1)
        gram = (rated @ squares).unflatten(1, (_FACTORS + 1, _FACTORS + 1))
        inverse = torch.linalg.inv(gram + torch.eye(_FACTORS + 1, device=stars.device))
        persons = (inverse @ (off @ of_films).unsqueeze(2)).squeeze(2)  # (n, factors): gone when this returns
        own = rated * (inverse.flatten(1) @ squares.T)  # the part of a prediction that comes from the rating itself
        predicted: Tensor = usual + (persons @ of_films.T - own * off) / (1 - own)
        return predicted


@cache
def ratings() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Make up all ratings: stars `(6000, 60)`, 0 where there are none, and persons' tastes `(6000,)`, 0 to 3."""
    rng = np.random.default_rng(_SEED)
    films, tastes = rng.normal(0, 1, (len(FILMS), 3)), rng.normal(0, 1, (_TASTES, 3))
    taste = rng.integers(_TASTES, size=_PERSONS)
    persons = 0.5 * tastes[taste] + rng.normal(0, 0.4, (_PERSONS, 3))
    level = rng.normal(3.4, 0.5, len(FILMS)) + rng.normal(0, 0.4, (_PERSONS, 1))
    liking = level + 0.8 * persons @ films.T + rng.normal(0, 0.6, (_PERSONS, len(FILMS)))
    popular = np.log((1 + rng.permutation(len(FILMS))) ** -0.7)
    drawn = popular + 0.15 * liking + rng.gumbel(size=liking.shape)  # people see what they like a little more often
    places = (-drawn).argsort(1).argsort(1)
    seen = places < np.clip(rng.lognormal(2.8, 0.6, (_PERSONS, 1)), 3, 50)
    return (np.clip(liking.round(), _LOW, _HIGH) * seen).astype(np.int64), taste


def write_ratings(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the ratings of the persons with these indices to a CSV file, one per line."""
    stars = ratings()[0]
    lines = [
        f"{person},{FILMS[film]},{stars[person, film]}" for person in rows for film in np.flatnonzero(stars[person])
    ]
    path.write_text("\n".join(["person,film,stars", *lines, ""]), encoding="utf-8")
