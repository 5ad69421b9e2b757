"""Short texts for linear models: read from a CSV file with a label for each, and turned into numbers by a public hash.

Words, or pairs of words, become numbers by hashing (Weinberger et al., 2009, arXiv 0902.2206), so that no vocabulary is
learned from a site's texts.
"""

from __future__ import annotations

import csv
import zlib
from typing import TYPE_CHECKING

from torch import Tensor, nn

from privacy.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray


class HashedTerms(nn.Module):
    """One weight for each number of a term and each class, at first zero."""

    def __init__(self, numbers: int, classes: int) -> None:
        super().__init__()
        self.weights = nn.Embedding(numbers, classes)
        nn.init.zeros_(self.weights.weight)

    def forward(self, terms: Tensor) -> Tensor:
        """Map terms `(n, length)` to logits `(n, classes)`: the sum of their weights, over the root of their number."""
        there = (terms > 0).unsqueeze(2)
        logits: Tensor = (self.weights(terms) * there).sum(1) / there.sum(1).clamp_min(1).sqrt()
        return logits


def hashed(terms: Iterable[str], numbers: int, length: int) -> list[int]:
    """Return the numbers of at most `length` terms, from 1 to below `numbers`, padded with zeros to `length`."""
    found = [1 + zlib.crc32(term.encode()) % (numbers - 1) for term in terms][:length]
    return found + [0] * (length - len(found))


def words_of(text: str) -> list[str]:
    """Return the words and numbers of a text, without punctuation."""
    return "".join(character if character.isalnum() else " " for character in text).split()


def read_texts(path: Path, text: str, label: str, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """Read the columns `text` and `label` of a CSV file: the texts, and the places of their labels in `classes`.

    Raises:
        DataError: if the file or a line of it cannot be used.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path} cannot be read as CSV in UTF-8; save it again in that form"
        raise DataError(msg) from error
    for number, row in enumerate(rows, start=2):
        if row.get(text) is None or row.get(label) not in classes:
            msg = f"{path}, line {number}: it needs a value in `{text}`, and in `{label}` one of: {', '.join(classes)}"
            raise DataError(msg)
    if not rows:
        msg = f"{path} has no texts; add one line per text below the header {text},{label}"
        raise DataError(msg)
    return [row[text] for row in rows], [classes.index(row[label]) for row in rows]


def write_texts(path: Path, header: tuple[str, str], texts: Sequence[str], labels: Sequence[str],
                rows: NDArray[np.intp]) -> None:  # fmt: skip
    """Write the texts with these indices, and their labels, to a file that `read_texts` reads."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([texts[row], labels[row]] for row in rows)
