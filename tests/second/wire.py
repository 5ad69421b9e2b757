"""Second reader: chunks, bodies, parcels and records, with Protocol Buffers by hand; see `signed.py`."""

from __future__ import annotations

import math
import re
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.second.signed import MALFORMED, PROTOCOL, RefusedError, need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Field = tuple[int, int, Any]  # number, wire type, value
    Reader = Callable[["Parcel"], object]

PARCEL, ARRAYS, SUMS, PAIR = 4 << 20, 1 << 16, 10_000, 4096
_LEDGER = "ledger"
_STYPE = "cloister.bytes.1"
_DIGEST, _SITE = "[0-9a-f]{64}", "[a-z][a-z0-9-]{0,31}"
_METRIC = "[A-Za-z0-9][A-Za-z0-9 _.@%+-]{0,39}"
_KINDS = {"query", "query.lead", "query.accept", "query.pairs", "query.agree", "query.reveal", "query.prove",
          "query.judge", "query.undo", "train", "evaluate"}  # fmt: skip


class LeftOutError(RefusedError):
    """The reply counts, but something that it tells besides does not."""

    def __init__(self, record: str) -> None:
        super().__init__("LeftOutError", record)


class Array(NamedTuple):
    name: str
    dtype: str
    shape: list[int]
    stype: str
    data: bytes


class Parcel(NamedTuple):
    message_id: str
    reply_to: str
    run: int
    source: int
    destination: int
    group: str
    kind: str
    created: float
    seconds: float
    failure: tuple[int, str] | None
    arrays: dict[str, list[Array]]
    configs: dict[str, dict[str, Any]]
    metrics: dict[str, dict[str, Any]]


# --- Protocol Buffers -------------------------------------------------------------------------------------------------


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        need(place < len(data), MALFORMED, "cut")
        value |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return value & (1 << 64) - 1, place
    raise RefusedError(MALFORMED, "number")


def message(data: bytes) -> Iterator[Field]:
    """Yield the fields of a message."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        need(number, MALFORMED, "field 0")
        if wire == 0:
            value, place = _varint(data, place)
            yield number, wire, value
            continue
        length, place = _varint(data, place) if wire == 2 else ({1: 8, 5: 4}.get(wire, -1), place)
        need(0 <= length <= len(data) - place, MALFORMED, "length")
        yield number, wire, data[place : place + length]
        place += length


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except (UnicodeDecodeError, AttributeError) as error:
        raise RefusedError(MALFORMED, "text") from error


def _double(value: bytes) -> float:
    return float(struct.unpack("<d", value)[0])


def _zigzag(value: int) -> int:
    return value >> 1 ^ -(value & 1)


def _packed(data: bytes, kind: int, single: Callable[[Any], Any]) -> list[Any]:
    """Return a list's items, packed or one by one."""
    values: list[Any] = []
    for _, wire, value in message(data):
        if wire != 2 or kind in {8, 9}:
            values.append(single(value))
        elif kind == 6:
            values += [single(value[start : start + 8]) for start in range(0, len(value), 8)]
        else:
            place = 0
            while place < len(value):
                number, place = _varint(value, place)
                values.append(single(number))
    return values


_SINGLE: dict[int, Callable[[Any], Any]] = {1: _double, 2: _zigzag, 3: bool, 4: _text, 5: bytes}
_ITEMS = {6: 1, 7: 2, 8: 4, 9: 5, 10: 3}  # of lists


def _value(data: bytes) -> object:
    value_, there = None, False
    for number, _, value in message(data):
        there = True
        value_ = _packed(value, number, _SINGLE[_ITEMS[number]]) if number in _ITEMS else _SINGLE[number](value)
    need(there, MALFORMED, "a value without content")
    return value_


def _map(data: bytes, read: Callable[[bytes], Any]) -> tuple[str, Any]:
    key, value = "", b""
    for number, _, content in message(data):
        key, value = (_text(content), value) if number == 1 else (key, content)
    return key, read(value)


def _values(data: bytes) -> dict[str, Any]:
    return dict(_map(content, _value) for number, _, content in message(data) if number == 1)


def _entries(data: bytes) -> list[tuple[Array, int]]:
    arrays = []
    for number, _, entry in message(data):
        if number == 1:
            fields: dict[int, Any] = {1: b"", 2: b"", 4: b"", 5: 0}
            shape: list[int] = []
            for tag, wire, value in message(entry):
                if tag == 3:
                    shape += [value] if wire == 0 else list(_packed_varints(value))
                else:
                    fields[tag] = value
            array = Array(_text(fields[1]), _text(fields[2]), shape, _text(fields[4]), b"")
            arrays.append((array, fields[5]))
    need(len(arrays) <= ARRAYS, MALFORMED, "arrays")
    return arrays


