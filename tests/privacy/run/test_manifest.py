"""A run's settings cannot contradict themselves; a manifest is the coordinator's or it is nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from privacy.accounting.accounting import Mechanism, epsilon
from privacy.crypto.signing import SignedDocument
from privacy.errors import AuthenticityError, ConfigError, MalformedError, RefusedError
from privacy.run.manifest import Manifest, open_manifest
from privacy.run.new_manifest import sign_manifest
from privacy.run.settings import Privacy, RunSettings
from tests.privacy.consortium import make_manifest, relaxed, run_settings, signing_key

if TYPE_CHECKING:
    from collections.abc import Mapping

COORDINATOR = signing_key("coordinator")


def settings_with(**changes: Mapping[str, object] | object) -> RunSettings:
    """Read settings as from a file: a table's changes are merged, None removes a key."""
    data = json.loads(json.dumps(asdict(run_settings())))
    for key, value in changes.items():
        data[key] = (data[key] or {}) | value if isinstance(value, dict) and key != "cohort" else value
    if "cohort" in changes:
        data["cohort"] = {"sizes": {"a": 1, "b": 1, "c": 1}} | data["cohort"]
    return TypeAdapter(RunSettings).validate_json(json.dumps(data))


def payload(**changes: object) -> dict[str, Any]:
    manifest, _ = make_manifest()
    read: dict[str, Any] = json.loads(json.dumps(asdict(manifest)))
    return read | changes


def signed(data: bytes) -> bytes:
    return SignedDocument.make(COORDINATOR, "manifest", data).to_bytes()


def test_a_manifest_comes_back_under_the_digest_of_what_was_signed() -> None:
    document = sign_manifest(run_settings(), COORDINATOR, roster_version=3)
    manifest, run = open_manifest(document.to_bytes(), COORDINATOR.public_key())
    assert manifest.settings == run_settings()
    assert manifest.roster_version == 3
    assert run == document.digest


def test_two_runs_of_the_same_settings_are_two_runs() -> None:
    assert make_manifest()[1] != make_manifest()[1]


def test_the_noise_is_calibrated_over_all_steps_of_the_run() -> None:
    settings = run_settings(rounds=20, steps=5, privacy=Privacy(max_grad_norm=1.0, epsilon=2.0, delta=1e-6))
    manifest, _ = make_manifest(settings)
    assert manifest.run_cost == Mechanism(manifest.noise_multiplier, 0.1, 100)
    assert manifest.round_cost == Mechanism(manifest.noise_multiplier, 0.1, 5)
    assert 1.98 < epsilon([manifest.run_cost], 1e-6) <= 2.0
    assert epsilon([manifest.round_cost] * 20, 1e-6) == epsilon([manifest.run_cost], 1e-6)


def test_a_given_noise_multiplier_is_kept() -> None:
    assert make_manifest()[0].noise_multiplier == 1.0


def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    settings = run_settings(rounds=100_000, steps=1_000, privacy=Privacy(max_grad_norm=1.0, epsilon=1e-3))
    with pytest.raises(ConfigError, match=r"of 1,000,000, .* 100,000,000 steps at rate 0\.1 cost"):
        make_manifest(settings)


def test_weights_are_declared_sizes_over_the_largest() -> None:
    manifest, _ = make_manifest(run_settings(sizes={"a": 7, "b": 14, "c": 1}))
    assert [manifest.weight(site) for site in "abc"] == [0.5, 1.0, 1 / 14]
    assert manifest.packing.max_weight == 1.0
    assert manifest.packing.cohort == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"privacy": {"epsilon": 1.0}}, "set either epsilon or noise_multiplier"),
        ({"privacy": {"noise_multiplier": None}}, "set either epsilon or noise_multiplier"),
        ({"seed": 1}, "a seed makes the noise predictable; remove it, or set noise_multiplier = 0"),
        (
            {"seed": 1, "privacy": {"noise_multiplier": None, "epsilon": 1.0}},
            "a seed makes the noise predictable; remove it, or set noise_multiplier = 0",
        ),
        (
            {"cohort": {"sizes": {"a": 1, "b": 1, "c": 1}, "minimum": 4}},
            "the minimum cohort of 4 is more than the 3 sites in sizes",
        ),
        ({"encryption": {"update_bound": 1e-40}}, "must be between 1e-30 and 1e+30"),
        ({"encryption": {"update_bound": 1e40}}, "must be between 1e-30 and 1e+30"),
        (
            {"cohort": {"sizes": {f"s{number}": 1 for number in range(4_369)}}},
            "fields of 16 bits have room for 1 to 4368 sites, not 4369; use `precise`",
        ),
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings_with(**changes)
    assert message in str(caught.value)


