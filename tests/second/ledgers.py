"""Second reader: ledgers; see `signed.py`."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from typing import Any, NamedTuple

from tests.second.signed import RefusedError, need, verify

LEDGER = "LedgerError"
_NUMBER: set[type] = {int, float}
_WHAT: dict[str, set[type]] = {"run": {str}, "round": {int}, "attempt": {int}, "purpose": {str}, "time": {str}}
_CHARGE = _WHAT | {"noise_multiplier": _NUMBER, "sample_rate": _NUMBER, "steps": {int}, "discrete": {bool}}
_VOTE = _WHAT | {"epsilon": _NUMBER}
_LINES: list[dict[str, set[type]]] = [
    _CHARGE, _VOTE, *(charge | {"records_per_person": {int}} for charge in (_CHARGE, _VOTE)),
    _WHAT | {"left": {str}}, {"adopted": {str}, "time": {str}}, {"lost": {list}, "time": {str}},
]  # fmt: skip
_PURPOSES = {"training", "statistics", "evaluation", "vote"}


class Line(NamedTuple):
    head: str
    signature: str
    event: dict[str, Any]


def read_lines(data: bytes, site: str, lineage: str, key: bytes) -> list[Line]:
    """Return a ledger's lines, by the site's present key; a last one without a newline is dropped."""
    head, signature, lines = "0" * 64, b"", list[Line]()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].split(b"\n")[:-1]):
        body = line[64 + 128 + 2 :]
        head = sha256(bytes.fromhex(head) + signature + body).hexdigest()
        signature = line[65 : 65 + 128]
        need(line == b" ".join([head.encode(), signature, body]), LEDGER, "chain")
        try:
            event = json.loads(body)
        except ValueError as error:
            raise RefusedError(LEDGER, "no JSON") from error
        need(isinstance(event, dict), LEDGER, "no table")
        if number:
            fits = [types for types in _LINES if event.keys() == types.keys()]
            need(fits and all(type(event[name]) in kinds for name, kinds in fits[0].items()), LEDGER, "fields")
            need(event.get("purpose", "training") in _PURPOSES, LEDGER, "purpose")
            votes = "left" in event or (event.get("purpose") == "vote") == ("epsilon" in event)
            need(votes, LEDGER, "a vote, or none")
            need(event.get("records_per_person", 2) >= 2, LEDGER, "records of a person")
            lost = event.get("lost", [])
            heads = all(type(head) is str and re.fullmatch("[0-9a-f]{64}", head) for head in lost)
            need(heads and lost == sorted(set(lost)), LEDGER, "lost heads")
        else:
            need([event.get(name) for name in ("site", "lineage")] == [site, lineage], LEDGER, "whose")
        lines.append(Line(head, signature.decode("ascii", "replace"), event))
    if lines:
        check_signature(lines[-1], site, lineage, key)
    return lines


def check_signature(line: Line, site: str, lineage: str, key: bytes) -> None:
    try:
        signature = bytes.fromhex(line.signature)
    except ValueError as error:
        raise RefusedError(LEDGER, "hex") from error
    need(signature.hex() == line.signature, LEDGER, "capitals")
    try:
        verify(key, "ledger", f"{site} {lineage} {line.head}".encode(), signature)
    except RefusedError as error:
        raise RefusedError(LEDGER, "signature") from error