def _packed_varints(data: bytes) -> Iterator[int]:
    place = 0
    while place < len(data):
        number, place = _varint(data, place)
        yield number


# --- Chunks and bodies ------------------------------------------------------------------------------------------------


def assemble(chunks: list[bytes], limit: int) -> tuple[bytes, str]:
    """Put chunks together; return the body, and the id of the message that it replies to."""
    data, total, reply_to = b"", None, ""
    for chunk in chunks:
        opening: dict[int, Any] = {1: 0, 2: 0, 3: b""}
        piece = b""
        for number, _, value in message(chunk):
            if number == 1:
                opening |= {tag: part for tag, _, part in message(value)}
            elif number == 2:
                piece = value
        if total is None:
            need(opening[1] == 1, MALFORMED, "protocol")
            need(opening[2] <= limit, MALFORMED, "limit")
            total, reply_to = opening[2], _text(opening[3])
        data += piece
        need(len(data) <= total, MALFORMED, "more than announced")
    need(total is None or len(data) == total, MALFORMED, "less than announced")
    return data, reply_to


def read_body(data: bytes) -> Parcel:
    need(len(data) >= 4, MALFORMED, "length")
    end = 4 + int.from_bytes(data[:4], "big")
    need(end <= len(data) and end <= PARCEL, MALFORMED, "parcel")
    fields: dict[int, Any] = {1: b"", 2: b"", 3: 0, 4: 0, 5: 0, 6: b"", 7: b"", 8: bytes(8), 9: bytes(8)}
    records, failure = None, None
    for number, _, value in message(data[4:end]):
        if number == 10:
            records, failure = value, None
        elif number == 11:
            records, failure = None, value
        else:
            fields[number] = value
    arrays: dict[str, list[tuple[Array, int]]] = {}
    values: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    for number, _, value in message(records or b""):
        if number == 1:
            name, entries = _map(value, _entries)
            arrays[name] = entries
        elif number in {2, 3}:
            name, values_ = _map(value, _values)
            values[number - 2][name] = values_
    place, filled = end, dict[str, list[Array]]()
    for name in sorted(arrays, key=str.encode):
        filled[name] = []
        for array, size in arrays[name]:
            need(place + size <= len(data), MALFORMED, "arrays are longer than what follows")
            filled[name].append(array._replace(data=data[place : place + size]))
            place += size
    if failure is None:
        need(records is not None, MALFORMED, "neither records nor a failure")
        need(place == len(data), MALFORMED, "more follows")
    failure_fields = {number: value for number, _, value in message(failure)} if failure is not None else {}
    return Parcel(
        message_id=_text(fields[1]),
        reply_to=_text(fields[2]),
        run=fields[3],
        source=fields[4],
        destination=fields[5],
        group=_text(fields[6]),
        kind=_text(fields[7]),
        created=_double(fields[8]),
        seconds=_double(fields[9]),
        failure=None if failure is None else (failure_fields.get(1, 0), _text(failure_fields.get(2, b""))),
        arrays=filled,
        configs=values[1],
        metrics=values[0],
    )


def read_message(data: bytes) -> Parcel:
    """Return a message from the server, once all that its kind has is there."""
    parcel = read_body(data)
    need(not parcel.reply_to and parcel.failure is None and parcel.kind in _KINDS, MALFORMED, "no instruction")
    for read in _ASKED[parcel.kind]:
        read(parcel)
    return parcel


def read_reply(data: bytes, to: str, kind: str) -> Parcel:
    """Return a reply to a message."""
    parcel = read_body(data)
    need(parcel.reply_to == to, MALFORMED, "to another message")
    for record in parcel.metrics.values():
        for value in record.values():
            for item in value if isinstance(value, list) else [value]:
                need(type(item) in {int, float}, MALFORMED, "a metric that is no number")
    need(parcel.failure is None, PROTOCOL, "failure")
    for read in _ANSWERED[kind]:
        read(parcel)
    return parcel


# --- Records ----------------------------------------------------------------------------------------------------------


def value(parcel: Parcel, record: str, name: str, kind: type) -> Any:  # noqa: ANN401
    content = parcel.configs.get(record, {}).get(name)
    need(type(content) is kind, MALFORMED, f"{record}.{name}")
    return content


def array(parcel: Parcel, record: str, name: str) -> bytes:
    entry = {item.name: item for item in parcel.arrays.get(record, [])}.get(name)
    need(entry is not None and entry.stype == _STYPE, MALFORMED, f"{record}.{name}")
    assert entry is not None
    return entry.data


