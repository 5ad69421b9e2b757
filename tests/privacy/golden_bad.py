"""What must be refused, for the golden files: of which kind it pretends to be, what is wrong, and the error's class.

Everything is one step away from something good, and where a site could have signed it, it is signed.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from privacy.codec.ciphertext import C0_BYTES, CODE_BYTES, COEFF_MODULUS, Ciphertexts, pack60, residues, seeds_digest
from privacy.codec.envelope import Contribution
from privacy.crypto.masking import pairs_digest
from privacy.crypto.signing import SignedDocument, sign
from tests.privacy.bad_vectors import GONE, OTHER, A, Bad, M, P, canonical, changed, signed
from tests.privacy.consortium import signing_key
from tests.privacy.golden_bad_manifests import manifests, rosters
from tests.privacy.vectors import good_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_INF = float("inf")
BODY = {"manifest": "text documents/manifest", "roster": "text documents/roster", "plan": "text documents/plan"}
ROUND = {"manifest": "text round/manifest", "roster": "text round/roster", "plan": "text round/plan"}
KINDS: dict[str, dict[str, str]] = {
    "manifest": {"data": "text documents/manifest", "roster": "text documents/roster", "now": "text =1790000000"},
    "roster": {"data": "text documents/roster", "now": "text =1790000000"},
    "plan": {"plan": "text documents/plan"},
    "asked": {"plan": "text documents/plan", "manifest": "text documents/manifest", "site": "text =south",
              "now": "text =1800000000"},
    "header": BODY | {"header": "text documents/header", "signature": "hex documents/signature", "site": "text =north"},
    "update": BODY | {"header": "text documents/header", "signature": "hex documents/signature",
                      "commitments": "text =", "chunk": "base64 ciphertext/wire", "cuts": "text =",
                      "site": "text =north"},
    "masked update": ROUND | {"header": "text round/masked_update/header",
                              "signature": "hex round/masked_update/signature",
                              "commitments": "hex round/masked_update/commitments",
                              "chunk": "base64 ciphertext/wire", "cuts": "text =", "site": "text =south"},
    "addition": BODY | {"sum's plan": "text documents/plan", "signed": "base64 documents/signed",
                        "chunk": "base64 ciphertext/wire"},
    "share": {"manifest": "text numbers/shared_noise/manifest", "parameters": "text =20", "length": "text =2.5"},
    "ledger": {"file": "text ledger/file"},
    "clocks": {"there": "text =1800000310", "sent": "text =1800000000", "received": "text =1800000010",
               "seconds": "text =600"},
}  # fmt: skip


def documents() -> Iterator[Bad]:
    """Yield bad documents, plans, headers and updates."""
    yield from _files()
    yield from manifests()
    yield from rosters()
    yield from _plans()
    yield from _headers()
    yield from _updates()
    yield from _additions()
    yield from _ledgers()
    yield from _shares()
    for name, parts in (
        ("behind", {"there": b"1799999699"}),
        ("ahead", {"there": b"1800000311"}),
        ("ahead in short rounds", {"seconds": b"598"}),
        ("ahead in long rounds", {"seconds": b"6000", "there": b"1800000311"}),
    ):
        yield Bad("clocks", name, parts, P)


def _files() -> Iterator[Bad]:
    for kind, other in (("manifest", "roster"), ("roster", "manifest")):
        data, key = good_parts(kind)["data"], signing_key("mallory")
        payload = data.partition(b"\n")[2]
        signature = data.split(b" ", 2)[2].partition(b"\n")[0]
        for name, bad, error in (
            ("a flipped bit", data[:-20] + bytes([data[-20] ^ 1]) + data[-19:], A),
            ("cut in the payload", data[:-1], A),
            ("cut in the first line", data[:50], M),
            ("one byte more", data + b"\n", A),
            ("empty", b"", M),
            ("over 64 MiB", data.ljust((64 << 20) + 1), M),
            ("another magic", data.replace(b"cloister-signed-1", b"cloister-signed-2", 1), M),
            ("a word more", data.replace(b"\n", b" x\n", 1), M),
            ("another kind", good_parts(other)["data"], M),
            ("relabelled", data.replace(f" {kind} ".encode(), f" {other} ".encode(), 1), M),
            ("the other kind, relabelled", good_parts(other)["data"].replace(other.encode(), kind.encode(), 1), A),
            ("another signer", SignedDocument.make(key, kind, payload).to_bytes(), A),
            ("the signature in capitals", data.replace(signature, signature.upper(), 1), M),
            ("a signature that is not hexadecimal", data.replace(signature, b"x" + signature[1:], 1), M),
        ):
            yield Bad(kind, name, {"data": bad}, error)


def _plans() -> Iterator[Bad]:
    text = good_parts("plan")["plan"]
    good = json.loads(text)
    for name, bad in (
        ("spaces", text.replace(b":", b": ")),
        ("a key twice", text.replace(b'"round":1', b'"round":2,"round":1')),
        ("cut", text[:-1]),
        ("a deadline without a fraction", text.replace(b"1800000000.5", b"1800000000")),
        ("a deadline with an exponent", text.replace(b"1800000000.5", b"1.8000000005e9")),
        ("keys in another order", json.dumps(dict(reversed(good.items())), separators=(",", ":")).encode()),
    ):
        yield Bad("plan", name, {"plan": bad}, M)
    for name, path, value in (
        ("a deadline that never comes", "deadline", _INF),
        ("a parameter that is the manifest's", "noise_multiplier", 0.0),
        ("a key left out", "epoch", GONE),
        ("a run by name", "run", "study"),
        ("round 0", "round", 0),
        ("a round as text", "round", "1"),
        ("attempt 0", "attempt", 0),
        ("a cohort of nobody", "cohort", []),
        ("a name in capitals", "cohort.1", "South"),
        ("epoch 0", "epoch", 0),
        ("keys by number", "keys", "2"),
        ("a model by name", "base_model", "resnet"),
    ):
        yield Bad("plan", name, {"plan": canonical(changed(good, path, value))}, M)
    for name, path, value in (
        ("another run", "run", OTHER),
        ("a round after the last", "round", 11),
        ("a site twice", "cohort", ["north", "south", "south", "west"]),
        ("a site that the manifest does not name", "cohort", ["east", "north", "south"]),
        ("a minimum below the manifest's", "minimum_cohort", 2),
        ("a minimum above the cohort", "minimum_cohort", 4),
        ("another attempt in a run without masks", "attempt", 2),
        ("another roster", "roster_version", 4),
        ("a deadline that has passed", "deadline", 1799999999.5),
        ("a deadline that is too far away", "deadline", 1800000901.0),
    ):
        yield Bad("asked", name, {"plan": canonical(changed(good, path, value))}, P)

    yield Bad("asked", "a cohort without this site", {"site": b"east"}, P)


def _header(changes: Mapping[str, object], signer: str = "north", kind: str = "header") -> dict[str, bytes]:
    """Return a header with changes, as that site could have signed it."""
    header = canonical(json.loads(good_parts(kind)["header"]) | dict(changes))
    return {"header": header, "signature": sign(signing_key(signer), "update", header)}


def _headers() -> Iterator[Bad]:
    good = good_parts("header")
    text, plan, header = good["header"], json.loads(good["plan"]), json.loads(good["header"])
    spaced = text + b" "
    del header["nonce"]
    for name, parts, error in (
        ("another site's key", _header({}, "south"), A),
        ("signed as another kind", {"signature": sign(signing_key("north"), "plan", text)}, A),
        ("changed after it was signed", {"header": spaced}, A),
        ("half a signature", {"signature": good["signature"][:32]}, A),
        ("a site that is no member", {"site": b"mallory"}, P),
        ("spaces", {"header": spaced, "signature": sign(signing_key("north"), "update", spaced)}, M),
        ("a key left out", {"header": (short := canonical(header)),
                            "signature": sign(signing_key("north"), "update", short)}, M),
    ):  # fmt: skip
        yield Bad("header", name, parts, error)
    for name, key, value, error in (
        ("another site", "site", "south", P),
        ("another run", "run", OTHER, P),
        ("another round", "round", 2, P),
        ("another attempt", "attempt", 2, P),
        ("another plan", "plan", OTHER, P),
        ("another roster", "roster_version", 4, P),
        ("other keys", "keys", OTHER, P),
        ("another base model", "base_model", OTHER, P),
        ("another weight", "weight", 0.5, P),
        ("too wide a range", "update_bound", 2.0, P),
        ("a mask that the run has not", "mask", OTHER, P),
        ("masks shared that the run has not", "pairs", OTHER, P),
        ("a name in capitals", "site", "North", M),
        ("a run by name", "run", "study", M),
        ("a round as text", "round", "1", M),
        ("a plan by number", "plan", "1", M),
        ("keys by number", "keys", "2", M),
        ("a model by name", "base_model", "resnet", M),
        ("a layout by name", "layout", "resnet", M),
        ("no parameter", "size", 0, M),
        ("a weight of 0", "weight", 0.0, M),
        ("a weight above 1", "weight", 1.5, M),
        ("no range", "update_bound", 0.0, M),
        ("an infinite range", "update_bound", _INF, M),
        ("a short digest of ciphertexts", "ciphertexts", "ab", M),
        ("a short commitment", "mask", "ab", M),
        ("a short root of commitments", "pairs", "ab", M),
        ("a short nonce", "nonce", "ab", M),
        ("a short digest of seeds", "seeds", "ab", M),
        ("a short head", "ledger_head", "ab", M),
        ("a later version", "version", 2, M),
        ("an unknown key", "colour", "blue", M),
    ):
        yield Bad("header", name, _header({key: value}), error)
    small = canonical(plan | {"cohort": ["north", "south"], "minimum_cohort": 2})
    digest = sha256(b"cloister\x00\x04plan" + len(small).to_bytes(8) + small).hexdigest()
    manifest = json.loads(good["manifest"].partition(b"\n")[2])
    fewer = changed(changed(manifest, "settings.cohort.sizes.west", GONE), "settings.cohort.minimum", 2)
    west = {"site": "west", "weight": 100 / 300}
    yield Bad("header", "a site that is not in the plan's cohort",
              _header(west | {"plan": digest}, "west") | {"site": b"west", "plan": small}, P)  # fmt: skip
    yield Bad("header", "a site that the manifest does not name", _header(west, "west") | {
        "site": b"west", "manifest": signed("manifest", signing_key("coordinator"), fewer)}, P)  # fmt: skip
    masked = good_parts("masked update")
    for name, key in (("no mask where the run has them", "mask"), ("no masks shared where the run has them", "pairs")):
        parts = _header({key: ""}, "south", "masked update") | {"site": b"south"}
        yield Bad("header", name, parts | {part: masked[part] for part in ("plan", "manifest", "roster")}, P)


def _updates() -> Iterator[Bad]:
    chunk = good_parts("update")["chunk"]
    place = C0_BYTES
    for name, parts, error in (
        ("a flipped bit in c0", {"chunk": chunk[:1000] + bytes([chunk[1000] ^ 4]) + chunk[1001:]}, A),
        ("a flipped bit in the seed", {"chunk": chunk[:place] + bytes([chunk[place] ^ 4]) + chunk[place + 1 :]}, A),
        ("a flipped bit in the code", {"chunk": chunk[:-1] + bytes([chunk[-1] ^ 4])}, A),
        ("cut", {"chunk": chunk[:-1]}, M),
        ("padded", {"chunk": chunk + b"\0"}, M),
        ("in two chunks", {"cuts": b"1000"}, M),
        ("no chunk", {"cuts": b"none"}, M),
        ("empty", {"chunk": b""}, M),
        ("parameters for two ciphertexts", _header({"size": 12_286}), M),
        ("another digest of the body", _header({"ciphertexts": OTHER}), A),
        ("another digest of the seeds", _header({"seeds": OTHER}), A),
        ("commitments in a run without masks", {"commitments": bytes(32)}, A),
    ):
        yield Bad("update", name, parts, error)
    words = residues(chunk[:C0_BYTES]).copy()
    words[0, 0] = COEFF_MODULUS
    for name, body in (
        ("a coefficient of q", pack60(words.reshape(-1)) + chunk[C0_BYTES:]),
        ("a code of q", chunk[:-CODE_BYTES] + COEFF_MODULUS.to_bytes(CODE_BYTES, "little")),
    ):
        yield Bad("update", name, _header({"ciphertexts": Ciphertexts((body,)).digest}) | {"chunk": body}, M)
    values = good_parts("masked update")["commitments"]
    fewer = _header({"pairs": pairs_digest(values[:-32])}, "south", "masked update")
    for name, parts in (
        ("other commitments", {"commitments": values[:-1] + bytes([values[-1] ^ 1])}),
        ("no commitments", {"commitments": b""}),
        ("commitments to fewer than the cohort", fewer | {"commitments": values[:-32]}),
    ):
        yield Bad("masked update", name, parts, A)


def _shares() -> Iterator[Bad]:
    good = json.loads(good_parts("share")["manifest"].partition(b"\n")[2])

    def noised(sigma: float) -> dict[str, bytes]:
        settings = changed(good, "settings.privacy.noise_multiplier", sigma)
        document = changed(settings, "noise_multiplier", sigma)
        return {"manifest": signed("manifest", signing_key("coordinator"), document)}

    for name, parts in (
        ("too many parameters", {"parameters": b"100000000"}),
        ("too long a model", {"length": b"1e6"}),
        ("too little noise", noised(1e-6)),
        ("too much noise", noised(100.0)),
    ):
        yield Bad("share", name, parts, "RefusedError")


def ledger_lines(bodies: Iterable[bytes], signer: str, before: bytes = b"", owner: str = "north patients") -> bytes:
    """Return a ledger with more lines, signed by whoever that is, as docs/protocol.md says."""
    lines = before.splitlines()
    head, signature = (lines[-1].split(b" ", 2)[:2]) if lines else (b"0" * 64, b"")
    for body in bodies:
        head = sha256(bytes.fromhex(head.decode()) + signature + body).hexdigest().encode()
        signature = sign(signing_key(signer), "ledger", owner.encode() + b" " + head).hex().encode()
        lines.append(b" ".join([head, signature, body]))
    return b"".join(line + b"\n" for line in lines)


def _ledgers() -> Iterator[Bad]:
    file = good_parts("ledger")["file"]
    lines = file.splitlines(keepends=True)
    bodies = [line.split(b" ", 2)[2].rstrip() for line in lines]
    charge = json.loads(bodies[1])

    def forged(signer: str) -> bytes:
        return ledger_lines([body.replace(b'"steps": 5', b'"steps": 1', 1) for body in bodies], signer)

    def kept() -> bytes:
        """Recompute digests as somebody without the key would."""
        head, last, data = "0" * 64, b"", b""
        for line, body in zip(lines, forged("north").splitlines(), strict=True):
            head = sha256(bytes.fromhex(head) + last + body.split(b" ", 2)[2]).hexdigest()
            last = line.split(b" ", 2)[1]
            data += b" ".join([head.encode(), last, body.split(b" ", 2)[2]]) + b"\n"
        return data

    head, signature, last = lines[-1].split(b" ", 2)
    for name, bad in (
        ("fewer steps than were made", file.replace(b'"steps": 5', b'"steps": 1', 1)),
        ("an entry deleted", b"".join(lines[:3] + lines[4:])),
        ("two entries swapped", b"".join([lines[0], lines[2], lines[1], *lines[3:]])),
        ("the first line deleted", b"".join(lines[1:])),
        ("another site", file.replace(b"north", b"south", 1)),
        ("the same entry twice", b"".join([*lines[:2], lines[1], *lines[2:]])),
        ("rewritten with another key", forged("mallory")),
        ("rewritten with the key before", forged("north before")),
        ("digests recomputed, signatures kept", kept()),
        ("the last signature in capitals", b"".join([*lines[:-1], b" ".join([head, signature.upper(), last])])),
        ("the last signature with spaces", b"".join([*lines[:-1], b" ".join([head, b" " * 128, last])])),
        ("another site's, signed", ledger_lines([bodies[0].replace(b"north", b"south"), *bodies[1:]], "north")),
        ("another lineage's, signed", ledger_lines([bodies[0].replace(b"patients", b"others"), *bodies[1:]], "north")),
    ):
        yield Bad("ledger", name, {"file": bad}, "LedgerError")
    vote = {name: charge[name] for name in ("run", "round", "attempt", "time")} | {"purpose": "vote", "epsilon": 0.5}
    for name, event in (
        ("an unknown key", charge | {"colour": "blue"}),
        ("a key left out", changed(charge, "discrete", GONE)),
        ("steps as text", charge | {"steps": "5"}),
        ("a rate that is true", charge | {"sample_rate": True}),
        ("one record of a person", charge | {"records_per_person": 1}),
        ("records of a person as text", charge | {"records_per_person": "2"}),
        ("another purpose", charge | {"purpose": "curiosity"}),
        ("a vote with noise", charge | {"purpose": "vote"}),
        ("a vote with an unknown key", vote | {"colour": "blue"}),
        ("a vote for a text", vote | {"epsilon": "1"}),
        ("a vote for training", vote | {"purpose": "training"}),
        ("lost heads in another order", {"lost": ["9a" * 32, "78" * 32], "time": charge["time"]}),
        ("a lost head in capitals", {"lost": ["9A" * 32], "time": charge["time"]}),
        ("lost heads with an unknown key", {"lost": ["9a" * 32], "time": charge["time"], "colour": "blue"}),
        ("lost heads as text", {"lost": "9a" * 32, "time": charge["time"]}),
        ("what left, with an unknown key", json.loads(bodies[2]) | {"colour": "blue"}),
        ("a key that was adopted, by number", json.loads(bodies[7]) | {"adopted": 5}),
        ("a list", [1]),
    ):
        more = ledger_lines([json.dumps(event, sort_keys=True).encode()], "north", file)
        yield Bad("ledger", name, {"file": more}, "LedgerError")
    yield Bad("ledger", "no JSON", {"file": ledger_lines([b"{"], "north", file)}, "LedgerError")


def joined(contributions: Iterable[Contribution]) -> bytes:
    """Return contributions as they travel."""
    parts = [
        (contribution.header, contribution.signature, contribution.seeds, contribution.reveal, contribution.pairs)
        for contribution in contributions
    ]
    return b"".join(b"".join([*(len(part).to_bytes(4) for part in part), *part]) for part in parts)


def split(data: bytes) -> list[Contribution]:
    """Undo `joined`."""
    contributions = []
    while data:
        lengths = [int.from_bytes(data[start : start + 4]) for start in range(0, 20, 4)]
        data, parts = data[20:], []
        for length in lengths:
            data, part = data[length:], data[:length]
            parts.append(part)
        contributions.append(Contribution(*parts))
    return contributions


def resigned(part: Contribution, changes: Mapping[str, object], seeds: bytes | None = None) -> Contribution:
    """Return a contribution with a changed header, as its site could have signed it."""
    header: dict[str, Any] = json.loads(part.header) | dict(changes)
    if seeds is not None:
        header["seeds"] = seeds_digest(seeds)
    data = canonical(header)
    signature = sign(signing_key(header["site"]), "update", data)
    return Contribution(data, signature, part.seeds if seeds is None else seeds, part.reveal, part.pairs)


def _additions() -> Iterator[Bad]:
    good = good_parts("addition")
    north, south, west = split(good["signed"])
    other = canonical(json.loads(good["plan"]) | {"round": 2})
    cases: Sequence[tuple[str, dict[str, bytes]]] = (
        ("of another plan", {"sum's plan": other}),
        ("a site twice", {"signed": joined((north, south, south, west))}),
        ("another layout", {"signed": joined((north, south, resigned(west, {"layout": OTHER})))}),
        ("another size", {"signed": joined((north, south, resigned(west, {"size": 21})))}),
        ("another range", {"signed": joined((north, south, resigned(west, {"update_bound": 0.5})))}),
        ("too few", {"signed": joined((north, south))}),
    )
    for name, parts in cases:
        yield Bad("addition", name, parts, P)
