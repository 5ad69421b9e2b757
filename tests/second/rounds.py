"""Second reader: masks, agreement, and sums from headers to the fields inside; see `signed.py`."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.second import ring
from tests.second.ring import C0, CODE, SEED, N, Q, T, hkdf, residues
from tests.second.signed import (
    AUTHENTICITY,
    MALFORMED,
    PROTOCOL,
    RefusedError,
    check_header,
    member,
    need,
    read_plan,
    verify,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    Table = dict[str, Any]

LARGE = 32  # sites, above which a sum has c1
CHUNK = 32  # ciphertexts


class Contribution(NamedTuple):
    header: bytes
    signature: bytes
    seeds: bytes
    reveal: bytes
    pairs: bytes


# --- Masks ------------------------------------------------------------------------------------------------------------


def derived(secret: bytes, label: bytes, plan: Table, owner: bytes) -> bytes:
    return hkdf(secret, b"cloister mask " + label + bytes.fromhex(plan["digest"]) + owner)


def pair_seed(secret: bytes, plan: Table, one: str, other: str) -> bytes:
    return derived(secret, b"pair", plan, json.dumps(sorted((one, other))).encode())


def own_key(seed: bytes, plan: Table, site: str) -> bytes:
    return derived(seed, b"own", plan, site.encode())


def commitment(seed: bytes) -> str:
    return sha256(b"cloister mask" + seed).hexdigest()


def commitments(seeds: dict[str, bytes], plan: Table) -> bytes:
    """Return the values of the tree of what a site shares, in the plan's order."""
    return b"".join(
        sha256(b"cloister pair" + seeds[name]).digest() if name in seeds else bytes(32) for name in plan["cohort"]
    )


def root(values: bytes) -> str:
    level = [sha256(b"\0" + values[start : start + 32]).digest() for start in range(0, len(values), 32)]
    while len(level) & (len(level) - 1):
        level.append(bytes(32))
    while len(level) > 1:
        level = [sha256(b"\1" + level[place] + level[place + 1]).digest() for place in range(0, len(level), 2)]
    return level[0].hex()


def depth(cohort: int) -> int:
    return (cohort - 1).bit_length()


def stream_rows(key: bytes, count: int) -> list[list[int]]:
    """Return a mask: 4,095 residues a ciphertext, and nothing at the tag's place."""
    drawn = residues(key, T, count * (N - 1))
    return [[*drawn[row * (N - 1) : (row + 1) * (N - 1)], 0] for row in range(count)]


def masked(
    rows: Sequence[Sequence[int]], own: bytes, seeds: dict[str, bytes], plan: Table, site: str
) -> list[list[int]]:
    """Put a site's masks on."""
    rows_ = [list(row) for row in rows]
    _put(rows_, own_key(own, plan, site), 1)
    for other, seed in seeds.items():
        _put(rows_, seed, 1 if site < other else -1)
    return rows_


def _put(rows: list[list[int]], key: bytes, sign: int) -> None:
    for row, mask in zip(rows, stream_rows(key, len(rows)), strict=True):
        row[:] = [(value + sign * pad) % T for value, pad in zip(row, mask, strict=True)]


def unseal(secret: bytes, sealed: bytes, label: bytes, plan: Table, owner: bytes) -> bytes:
    try:
        return AESGCM(derived(secret, label, plan, owner)).decrypt(bytes(12), sealed, None)
    except (InvalidTag, ValueError) as error:
        raise RefusedError(AUTHENTICITY, "seed") from error


def signed_seeds(data: bytes, of: str, plan: Table, key: bytes) -> bytes:
    """Return the sealed seeds that a site signed for its header's commitment, and for the absent sites."""
    verify(key, "seeds", f"{plan['digest']} {of} {data[64:].hex()}".encode(), data[:64])
    return data[64:]


def open_reveal(secret: bytes, part: Contribution, plan: Table, header: Table, key: bytes) -> bytes:
    owner = bytes.fromhex(header["mask"]) + header["site"].encode()
    seed = unseal(secret, signed_seeds(part.reveal, header["mask"], plan, key), b"reveal", plan, owner)
    need(commitment(seed) == header["mask"], AUTHENTICITY, "mask")
    return seed


