"""Sums, sets of contributors, keys and letters that must be refused, for the golden files: see `golden_bad.py`.

Sums are wrong in ways that a lying server or member could bring about. Members have the sites' keys: they can make a
code, or a tag, that fits whatever they like.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy.codec.ciphertext import C0_BYTES, COEFF_MODULUS, SEED_BYTES, pack60, residues
from privacy.codec.packing import PLAIN_MODULUS, RING_DEGREE
from privacy.crypto.agreement import set_digest
from privacy.crypto.key_epoch import EpochKeys, seal
from privacy.crypto.masking import REVEAL_BYTES, _pair_sealer, seed_sealer, sign_pairs, sign_seed
from privacy.crypto.pairs import _info
from privacy.crypto.signing import SIGNATURE_BYTES, SignedDocument, sign
from privacy.run.plan import read_plan
from tests.privacy.bad_vectors import OTHER, A, Bad, M, P, canonical, changed
from tests.privacy.consortium import (
    SECRET,
    mac_key,
    make_roster,
    sealing_key,
    signing_key,
    tag_key,
)
from tests.privacy.golden_bad import joined, resigned, split
from tests.privacy.vectors import good_parts, stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from privacy.codec.envelope import Contribution

_SUM = {
    "manifest": "text round/manifest", "roster": "text round/roster",
    "names": "text =plan=plan codes=codes contributions=contributions c0-0=c0",
    "plan": "base64 round/sum/plan", "codes": "base64 round/sum/codes",
    "contributions": "base64 round/sum/contributions", "c0": "base64 round/sum/c0-0",
}  # fmt: skip
_SET = {
    "manifest": "text round/manifest", "roster": "text round/roster", "plan": "text round/plan",
    "shown": "base64 round/shown", "site": "text =south", "own": "text round/sites/south/header",
    "minimum": "text =3", "once": "text =", "agreed": "text =", "now": "text =1800000000",
}  # fmt: skip
KINDS: dict[str, dict[str, str]] = {
    "sum": _SUM,
    "large sum": {
        "manifest": "text large/manifest", "roster": "text large/roster",
        "names": "text =plan=plan codes=codes contributions=contributions c0-0=c0 c1-0=c1",
        "plan": "base64 large/sum/plan", "codes": "base64 large/sum/codes",
        "contributions": "base64 large/sum/contributions", "c0": "base64 large/sum/c0-0", "c1": "expanded large/sites",
    },
    "set": _SET,
    "reveal": _SET | {"agreed": "text round/agreed"},
    "keys": {"data": "keys keys/epoch"},
    "sealing key": {"data": "hex keys/sealing_keys/south"},
    "letter": {"roster": "text documents/roster", "letter": "text keys/letter", "leader": "text =north",
               "site": "text =south"},
    "pair": {"roster": "text documents/roster", "letter": "hex keys/pair_letter", "sender": "text =north",
             "site": "text =south"},
    "epoch": {"held": "text =7", "brought": "text =10007"},
}  # fmt: skip
_T, _Q = PLAIN_MODULUS, COEFF_MODULUS


def sums() -> Iterator[Bad]:
    """Yield all of them."""
    yield from _arrays()
    yield from _contributions()
    yield from _ciphertexts()
    yield from _shown_seeds()
    yield from _large()
    yield from _sets()
    yield from _keys()
    yield from _letters()
    yield from _pairs()
    for name, brought in (("the one that it has", b"7"), ("an older one", b"6"), ("one too far ahead", b"10008")):
        yield Bad("epoch", name, {"brought": brought}, P)


def _arrays() -> Iterator[Bad]:
    good = good_parts("sum")
    names, contributions = good["names"].decode(), good["contributions"]
    for name, other in (
        ("no plan", names.replace("plan=plan ", "")),
        ("no codes", names.replace("codes=codes ", "")),
        ("no contributions", names.replace("contributions=contributions ", "")),
        ("neither plan nor codes", "contributions=contributions c0-0=c0"),
        ("ciphertexts alone", "c0-0=c0"),
        ("an array that does not belong there", names + " c2=codes"),
        ("a chunk numbered from 1", names.replace("c0-0", "c0-1")),
        ("a numbered plan", names.replace("plan=plan", "plan-0=plan")),
    ):
        yield Bad("sum", name, {"names": other.encode()}, M)
    for name, bad in (
        ("contributions that end in lengths", contributions[:-1] + bytes(7)),
        ("contributions that are cut", contributions[:-1]),
        ("three bytes after the contributions", contributions + bytes(3)),
    ):
        yield Bad("sum", name, {"contributions": bad}, M)


def _contributions() -> Iterator[Bad]:
    good = good_parts("sum")
    plan, parts = json.loads(good["plan"]), split(good["contributions"])
    yield Bad("sum", "another run", {"plan": canonical(plan | {"run": OTHER})}, P)
    another = changed(json.loads(good["manifest"].partition(b"\n")[2]), "nonce", "0" * 16)
    document = SignedDocument.make(signing_key("coordinator"), "manifest", json.dumps(another, indent=1).encode())
    yield Bad("sum", "in another run of the same settings", {"manifest": document.to_bytes()}, P)
    later = read_plan(canonical(plan | {"round": 11}))
    signed = joined(resigned(part, {"round": 11, "plan": later.digest}) for part in parts)
    yield Bad("sum", "a round after the last", {"plan": later.to_bytes(), "contributions": signed}, P)
    yield Bad("sum", "a plan with spaces", {"plan": good["plan"].replace(b":", b": ")}, M)
    one, two, three = parts
    seedless = [resigned(part, {}, b"") for part in parts]
    for name, contributions, error in (
        ("a site twice", [one, two, three, one], P),
        ("too few", [one, two], P),
        ("nobody", [], P),
        ("a site of another cohort", [one, two, resigned_as(three, "mallory")], M),
        ("a header without a site", [one, two, replace(three, header=b"{}")], M),
        (
            "a header that was changed",
            [one, two, replace(three, header=three.header.replace(b'"round":2', b'"round":3'))],
            A,
        ),
        ("another layout", [one, two, resigned(three, {"layout": OTHER})], P),
        ("another size", [one, two, resigned(three, {"size": 13_322})], P),
        ("another range", [one, two, resigned(three, {"update_bound": 0.25})], P),
        ("another site's seeds", [one, two, replace(three, seeds=two.seeds)], A),
        ("too few seeds", [one, two, replace(three, seeds=three.seeds[:SEED_BYTES])], A),
        ("too few seeds, signed", [one, two, resigned(three, {}, three.seeds[:SEED_BYTES])], M),
        ("no seeds, signed by all", seedless, M),
        ("one site left out of the headers", [two, three], P),
    ):
        yield Bad("sum", name, {"contributions": joined(contributions)}, error)
    with_c1 = {"names": good["names"] + b" c1-0=c0", "contributions": joined(seedless)}
    yield Bad("sum", "c1 in place of seeds", with_c1, M)
    yield Bad(
        "sum", "another nonce, signed", {"contributions": joined([one, two, resigned(three, {"nonce": OTHER})])}, A
    )


def resigned_as(part: Contribution, site: str) -> Contribution:
    """Return a contribution in another site's name."""
    return replace(part, header=part.header.replace(b'"site":"west"', b'"site":"' + site.encode() + b'"'))


