"""The golden files: how they are read, and how what must be refused is written as a change of what is accepted.

A reader takes several parts, such as a header and its signature. `bad.json` says of each kind of reader where its good
parts stand in the files, and of each bad vector which of them are other ones.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.codec.ciphertext import SEED_BYTES, pack60
from privacy.codec.packing import RING_DEGREE
from privacy.crypto.expansion import add_expanded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FOLDER = Path(__file__).parent.parent / "vectors"
_SHORT = 64  # bytes; longer ones may be written as what changes
_LONG = 8192
_LINE = b"cloister-signed-1"


@cache
def stored(name: str) -> Any:  # noqa: ANN401 - JSON
    """Return a golden file's content."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def store(name: str, content: object) -> None:
    """Write a golden file."""
    (FOLDER / f"{name}.json").write_text(_lines(content) + "\n")
    stored.cache_clear()
    good_parts.cache_clear()


def _lines(content: object) -> str:
    """Return JSON with one entry of the outermost tables a line."""
    if isinstance(content, dict):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {_entries(entry)}" for key, entry in content.items()) + "\n}"
    return json.dumps(content)


def _entries(content: object) -> str:
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return "[\n" + ",\n".join(map(json.dumps, content)) + "\n]"
    if isinstance(content, dict) and content:
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in content.items()) + "\n}"
    return json.dumps(content)


@cache
def good_parts(kind: str) -> dict[str, bytes]:
    """Return what a kind's reader accepts, part by part."""
    return {name: _at(place) for name, place in stored("bad")["kinds"][kind].items()}


def parts_of(bad: Mapping[str, Any]) -> dict[str, bytes]:
    """Return a bad vector's parts."""
    good = good_parts(bad["kind"])
    return good | {name: _changed(good.get(name, b""), change) for name, change in bad["parts"].items()}


def change(good: bytes, bad: bytes) -> dict[str, Any]:
    """Return how to write bad bytes, given the good ones."""
    shorter = bad.rstrip(b" ")
    if len(bad) - len(shorter) > _SHORT:
        return change(good, shorter) | {"size": len(bad)}
    if len(bad) <= _SHORT or not good:
        return {"put": _written(bad)}
    line, other = good.partition(b"\n")[0], bad.partition(b"\n")[0]
    if good.startswith(_LINE) and bad.startswith(_LINE) and len(line) == len(other):
        edits = [_edit(line, other, 0), _edit(good[len(line) :], bad[len(line) :], len(line))]
    elif len(good) == len(bad):
        edits = [_edit(good[start:stop], bad[start:stop], start) for start, stop in _runs(good, bad)]
    else:
        edits = [_edit(good, bad, 0)]
    return {"edits": [edit for edit in edits if edit[1:] != [edit[0], ""]]}


def _runs(good: bytes, bad: bytes) -> list[tuple[int, int]]:
    """Return where bytes of one length differ, from where to where, with some that do not in between."""
    places = np.flatnonzero(np.frombuffer(good, np.uint8) != np.frombuffer(bad, np.uint8))
    parts = np.split(places, np.flatnonzero(np.diff(places) > _SHORT) + 1)
    return [(int(part[0]), int(part[-1]) + 1) for part in parts if part.size]


def _edit(good: bytes, bad: bytes, offset: int) -> list[Any]:
    """Return from where to where to put something else in, and what."""
    start = _same(good, bad)
    end = _same(good[start:][::-1], bad[start:][::-1])
    return [offset + start, offset + len(good) - end, _written(bad[start : len(bad) - end])]


def _same(one: bytes, other: bytes) -> int:
    """Return how many bytes are the same from the beginning on."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _written(data: bytes) -> object:
    packed = zlib.compress(data)
    if len(data) > _LONG and 2 * len(packed) < len(data):
        return {"zlib": _text(packed)}
    return data.decode() if data.isascii() else {"base64": _text(data)}


def _read(written: object) -> bytes:
    if isinstance(written, dict):
        return zlib.decompress(b64decode(written["zlib"])) if "zlib" in written else b64decode(written["base64"])
    return str(written).encode()


def _changed(good: bytes, how: Mapping[str, Any]) -> bytes:
    for start, stop, put in reversed(how.get("edits", [])):
        good = good[:start] + _read(put) + good[stop:]
    data = _read(how["put"]) if "put" in how else good
    return data.ljust(how.get("size", 0))


def _at(place: str) -> bytes:
    """Return what stands at a place such as `base64 round/sum/codes`."""
    encoding, _, path = place.partition(" ")
    if encoding == "text" and path.startswith("="):
        return path[1:].encode()
    file, *keys = path.split("/")
    value = stored(file)
    for key in keys:
        value = value[key]
    return _DECODERS[encoding](value)


def _key_file(epoch: int) -> bytes:
    """Return the keys of an epoch as sites store them, of the known secrets."""
    known = stored("ciphertext")
    data = epoch.to_bytes(8) + bytes.fromhex(known["secret"]) + b64decode(known["key"])
    return data + sha256(data).digest()


def _expanded(sites: Mapping[str, Mapping[str, str]]) -> bytes:
    """Return the sum of what follows from the sites' seeds."""
    seeds = [bytes.fromhex(site["seeds"]) for site in sites.values()]
    total = np.zeros((len(seeds[0]) // SEED_BYTES, RING_DEGREE), np.uint64)
    for seed in seeds:
        add_expanded(total, seed)
    return pack60(total.reshape(-1))


_DECODERS: dict[str, Callable[[Any], bytes]] = {
    "text": str.encode,
    "hex": bytes.fromhex,
    "base64": b64decode,
    "keys": _key_file,
    "expanded": _expanded,
}


def _text(data: bytes) -> str:
    return b64encode(data).decode()