def open_pairs(
    secret: bytes, part: Contribution, absent: list[str], plan: Table, header: Table, key: bytes
) -> dict[str, bytes]:
    length, seeds = 48 + 32 * depth(len(plan["cohort"])), {}
    signed = part.pairs or absent
    sealed_seeds = signed_seeds(part.pairs, f"{header['pairs']} {','.join(absent)}", plan, key) if signed else b""
    need(len(sealed_seeds) == length * len(absent), AUTHENTICITY, "length")
    for number, other in enumerate(absent):
        sealed = sealed_seeds[number * length : (number + 1) * length]
        seed = unseal(secret, sealed[:48], b"show", plan, json.dumps([header["site"], other]).encode())
        place, node = plan["cohort"].index(other), sha256(b"\0" + sha256(b"cloister pair" + seed).digest()).digest()
        for start in range(48, length, 32):
            beside = sealed[start : start + 32]
            node = sha256(b"\1" + (beside + node if place & 1 else node + beside)).digest()
            place >>= 1
        need(node.hex() == header["pairs"], AUTHENTICITY, "pair")
        seeds[other] = seed
    return seeds


# --- Who contributed --------------------------------------------------------------------------------------------------


def split(data: bytes) -> list[Contribution]:
    contributions, place = [], 0
    while place < len(data):
        need(place + 20 <= len(data), MALFORMED, "lengths")
        lengths = [int.from_bytes(data[start : start + 4], "big") for start in range(place, place + 20, 4)]
        place, parts = place + 20, []
        need(place + sum(lengths) <= len(data), MALFORMED, "contributions")
        for length in lengths:
            parts.append(data[place : place + length])
            place += length
        contributions.append(Contribution(*parts))
    return contributions


def contributors(parts: list[Contribution], plan: Table, manifest: Table, roster: Table) -> dict[str, Table]:
    headers: dict[str, Table] = {}
    for part in parts:
        named = re.search(rb'"site":"([a-z0-9-]{1,32})"', part.header)
        site = named[1].decode() if named else ""
        need(site in plan["cohort"], MALFORMED, "no site of the cohort")
        need(site not in headers, PROTOCOL, "twice")
        headers[site] = check_header(part.header, part.signature, site, plan, manifest, roster)
    need(len(headers) >= manifest["settings"]["cohort"]["minimum"], PROTOCOL, "too few")
    need(len({shared(header) for header in headers.values()}) == 1, PROTOCOL, "several layouts, sizes or ranges")
    return headers


def shared(header: Table) -> tuple[object, ...]:
    return header["layout"], header["size"], header["update_bound"]


def set_digest(headers: dict[str, bytes]) -> str:
    return sha256(b"cloister set" + b"".join(sha256(headers[site]).digest() for site in sorted(headers))).hexdigest()


def statement(plan: Table, headers: dict[str, bytes]) -> bytes:
    return f"{plan['digest']} {set_digest(headers)}".encode()


def check_agreed(plan: Table, headers: dict[str, bytes], signatures: dict[str, bytes], roster: Table) -> None:
    for site in headers:
        key = bytes.fromhex(member(roster, site)["signing_key"])
        verify(key, "agree", statement(plan, headers), signatures.get(site, b""))


def check_repeat(record: str, plan: Table, contributors: Collection[str]) -> None:
    """Hold what a site revealed for against another plan of the round, which only repeats it without proven liars."""
    done = dict(line.split(": ", 1) for line in record.splitlines())
    revealed, action = "", f"revealing for round {plan['round']}"
    while action in done:
        revealed = done[action].split(" ")[0]
        number = int(action.partition(", repetition ")[2] or 0) + 1
        action = f"revealing for round {plan['round']}, repetition {number}"
    if revealed in {"", plan["digest"]}:
        return
    earlier = set(done.get(f"agreeing on the contributors to plan {revealed}", " ").split(" ")[1].split(","))
    gone = earlier - set(plan["cohort"])
    need(set(contributors) == set(plan["cohort"]) == earlier - gone and gone, PROTOCOL, "not the same set")
    need(all(f"evidence against {site}" in done for site in gone), PROTOCOL, "no evidence")