def _ciphertexts() -> Iterator[Bad]:
    good = good_parts("sum")
    c0, codes = good["c0"], good["codes"]
    of_q = residues(c0).copy()
    of_q[0, 0] = _Q
    place = RING_DEGREE - 1
    largest = 3 * 16_383  # levels of three sites, of four in the run
    for name, parts, error in (
        ("a c0 that is cut", {"c0": c0[:-1]}, M),
        ("a c0 of one ciphertext", {"c0": c0[:C0_BYTES]}, M),
        ("two chunks", {"names": good["names"] + b" c0-1=c0"}, M),
        ("codes that are cut", {"codes": codes[:-8]}, M),
        ("a coefficient of q", {"c0": pack60(of_q.reshape(-1))}, M),
        ("c1 in a small cohort", {"names": good["names"] + b" c1-0=c0"}, M),
        ("a code off by one", {"codes": _plus(codes, 0, 1)}, A),
        ("the second code off by one", {"codes": _plus(codes, 1, 1)}, A),
        ("a coefficient of c0 off by one", {"c0": shifted(good, 0, {5: 1}, code=False)["c0"]}, A),
        ("another value, with a code", shifted(good, 0, {5: _step(1)}), A),
        ("another tag, with a code", shifted(good, 1, {place: _step(1)}), A),
    ):
        yield Bad("sum", name, parts, error)
    # What a member could send: values that no site may have, with a code and a tag that fit.
    field = stored("round")["opened"]["coefficients"][3] & 0xFFFF
    yield Bad("sum", "a field above what the sites can reach", tagged(good, 0, {3: largest + 1 - field}), M)
    yield Bad("sum", "something behind the last parameter", tagged(good, 1, {2000: 1}), M)
    yield Bad("sum", "something in a field that is not in use", tagged(good, 1, {7: 1 << 32}), M)