def matching(parcel: Parcel, record: str, name: str, pattern: str) -> str:
    text: str = value(parcel, record, name, str)
    need(re.fullmatch(pattern, text), MALFORMED, f"{record}.{name}")
    return text


def names(values: list[Any]) -> None:
    need(len(set(map(str, values))) == len(values), MALFORMED, "twice")
    need(all(isinstance(name, str) and re.fullmatch(_SITE, name) for name in values), MALFORMED, "names")


def _time(parcel: Parcel, record: str, name: str) -> None:
    need(0 <= value(parcel, record, name, float) <= 1e11, MALFORMED, f"{record}.{name}")


def _manifest(parcel: Parcel) -> None:
    value(parcel, "run", "manifest", bytes)


def _plan(parcel: Parcel) -> None:
    value(parcel, "run", "plan", bytes)


def _head(parcel: Parcel) -> None:
    if any("ledger" in records for records in (parcel.configs, parcel.arrays, parcel.metrics)):
        matching(parcel, "ledger", "head", _DIGEST)
        need(len(value(parcel, "ledger", "signature", bytes)) == 64, MALFORMED, "ledger.signature")


def _sent(parcel: Parcel) -> None:
    _time(parcel, "run", "sent")


def _letter(parcel: Parcel) -> None:
    matching(parcel, "letter", "leader", _SITE)
    array(parcel, "sealed", "letter")


def _pairs(parcel: Parcel) -> None:
    need("pairs" in parcel.arrays, MALFORMED, "pairs")
    letters = [array(parcel, "pairs", pair.name) for pair in parcel.arrays["pairs"]]
    names([pair.name for pair in parcel.arrays["pairs"]])
    need(all(len(letter) <= PAIR for letter in letters), MALFORMED, "long pair letter")


def sum_of(parcel: Parcel, record: str) -> None:
    need(record in parcel.arrays, MALFORMED, record)
    counts = {"plan": 0, "codes": 0, "contributions": 0, "c0": 0, "c1": 0, "proof": 0}
    for entry in parcel.arrays[record]:
        kind, _, number = entry.name.partition("-")
        need(kind in counts, MALFORMED, entry.name)
        need(entry.name == (f"{kind}-{counts[kind]}" if kind in {"c0", "c1", "proof"} else kind), MALFORMED, number)
        counts[kind] += 1
    need(counts["plan"] == counts["codes"] == counts["contributions"] == 1, MALFORMED, "sum")


def _sums(parcel: Parcel) -> None:
    count = value(parcel, "run", "sums", int)
    need(0 <= count <= SUMS, MALFORMED, "sums")
    for number in range(count):
        sum_of(parcel, f"sum-{number}")


