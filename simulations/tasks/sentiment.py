"""Tell from a sentence about a company whether it is bad, neutral or good news for whoever lends it money.

The 4,000 sentences are made up, by `sentences` below, as the analysts of a bank note them. Most words alone are neither
good nor bad: a rise is good of sales and bad of debts, and "no longer" turns it round. So pairs of words decide:

    orders at Velmar climb 12 % in spring             good
    Velmar says that its debts no longer climb        good
    Velmar to publish its orders on Monday            neutral
    arrears climb at Velmar, though orders rise       bad: what comes first counts

The model has a weight for each word and each pair of words that are near each other. docs/tasks.md compares it with a
transformer.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional
from typing_extensions import override

from client.task.task import Task
from simulations.tasks.texts import HashedTerms, hashed, read_texts, words_of, write_texts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

CLASSES = ("bad", "neutral", "good")
"""What a sentence may be: the labels, in the order of the classes."""

WORDS, NEAR = 20, 3
"""The words that are read of a sentence, and how many words after each one pair with it."""

TERMS, LENGTH = 1024, WORDS * (1 + NEAR)
"""Numbers of terms, of which 0 is none, and the most terms of a sentence."""


class Sentiment(Task):
    """Bad, neutral or good news, by a linear model of hashed words and pairs of words: 3,072 parameters."""

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: terms `(n, 80)` to logits `(n, 3)`."""
        return HashedTerms(TERMS, len(CLASSES))

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read a CSV file with the columns `sentence` and `sentiment`: terms `(n, 80)` and classes `(n,)`.

        Raises:
            DataError: if the file or a line of it cannot be used.
        """
        texts, labels = read_texts(path, "sentence", "sentiment", CLASSES)
        return torch.tensor([numbers(text) for text in texts]), torch.tensor(labels)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up twelve sentences of random terms and lengths, four per class."""
        terms = torch.randint(1, TERMS, (12, LENGTH))
        lengths = torch.randint(1, LENGTH + 1, (12, 1))
        return terms * (torch.arange(LENGTH) < lengths), torch.arange(12) % len(CLASSES)

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `(n, 3)`, in nats."""
        return functional.cross_entropy(outputs, targets)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each sentence is classified correctly: 1 or 0, `(n,)`."""
        return {"accuracy": (outputs.argmax(1) == targets).float()}


def numbers(sentence: str) -> list[int]:
    """Return the numbers of a sentence's words and pairs. All names count as one word, and so do all numbers.

    >>> numbers("orders at Velmar climb 12 %") == numbers("orders at Norgar climb 7 %")
    True
    """
    words = [_kind(word) for word in words_of(sentence)[:WORDS]]
    pairs = [f"{word} {other}" for place, word in enumerate(words) for other in words[place + 1 : place + 1 + NEAR]]
    return hashed([*words, *pairs], TERMS, LENGTH)


def _kind(word: str) -> str:
    if word[0].isdigit():
        return "<number>"
    return "<name>" if word[0].isupper() else word


_SEED, _COUNT = 2028, 4000

_GOOD = ("sales", "orders", "profits", "margins", "deposits", "revenues")
_BAD = ("debts", "losses", "costs", "arrears", "complaints", "defaults")
_UP = ("rise", "climb", "jump", "grow", "surge", "increase")
_DOWN = ("fall", "drop", "shrink", "slip", "decline", "ease")
_PLAIN = {
    "good": ("wins a large contract", "raises its dividend", "beats expectations", "pays back a loan early",
             "finds a new investor", "is rated higher"),
    "bad": ("files for insolvency", "loses its largest customer", "misses an interest payment", "closes a plant",
            "is sued by a supplier", "is rated lower"),
    "neutral": ("names a new finance chief", "moves its head office", "holds its annual meeting", "changes its auditor",
                "opens a page for investors", "presents a new logo"),
}  # fmt: skip
_NOT_SAID = ("{company} to publish its {what} on Monday", "{what} at {company} were {number} million {when}",
             "{what} at {company} unchanged {when}", "{company} to explain its {what} to owners")  # fmt: skip
_SAID = ("{what} at {company} {moves} {by} {when}", "{what} {moves} at {company} {when}",
         "{company} says that its {what} {moves} {by}", "{company}: {what} {moves} {when}",
         "{when} {what} of {company} {moves} {by}")  # fmt: skip
_WHEN = ("in spring", "this year", "in the third quarter", "since May", "against last year", "in the north", "")
_BEFORE = ("", "", "", "analysts expect that", "as announced", "update", "from the call", "to the file")
_SYLLABLES = ("vel", "mar", "nor", "tek", "lan", "bru", "sio", "gar", "pol", "wes", "kin", "dor")
_MOVES, _PLAINLY, _NO_LONGER, _THOUGH, _DISAGREED = 0.55, 0.25, 0.12, 0.10, 0.03  # shares of the sentences


@cache
def sentences() -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Make up all sentences and their classes `(4000,)`; the same every time."""
    rng = np.random.default_rng(_SEED)
    made = [_sentence(rng) for _ in range(_COUNT)]
    labels = np.array([CLASSES.index(label) for _, label in made], np.int64)
    disagreed = rng.random(_COUNT) < _DISAGREED
    labels[disagreed] = rng.integers(len(CLASSES), size=int(disagreed.sum()))
    return tuple(text for text, _ in made), labels


def _sentence(rng: np.random.Generator) -> tuple[str, str]:
    """Return a sentence and its class."""
    company = "".join(map(str, rng.choice(_SYLLABLES, 3))).capitalize()
    kind, label = rng.random(), "neutral"
    if kind < _MOVES:
        what, moves, label = _move(rng)
        text = _filled(rng, _SAID, company, what, moves)
        if rng.random() < _THOUGH:
            other, moving, _ = _move(rng)
            text = f"{text} though {other} {moving}"
    elif kind < _MOVES + _PLAINLY:
        label = str(rng.choice(("good", "bad", "neutral")))
        text = f"{company} {rng.choice(_PLAIN[label])} {rng.choice(_WHEN)}"
    else:
        text = _filled(rng, _NOT_SAID, company, str(rng.choice((*_GOOD, *_BAD))), "")
    return " ".join(f"{rng.choice(_BEFORE)} {text}".split()), label


def _move(rng: np.random.Generator) -> tuple[str, str, str]:
    """Return a quantity, how it moves, and whether that is good or bad."""
    good, up, no_longer = rng.random() < 0.5, rng.random() < 0.5, rng.random() < _NO_LONGER
    moves = f"{'no longer ' if no_longer else ''}{rng.choice(_UP if up else _DOWN)}"
    return str(rng.choice(_GOOD if good else _BAD)), moves, "good" if (good == up) != no_longer else "bad"


def _filled(rng: np.random.Generator, forms: tuple[str, ...], company: str, what: str, moves: str) -> str:
    number, by = int(rng.integers(2, 90)), rng.choice(("", "by {} percent", "slightly", "sharply", "to {} million"))
    form = str(rng.choice(forms))
    return form.format(
        company=company, what=what, moves=moves, number=number, by=str(by).format(number), when=rng.choice(_WHEN)
    )


def write_sentences(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the sentences with these indices to a file that the task reads."""
    texts, labels = sentences()
    write_texts(path, ("sentence", "sentiment"), texts, [CLASSES[label] for label in labels], rows)