def _step(value: int) -> int:
    """Return what adds a value to a coefficient of the sum: q·m/t, rounded."""
    return (value * _Q + _T // 2) // _T


def shifted(good: dict[str, bytes], row: int, by: dict[int, int], *, code: bool = True) -> dict[str, bytes]:
    """Add to coefficients of one ciphertext's c0, and adapt its code."""
    words, codes = residues(good["c0"]).copy(), good["codes"]
    rho = mac_key()._stream(b"rho").residues(RING_DEGREE, _Q)
    for place, step in by.items():
        words[row, place] = (int(words[row, place]) + step) % _Q
        codes = _plus(codes, row, step * int(rho[place])) if code else codes
    return {"c0": pack60(words.reshape(-1)), "codes": codes}


def tagged(good: dict[str, bytes], row: int, values: dict[int, int]) -> dict[str, bytes]:
    """Add to decrypted coefficients of one ciphertext, and adapt its tag and code."""
    alpha = tag_key()._stream(b"alpha").residues(RING_DEGREE - 1, _T)
    tag = sum(value * int(alpha[place]) for place, value in values.items()) % _T
    return shifted(good, row, {place: _step(value) for place, value in (values | {RING_DEGREE - 1: tag}).items()})


def _plus(codes: bytes, row: int, by: int) -> bytes:
    values = np.frombuffer(codes, "<u8").copy()
    values[row] = (int(values[row]) + by) % _Q
    return values.tobytes()


def _shown_seeds() -> Iterator[Bad]:
    good = good_parts("sum")
    plan, parts = read_plan(good["plan"]), split(good["contributions"])
    *others, west = parts
    header = json.loads(west.header)
    other = seed_sealer(SECRET, plan, "west", header["mask"]).encrypt(bytes(12), b"s" * 32, None)
    lied = _pair_sealer(SECRET, plan, "west", "north").encrypt(bytes(12), b"s" * 32, None) + west.pairs[REVEAL_BYTES:]

    def own(sealed: bytes, committed: str = header["mask"]) -> dict[str, bytes]:
        return {"reveal": sign_seed(sealed, plan, committed, signing_key("west"))}

    def pairs(sealed: bytes, absent: tuple[str, ...] = ("north",)) -> dict[str, bytes]:
        return {"pairs": sign_pairs(sealed, plan, header["pairs"], absent, signing_key("west"))}

    seed, shared = west.reveal[SIGNATURE_BYTES:], west.pairs[SIGNATURE_BYTES:]
    for name, changes in (
        ("no seed of a mask", {"reveal": b""}),
        ("another site's seed of a mask", {"reveal": parts[0].reveal}),
        ("another site's seed of a mask, signed", own(parts[0].reveal[SIGNATURE_BYTES:])),
        ("a seed of a mask that is not signed", {"reveal": bytes(SIGNATURE_BYTES) + seed}),
        ("a seed of a mask, signed for another commitment", own(seed, OTHER)),
        ("a seed of a mask to which nobody committed", own(other)),
        ("no seed of a mask that is shared", {"pairs": b""}),
        ("another site's seed of a mask that is shared", {"pairs": parts[0].pairs}),
        ("a seed of a mask that is shared, not signed", {"pairs": bytes(SIGNATURE_BYTES) + shared}),
        ("a seed of a mask that is shared to which nobody committed", pairs(lied)),
        ("a seed of a mask that is shared, signed for another absent site", pairs(shared, ("south",))),
        ("a proof that is cut", pairs(shared[:-32])),
        ("a proof that is too long", pairs(shared + bytes(32))),
        ("a wrong proof", pairs(shared[:-1] + bytes([shared[-1] ^ 1]))),
    ):
        yield Bad("sum", name, {"contributions": joined([*others, replace(west, **changes)])}, A)


def _large() -> Iterator[Bad]:
    good = good_parts("large sum")
    names, parts = good["names"], split(good["contributions"])
    seeds = bytes.fromhex(stored("large")["sites"]["north"]["seeds"])
    words = residues(good["c1"]).copy()
    words[0, 0] = _Q
    other = residues(good["c1"]).copy()
    other[0, 0] = (int(other[0, 0]) + 1) % _Q
    for name, changes, error in (
        ("no c1", {"names": names.replace(b" c1-0=c1", b"")}, M),
        ("a c1 that is cut", {"c1": good["c1"][:-1]}, M),
        ("a c1 of two ciphertexts", {"c1": good["c1"] + bytes(C0_BYTES)}, M),
        ("a coefficient of q in c1", {"c1": pack60(words.reshape(-1))}, M),
        ("a coefficient of c1 off by one", {"c1": pack60(other.reshape(-1))}, A),
        ("c1 and seeds", {"contributions": joined([replace(parts[0], seeds=seeds), *parts[1:]])}, M),
        ("c1 numbered from 1", {"names": names.replace(b"c1-0", b"c1-1")}, M),
    ):
        yield Bad("large sum", name, changes, error)


def _sets() -> Iterator[Bad]:
    for kind in ("set", "reveal"):
        good = good_parts(kind)
        east, south, west = split(good["shown"])
        plan = read_plan(good["plan"])
        for name, parts, error in (
            ("a site twice", {"shown": joined([east, south, west, west])}, P),
            (
                "a header that was changed",
                {"shown": joined([east, south, replace(west, header=west.header + b" ")])},
                A,
            ),
            ("two sites of three", {"shown": joined([south, west])}, P),
            ("another update of this site's", {"own": resigned(south, {"nonce": OTHER}).header}, P),
            ("without this site", {"site": b"north", "own": b"{}"}, P),
            ("fewer than keep the promise", {"minimum": b"4"}, P),
            ("a plan that is long over", {"now": b"1900000000"}, P),
        ):
            yield Bad(kind, name, parts, error)
        yield from _repetitions(kind, good)
        agreeing = f"agreeing on the contributors to plan {plan.digest}: {OTHER}\n".encode()
        if kind == "set":
            yield Bad(kind, "another set was signed before", {"once": agreeing}, P)
            continue
        agreed = json.loads(good["agreed"])
        headers = {"east": east.header, "south": south.header}
        of_two = sign(signing_key("west"), "agree", f"{plan.digest} {set_digest(headers)}".encode()).hex()
        for name, parts, error in (
            ("a signature is missing", {"agreed": _json({site: agreed[site] for site in ("east", "south")})}, A),
            ("a signature of another set", {"agreed": _json(agreed | {"west": of_two})}, A),
            ("a seed was revealed for another plan", {"once": f"revealing for round 2: {OTHER} {OTHER}\n".encode()}, P),
        ):
            yield Bad(kind, name, parts, error)


def _repetitions(kind: str, good: Mapping[str, bytes]) -> Iterator[Bad]:
    """Yield plans of a round for which the site has revealed its seed already, for another plan."""
    plan, three = read_plan(good["plan"]), ("east", "south", "west")
    fewer = replace(plan, attempt=3, cohort=three)
    parts = [resigned(part, {"plan": fewer.digest, "attempt": 3}) for part in split(good["shown"])]
    headers = {site: part.header for site, part in zip(three, parts, strict=True)}
    statement = f"{fewer.digest} {set_digest(headers)}".encode()
    parts_shown = {"plan": fewer.to_bytes(), "shown": joined(parts), "own": headers["south"]}
    if kind == "reveal":
        parts_shown["agreed"] = _json({site: sign(signing_key(site), "agree", statement).hex() for site in three})
    revealed = f"revealing for round 2: {OTHER} {OTHER}\n"
    evidence = f"evidence against north: {OTHER}\nevidence against dover: {OTHER}\n"

    def once(*before: str, known: str = evidence) -> dict[str, bytes]:
        signed = f"agreeing on the contributors to plan {OTHER}: {OTHER} {','.join(before)}\n"
        return {"once": f"{signed}{revealed}{known}".encode()}

    for name, changes in (
        ("a repetition of what nobody signed", parts_shown | {"once": (revealed + evidence).encode()}),
        ("a repetition without evidence", parts_shown | once("east", "north", "south", "west", known="")),
        ("a repetition with evidence against others", parts_shown | once("bath", "east", "north", "south", "west")),
        ("a repetition over the same sites", parts_shown | once(*three)),
        ("a repetition with one site more", parts_shown | once("east", "north", "south")),
        ("a repetition that is not whole", once("dover", "east", "north", "south", "west")),
    ):
        yield Bad(kind, name, changes, P)


def _json(value: Any) -> bytes:  # noqa: ANN401 - JSON
    return json.dumps(value).encode()


def _key_file(words: bytes, epoch: int = 2) -> bytes:
    data = epoch.to_bytes(8) + SECRET + words + sha256(words).digest()
    return data + sha256(data).digest()


def _keys() -> Iterator[Bad]:
    good = good_parts("keys")["data"]
    words = np.frombuffer(good[40:-64], "<u8")

    def plus(constant: int) -> bytes:
        return ((words.astype(object) + constant) % _Q).astype("<u8").tobytes()

    flipped = bytes([good[60] ^ 1])
    damaged = good[:40] + good[40:60] + flipped + good[61:-32]
    for name, data, error in (
        ("a flipped bit", good[:60] + flipped + good[61:], "KeyFileError"),
        ("a flipped bit, with a digest", damaged + sha256(damaged).digest(), "KeyFileError"),
        ("a flipped bit in the tag key", good[:20] + bytes([good[20] ^ 1]) + good[21:], "KeyFileError"),
        ("cut", good[:-1], "KeyFileError"),
        ("a word more, with digests", _key_file(words.tobytes() + bytes(8)), "KeyFileError"),
        ("a word of q", _key_file(_Q.to_bytes(8, "little") + words.tobytes()[8:]), "KeyFileError"),
        ("a key of zero", _key_file(bytes(8 * RING_DEGREE)), M),
        ("a key of 1", _key_file((1).to_bytes(8, "little") * RING_DEGREE), M),
        ("a key with a coefficient of 2, 3 or 4", _key_file(plus(3)), M),
        ("a key with a coefficient of 1/4096", _key_file(plus(pow(4096, -1, _Q))), M),
    ):
        yield Bad("keys", name, {"data": data}, error)
    sealing = good_parts("sealing key")["data"]
    yield Bad("sealing key", "cut", {"data": sealing[:-1]}, "KeyFileError")
    yield Bad("sealing key", "too long", {"data": sealing + b"\0"}, "KeyFileError")


def _letters() -> Iterator[Bad]:
    good = good_parts("letter")
    payload = json.loads(good["letter"].partition(b"\n")[2])

    def signed(letter: dict[str, Any], signer: str = "north", kind: str = "epoch") -> dict[str, bytes]:
        data = json.dumps(letter, sort_keys=True).encode()
        return {"letter": SignedDocument.make(signing_key(signer), kind, data).to_bytes()}

    def sealed(data: bytes, **named: object) -> dict[str, bytes]:
        letter = payload | named
        bound = [letter[key] for key in ("consortium", "roster", "epoch", "fingerprint", "leader", "recipient")]
        box = seal(sealing_key("south").public, data, b"cloister epoch " + json.dumps(bound).encode())
        return signed(letter | {"sealed": b64encode(box).decode()})

    box = b64decode(payload["sealed"])
    flipped = box[:-1] + bytes([box[-1] ^ 1])
    for name, parts, error in (
        ("another signer", signed(payload, "west"), A),
        ("signed as another kind", signed(payload, kind="manifest"), M),
        ("a leader that is no member", {"leader": b"mallory"}, P),
        ("a letter of another leader's", {"leader": b"west"}, A),
        ("a flipped bit in what is sealed", signed(payload | {"sealed": b64encode(flipped).decode()}), A),
        ("no base64", signed(payload | {"sealed": "!" + payload["sealed"][1:]}), M),
        ("an unknown key", signed(payload | {"colour": "blue"}), M),
        ("another format", signed(payload | {"format": 2}), M),
        ("version 0 of the roster", signed(payload | {"roster": 0}), M),
        ("an epoch as text", signed(payload | {"epoch": "2"}), M),
        ("epoch 0", signed(payload | {"epoch": 0}), M),
        ("a short fingerprint", signed(payload | {"fingerprint": "ab"}), M),
        ("a leader in capitals", signed(payload | {"leader": "North"}), M),
        ("a recipient in capitals", signed(payload | {"recipient": "South"}), M),
        ("another consortium", signed(payload | {"consortium": "others"}), P),
        ("another roster", signed(payload | {"roster": 4}), P),
        ("another leader inside", signed(payload | {"leader": "west"}), P),
        ("another recipient", signed(payload | {"recipient": "west"}), P),
        ("to another site", {"site": b"west"}, P),
        ("another epoch outside", signed(payload | {"epoch": 3}), A),
        ("nothing inside", sealed(b""), "KeyFileError"),
        ("keys of another epoch", sealed(good_parts("keys")["data"], epoch=3), A),
        ("other keys", sealed(good_parts("keys")["data"], fingerprint=OTHER), A),
    ):
        yield Bad("letter", name, parts, error)
    zero = _key_file(bytes(8 * RING_DEGREE))
    fingerprint = sha256(b"cloister epoch keys" + zero).hexdigest()
    yield Bad("letter", "a key of zero", sealed(zero, fingerprint=fingerprint), M)


def _pairs() -> Iterator[Bad]:
    good = good_parts("pair")["letter"]
    keys, roster = EpochKeys.from_bytes(good_parts("keys")["data"]), make_roster()

    def sealed(secret: bytes, sender: str, signer: str, info: bytes = b"") -> bytes:
        bound = info or _info(keys, roster, sender, "south")
        box = seal(sealing_key("south").public, secret, bound)
        return sign(signing_key(signer), "pair", _info(keys, roster, sender, "south") + box) + box

    later = _info(EpochKeys(3, keys.decryption, keys.secret), roster, "north", "south")
    for name, parts, error in (
        ("a flipped bit in the signature", {"letter": bytes([good[0] ^ 1]) + good[1:]}, A),
        ("a flipped bit in what is sealed", {"letter": good[:-1] + bytes([good[-1] ^ 1])}, A),
        ("another signer", {"letter": sealed(b"s" * 32, "north", "west")}, A),
        ("sealed for another epoch", {"letter": sealed(b"s" * 32, "north", "north", later)}, A),
        ("to another site", {"site": b"west"}, A),
        ("a sender that is no member", {"sender": b"mallory"}, P),
        ("a short secret", {"letter": sealed(b"s" * 31, "north", "north")}, M),
        ("from a site with a greater name", {"letter": sealed(b"s" * 32, "west", "west"), "sender": b"west"}, M),
        ("empty", {"letter": b""}, A),
    ):
        yield Bad("pair", name, parts, error)
