"""Put signed ledger heads into messages, in both directions, and read them. See `privacy.ledger.ledger_head`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import ConfigRecord

from privacy.errors import MalformedError
from privacy.ledger.ledger_head import SignedHead
from transport.fields import field

if TYPE_CHECKING:
    from flwr.app import RecordDict

_RECORD = "ledger"


def put_head(content: RecordDict, head: SignedHead | None) -> RecordDict:
    """Add a head to a message, if there is one; return the message."""
    if head is not None:
        content[_RECORD] = ConfigRecord({"head": head.head, "signature": head.signature})
    return content


def read_head(content: RecordDict) -> SignedHead | None:
    """Return a message's head, or None if it has none.

    Raises:
        MalformedError: if the record in its place is not a head.
    """
    if _RECORD not in content:
        return None
    return SignedHead(field(content, _RECORD, "head", str), field(content, _RECORD, "signature", bytes))


def find_head(content: RecordDict) -> SignedHead | None:
    """Return a reply's head, or None if it is missing or malformed: the reply is valid without it."""
    try:
        return read_head(content)
    except MalformedError:
        return None


def has_unreadable_head(content: RecordDict) -> bool:
    """Whether a message holds a malformed head."""
    return _RECORD in content and find_head(content) is None
