"""Second reader: the golden files, and what each kind of bad vector is read by; see tests/vectors/README.md."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64decode
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.second import ledgers, norms, numbers, ring, rounds, sealing, signed, wire
from tests.second.signed import AUTHENTICITY, MALFORMED, PROTOCOL, member, need, verify

if TYPE_CHECKING:
    from collections.abc import Callable

    Parts = dict[str, bytes]
    Table = dict[str, Any]

FOLDER = Path(__file__).parent.parent / "vectors"
REPLIED_TO = "f" * 32


@cache
def stored(name: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def tag_key() -> bytes:
    return bytes.fromhex(stored("ciphertext")["secret"])


@cache
def decryption_key() -> list[int]:
    return list(struct.unpack(f"<{ring.N}Q", b64decode(stored("ciphertext")["key"])[: 8 * ring.N]))


def key_file(epoch: int) -> bytes:
    data = epoch.to_bytes(8, "big") + tag_key() + b64decode(stored("ciphertext")["key"])
    return data + sha256(data).digest()


def authority() -> bytes:
    return b64decode(stored("documents")["authority"])


def coordinator() -> bytes:
    return bytes.fromhex(stored("documents")["coordinator"])


@cache
def roster(data: bytes) -> Table:
    return signed.open_roster(data, authority(), 1_790_000_000)


@cache
def manifest(data: bytes) -> Table:
    return signed.open_manifest(data, coordinator())


# --- Parts ------------------------------------------------------------------------------------------------------------


def written(value: object) -> bytes:
    if isinstance(value, dict):
        return zlib.decompress(b64decode(value["zlib"])) if "zlib" in value else b64decode(value["base64"])
    return str(value).encode()


@cache
def good(kind: str) -> Parts:
    return {name: _value_at(place) for name, place in stored("bad")["kinds"][kind].items()}


def _value_at(place: str) -> bytes:
    encoding, path = place.split(" ", 1)
    if path.startswith("="):
        return path[1:].encode()
    file, *keys = path.split("/")
    value = stored(file)
    for key in keys:
        value = value[key]
    if encoding == "keys":
        return key_file(value)
    if encoding == "expanded":
        return ring.pack60(ring.plus((ring.expand(bytes.fromhex(site["seeds"])) for site in value.values()), ring.Q))
    return {"text": str.encode, "hex": bytes.fromhex, "base64": b64decode}[encoding](value)


def parts_of(bad: Table) -> Parts:
    parts = dict(good(bad["kind"]))
    for name, how in bad["parts"].items():
        data = written(how["put"]) if "put" in how else parts[name]
        for start, stop, put in reversed(how.get("edits", [])):
            data = data[:start] + written(put) + data[stop:]
        parts[name] = data.ljust(how.get("size", 0))
    return parts


# --- Readers ----------------------------------------------------------------------------------------------------------


def _manifest(parts: Parts) -> None:
    opened = signed.open_run(parts["data"], roster(parts["roster"]))
    need(float(parts["now"]) <= opened["expires"], "RefusedError", "expired")


def _roster(parts: Parts) -> None:
    signed.open_roster(parts["data"], authority(), float(parts["now"]))


def _asked(parts: Parts) -> None:
    plan = signed.read_plan(parts["plan"])
    signed.check_asked(plan, manifest(parts["manifest"]), parts["site"].decode(), float(parts["now"]))


def _header(parts: Parts) -> Table:
    return signed.check_header(
        parts["header"], parts["signature"], parts["site"].decode(), signed.read_plan(parts["plan"]),
        manifest(parts["manifest"]), roster(parts["roster"]),
    )  # fmt: skip


def _update(parts: Parts) -> None:
    plan, header = signed.read_plan(parts["plan"]), _header(parts)
    cuts, body = parts["cuts"].decode(), parts["chunk"]
    ends = [] if cuts == "none" else [*map(int, cuts.split()), len(body)]
    chunks = [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    ciphertexts = rounds.read_body(chunks, header, manifest(parts["manifest"]))
    rounds.check_commitments(parts["commitments"], header, plan)
    rounds.Adding(plan).add(header, ciphertexts)


def _addition(parts: Parts) -> None:
    plan, adding = signed.read_plan(parts["plan"]), rounds.Adding(signed.read_plan(parts["sum's plan"]))
    for part in rounds.split(parts["signed"]):
        site = json.loads(part.header)["site"]
        settings, members = manifest(parts["manifest"]), roster(parts["roster"])
        header = signed.check_header(part.header, part.signature, site, plan, settings, members)
        adding.add(header, rounds.read_body([parts["chunk"]], header, settings))
    adding.close()


def arrays_of(parts: Parts) -> list[tuple[str, bytes]]:
    pairs = (name.partition("=") for name in parts["names"].decode().split())
    return [(name, parts[part]) for name, _, part in pairs]


def open_sum(parts: Parts) -> rounds.Opened:
    settings = manifest(parts["manifest"])
    opened = rounds.open_sum(arrays_of(parts), settings, roster(parts["roster"]), tag_key(), decryption_key())
    fields = numbers.separated(opened.unmasked, settings["fields"], settings["bits"])
    size = next(iter(opened.headers.values()))["size"]
    rounds.check_fields(fields, size, len(opened.headers), settings["levels"])
    return opened


def _contributors(parts: Parts) -> None:
    plan, site = signed.read_plan(parts["plan"]), parts["site"].decode()
    contributions = rounds.split(parts["shown"])
    settings, members = manifest(parts["manifest"]), roster(parts["roster"])
    signed.check_under_way(plan, settings, float(parts["now"]))
    named = zip(rounds.contributors(contributions, plan, settings, members), contributions, strict=True)
    headers = {name: contribution.header for name, contribution in named}
    need(headers.get(site) == parts["own"], PROTOCOL, "not what was sent")
    need(len(headers) >= int(parts["minimum"]), PROTOCOL, "too few")
    record, own = parts["once"].decode(), json.loads(parts["own"])
    if parts["agreed"]:
        signatures = {name: bytes.fromhex(digest) for name, digest in json.loads(parts["agreed"]).items()}
        rounds.check_agreed(plan, headers, signatures, members)
        rounds.check_repeat(record, plan, headers)
        rounds.check_once(record, f"revealing for round {plan['round']}", f"{plan['digest']} {own['mask']}")
    else:
        rounds.check_repeat(record, plan, headers)
        action = f"agreeing on the contributors to plan {plan['digest']}"
        rounds.check_once(record, action, f"{rounds.set_digest(headers)} {','.join(sorted(headers))}")


def _keys(parts: Parts) -> None:
    polynomial = ring.read_key_file(parts["data"])
    need(polynomial, "KeyFileError", "key file")
    assert polynomial
    need(ring.has_form(polynomial[2]), MALFORMED, "form")


def _sealing(parts: Parts) -> None:
    need(len(parts["data"]) == 96, "KeyFileError", "sealing key")


def _private(site: str) -> bytes:
    return bytes.fromhex(stored("keys")["sealing_keys"][site])


def read_letter(parts: Parts) -> bytes:
    """Return the key file in a letter to south."""
    leader, site, members = parts["leader"].decode(), parts["site"].decode(), roster(parts["roster"])
    letter = signed.read_letter(parts["letter"], leader, members)
    stated = [letter[name] for name in ("consortium", "roster", "leader", "recipient")]
    need(stated == [members["consortium"], members["version"], leader, site], PROTOCOL, "not for this site")
    info = sealing.bound("epoch", *stated[:2], letter["epoch"], letter["fingerprint"], *stated[2:])
    data = sealing.open_sealed(letter["sealed"], _private("south"), info)
    keys = ring.read_key_file(data)
    need(keys, "KeyFileError", "key file")
    assert keys
    need([keys[0], ring.fingerprint(data)] == [letter["epoch"], letter["fingerprint"]], AUTHENTICITY, "other keys")
    need(ring.has_form(keys[2]), MALFORMED, "form")
    return data


def read_pair(parts: Parts) -> bytes:
    """Return the secret in a pair letter."""
    sender, site, members = parts["sender"].decode(), parts["site"].decode(), roster(parts["roster"])
    signature, sealed = parts["letter"][:64], parts["letter"][64:]
    keys = key_file(2)
    info = sealing.bound("pair", members["consortium"], members["version"], 2, ring.fingerprint(keys), sender, site)
    verify(bytes.fromhex(member(members, sender)["signing_key"]), "pair", info + sealed, signature)
    secret = sealing.open_sealed(sealed, _private(site), info)
    need(len(secret) == 32 and sender < site, MALFORMED, "secret")
    return secret


def _epoch(parts: Parts) -> None:
    need(0 < int(parts["brought"]) - int(parts["held"]) <= 10_000, PROTOCOL, "epoch")


def _readiness(parts: Parts) -> None:
    readiness = wire.read_reply(parts["body"], REPLIED_TO, "readiness").configs["readiness"]
    key = bytes.fromhex(member(roster(parts["roster"]), readiness["site"])["signing_key"])
    verify(
        key,
        "readiness",
        readiness_payload(readiness, parts["run"].decode(), int(parts["node"])),
        readiness["signature"],
    )


def readiness_payload(readiness: Table, run: str, node: int) -> bytes:
    words = [
        run,
        readiness["site"],
        node,
        readiness["model"],
        readiness["update_bound"],
        readiness["epoch"],
        readiness["keys"],
        readiness["latest"],
        ",".join(readiness["pairs"]),
    ]
    return " ".join(map(str, words)).encode()


def _proof(parts: Parts) -> None:
    site = parts["site"].decode()
    key = bytes.fromhex(member(roster(stored("documents")["roster"].encode()), site)["signing_key"])
    norms.check(parts["signed"], parts["subject"], parts["context"], site, int(parts["limit"]), key)


def _chunks(parts: Parts) -> None:
    wire.assemble([bytes.fromhex(chunk) for chunk in parts["chunks"].decode().split()], 1 << 16)


def _share(parts: Parts) -> None:
    opened = manifest(parts["manifest"])
    share = numbers.share(opened["settings"], opened["levels"], int(parts["parameters"]), float(parts["length"]))
    need(numbers.fits(*share, opened["levels"]), "RefusedError", "share")


def _ledger(parts: Parts) -> None:
    known = stored("ledger")
    ledgers.read_lines(parts["file"], known["site"], known["lineage"], bytes.fromhex(known["public_key"]))


def _votes(parts: Parts) -> None:
    configs, cohort = wire.read_message(parts["body"]).configs, manifest(parts["manifest"])["settings"]["cohort"]
    need(configs["votes"].keys() <= cohort["sizes"].keys(), PROTOCOL, "sites")
    about = [parts["run"].decode(), *(str(configs["undo"][name]) for name in ("round", "before", "after"))]
    for site, vote in configs["votes"].items():
        statement = " ".join([*about, "reject" if vote[0] else "keep"]).encode()
        verify(bytes.fromhex(member(roster(parts["roster"]), site)["signing_key"]), "vote", statement, vote[1:])
    rejected = sum(vote[0] for vote in configs["votes"].values())
    need(len(configs["votes"]) >= cohort["minimum"], PROTOCOL, "too few")
    need(2 * rejected >= len(configs["votes"]), PROTOCOL, "kept")


def _clocks(parts: Parts) -> None:
    there, sent, received, seconds = (float(parts[name]) for name in ("there", "sent", "received", "seconds"))
    allowed = signed.clocks_differ(seconds)
    need(sent - allowed <= there <= received + allowed, PROTOCOL, "clock")


_READERS: dict[str, Callable[[Parts], object]] = {
    "manifest": _manifest, "roster": _roster, "plan": lambda parts: signed.read_plan(parts["plan"]), "asked": _asked,
    "header": _header, "update": _update, "masked update": _update, "addition": _addition, "sum": open_sum,
    "large sum": open_sum, "set": _contributors, "reveal": _contributors, "proof": _proof, "keys": _keys,
    "sealing key": _sealing,
    "letter": read_letter, "pair": read_pair, "epoch": _epoch, "readiness": _readiness, "chunks": _chunks,
    "share": _share,
    "ledger": _ledger, "clocks": _clocks, "votes": _votes,
}  # fmt: skip


def read(kind: str, parts: Parts) -> object:
    """Read something of a kind."""
    if kind.startswith("message "):
        return wire.read_message(parts["body"])
    if kind.startswith("reply "):
        return wire.read_reply(parts["body"], REPLIED_TO, parts["kind"].decode())
    return _READERS[kind](parts)
