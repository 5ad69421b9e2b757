"""What an agent sends is charged before a record is trained on, made once, and all that it says."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict

from client.flower import open_site
from client.work.training import Study
from privacy.accounting.accounting import Mechanism, epsilon
from privacy.crypto.summation import EncryptedSum
from privacy.ledger.ledger import Release
from privacy.run.new_manifest import sign_manifest
from privacy.run.settings import RunSettings
from simulations.engine.federation import Federation
from tests import studies
from tests.client.agent_rounds import EVALUATE, NOWHERE, QUERY, SITE, TRAIN, ask, plan_of, train, update_of
from tests.federations import (
    NOISY,
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    models_of,
    restart,
    run_with,
    signed_run,
    task_name,
    watch_releases,
)
from transport import messages as wire
from transport.parcel import encode
from transport.run_messages import (
    pack_sum,
    pack_train,
)


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(replace(SETTINGS, rounds=2))


# --- Once, and charged before ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [SETTINGS, NOISY], ids=["without noise", "with noise"])
def test_the_same_message_again_gets_the_same_bytes_and_is_charged_once(
    make_federation: FederationMaker, settings: RunSettings
) -> None:
    federation = make_federation(settings)
    plan = plan_of(federation)
    first = update_of(train(federation, plan))
    assert update_of(train(federation, plan)) == first
    restart(federation, SITE)
    assert update_of(train(federation, plan)) == first
    assert charges_of(federation, SITE) == 1


@pytest.mark.parametrize(
    "change",
    [{"deadline": "earlier"}, {"cohort": ("east", "north", "south")}, {"minimum_cohort": 4}],
    ids=lambda change: next(iter(change)),
)
def test_another_plan_for_the_same_attempt_is_refused(federation: Federation, change: dict[str, object]) -> None:
    plan = plan_of(federation)
    first = update_of(train(federation, plan))
    if "deadline" in change:
        change = {"deadline": plan.deadline - 1}
    answer = train(federation, replace(plan, **change))  # type: ignore[arg-type]
    assert "twice for round 1, with different plans" in str(answer.error.reason)
    assert charges_of(federation, SITE) == 1
    assert update_of(train(federation, plan)) == first


def test_another_attempt_is_refused_in_a_run_without_masks(federation: Federation) -> None:
    plan = plan_of(federation)
    assert train(federation, plan).has_content()
    assert "only a masked round" in str(train(federation, replace(plan, attempt=2)).error.reason)
    assert charges_of(federation, SITE) == 1


def test_an_attempt_before_the_last_one_is_refused(make_federation: FederationMaker) -> None:
    masked = replace(SETTINGS.encryption, collusion_resistant=True)
    federation = make_federation(replace(SETTINGS, rounds=2, encryption=masked))
    plan = plan_of(federation)
    assert train(federation, replace(plan, attempt=2)).has_content()
    assert "after a later attempt" in str(train(federation, plan).error.reason)
    assert charges_of(federation, SITE) == 1


def test_the_charge_is_on_disk_before_a_record_is_trained_on(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledgers = watch_releases(monkeypatch, Study)
    federation = make_federation(NOISY)
    plan = plan_of(federation)
    assert ledgers == []  # saying whether it takes part makes nothing of its records
    assert train(federation, plan).has_content()
    (charge,) = ledgers
    assert f'"run": "{plan.run}"' in charge
    assert '"noise_multiplier": 2.0' in charge


def test_a_round_that_the_budget_does_not_cover_trains_on_no_record(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledgers = watch_releases(monkeypatch, Study)
    budget = epsilon([Mechanism(2.0, 1.0, 1)], TERMS.delta)
    federation = make_federation(NOISY, {SITE: replace(TERMS, epsilon=budget)})
    plan = plan_of(federation)
    site = open_site(federation.paths[SITE])
    site.ledger.reserve(Release(NOWHERE, 1, 1), Mechanism(2.0, 1.0, 1), site.settings.limit)
    answer = train(federation, plan)
    assert "budget does not cover" in str(answer.error.reason)
    assert ledgers == []
    assert charges_of(federation, SITE) == 1


def test_a_crash_after_the_charge_is_not_charged_again_since_nothing_left(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies.Broken, "bugs", 1)
    monkeypatch.setattr(studies.Broken, "kind", KeyboardInterrupt)
    federation = make_federation(replace(NOISY, task=task_name(studies.Broken)))
    plan = plan_of(federation)
    with pytest.raises(KeyboardInterrupt):
        train(federation, plan)
    assert charges_of(federation, SITE) == 1
    restart(federation, SITE)
    update = update_of(train(federation, plan))
    assert charges_of(federation, SITE) == 1
    restart(federation, SITE)
    assert update_of(train(federation, plan)) == update
    assert charges_of(federation, SITE) == 1


def test_an_error_reported_to_the_server_is_charged_again_each_time(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else a server could ask the same round of the same records as often as it likes, and count how often it fails.
    monkeypatch.setattr(studies.Broken, "bugs", 3)
    federation = make_federation(replace(NOISY, task=task_name(studies.Broken)))
    plan = plan_of(federation)
    for charge_count in (1, 2, 3):
        assert train(federation, plan).has_error()
        assert charges_of(federation, SITE) == charge_count
        restart(federation, SITE)
    update = update_of(train(federation, plan))
    assert charges_of(federation, SITE) == 4
    assert update_of(train(federation, plan)) == update
    assert charges_of(federation, SITE) == 4


def test_an_update_does_not_leave_once_the_ledger_has_no_charge_for_it(federation: Federation) -> None:
    plan = plan_of(federation)
    assert train(federation, plan).has_content()
    (ledger,) = (federation.paths[SITE] / "ledger").iterdir()
    ledger.unlink()  # as an older copy would be, with a newer outbox
    restart(federation, SITE)
    assert "ledger could not be" in str(train(federation, plan).error.reason)
    assert charges_of(federation, SITE) == 0


def test_a_cohort_without_shared_secrets_is_refused_and_costs_nothing(make_federation: FederationMaker) -> None:
    masked = replace(SETTINGS.encryption, collusion_resistant=True)
    sizes = {**SETTINGS.cohort.sizes, "stranger": 10}  # whom no roster lists
    cohort = replace(SETTINGS.cohort, sizes=sizes)
    federation = make_federation(replace(SETTINGS, encryption=masked, cohort=cohort))
    answer = train(federation, plan_of(federation, cohort=("east", "north", "south", "stranger")))
    assert answer.has_error()
    assert charges_of(federation, SITE) == 0


# --- Only what was signed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"run": NOWHERE}, "another run"),
        ({"round": 3}, "beyond the 2 rounds of the manifest"),
        ({"cohort": ("east", "south", "west")}, "north is not in its cohort"),
        ({"cohort": ("north", "north", "south")}, "names a site twice"),
        ({"cohort": ("elsewhere", "north", "south")}, "or a site that the manifest does not name"),
        ({"minimum_cohort": 2}, "may be smaller than the 3"),
        ({"cohort": ("north", "south")}, "may be smaller than the 3"),
        ({"roster_version": 2}, "roster version"),
        ({"epoch": 2}, "has those of key epoch 1"),
        ({"keys": "0" * 64}, "needs the keys 000000000000 of key epoch 1"),
        ({"deadline": 1.0}, "its deadline has passed"),
        ({"base_model": NOWHERE}, "does not have the model from which round 1 starts"),
    ],
    ids=str,
)
def test_a_plan_that_does_not_fit_is_refused_and_costs_nothing(
    federation: Federation, change: dict[str, object], reason: str
) -> None:
    answer = train(federation, plan_of(federation, **change))
    assert reason in str(answer.error.reason)
    assert charges_of(federation, SITE) == 0


def _unsigned(document: bytes) -> bytes:
    return document.partition(b"\n")[2]


def _altered(document: bytes) -> bytes:
    return document.replace(b'"minimum": 3', b'"minimum": 2')


def _by_a_stranger(document: bytes) -> bytes:
    del document
    return sign_manifest(SETTINGS, Ed25519PrivateKey.generate(), roster_version=1).to_bytes()


@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (_unsigned, "not a signed Cloister manifest"),
        (_altered, "signed this run: it was altered, or whoever signed it is no longer listed"),
        (_by_a_stranger, "signed this run: it was altered, or whoever signed it is no longer listed"),
        (lambda _: b"", "not a signed Cloister manifest"),
    ],
)
@pytest.mark.parametrize("kind", [QUERY, TRAIN, EVALUATE])
def test_a_run_that_the_coordinator_did_not_sign_is_refused_and_costs_nothing(
    federation: Federation, kind: str, forge: Callable[[bytes], bytes], reason: str
) -> None:
    plan, document = plan_of(federation), forge(signed_run(federation)[0])
    content = {
        QUERY: wire.QUERY.pack(wire.Query(document)),
        TRAIN: pack_train(document, plan.to_bytes(), []),
        EVALUATE: pack_sum(document, EncryptedSum(plan.to_bytes(), (), (), b"")),
    }[kind]
    assert reason in str(ask(federation, kind, content).error.reason)
    assert charges_of(federation, SITE) == 0
    assert models_of(federation) == {}


@pytest.mark.parametrize("kind", [QUERY, TRAIN, EVALUATE])
def test_a_message_without_content_is_refused(federation: Federation, kind: str) -> None:
    assert "a message lacks" in str(ask(federation, kind, RecordDict()).error.reason)


# --- What leaves a site ---------------------------------------------------------------------------------------------


def test_a_complaint_about_records_stays_at_the_site(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture
) -> None:
    federation = make_federation(replace(SETTINGS, task=task_name(studies.Quoting)))
    answer = ask(federation, QUERY, wire.QUERY.pack(wire.Query(signed_run(federation)[0])))
    assert "records cannot be used" in str(answer.error.reason)
    assert studies.QUOTE in caplog.text  # the site's own log
    _assert_nothing_leaves(answer, federation)
    assert charges_of(federation, SITE) == 0


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit], ids=lambda kind: kind.__name__)
def test_an_unexpected_error_stays_at_the_site_and_the_agent_goes_on(
    make_federation: FederationMaker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[BaseException],
) -> None:
    caplog.set_level(logging.INFO, "cloister")  # at the level that --debug sets, all of it is logged
    federation = make_federation(replace(SETTINGS, task=task_name(studies.Broken)))
    assert open_site(federation.paths[SITE]).check_records()  # it was tried before, on the site's own records
    monkeypatch.setattr(studies.Broken, "bugs", 1)
    monkeypatch.setattr(studies.Broken, "kind", kind)
    answer = train(federation, plan_of(federation))
    assert "unexpected error" in str(answer.error.reason)
    assert f"unexpected {kind.__name__} at tests/studies.py:" in caplog.text
    assert studies.QUOTE not in caplog.text  # more people read a log than records
    _assert_nothing_leaves(answer, federation)
    assert train(federation, plan_of(federation)).has_content()


def _assert_nothing_leaves(answer: Message, federation: Federation) -> None:
    sent = b"".join(encode(answer))
    for kept in (studies.QUOTE, "Mrs Smith", str(federation.folder), "records.csv", "Traceback", "ValueError"):
        assert kept.encode() not in sent


def test_nothing_that_the_policy_does_not_share_leaves_the_site(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY, dict.fromkeys(SITES, replace(TERMS, disclose=())))
    (event,) = run_with(federation)
    assert event["epsilon"] == {}
    assert event["metrics"] == {}
    assert event["released"]
