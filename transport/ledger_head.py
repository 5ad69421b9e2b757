"""The signed head of a site's ledger, which messages in both directions may carry: see `privacy.ledger.ledger_head`."""

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
    """Return the head that a message carries, if it carries one.

    Raises:
        MalformedError: if what it carries is none.
    """
    if _RECORD not in content:
        return None
    return SignedHead(field(content, _RECORD, "head", str), field(content, _RECORD, "signature", bytes))


def find_head(content: RecordDict) -> SignedHead | None:
    """Return the head that a reply carries, if it is one: the reply stands without it."""
    try:
        return read_head(content)
    except MalformedError:
        return None


def has_unreadable_head(content: RecordDict) -> bool:
    """Whether a message carries something in the place of a head that is none."""
    return _RECORD in content and find_head(content) is None
