"""What must be refused, for the golden files: of which kind it pretends to be, what is wrong, and the error's class.

Everything is one step away from something good, and where a site could have signed it, it is signed.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from privacy.codec.ciphertext import C0_BYTES, CODE_BYTES, COEFF_MODULUS, Ciphertexts, pack60, residues, seeds_digest
from privacy.codec.envelope import Contribution
from privacy.crypto.masking import pairs_digest
from privacy.crypto.signing import SignedDocument, sign
from tests.privacy.consortium import authority_key, signing_key
from tests.privacy.vectors import good_parts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from privacy.crypto.signing import PrivateKey

A, M, P = "AuthenticityError", "MalformedError", "ProtocolError"
OTHER = "ab" * 32
GONE = object()
"""Stands for a key that is left out."""

BODY = {"manifest": "text documents/manifest", "roster": "text documents/roster", "plan": "text documents/plan"}
ROUND = {"manifest": "text round/manifest", "roster": "text round/roster", "plan": "text round/plan"}
KINDS: dict[str, dict[str, str]] = {
    "manifest": {"data": "text documents/manifest", "now": "text =1790000000"},
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


class Bad(NamedTuple):
    """One bad vector: those parts of it that are not the good one's."""

    kind: str
    name: str
    parts: dict[str, bytes]
    error: str


def documents() -> Iterator[Bad]:
    """Yield bad documents, plans, headers and updates."""
    yield from _files()
    yield from _manifests()
    yield from _rosters()
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


def changed(document: Any, path: str, value: object) -> Any:  # noqa: ANN401 - JSON
    """Return a copy of a document with another value at a path such as `settings.cohort.minimum`."""
    copy = json.loads(json.dumps(document))
    *tables, key = path.split(".")
    place = copy
    for table in tables:
        place = place[int(table) if isinstance(place, list) else table]
    if value is GONE:
        del place[key]
    else:
        place[int(key) if isinstance(place, list) else key] = value
    return copy


def _signed(kind: str, key: PrivateKey, document: object) -> bytes:
    return SignedDocument.make(key, kind, json.dumps(document, indent=1, sort_keys=True).encode()).to_bytes()


_STATISTICS: dict[str, object] = {"settings.training": None, "settings.statistics": {"bins": 32}, "settings.rounds": 1,
               "settings.encryption.update_bound": None, "settings.encryption.profile": None,
               "settings.privacy.max_grad_norm": None}  # fmt: skip
_EVALUATION: dict[str, object] = _STATISTICS | {"settings.statistics": None,
                             "settings.evaluation": {"metrics": ["accuracy"]},
                             "settings.start": {"model": OTHER}}  # fmt: skip
