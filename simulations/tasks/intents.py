"""Classify messages to a bank's customer service by what the customer wants, with one weight per word and intent.

The 3,000 messages are made up, by `messages` below, from public phrases with synonyms, fillers and typing errors. Words
become numbers by a public hash, so that no vocabulary is learned from a site's messages.

The noise of DP-SGD grows with the number of parameters, and it allows few steps. A weight for each word and intent is
few enough, and a linear model needs few steps.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from client.task.task import Task
from simulations.tasks.texts import HashedTerms, hashed, read_texts, words_of, write_texts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

INTENTS = ("block card", "dispute payment", "balance", "transfer", "loan", "new account", "change address", "complaint")
"""What customers want: the labels, in the order of the classes."""

WORDS, LENGTH = 512, 20
"""Numbers of words, of which 0 is none, and the words that are read of a message; what follows is cut off."""

_SEED, _COUNT = 2026, 3000


class Intents(Task):
    """What a customer wants, by a linear model of hashed words: 4,096 parameters."""

    @override
    def model(self) -> nn.Module:
        """Make the untrained model: words `(n, 20)` to logits `(n, 8)`."""
        return HashedTerms(WORDS, len(INTENTS))

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        """Read a CSV file with the columns `message` and `intent`: words `(n, 20)` and classes `(n,)`.

        Raises:
            DataError: if the file or a line of it cannot be used.
        """
        texts, labels = read_texts(path, "message", "intent", INTENTS)
        return torch.tensor([numbers(text) for text in texts]), torch.tensor(labels)

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        """Make up eight messages of random words and lengths, one per intent."""
        words = torch.randint(1, WORDS, (len(INTENTS), LENGTH))
        lengths = torch.randint(1, LENGTH + 1, (len(INTENTS), 1))
        return words * (torch.arange(LENGTH) < lengths), torch.arange(len(INTENTS))

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits `(n, 8)`, in nats."""
        return functional.cross_entropy(outputs, targets)

    @override
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return whether each message is classified correctly: 1 or 0, `(n,)`."""
        return {"accuracy": (outputs.argmax(1) == targets).float()}


def numbers(message: str) -> list[int]:
    """Return the numbers of a message's words, padded with zeros to `LENGTH`.

    >>> numbers("my card")[:3] == [numbers("My card!")[0], numbers("card")[0], 0]
    True
    """
    return hashed(words_of(message.lower()), WORDS, LENGTH)


_PHRASES: dict[str, tuple[str, ...]] = {
    "block card": ("my card was stolen", "I lost my card", "please block my card", "freeze the card at once",
                   "someone has taken my wallet", "cancel my debit card"),
    "dispute payment": ("I did not make this payment", "there is a charge I do not know", "refund this transaction",
                        "I was charged twice", "the shop took the wrong amount", "this debit is not mine"),
    "balance": ("what is my balance", "how much money is on my account", "show me my last statement",
                "how much can I spend", "has my salary arrived", "list my recent payments"),
    "transfer": ("I want to send money to a friend", "transfer 200 to my savings", "pay this invoice by Friday",
                 "set up a standing order", "my transfer has not arrived", "how do I wire money abroad"),
    "loan": ("I would like a loan", "what interest do you take on a mortgage", "can I borrow money for a car",
             "repay my credit early", "how much could I borrow", "raise my overdraft"),
    "new account": ("open an account for my son", "I want to become a customer", "do you have student accounts",
                    "a second account for my business", "how do I open savings", "which papers do I need to join"),
    "change address": ("I have moved", "my new address is Mill Lane 4", "change my phone number", "update my email",
                       "I got married and have a new name", "letters go to the wrong place"),
    "complaint": ("your app does not work", "I have waited an hour on the phone", "the branch was rude to me",
                  "this is the third time I write", "nobody answers my letters", "I am leaving your bank"),
}  # fmt: skip
_BEFORE = ("", "hello", "hi there", "good morning", "please help", "excuse me", "dear team", "urgent", "sorry but")
_AFTER = ("", "thank you", "please", "as soon as possible", "can you help", "what should I do", "best regards", "today")
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
_TYPING_ERRORS, _BORROWED = 0.08, 0.35  # of the words; of the messages that also have words of another intent


@cache
def messages() -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Make up all messages and their classes `(3000,)`; the same every time."""
    rng = np.random.default_rng(_SEED)
    labels = rng.integers(len(INTENTS), size=_COUNT)
    return tuple(_message(INTENTS[label], rng) for label in labels), labels.astype(np.int64)


def _message(intent: str, rng: np.random.Generator) -> str:
    parts = [str(rng.choice(_BEFORE)), str(rng.choice(_PHRASES[intent])), str(rng.choice(_AFTER))]
    if rng.random() < _BORROWED:
        other = str(rng.choice(_PHRASES[str(rng.choice(INTENTS))])).split()
        parts.insert(int(rng.integers(1, 3)), " ".join(other[: len(other) // 2]))
    words = " ".join(filter(None, parts)).split()
    return " ".join(_mistyped(word, rng) if rng.random() < _TYPING_ERRORS else word for word in words)


def _mistyped(word: str, rng: np.random.Generator) -> str:
    place = int(rng.integers(len(word)))
    return word[:place] + str(rng.choice(_LETTERS)) + word[place + 1 :]


def write_messages(path: Path, rows: NDArray[np.intp]) -> None:
    """Write the messages with these indices to a file that the task reads."""
    texts, labels = messages()
    write_texts(path, ("message", "intent"), texts, [INTENTS[label] for label in labels], rows)