def check_once(record: str, action: str, value: str) -> None:
    """Check an action against a site's record."""
    done = dict(line.split(": ", 1) for line in record.splitlines())
    need(done.get(action, value) == value, PROTOCOL, action)


# --- Updates and sums -------------------------------------------------------------------------------------------------


def ciphertexts_of(size: int, manifest: Table) -> int:
    fields: int = manifest["fields"]
    return -(-size // (fields * (N - 1)))


def check_chunks(chunks: Sequence[bytes], count: int, length: int) -> None:
    lengths = [min(CHUNK, count - start) * length for start in range(0, count, CHUNK)]
    need([len(chunk) for chunk in chunks] == lengths, MALFORMED, "lengths")


def seeds_digest(seeds: bytes) -> str:
    return sha256(b"cloister seeds" + seeds).hexdigest()


class Body(NamedTuple):
    c0: bytes
    seeds: bytes
    codes: list[int]


def read_body(chunks: Sequence[bytes], header: Table, manifest: Table) -> Body:
    """Return an update's ciphertexts, once they are those of its header; not whether all is below q."""
    check_chunks(chunks, ciphertexts_of(header["size"], manifest), C0 + SEED + CODE)
    c0, seeds, codes = b"", b"", b""
    for chunk in chunks:
        count = len(chunk) // (C0 + SEED + CODE)
        c0, seeds = c0 + chunk[: count * C0], seeds + chunk[count * C0 : count * (C0 + SEED)]
        codes += chunk[count * (C0 + SEED) :]
    need(sha256(b"".join(chunks)).hexdigest() == header["ciphertexts"], AUTHENTICITY, "ciphertexts")
    need(seeds_digest(seeds) == header["seeds"], AUTHENTICITY, "seeds")
    return Body(c0, seeds, whole(codes))


def whole(codes: bytes) -> list[int]:
    return [int.from_bytes(codes[start : start + 8], "little") for start in range(0, len(codes), 8)]


def check_commitments(values: bytes, header: Table, plan: Table) -> None:
    if header["pairs"]:
        need(len(values) == 32 * len(plan["cohort"]) and root(values) == header["pairs"], AUTHENTICITY, "commitments")
    else:
        need(not values, AUTHENTICITY, "commitments")


class Adding:
    """A sum as a server builds it."""

    def __init__(self, plan: Table) -> None:
        self.plan, self.sites, self._same = plan, list[str](), None

    def add(self, header: Table, body: Body) -> None:
        need(header["plan"] == self.plan["digest"], PROTOCOL, "plan")
        need(header["site"] not in self.sites, PROTOCOL, "twice")
        need(self._same in {None, shared(header)}, PROTOCOL, "layout, size or range")
        need(max(body.codes) < Q, MALFORMED, "code")
        need(max(ring.unpack60(body.c0)) < Q, MALFORMED, "residue")
        self.sites.append(header["site"])
        self._same = shared(header)  # type: ignore[assignment]

    def close(self) -> None:
        need(len(self.sites) >= self.plan["minimum_cohort"], PROTOCOL, "too few")


class Opened(NamedTuple):
    """A sum, and what was found in it."""

    plan: Table
    headers: dict[str, Table]
    decrypted: list[list[int]]
    unmasked: list[list[int]]


def read_sum(arrays: list[tuple[str, bytes]]) -> tuple[dict[str, bytes], dict[str, list[bytes]]]:
    """Return a sum's single arrays, and its chunks."""
    single: dict[str, bytes] = {}
    chunks: dict[str, list[bytes]] = {"c0": [], "c1": []}
    for name, data in arrays:
        kind = name.partition("-")[0]
        if kind in chunks:
            need(name == f"{kind}-{len(chunks[kind])}", MALFORMED, name)
            chunks[kind].append(data)
        else:
            need(name in {"plan", "codes", "contributions"}, MALFORMED, name)
            single[name] = data
    need(len(single) == 3, MALFORMED, "an array is missing")
    return single, chunks


def open_sum(arrays: list[tuple[str, bytes]], manifest: Table, roster: Table, secret: bytes, key: list[int]) -> Opened:
    """Return what is in a sum; `secret` is the tag key, `key` the decryption key as it is saved."""
    single, chunks = read_sum(arrays)
    parts = split(single["contributions"])
    plan = read_plan(single["plan"])
    need(plan["run"] == manifest["run"] and plan["round"] <= manifest["settings"]["rounds"], PROTOCOL, "run or round")
    headers = contributors(parts, plan, manifest, roster)
    large = len(plan["cohort"]) > LARGE
    for part, header in zip(parts, headers.values(), strict=True):
        need(large or seeds_digest(part.seeds) == header["seeds"], AUTHENTICITY, "seeds")
    need(bool(chunks["c1"]) == large, MALFORMED, "c1")
    size = next(iter(headers.values()))["size"]
    count = ciphertexts_of(size, manifest)
    check_chunks(chunks["c0"], count, C0)
    need(len(single["codes"]) == CODE * count, MALFORMED, "codes")
    need(all(len(part.seeds) == (0 if large else SEED * count) for part in parts), MALFORMED, "seeds")
    if large:
        check_chunks(chunks["c1"], count, C0)
    own, pairs = {}, {}
    if manifest["masked"]:
        absent = [site for site in plan["cohort"] if site not in headers]
        for part, (site, header) in zip(parts, headers.items(), strict=True):
            signer = bytes.fromhex(member(roster, site)["signing_key"])
            own[site] = open_reveal(secret, part, plan, header, signer)
            pairs[site] = open_pairs(secret, part, absent, plan, header, signer)
    c0 = _rows(b"".join(chunks["c0"]))
    c1 = _rows(b"".join(chunks["c1"])) if large else [
        ring.plus((ring.expand(part.seeds[row * SEED : (row + 1) * SEED]) for part in parts), Q) for row in range(count)
    ]  # fmt: skip
    _check_codes(c0, c1 if large else [], whole(single["codes"]), plan, headers, secret)
    decrypted = [ring.decrypt(one, other, key) for one, other in zip(c0, c1, strict=True)]
    check_tags(decrypted, plan, headers, secret)
    unmasked = [list(row) for row in decrypted]
    for site, seed in own.items():
        _put(unmasked, own_key(seed, plan, site), -1)
        for other, sealed in pairs[site].items():
            _put(unmasked, sealed, -1 if site < other else 1)
    return Opened(plan, headers, decrypted, unmasked)


def _rows(data: bytes) -> list[list[int]]:
    words = ring.unpack60(data)
    need(max(words) < Q, MALFORMED, "residue")
    return [words[start : start + N] for start in range(0, len(words), N)]


def all_pads(
    purpose: str, modulus: int, plan: Table, headers: dict[str, Table], secret: bytes, count: int
) -> list[int]:
    pads = (ring.pads(secret, purpose, modulus, plan["digest"], header["nonce"], site, count)
            for site, header in headers.items())  # fmt: skip
    return ring.plus(pads, modulus)


def _check_codes(c0: list[list[int]], c1: list[list[int]], codes: list[int], plan: Table, headers: dict[str, Table],
                 secret: bytes) -> None:  # fmt: skip
    first, second = ring.rho(secret)
    pads = all_pads("mac", Q, plan, headers, secret, len(c0))
    for row, (code, pad) in enumerate(zip(codes, pads, strict=True)):
        expected = ring.inner(first, c0[row]) + pad + (ring.inner(second, c1[row]) if c1 else 0)
        need(code == expected % Q, AUTHENTICITY, "code")


def check_tags(rows: list[list[int]], plan: Table, headers: dict[str, Table], secret: bytes) -> None:
    alpha, pads = ring.alpha(secret), all_pads("tag", T, plan, headers, secret, len(rows))
    for row, pad in zip(rows, pads, strict=True):
        need(row[-1] == (ring.inner(alpha, row[:-1]) + pad) % T, AUTHENTICITY, "tag")


def check_fields(fields: Sequence[int], size: int, contributors: int, levels: int) -> None:
    need(max(fields[:size]) <= contributors * (levels - 1), MALFORMED, "field")
    need(not any(fields[size:]), MALFORMED, "behind the last")
