"""Second reader: signatures, digests, documents and their fields, as docs/protocol.md has them.

Nothing under tests/second imports anything of ours: it was written from that document.
"""

from __future__ import annotations

import base64
import json
import math
import re
from fractions import Fraction
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

if TYPE_CHECKING:
    from collections.abc import Callable

    Table = dict[str, Any]
    Check = Callable[[Any], Any]

AUTHENTICITY, MALFORMED, PROTOCOL = "AuthenticityError", "MalformedError", "ProtocolError"
REFUSED = "RefusedError"
LARGEST_DOCUMENT = 64 << 20
_REQUIRED = object()


class RefusedError(Exception):
    """Something is refused, with this class of error."""

    def __init__(self, kind: str, why: str = "") -> None:
        super().__init__(f"{kind}: {why}")
        self.kind = kind


def need(holds: object, kind: str, why: str = "") -> None:
    """Refuse unless something holds."""
    if not holds:
        raise RefusedError(kind, why)


# --- What is signed ---------------------------------------------------------------------------------------------------


def bound(kind: str, payload: bytes) -> bytes:
    name = kind.encode()
    return b"cloister" + len(name).to_bytes(2, "big") + name + len(payload).to_bytes(8, "big") + payload


def digest(kind: str, payload: bytes) -> str:
    return sha256(bound(kind, payload)).hexdigest()


def verify(key: bytes, kind: str, payload: bytes, signature: bytes) -> None:
    """Check a signature of Ed25519 by 32 bytes of key, or of P-256 by a key in DER."""
    try:
        if len(key) == 32:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, bound(kind, payload))
        else:
            authority = load_der_public_key(key)
            assert isinstance(authority, EllipticCurvePublicKey)
            authority.verify(signature, bound(kind, payload), ECDSA(SHA256()))
    except InvalidSignature as error:
        raise RefusedError(AUTHENTICITY, kind) from error


def open_document(data: bytes, kind: str, key: bytes) -> bytes:
    """Return the payload of a signed file."""
    need(len(data) <= LARGEST_DOCUMENT, MALFORMED, "too long")
    line, newline, payload = data.partition(b"\n")
    match = re.fullmatch(rb"cloister-signed-1 ([^ ]+) ((?:[0-9a-f]{2})*)", line)
    if not match or not newline or match[1] != kind.encode():
        raise RefusedError(MALFORMED, "first line")
    verify(key, kind, payload, bytes.fromhex(match[2].decode()))
    return payload


def layout_digest(layout: list[Any], constants: list[Any] | None = None) -> str:
    """Return the digest of a layout; constants have a name, a type, a shape and the digest of their values."""
    beside = b"constants" + json.dumps(constants).encode() if constants else b""
    return sha256(b"cloister layout" + json.dumps(layout).encode() + beside).hexdigest()


def model_digest(layout: list[Any], values: bytes) -> str:
    """Return the digest of a model, of little-endian float32."""
    return sha256(b"cloister model" + bytes.fromhex(layout_digest(layout)) + values).hexdigest()


# --- Fields -----------------------------------------------------------------------------------------------------------


def integer(low: int | None = None, high: int | None = None) -> Check:
    def check(value: object) -> int:
        need(type(value) is int, MALFORMED, "no integer")
        assert isinstance(value, int)
        need((low is None or value >= low) and (high is None or value <= high), MALFORMED, f"{value}")
        return value

    return check


def real(
    *, above: float = -math.inf, below: float = math.inf, least: float = -math.inf, most: float = math.inf
) -> Check:
    def check(value: object) -> float:
        need(type(value) in {int, float}, MALFORMED, "no number")
        assert isinstance(value, int | float)
        need(math.isfinite(value) and above < value < below and least <= value <= most, MALFORMED, f"{value}")
        return float(value)

    return check


def text(pattern: str = r"(?s).*") -> Check:
    def check(value: object) -> str:
        need(isinstance(value, str) and re.fullmatch(pattern, value), MALFORMED, f"{value!r}")
        return str(value)

    return check


def flag(value: object) -> bool:
    need(isinstance(value, bool), MALFORMED, "no flag")
    return bool(value)


def one_of(*values: object) -> Check:
    def check(value: object) -> object:
        need(any(type(value) is type(allowed) and value == allowed for allowed in values), MALFORMED, f"{value!r}")
        return value

    return check


