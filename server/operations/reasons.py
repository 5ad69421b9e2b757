"""Sort the reasons for which sites took no part into a few kinds: metrics must not have text from sites as labels."""

from __future__ import annotations

import re
from enum import StrEnum

from privacy import errors


class Reason(StrEnum):
    """Why a site took no part in a round, or not to its end."""

    POLICY = "policy"
    BUDGET = "budget"
    LEDGER = "ledger"
    DATA = "data"
    TASK = "task"
    DEVICE = "device"
    STORAGE = "storage"
    KEYS = "keys"
    OFFLINE = "offline"
    LATE = "late"
    LEFT = "left"
    MODEL = "model"
    EXCLUDED = "excluded"
    UNEXPECTED = "unexpected"
    OTHER = "other"


def _public(kind: type[errors.CloisterError]) -> str:
    return re.escape(kind().public.partition(";")[0])


_PHRASES = {
    Reason.POLICY: r"\(policy: \w+\)|policy does not allow",
    Reason.BUDGET: _public(errors.BudgetError),
    Reason.LEDGER: _public(errors.LedgerError) + "|ledger",
    Reason.DATA: _public(errors.DataError),
    Reason.TASK: _public(errors.TaskError),
    Reason.DEVICE: _public(errors.DeviceError),
    Reason.STORAGE: _public(errors.StorageError),
    Reason.KEYS: "|".join(map(_public, (errors.KeyFileError, errors.VaultError, errors.EncryptionError))),
    Reason.LEFT: "no longer in the roster",
    Reason.OFFLINE: "it is not online|has not answered whether it takes part",
    Reason.LATE: "no update by the round's deadline|no update yet|did not answer in time|update came after",
    Reason.MODEL: "different model|differ from the other sites'|differs from the other sites'",
    Reason.EXCLUDED: "left out|was undone|committed to different|others opened it",
    Reason.UNEXPECTED: "unexpected error|without giving a reason",
}


def reason_of(text: str) -> Reason:
    """Return the kind of a problem, as the server noted it or a site reported it.

    >>> reason_of("“task lungs:Net is not listed (policy: tasks)”").value
    'policy'
    """
    return next((kind for kind, phrase in _PHRASES.items() if re.search(phrase, text)), Reason.OTHER)