SURVEY: dict[str, object] = {
    "training": None,
    "encryption": {"update_bound": None, "profile": None},
    "rounds": 1,
    "statistics": {},
    "privacy": {"max_grad_norm": None},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"statistics": {"bins": 8}}, "choose exactly one of [training], [statistics]"),
        ({"training": None}, "choose exactly one of [training], [statistics]"),
        ({"encryption": {"update_bound": None}}, "a run with [training] needs update_bound in [encryption]"),
        ({"privacy": {"max_grad_norm": None}}, "a run with [training] needs max_grad_norm in [privacy]"),
        (SURVEY | {"rounds": 2}, "statistics take one round; set rounds = 1"),
        (SURVEY | {"encryption": {"update_bound": None}}, "remove update_bound, profile and max_grad_norm"),
        (SURVEY | {"encryption": {"profile": None}}, "remove update_bound, profile and max_grad_norm"),
        (SURVEY | {"privacy": {"max_grad_norm": 1.0}}, "remove update_bound, profile and max_grad_norm"),
        (SURVEY | {"statistics": {"bins": 1}}, "greater than or equal to 2"),
        (SURVEY | {"statistics": {"bins": 1025}}, "less than or equal to 1024"),
        (SURVEY | {"statistics": {"columns": 3}}, "Unexpected keyword argument"),
    ],
)
def test_settings_that_do_not_fit_the_kind_of_run_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings_with(**changes)
    assert message in str(caught.value)


def test_a_survey_costs_one_unsampled_step_and_all_sites_weigh_the_same() -> None:
    manifest, _ = make_manifest(settings_with(**SURVEY))
    assert manifest.run_cost == manifest.round_cost == Mechanism(1.0, 1.0, 1)
    assert manifest.weight("north") == manifest.weight("west") == 1.0
    assert manifest.settings.profile == "precise"
    assert manifest.packing.update_bound == 2 + 8 / 300


