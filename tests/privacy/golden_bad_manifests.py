"""Manifests and rosters that must be refused, for the golden files: see `golden_bad.py`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from privacy.crypto.signing import SignedDocument
from tests.privacy.bad_vectors import GONE, OTHER, A, Bad, M, changed, signed
from tests.privacy.consortium import authority_key, signing_key
from tests.privacy.vectors import good_parts

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    ("settings: a recipient in capitals", {"settings.recipients": ["Ana"]}),
    ("settings: a recipient as a number", {"settings.recipients": [5]}),
    ("settings: recipients as text", {"settings.recipients": "ana"}),
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


def manifests() -> Iterator[Bad]:
    """Yield bad manifests."""
    good = json.loads(good_parts("manifest")["data"].partition(b"\n")[2])
    for name, changes in _MANIFESTS:
        document = good
        for path, value in changes.items():
            document = changed(document, path, value)
        yield Bad("manifest", name, {"data": signed("manifest", signing_key("coordinator"), document)}, M)
    text = good_parts("manifest")["data"].partition(b"\n")[2]
    for name, payload in (
        ("no JSON", text[:-1]),
        ("not text", text.replace(b"study", b"stud\xff", 1)),
        ("a list", b"[]"),
    ):
        file = SignedDocument.make(signing_key("coordinator"), "manifest", payload)
        yield Bad("manifest", name, {"data": file.to_bytes()}, M)
    for who, error in (("rui", "RefusedError"), ("a stranger", A), ("north", A)):
        yield Bad("manifest", f"signed by {who}", {"data": signed("manifest", signing_key(who), good)}, error)
    yield Bad("manifest", "its time is over", {"now": b"1900000000"}, "RefusedError")


def rosters() -> Iterator[Bad]:
    """Yield bad rosters."""
    good = json.loads(good_parts("roster")["data"].partition(b"\n")[2])
    twice = good["members"][1]
    for name, path, value, error in (
        ("version 0", "version", 0, M),
        ("a number as text", "version", "3", M),
        ("never expires", "expires", _INF, M),
        ("expired", "expires", 1_700_000_000.0, A),
        ("a person's short key", "people.1.signing_key", "ab", M),
        ("a person's key in capitals", "people.1.signing_key", good["people"][1]["signing_key"].upper(), M),
        ("a person's name in capitals", "people.1.name", "Ines", M),
        ("a person with a role's name", "people.1.name", "auditor", M),
        ("a person with an unknown role", "people.1.role", "director", M),
        ("a person without a role", "people.1.role", GONE, M),
        ("a person with a TLS key", "people.1.tls_key", OTHER, M),
        ("a person twice", "people.0.name", "ines", M),
        ("a person and a member with one name", "people.0.name", twice["site"], M),
        ("a person and a member with one key", "people.0.signing_key", twice["signing_key"], M),
        ("two people with one key", "people.0.signing_key", good["people"][1]["signing_key"], M),
        ("nobody listed as people", "people", GONE, M),
        ("a nameless consortium", "consortium", None, M),
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
        yield Bad("roster", name, {"data": signed("roster", authority_key(), changed(good, path, value))}, error)