def nullable(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def several(check: Check, least: int = 0) -> Check:
    def checked(value: object) -> list[Any]:
        need(isinstance(value, list) and len(value) >= least, MALFORMED, "no list, or too short")
        assert isinstance(value, list)
        return [check(part) for part in value]

    return checked


def table(**fields: Check | tuple[Check, object]) -> Check:
    """Check a table: a key's check, and its default if it has one."""

    def check(value: object) -> Table:
        need(isinstance(value, dict), MALFORMED, "no table")
        assert isinstance(value, dict)
        need(value.keys() <= fields.keys(), MALFORMED, f"unknown: {value.keys() - fields.keys()}")
        values = {}
        for name, field in fields.items():
            one, default = field if isinstance(field, tuple) else (field, _REQUIRED)
            need(name in value or default is not _REQUIRED, MALFORMED, f"{name} is missing")
            values[name] = one(value[name]) if name in value else default
        return values

    return check


def parsed(payload: bytes, check: Check) -> Table:
    try:
        content: Table = check(json.loads(payload.decode()))
    except (ValueError, RecursionError) as error:
        raise RefusedError(MALFORMED, "no JSON") from error
    return content


DIGEST, SITE = text("[0-9a-f]{64}"), text("[a-z][a-z0-9-]{0,31}")
_EMPTY_OR_DIGEST = text("([0-9a-f]{64})?")

# --- Roster and manifest ----------------------------------------------------------------------------------------------

_ROLES = "coordinator|researcher|operator|auditor"
_ROSTER = table(
    consortium=text(), version=integer(1), expires=real(), format=(one_of(1), 1),
    people=several(table(name=text(f"(?!({_ROLES})$)[a-z][a-z0-9-]{{0,31}}"), role=text(_ROLES), signing_key=DIGEST)),
    members=several(table(site=SITE, tls_key=DIGEST, signing_key=DIGEST, sealing_key=text())),
)  # fmt: skip


def open_roster(data: bytes, authority: bytes, now: float) -> Table:
    roster = parsed(open_document(data, "roster", authority), _ROSTER)
    people, members = roster["people"], roster["members"]
    names = [row["site"] for row in members] + [row["name"] for row in people]
    for entries in (names, [row["tls_key"] for row in members], [row["signing_key"] for row in members + people]):
        need(len(set(entries)) == len(entries), MALFORMED, "something stands twice")
    need(now <= roster["expires"], AUTHENTICITY, "expired")
    roster["by name"] = {row["site"]: row for row in roster["members"]}
    return roster


def member(roster: Table, site: str) -> Table:
    need(site in roster["by name"], PROTOCOL, f"{site} is no member")
    entry: Table = roster["by name"][site]
    return entry


def node_number(site: str) -> int:
    return int.from_bytes(sha256(b"cloister node " + site.encode()).digest()[:8], "big") >> 2


def _sizes(value: object) -> dict[str, int]:
    need(isinstance(value, dict) and value, MALFORMED, "no sizes")
    assert isinstance(value, dict)
    return {SITE(site): integer(1)(size) for site, size in value.items()}


def _strategy(value: object) -> Table:
    """Return a strategy: a name alone, or with a version and parameters."""
    content = {"name": value} if isinstance(value, str) else value
    need(isinstance(content, dict), MALFORMED, "no strategy")
    assert isinstance(content, dict)
    need("name" in content, MALFORMED, "no name")
    text(r"[a-z][a-z0-9_-]{0,39}|[\w.]+:\w+")(content["name"])
    integer(1)(content.get("version", 1))
    for key, item in content.items():
        text("[a-z][a-z0-9_-]{0,39}")(key)
        for one in item.values() if isinstance(item, dict) else [item]:
            need(type(one) in ({int, float} if isinstance(item, dict) else {bool, int, float, str}), MALFORMED, key)
            need(not isinstance(one, float) or math.isfinite(one), MALFORMED, key)
    return content


def named(**kinds: dict[str, tuple[Check, object]]) -> Check:
    """Check a table whose name says what else it has; a name alone is a table of defaults."""

    def check(value: object) -> Table:
        content = {"name": value} if isinstance(value, str) else value
        need(isinstance(content, dict) and "name" in content, MALFORMED, "no name")
        assert isinstance(content, dict)
        one_of(*kinds)(content["name"])
        read: Table = table(name=text(), **kinds[content["name"]])(content)
        return read

    return check


_BELOW_ONE, _PART = real(least=0, below=1), real(least=0, most=1)
_SGD = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
_WARM: dict[str, tuple[Check, object]] = {"warm_up": (_PART, 0.0)}


def _adam(weight_decay: float) -> dict[str, tuple[Check, object]]:
    return {
        "beta_1": (_BELOW_ONE, 0.9), "beta_2": (_BELOW_ONE, 0.999), "epsilon": (real(above=0), 1e-8),
        "weight_decay": (real(least=0), weight_decay),
    }  # fmt: skip


_OPTIMIZERS: dict[str, dict[str, tuple[Check, object]]] = {
    "sgd": {"momentum": (_BELOW_ONE, 0.0), "nesterov": (flag, False), "weight_decay": (real(least=0), 0.0)},
    "adam": _adam(0.0),
    "adamw": _adam(0.01),
}
_SCHEDULES = {
    "constant": _WARM,
    "cosine": _WARM | {"final": (_PART, 0.0)},
    "linear": _WARM | {"final": (_PART, 0.0)},
    "step": _WARM | {"every": (integer(1), 10), "factor": (real(above=0, most=1), 0.5)},
}
_PROFILES = {"compact": (3, 16), "precise": (2, 24), "dense": (4, 12)}
_DEFAULTS = {"update_bound": None, "profile": None, "collusion_resistant": True, "update_norm": None}
_SETTINGS = table(
    name=text("[a-z0-9][a-z0-9-]{0,39}"),
    task=text(r"[\w.]+:\w+"),
    rounds=integer(1, 100_000),
    strategy=(_strategy, {"name": "fedavg", "version": 1}),
    recipients=(several(SITE), []),
    model_seed=(integer(0, 2**63 - 1), 0),
    valid_days=(real(above=0, most=366), 30.0),
    seed=(nullable(integer(0)), None),
    training=(nullable(table(
        steps_per_round=(nullable(integer(0)), None), epochs_per_round=(nullable(real(above=0)), None),
        sample_rate=real(above=0, most=1), learning_rate=real(above=0), averaging=(real(least=0, most=1), 0.0),
        ema_decay=(_BELOW_ONE, 0.0), augmentation_multiplicity=(integer(0, 1024), 0),
        optimizer=(named(**_OPTIMIZERS), {"name": "sgd", **_SGD}),
        schedule=(named(**_SCHEDULES), {"name": "constant", "warm_up": 0.0}),
    )), None),
    statistics=(nullable(table(bins=(integer(2, 1024), 32))), None),
    evaluation=(nullable(table(
        metrics=(several(text()), ["accuracy"]), loss_bound=(nullable(real(above=0)), None),
    )), None),
    start=(nullable(table(model=DIGEST)), None),
    vote=(nullable(table(epsilon=real(above=0, most=20), tolerance=real(least=0))), None),
    privacy=table(
        max_grad_norm=(nullable(real(above=0)), None), clipping=(one_of("flat", "per_layer"), "flat"),
        delta=(real(above=0, below=0.01), 1e-5),
        epsilon=(nullable(real(above=0)), None), noise_multiplier=(nullable(real(least=0)), None),
        noise=(one_of("local", "shared"), "local"), colluding_sites=(nullable(integer(0)), None),
    ),
    encryption=(table(
        update_bound=(nullable(real(least=1e-30, most=1e30)), None),
        profile=(nullable(one_of(*_PROFILES)), None), collusion_resistant=(flag, True),
        update_norm=(nullable(real(above=0, most=1e30)), None),
    ), _DEFAULTS),
    cohort=table(sizes=_sizes, minimum=(integer(2), 3), round_deadline_seconds=(real(above=0), 600.0)),
)  # fmt: skip
_MANIFEST = table(
    settings=_SETTINGS, noise_multiplier=real(least=0), roster_version=integer(1), nonce=text("[0-9a-f]{16}"),
    created=text(), expires=real(), version=(one_of(1), 1),
)  # fmt: skip


def open_run(data: bytes, roster: Table) -> Table:
    """Return a manifest that somebody in a roster signed whose role allows that."""
    for person in roster["people"]:
        key = bytes.fromhex(person["signing_key"])
        try:
            open_document(data, "manifest", key)
        except RefusedError as error:
            need(error.kind == AUTHENTICITY, error.kind, "no manifest")
            continue
        need(person["role"] in {"coordinator", "researcher"}, REFUSED, f"signed by an {person['role']}")
        return open_manifest(data, key)
    raise RefusedError(AUTHENTICITY, "signed by nobody in the roster")


def open_manifest(data: bytes, signer: bytes) -> Table:
    """Return a manifest, with what follows from it."""
    payload = open_document(data, "manifest", signer)
    manifest = parsed(payload, _MANIFEST)
    settings = manifest["settings"]
    need(not _contradictions(settings), MALFORMED, "; ".join(_contradictions(settings)))
    largest = max(settings["cohort"]["sizes"].values())
    trains = settings["training"] is not None
    manifest["run"] = digest("manifest", payload)
    manifest["weights"] = {
        site: float(Fraction(size, largest)) if trains else 1.0 for site, size in settings["cohort"]["sizes"].items()
    }
    manifest["masked"] = settings["encryption"]["collusion_resistant"]
    manifest["fields"], manifest["bits"] = _PROFILES[_profile(settings)]
    manifest["levels"] = levels(manifest["bits"], len(settings["cohort"]["sizes"]))
    manifest["update_bound"] = settings["encryption"]["update_bound"] or 2 + 8 * manifest["noise_multiplier"] / largest
    return manifest


def levels(bits: int, cohort: int) -> int:
    return ((1 << bits) - 2) // cohort + 1


def _profile(settings: Table) -> str:
    return settings["encryption"]["profile"] or "compact" if settings["training"] else "precise"


def steps_of(training: Table | None) -> int | None:
    """Return the number of steps per round; none if it is given twice or not at all, or is too large."""
    if training is None:
        return 0
    steps, epochs = training["steps_per_round"], training["epochs_per_round"]
    if (steps is None) == (epochs is None):
        return None
    if steps is not None:
        return int(steps)
    quotient = epochs / training["sample_rate"]
    return max(1, round(quotient)) if quotient <= 1e9 else None


def _contradictions(settings: Table) -> list[str]:
    training, statistics, evaluation = (settings[name] for name in ("training", "statistics", "evaluation"))
    privacy, encryption, cohort, start = (settings[name] for name in ("privacy", "encryption", "cohort", "start"))
    colluding, shared = privacy["colluding_sites"], privacy["noise"] == "shared"
    masked, evaluation_ = encryption["collusion_resistant"], evaluation or {"metrics": ["some"], "loss_bound": None}
    measured = [encryption["update_bound"], privacy["max_grad_norm"]]
    steps, plain = (
        steps_of(training),
        training
        and (
            training["optimizer"] == {"name": "sgd", **_SGD}
            and training["schedule"] == {"name": "constant", "warm_up": 0}
        ),
    )
    wrong = {
        "steps or epochs": steps is None,
        "nesterov": bool(training) and training["optimizer"].get("nesterov") and not training["optimizer"]["momentum"],
        "several purposes": sum(part is not None for part in (training, statistics, evaluation)) != 1,
        "ε and σ": (privacy["epsilon"] is None) == (privacy["noise_multiplier"] is None),
        "no range or norm": bool(training) and None in measured,
        "a range, norm or profile": not training and [*measured, encryption["profile"]] != [None] * 3,
        "layers to clip": not training and privacy["clipping"] != "flat",
        "two means": bool(training) and training["averaging"] > 0 and training["ema_decay"] > 0,
        "rounds": not training and settings["rounds"] != 1,
        "a strategy": not training and settings["strategy"]["name"] != "fedavg",
        "a start": bool(statistics) and start is not None,
        "no start": bool(evaluation) and start is None,
        "nothing to evaluate": not evaluation_["metrics"] and evaluation_["loss_bound"] is None,
        "a metric twice": len(set(evaluation_["metrics"])) < len(evaluation_["metrics"]),
        "a metric's name": any(name.split(" ")[0] in {"loss", "count"} for name in evaluation_["metrics"]),
        "a vote on nothing, or on a mean": bool(settings["vote"]) and not (
            training and training["averaging"] == training["ema_decay"] == 0
        ),
        "a seed with noise": settings["seed"] is not None and privacy["noise_multiplier"] != 0,
        "a minimum above all": cohort["minimum"] > len(cohort["sizes"]),
        "too few for masks": masked and cohort["minimum"] < (1 if colluding is None else colluding) + 2,
        "colluding without masks": not masked and not shared and colluding is not None,
        "a norm": encryption["update_norm"] is not None and not (training and masked and not shared),
        "shared noise": shared and not (training and masked and steps == 1 and plain
                                        and privacy["noise_multiplier"] != 0
                                        and cohort["minimum"] > (1 if colluding is None else colluding)),
        "levels": levels(_PROFILES[_profile(settings)][1], len(cohort["sizes"])) < 16,
    }  # fmt: skip
    return [sentence for sentence, is_so in wrong.items() if is_so]


# --- Plan and header --------------------------------------------------------------------------------------------------

_PLAN = table(
    run=DIGEST, round=integer(1), attempt=integer(1), cohort=several(SITE, least=1), roster_version=integer(),
    epoch=integer(1), keys=DIGEST, minimum_cohort=integer(), deadline=real(), base_model=DIGEST,
)  # fmt: skip
_HEADER = table(
    site=SITE, run=DIGEST, round=integer(), attempt=integer(), plan=DIGEST, roster_version=integer(), keys=DIGEST,
    base_model=DIGEST, layout=DIGEST, size=integer(1), weight=real(above=0, most=1), update_bound=real(above=0),
    ciphertexts=DIGEST, nonce=DIGEST, mask=_EMPTY_OR_DIGEST, pairs=_EMPTY_OR_DIGEST, seeds=DIGEST, ledger_head=DIGEST,
    version=one_of(1),
)  # fmt: skip


def _canonical(data: bytes, check: Check) -> Table:
    content = parsed(data, check)
    need(json.dumps(content, sort_keys=True, separators=(",", ":")).encode() == data, MALFORMED, "not canonical")
    return content


def read_plan(data: bytes) -> Table:
    plan = _canonical(data, _PLAN)
    plan["digest"] = digest("plan", data)
    return plan


def check_asked(plan: Table, manifest: Table, site: str, now: float) -> None:
    """Check that a site may take part in a plan."""
    cohort = manifest["settings"]["cohort"]
    need(plan["run"] == manifest["run"], PROTOCOL, "run")
    need(plan["round"] <= manifest["settings"]["rounds"], PROTOCOL, "round")
    need(site in plan["cohort"], PROTOCOL, "not in the cohort")
    need(len(set(plan["cohort"])) == len(plan["cohort"]), PROTOCOL, "twice")
    need(set(plan["cohort"]) <= cohort["sizes"].keys(), PROTOCOL, "strangers")
    need(cohort["minimum"] <= plan["minimum_cohort"] <= len(plan["cohort"]), PROTOCOL, "minimum")
    need(plan["attempt"] == 1 or manifest["masked"], PROTOCOL, "attempt")
    need(plan["roster_version"] == manifest["roster_version"], PROTOCOL, "roster")
    seconds = cohort["round_deadline_seconds"]
    need(now <= plan["deadline"] <= now + seconds + clocks_differ(seconds), PROTOCOL, "deadline")


def check_under_way(plan: Table, manifest: Table, now: float) -> None:
    """Check that a plan's round may still be under way, before seeds are revealed."""
    seconds = manifest["settings"]["cohort"]["round_deadline_seconds"]
    need(now <= plan["deadline"] + 6 * seconds + clocks_differ(seconds), PROTOCOL, "long over")


def clocks_differ(seconds: float) -> float:
    """Return by how much clocks may differ in a run whose rounds take this many seconds."""
    return min(300.0, seconds / 2)


def check_header(data: bytes, signature: bytes, site: str, plan: Table, manifest: Table, roster: Table) -> Table:
    verify(bytes.fromhex(member(roster, site)["signing_key"]), "update", data, signature)
    header = _canonical(data, _HEADER)
    need(site in plan["cohort"] and site in manifest["weights"], PROTOCOL, "cohort")
    same = ("run", "round", "attempt", "roster_version", "keys", "base_model")
    need(all(header[name] == plan[name] for name in same), PROTOCOL, "not what the plan says")
    need((header["site"], header["plan"]) == (site, plan["digest"]), PROTOCOL, "site or plan")
    need(header["weight"] == manifest["weights"][site], PROTOCOL, "weight")
    need(header["update_bound"] <= manifest["update_bound"], PROTOCOL, "range")
    need([bool(header["mask"]), bool(header["pairs"])] == [manifest["masked"]] * 2, PROTOCOL, "masks")
    return header


def read_letter(data: bytes, leader: str, roster: Table) -> Table:
    """Return a letter that a leader signed."""
    letter = table(
        consortium=text(), roster=integer(1), epoch=integer(1), fingerprint=DIGEST, leader=SITE, recipient=SITE,
        sealed=text(), format=(one_of(1), 1),
    )  # fmt: skip
    content = parsed(open_document(data, "epoch", bytes.fromhex(member(roster, leader)["signing_key"])), letter)
    try:
        content["sealed"] = base64.b64decode(content["sealed"], validate=True)
    except ValueError as error:
        raise RefusedError(MALFORMED, "base64") from error
    return content