def _cohort(parcel: Parcel) -> None:
    arrays = parcel.arrays.get("cohort")
    if arrays is None or len(arrays) % 2:
        raise RefusedError(MALFORMED, "cohort")
    for number in range(len(arrays) // 2):
        array(parcel, "cohort", f"header-{number}")
        array(parcel, "cohort", f"signature-{number}")


def _agreed(parcel: Parcel) -> None:
    need("agreed" in parcel.configs, MALFORMED, "agreed")
    for site in parcel.configs["agreed"]:
        value(parcel, "agreed", site, bytes)


def _undo(parcel: Parcel) -> None:
    need("votes" in parcel.configs, MALFORMED, "votes")
    names(list(parcel.configs["votes"]))
    for site in parcel.configs["votes"]:
        vote = value(parcel, "votes", site, bytes)
        need(len(vote) == 65 and vote[0] in {0, 1}, MALFORMED, "vote")
    need(value(parcel, "undo", "round", int) >= 1, MALFORMED, "round")
    for name in ("before", "after"):
        matching(parcel, "undo", name, _DIGEST)


def _readiness(parcel: Parcel) -> None:
    kinds = {
        "size": int,
        "update_bound": float,
        "epoch": int,
        "latest": int,
        "pairs": list,
        "clock": float,
        "signature": bytes,
    }
    fields = {name: value(parcel, "readiness", name, kinds.get(name, str))
            for name in ("site", "model", "layout", "keys", *kinds)}  # fmt: skip
    names(fields["pairs"])
    for name, pattern in (("site", _SITE), ("model", _DIGEST), ("layout", _DIGEST)):
        matching(parcel, "readiness", name, pattern)
    matching(parcel, "readiness", "keys", _DIGEST if fields["epoch"] else "")
    need(fields["size"] >= 1 and fields["epoch"] >= 0 and fields["latest"] >= 0, MALFORMED, "negative")
    _bound(parcel, "readiness")
    _time(parcel, "readiness", "clock")


def _bound(parcel: Parcel, record: str) -> None:
    need(0 < value(parcel, record, "update_bound", float) < math.inf, MALFORMED, f"{record}.update_bound")


def _opened(parcel: Parcel) -> None:
    matching(parcel, "opened", "model", _DIGEST)
    _bound(parcel, "opened")
    value(parcel, "opened", "signature", bytes)


def _refused(parcel: Parcel) -> None:
    liars, why = value(parcel, "refused", "liars", list), value(parcel, "refused", "why", str)
    value(parcel, "refused", "signature", bytes)
    names(liars)
    need(why == "seeds" if liars else why in {"codes", "values"}, MALFORMED, "refused.why")


def _accusation(parcel: Parcel) -> None:
    need("accusation" in parcel.configs, MALFORMED, "accusation")
    if parcel.configs["accusation"]:
        matching(parcel, "accusation", "site", _SITE)
        value(parcel, "accusation", "signature", bytes)


def _keys(parcel: Parcel) -> None:
    need(value(parcel, "keys", "epoch", int) >= 0, MALFORMED, "negative")
    matching(parcel, "keys", "fingerprint", _DIGEST)


def _letters(parcel: Parcel) -> None:
    need(parcel.arrays.get("letters"), MALFORMED, "letters")
    for letter in parcel.arrays["letters"]:
        array(parcel, "letters", letter.name)


def _signed(parcel: Parcel) -> None:
    value(parcel, "update", "header", bytes)
    value(parcel, "update", "signature", bytes)
    array(parcel, "masks", "commitments")
    need("ciphertexts" in parcel.arrays, MALFORMED, "ciphertexts")
    for number, ciphertext in enumerate(parcel.arrays["ciphertexts"]):
        need(ciphertext.name == str(number), MALFORMED, "chunks")
        array(parcel, "ciphertexts", ciphertext.name)


def _told_figures(record: str, can_be: Callable[[str, float], bool]) -> Reader:
    def read(parcel: Parcel) -> None:
        there = record in parcel.configs or record in parcel.arrays
        numbers = parcel.metrics.get(record, {})
        fits = all(type(number) in {int, float} and math.isfinite(number) and can_be(name, number)
                   for name, number in numbers.items())  # fmt: skip
        if there or len(numbers) > 16 or not fits:
            raise LeftOutError(record)

    return read


def _head_besides(parcel: Parcel) -> None:
    try:
        _head(parcel)
    except RefusedError as error:
        raise LeftOutError(_LEDGER) from error


def _summed(parcel: Parcel) -> None:
    if "sum" in parcel.configs["run"]:
        matching(parcel, "run", "sum", _DIGEST)


_REPORT = _told_figures("report", lambda name, number: name == "epsilon" and 0 <= number <= 1e6)
_METRICS = _told_figures("metrics", lambda name, number: bool(re.fullmatch(_METRIC, name)) and abs(number) <= 3.4e38)

_ASKED: dict[str, list[Reader]] = {
    "query": [_manifest, _sent, _head],
    "query.lead": [lambda parcel: value(parcel, "lead", "epoch", int)],
    "query.accept": [_letter],
    "query.pairs": [lambda parcel: value(parcel, "keys", "fingerprint", str), _pairs],
    "train": [_manifest, _plan, _sums, _head],
    "query.agree": [_manifest, _plan, _cohort],
    "query.reveal": [_manifest, _plan, _cohort, _agreed, _summed],
    "query.prove": [_manifest, lambda parcel: sum_of(parcel, "sum"), _agreed, _summed],
    "query.judge": [_manifest, _plan, _accusation, _signed],
    "query.undo": [_manifest, _undo],
    "evaluate": [_manifest, lambda parcel: sum_of(parcel, "sum")],
}
_ANSWERED: dict[str, list[Reader]] = {
    "readiness": [_readiness],
    "leader": [_keys, _letters, _pairs],
    "keys": [_keys, _pairs],
    "shared": [lambda parcel: names(value(parcel, "shared", "names", list)), _pairs],
    "update": [_signed, _REPORT, _head_besides],
    "agreed": [
        lambda parcel: value(parcel, "agree", "signature", bytes),
        lambda parcel: array(parcel, "pairs", "sealed"),
    ],
    "revealed": [lambda parcel: need(len(value(parcel, "reveal", "sealed", bytes)) == 112, MALFORMED, "sealed")],
    "proved": [lambda parcel: need(len(array(parcel, "norm", "proof")) <= 65536, MALFORMED, "proof")],
    "verdict": [
        lambda parcel: value(parcel, "verdict", "right", bool),
        lambda parcel: value(parcel, "verdict", "signature", bytes),
    ],
    "refused": [_refused],
    "undone": [lambda parcel: matching(parcel, "undone", "model", _DIGEST)],
    "opened": [_opened, _METRICS],
}