_VOTE: dict[str, object] = {"epsilon": 1.0, "tolerance": 0.1}
_MASKED: dict[str, object] = {"settings.encryption.collusion_resistant": True}
_SHARED: dict[str, object] = _MASKED | {"settings.privacy.noise": "shared", "settings.training.steps_per_round": 1}
_EPOCHS: dict[str, object] = {"settings.training.steps_per_round": None}
_INF, _NAN = float("inf"), float("nan")
_NAMED: list[tuple[str, dict[str, object]]] = [
    (f"{section}: {name} with {key} = {value!r}", {f"settings.training.{section}": {"name": name, key: value}})
    for section, name, key, values in (
        ("optimizer", "sgd", "momentum", (-0.1, 1.0, "0.5")),
        ("optimizer", "sgd", "nesterov", (True,)),
        ("optimizer", "sgd", "weight_decay", (-0.1, _INF)),
        ("optimizer", "sgd", "beta_1", (0.9,)),
        *[(("optimizer", adam, *parameter)) for adam in ("adam", "adamw") for parameter in (
            ("beta_1", (-0.1, 1.0, "0.5")), ("beta_2", (-0.1, 1.0)), ("epsilon", (0.0, _INF)),
            ("weight_decay", (-0.1, _INF)), ("momentum", (0.9,)))],
        *[("schedule", kind, "warm_up", (-0.1, 1.1, "0.5")) for kind in ("constant", "cosine", "linear", "step")],
        *[("schedule", kind, "final", (-0.1, 1.1)) for kind in ("cosine", "linear")],
        *[("schedule", kind, "every", (3,)) for kind in ("constant", "cosine", "linear")],
        ("schedule", "step", "every", (0, "3")),
        ("schedule", "step", "factor", (0.0, 1.1)),
        ("schedule", "step", "final", (0.5,)),
    )
    for value in values
]  # fmt: skip
_MANIFESTS: list[tuple[str, dict[str, object]]] = [
    ("a later version", {"version": 2}),
    ("an unknown key", {"colour": "blue"}),
    ("a key left out", {"nonce": GONE}),
    ("a number as text", {"roster_version": "3"}),
    ("negative noise", {"noise_multiplier": -1.0}),
    ("noise that is no number", {"noise_multiplier": _NAN}),
    ("infinite noise", {"noise_multiplier": _INF}),
    ("version 0 of the roster", {"roster_version": 0}),
    ("a short nonce", {"nonce": "ab"}),
    ("never expires", {"expires": _INF}),
    ("settings: an unknown key", {"settings.colour": "blue"}),
    ("settings: a number as text", {"settings.rounds": "10"}),
    ("settings: a name with a space", {"settings.name": "my study"}),
    ("settings: a task without a class", {"settings.task": "tasks"}),
    ("settings: no round", {"settings.rounds": 0}),
    ("settings: too many rounds", {"settings.rounds": 100_001}),
    ("settings: a strategy without a name", {"settings.strategy": "Fed Prox"}),
    ("settings: a strategy of version 0", {"settings.strategy": {"name": "fedadam", "version": 0}}),
    ("settings: a strategy that is a number", {"settings.strategy": 3}),
    ("settings: a parameter that is no plain value", {"settings.strategy": {"name": "fedadam", "tau": [0.1]}}),
    ("settings: a negative seed of the model", {"settings.model_seed": -1}),
    ("settings: a seed of 64 bits", {"settings.model_seed": 1 << 63}),
    ("settings: valid for no time", {"settings.valid_days": 0.0}),
    ("settings: valid for years", {"settings.valid_days": 367.0}),
    ("settings: a negative seed", {"settings.seed": -1, "settings.privacy.noise_multiplier": 0.0}),
    ("settings: a seed with noise", {"settings.seed": 7}),
    ("training: an unknown key", {"settings.training.momentum": 0.9}),
    ("training: a number as text", {"settings.training.steps_per_round": "5"}),
    ("training: fewer steps than none", {"settings.training.steps_per_round": -1}),
    ("training: no record ever", {"settings.training.sample_rate": 0.0}),
    ("training: a sample rate above 1", {"settings.training.sample_rate": 1.5}),
    ("training: no learning rate", {"settings.training.learning_rate": 0.0}),
    ("training: an infinite learning rate", {"settings.training.learning_rate": _INF}),
    ("training: no number of steps", {"settings.training.steps_per_round": None}),
    ("training: steps and epochs", {"settings.training.epochs_per_round": 1.0}),
    ("training: no epochs", _EPOCHS | {"settings.training.epochs_per_round": 0.0}),
    ("training: endless epochs", _EPOCHS | {"settings.training.epochs_per_round": _INF}),
    ("training: more than 10⁹ steps", _EPOCHS | {"settings.training.epochs_per_round": 1e9}),
    ("training: another optimizer", {"settings.training.optimizer": "adagrad"}),
    ("training: an optimizer that is a number", {"settings.training.optimizer": 3}),
    ("training: an optimizer without a name", {"settings.training.optimizer": {"momentum": 0.5}}),
    ("training: another schedule", {"settings.training.schedule": "exponential"}),
    ("training: a schedule that is a list", {"settings.training.schedule": ["cosine"]}),
    *_NAMED,
    ("training: a negative share to average", {"settings.training.averaging": -0.5}),
    ("training: more than all rounds to average", {"settings.training.averaging": 1.5}),
    ("training: a negative decay", {"settings.training.ema_decay": -0.1}),
    ("training: a decay of 1", {"settings.training.ema_decay": 1.0}),
    ("training: two means", {"settings.training.ema_decay": 0.9, "settings.training.averaging": 0.5}),
    ("training: fewer augmented copies than none", {"settings.training.augmentation_multiplicity": -1}),
    ("training: half an augmented copy", {"settings.training.augmentation_multiplicity": 0.5}),
    ("training: too many augmented copies", {"settings.training.augmentation_multiplicity": 1025}),
    ("statistics: an unknown key", _STATISTICS | {"settings.statistics": {"bins": 32, "columns": 3}}),
    ("statistics: a number as text", _STATISTICS | {"settings.statistics": {"bins": "32"}}),
    ("statistics: one bin", _STATISTICS | {"settings.statistics": {"bins": 1}}),
    ("statistics: too many bins", _STATISTICS | {"settings.statistics": {"bins": 1025}}),
    ("statistics: in two rounds", _STATISTICS | {"settings.rounds": 2}),
    ("statistics: with a strategy", _STATISTICS | {"settings.strategy": "fedadam"}),
    ("statistics: with a range", _STATISTICS | {"settings.encryption.update_bound": 1.0}),
    ("statistics: with a profile", _STATISTICS | {"settings.encryption.profile": "precise"}),
    ("statistics: with a clipping norm", _STATISTICS | {"settings.privacy.max_grad_norm": 1.0}),
    ("statistics: clipped layer by layer", _STATISTICS | {"settings.privacy.clipping": "per_layer"}),
    ("statistics: from a model", _STATISTICS | {"settings.start": {"model": OTHER}}),
    ("statistics: with shared noise", _STATISTICS | _MASKED | {"settings.privacy.noise": "shared"}),
    ("evaluation: an unknown key", _EVALUATION | {"settings.evaluation": {"metrics": ["accuracy"], "bins": 3}}),
    ("evaluation: a metric by itself", _EVALUATION | {"settings.evaluation": {"metrics": "accuracy"}}),
    ("evaluation: a bound as text", _EVALUATION | {"settings.evaluation": {"loss_bound": "4.0"}}),
    ("evaluation: a bound of 0", _EVALUATION | {"settings.evaluation": {"loss_bound": 0.0}}),
    ("evaluation: no bound at all", _EVALUATION | {"settings.evaluation": {"loss_bound": _INF}}),
    ("evaluation: of nothing", _EVALUATION | {"settings.evaluation": {"metrics": []}}),
    ("evaluation: a metric twice", _EVALUATION | {"settings.evaluation": {"metrics": ["accuracy", "accuracy"]}}),
    ("evaluation: a metric called loss", _EVALUATION | {"settings.evaluation": {"metrics": ["loss"]}}),
    ("evaluation: a metric called count", _EVALUATION | {"settings.evaluation": {"metrics": ["count"]}}),
    ("evaluation: of no model", _EVALUATION | {"settings.start": None}),
    ("evaluation: in two rounds", _EVALUATION | {"settings.rounds": 2}),
    ("vote: an unknown key", {"settings.vote": _VOTE | {"majority": 0.5}}),
    ("vote: a number as text", {"settings.vote": _VOTE | {"epsilon": "1"}}),
    ("vote: for nothing", {"settings.vote": _VOTE | {"epsilon": 0.0}}),
    ("vote: at any price", {"settings.vote": _VOTE | {"epsilon": 21.0}}),
    ("vote: negative tolerance", {"settings.vote": _VOTE | {"tolerance": -0.1}}),
    ("vote: infinite tolerance", {"settings.vote": _VOTE | {"tolerance": _INF}}),
    ("vote: with averaging", {"settings.vote": _VOTE, "settings.training.averaging": 0.5}),
    ("vote: with a moving average", {"settings.vote": _VOTE, "settings.training.ema_decay": 0.5}),
    ("vote: on statistics", _STATISTICS | {"settings.vote": _VOTE}),
    ("start: an unknown key", {"settings.start": {"model": OTHER, "file": "x"}}),
    ("start: a name of a model", {"settings.start": {"model": "resnet"}}),
    ("start: a number", {"settings.start": {"model": 5}}),
    ("two purposes", {"settings.statistics": {"bins": 32}}),
    ("no purpose", {"settings.training": None}),
    ("training without a range", {"settings.encryption.update_bound": None}),
    ("training without a clipping norm", {"settings.privacy.max_grad_norm": None}),
    ("privacy: an unknown key", {"settings.privacy.gamma": 1.0}),
    ("privacy: a number as text", {"settings.privacy.delta": "1e-5"}),
    ("privacy: a clipping norm of 0", {"settings.privacy.max_grad_norm": 0.0}),
    ("privacy: an infinite clipping norm", {"settings.privacy.max_grad_norm": _INF}),
    ("privacy: another way to clip", {"settings.privacy.clipping": "adaptive"}),
    ("privacy: δ of 0", {"settings.privacy.delta": 0.0}),
    ("privacy: a large δ", {"settings.privacy.delta": 0.01}),
    ("privacy: ε of 0", {"settings.privacy.epsilon": 0.0, "settings.privacy.noise_multiplier": None}),
    ("privacy: an infinite ε", {"settings.privacy.epsilon": _INF, "settings.privacy.noise_multiplier": None}),
    ("privacy: negative noise", {"settings.privacy.noise_multiplier": -1.0}),
    ("privacy: infinite noise", {"settings.privacy.noise_multiplier": _INF}),
    ("privacy: ε and noise", {"settings.privacy.epsilon": 1.0}),
    ("privacy: neither", {"settings.privacy.noise_multiplier": None}),
    ("privacy: another kind of noise", {"settings.privacy.noise": "global"}),
    ("privacy: fewer colluding sites than none", _MASKED | {"settings.privacy.colluding_sites": -1}),
    ("privacy: colluding sites without masks", {"settings.privacy.colluding_sites": 1}),
    ("masks: too small a minimum", _MASKED | {"settings.cohort.minimum": 2}),
    ("masks: more may collude than the minimum bears", _MASKED | {"settings.privacy.colluding_sites": 2}),
    ("shared noise: without masks", _SHARED | {"settings.encryption.collusion_resistant": False}),
    ("shared noise: two steps a round", _SHARED | {"settings.training.steps_per_round": 2}),
    ("shared noise: an optimizer", _SHARED | {"settings.training.optimizer": {"name": "sgd", "weight_decay": 0.1}}),
    ("shared noise: a schedule", _SHARED | {"settings.training.schedule": "linear"}),
    ("shared noise: of nothing", _SHARED | {"settings.privacy.noise_multiplier": 0.0}),
    ("encryption: an unknown key", {"settings.encryption.scheme": "ckks"}),
    ("encryption: a word for true", {"settings.encryption.collusion_resistant": "yes"}),
    ("encryption: a range of 0", {"settings.encryption.update_bound": 0.0}),
    ("encryption: an infinite range", {"settings.encryption.update_bound": _INF}),
    ("encryption: too small a range", {"settings.encryption.update_bound": 1e-31}),
    ("encryption: too large a range", {"settings.encryption.update_bound": 1e31}),
    ("encryption: a norm of 0", _MASKED | {"settings.encryption.update_norm": 0.0}),
    ("encryption: too large a norm", _MASKED | {"settings.encryption.update_norm": 1e31}),
    ("norm: without masks", {"settings.encryption.update_norm": 1.0}),
    ("norm: of statistics", _STATISTICS | _MASKED | {"settings.encryption.update_norm": 1.0}),
    ("norm: with shared noise", _SHARED | {"settings.encryption.update_norm": 1.0}),
    ("encryption: another profile", {"settings.encryption.profile": "tiny"}),
    ("encryption: more sites than fields have room for",
     {"settings.encryption.profile": "dense", "settings.cohort.sizes": {f"s{n}": 9 for n in range(273)}}),
    ("cohort: an unknown key", {"settings.cohort.maximum": 9}),
    ("cohort: a number as text", {"settings.cohort.minimum": "3"}),
    ("cohort: of nobody", {"settings.cohort.sizes": {}, "settings.cohort.minimum": 3}),
    ("cohort: a site without records", {"settings.cohort.sizes.south": 0}),
    ("cohort: a name in capitals", {"settings.cohort.sizes.WEST": 100}),
    ("cohort: a minimum of 1", {"settings.cohort.minimum": 1}),
    ("cohort: a minimum above all sites", {"settings.cohort.minimum": 4}),
    ("cohort: no time", {"settings.cohort.round_deadline_seconds": 0.0}),
    ("cohort: all the time there is", {"settings.cohort.round_deadline_seconds": _INF}),
]  # fmt: skip