def test_a_seed_without_noise_is_allowed() -> None:
    assert settings_with(seed=1, privacy={"noise_multiplier": 0}).seed == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Study"},
        {"name": "-study"},
        {"name": "s" * 41},
        {"name": "../study"},
        {"task": "tasks.tumours"},
        {"task": "tasks:A.b"},
        {"task": "tasks:A; import os"},
        {"rounds": 0},
        {"rounds": 100_001},
        {"rounds": 1.0},
        {"rounds": "3"},
        {"strategy": "Fed SGD"},
        {"strategy": 3},
        {"strategy": {"name": "module:"}},
        {"strategy": {"name": "fedadam", "version": 0}},
        {"strategy": {"name": "fedadam", "version": 1.0}},
        {"strategy": {"name": "fedadam", "tau": float("nan")}},
        {"strategy": {"name": "fedadam", "tau": [0.1]}},
        {"strategy": {"name": "fedadam", "a b": 1}},
        {"strategy": {"name": "fednova", "steps": {"north": "3"}}},
        {"model_seed": -1},
        {"model_seed": 1 << 63},
        {"seed": -1, "privacy": {"noise_multiplier": 0}},
        {"training": {"steps_per_round": -1}},
        {"training": {"sample_rate": 0}},
        {"training": {"sample_rate": 1.001}},
        {"training": {"sample_rate": float("nan")}},
        {"training": {"learning_rate": 0}},
        {"training": {"learning_rate": float("inf")}},
        {"training": {"batch_size": 3}},
        {"privacy": {"max_grad_norm": 0}},
        {"privacy": {"max_grad_norm": float("nan")}},
        {"privacy": {"noise_multiplier": -0.1}},
        {"privacy": {"noise_multiplier": float("nan")}},
        {"privacy": {"noise_multiplier": float("inf")}},
        {"privacy": {"delta": 0}},
        {"privacy": {"delta": 0.01}},
        {"privacy": {"delta": float("nan")}},
        {"privacy": {"noise_multiplier": None, "epsilon": 0}},
        {"privacy": {"noise_multiplier": None, "epsilon": float("inf")}},
        {"encryption": {"update_bound": 0}},
        {"encryption": {"update_bound": float("nan")}},
        {"encryption": {"profile": "none"}},
        {"encryption": {"enabled": False}},
        {"cohort": {"sizes": {}}},
        {"cohort": {"sizes": {"a": 0, "b": 1, "c": 1}}},
        {"cohort": {"sizes": {"a": 1.5, "b": 1, "c": 1}}},
        {"cohort": {"sizes": {"A": 1, "b": 1, "c": 1}}},
        {"cohort": {"sizes": {"a/b": 1, "b": 1, "c": 1}}},
        {"cohort": {"sizes": {"a\n": 1, "b": 1, "c": 1}}},
        {"cohort": {"sizes": {"a" * 33: 1, "b": 1, "c": 1}}},
        {"cohort": {"sizes": {"a": 1, "b": 1, "c": 1}, "minimum": 1}},
        {"cohort": {"sizes": {"a": 1, "b": 1, "c": 1}, "round_deadline_seconds": 0}},
        {"unknown": 1},
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        settings_with(**changes)


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"version": 2}, "version"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier"),
        ({"roster_version": "3"}, "roster_version"),
        ({"nonce": ""}, "nonce"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_genuine_manifest_of_another_form_is_refused_with_the_place(changes: dict[str, object], place: str) -> None:
    with pytest.raises(MalformedError) as caught:
        open_manifest(signed(json.dumps(payload(**changes)).encode()), COORDINATOR.public_key())
    message = str(caught.value)
    assert message.startswith(f"this manifest does not fit this version of Cloister ({place}: ")
    assert message.endswith("); use the same version everywhere")


@relaxed
@given(st.binary(max_size=100) | st.text(max_size=50).map(str.encode) | st.just(b"[" * 10_000))
def test_arbitrary_signed_bytes_are_not_a_manifest(data: bytes) -> None:
    with pytest.raises(MalformedError, match="this manifest does not fit this version"):
        open_manifest(signed(data), COORDINATOR.public_key())


def test_only_the_coordinator_can_sign_a_run() -> None:
    document = sign_manifest(run_settings(), signing_key("north"), roster_version=3)
    with pytest.raises(AuthenticityError, match="the signature of this manifest is not valid"):
        open_manifest(document.to_bytes(), COORDINATOR.public_key())


@relaxed
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused(where: float, bit: int) -> None:
    data = bytearray(GOOD)
    data[int(where * len(data))] ^= 1 << bit
    with pytest.raises((AuthenticityError, MalformedError)):
        open_manifest(bytes(data), COORDINATOR.public_key())


def test_a_run_is_valid_until_its_stated_end() -> None:
    manifest, _ = make_manifest(replace(run_settings(), valid_days=2.0))
    created = datetime.fromisoformat(manifest.created).timestamp()
    manifest.check_valid(created + 2 * 86_400 - 5)
    with pytest.raises(RefusedError, match=r"the run 'study' expired on .*; have it signed again"):
        manifest.check_valid(created + 2 * 86_400 + 5)


GOOD = sign_manifest(run_settings(), COORDINATOR, roster_version=3).to_bytes()


def test_the_manifest_is_frozen() -> None:
    manifest, _ = make_manifest()
    assert isinstance(manifest, Manifest)
    with pytest.raises(AttributeError):
        manifest.noise_multiplier = 0.0  # type: ignore[misc]
