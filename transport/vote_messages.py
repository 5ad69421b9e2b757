"""Convert votes to Flower records and back. See `privacy.run.votes` and `transport.messages`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, RecordDict

from privacy.errors import MalformedError
from privacy.run.votes import Vote
from transport.fields import DIGEST, check_names, field, lacks

if TYPE_CHECKING:
    from collections.abc import Mapping

_OWN, _VOTES, _ABOUT, _UNDONE = "vote", "votes", "undo", "undone"


def put_vote(content: RecordDict, vote: Vote | None) -> RecordDict:
    """Add a site's vote, if it casts one, to its reply; return the reply."""
    if vote is not None:
        content[_OWN] = ConfigRecord({"vote": vote.to_bytes()})
    return content


def find_vote(content: RecordDict) -> Vote | None:
    """Return a reply's vote, or None if it is missing or malformed: the reply is valid without it."""
    try:
        return Vote.from_bytes(field(content, _OWN, "vote", bytes))
    except MalformedError:
        return None


def pack_votes(manifest: bytes, number: int, before: str, after: str, votes: Mapping[str, Vote]) -> RecordDict:
    """Show a site the votes that undo a round."""
    return RecordDict({
        "run": ConfigRecord({"manifest": manifest}),
        _ABOUT: ConfigRecord({"round": number, "before": before, "after": after}),
        _VOTES: ConfigRecord({site: vote.to_bytes() for site, vote in votes.items()}),
    })  # fmt: skip


def read_votes(content: RecordDict) -> tuple[int, str, str, dict[str, Vote]]:
    """Return the round voted on, the digests of the models before and after it, and the votes by site.

    Raises:
        MalformedError: if any of them is missing or malformed.
    """
    votes = content.get(_VOTES)
    if not isinstance(votes, ConfigRecord):
        lacks(_VOTES)
    check_names(list(votes), _VOTES)
    number = field(content, _ABOUT, "round", int)
    before, after = (field(content, _ABOUT, name, str) for name in ("before", "after"))
    if number < 1 or not re.fullmatch(DIGEST, before) or not re.fullmatch(DIGEST, after):
        lacks(_ABOUT)
    return number, before, after, {site: Vote.from_bytes(field(content, _VOTES, site, bytes)) for site in votes}


def pack_undone(model: str) -> RecordDict:
    """Report the model that a site went back to."""
    return RecordDict({_UNDONE: ConfigRecord({"model": model})})


def read_undone(content: RecordDict) -> str:
    """Return the digest of the model that a site went back to.

    Raises:
        MalformedError: if it is missing or malformed.
    """
    model = field(content, _UNDONE, "model", str)
    if not re.fullmatch(DIGEST, model):
        lacks(f"{_UNDONE}.model")
    return model