def _manifests() -> Iterator[Bad]:
    good = json.loads(good_parts("manifest")["data"].partition(b"\n")[2])
    for name, changes in _MANIFESTS:
        document = good
        for path, value in changes.items():
            document = changed(document, path, value)
        yield Bad("manifest", name, {"data": _signed("manifest", signing_key("coordinator"), document)}, M)
    text = good_parts("manifest")["data"].partition(b"\n")[2]
    for name, payload in (
        ("no JSON", text[:-1]),
        ("not text", text.replace(b"study", b"stud\xff", 1)),
        ("a list", b"[]"),
    ):
        signed = SignedDocument.make(signing_key("coordinator"), "manifest", payload)
        yield Bad("manifest", name, {"data": signed.to_bytes()}, M)
    yield Bad("manifest", "its time is over", {"now": b"1900000000"}, "RefusedError")


def _rosters() -> Iterator[Bad]:
    good = json.loads(good_parts("roster")["data"].partition(b"\n")[2])
    twice = good["members"][1]
    for name, path, value, error in (
        ("version 0", "version", 0, M),
        ("a number as text", "version", "3", M),
        ("never expires", "expires", _INF, M),
        ("expired", "expires", 1_700_000_000.0, A),
        ("a short key", "coordinator_key", "ab", M),
        ("a nameless consortium", "consortium", None, M),
        ("no members", "members", [], M),
        ("another format", "format", 2, M),
        ("an unknown key", "colour", "blue", M),
        ("a key left out", "expires", GONE, M),
        ("a member's name in capitals", "members.1.site", "South", M),
        ("a member's short TLS key", "members.1.tls_key", "ab", M),
        ("a member's signing key in capitals", "members.1.signing_key", twice["signing_key"].upper(), M),
        ("a member's sealing key as a number", "members.1.sealing_key", 5, M),
        ("a member's masking key", "members.1.masking_key", OTHER, M),
        ("a member twice", "members.0.site", twice["site"], M),
        ("a TLS key twice", "members.0.tls_key", twice["tls_key"], M),
        ("a signing key twice", "members.0.signing_key", twice["signing_key"], M),
    ):
        yield Bad("roster", name, {"data": _signed("roster", authority_key(), changed(good, path, value))}, error)


def canonical(document: object) -> bytes:
    """Return the one form of a plan or header."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


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
        "site": b"west", "manifest": _signed("manifest", signing_key("coordinator"), fewer)}, P)  # fmt: skip
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
        return {"manifest": _signed("manifest", signing_key("coordinator"), document)}

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
        ("another purpose", charge | {"purpose": "curiosity"}),
        ("a vote with noise", charge | {"purpose": "vote"}),
        ("a vote with an unknown key", vote | {"colour": "blue"}),
        ("a vote for a text", vote | {"epsilon": "1"}),
        ("a vote for training", vote | {"purpose": "training"}),
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
