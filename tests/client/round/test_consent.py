"""A site decides about runs: it approves them, trains at certain hours, and only with code that it knows."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from client.flower import app as client_app
from client.flower import open_site
from client.settings import read_site
from client.state.approvals import MOST_WAITING, Approvals
from client.task.installed import installed_digest
from cloister.past_runs import read_past_run
from privacy.errors import AuthenticityError, KeyFileError, PolicyError
from simulations.engine.inline import InlineGrid
from tests.client.agent_rounds import QUERY, TRAIN, ask, plan_of, train
from tests.federations import (
    NOISY,
    SITES,
    TERMS,
    FederationMaker,
    charges_of,
    events_at,
    node_of,
    opened_run,
    restart,
    roster_of,
    run_with,
    signed_run,
)
from tests.people import enter, leave, sign_as
from transport import messages as wire
from transport.run_messages import pack_train

if TYPE_CHECKING:
    from flwr.app import Context, Message

    from privacy.run.roster import Roster
    from simulations.engine.federation import Federation

SITE = "north"
CAREFUL = replace(TERMS, further_policy="approval = true\n")


def answer_of(federation: Federation) -> Message:
    """The site's answer to whether it is ready."""
    return ask(federation, QUERY, wire.QUERY.pack(wire.Query(signed_run(federation)[0])))


def approvals_of(federation: Federation) -> Approvals:
    return open_site(federation.paths[SITE]).approvals


def test_a_site_waits_for_approval_and_joins_from_the_next_round_on(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(NOISY, rounds=2), {SITE: CAREFUL})
    signed = opened_run(federation)

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == wire.TRAIN.name and context.node_id == node_of(federation, "south"):
            assert list(approvals_of(federation).kept()) == [signed.document]
            if charges_of(federation, "south") == 0:
                approvals_of(federation).decide(signed, approved=True)
        return client_app(message, context)

    first, second = run_with(federation, answer)
    assert f"cloister approve {signed.digest[:8]} north (policy: approval)" in first["problems"][SITE]
    assert SITE not in first["cohort"]
    assert SITE in second["cohort"]
    assert first["released"]
    assert second["released"]
    assert charges_of(federation, SITE) == 1


def test_what_is_withdrawn_is_refused_and_nothing_is_charged(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY, {SITE: CAREFUL})
    signed, approvals = opened_run(federation), approvals_of(federation)
    approvals.decide(signed, approved=True)
    plan = plan_of(federation)
    approvals.decide(signed, approved=False)
    assert "has withdrawn its approval" in str(train(federation, plan).error.reason)
    assert "(policy: approval)" in str(answer_of(federation).error.reason)
    assert charges_of(federation, SITE) == 0
    approvals.decide(signed, approved=True)
    assert train(federation, plan).has_content()


def test_a_run_that_the_policy_refuses_does_not_wait(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY, {SITE: replace(CAREFUL, tasks=("a:B",))})
    assert "(policy: tasks)" in str(answer_of(federation).error.reason)
    assert list(approvals_of(federation).kept()) == []


def test_a_bounded_number_of_runs_waits_and_decided_ones_stay(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY, {SITE: CAREFUL})
    signed, approvals = opened_run(federation), approvals_of(federation)
    approvals.decide(signed, approved=True)
    for number in range(MOST_WAITING + 3):
        with pytest.raises(PolicyError, match="north has not approved the run study"):
            approvals.check(SITE, signed._replace(digest=f"{number:064d}"[::-1]))
    assert len(list(approvals.kept())) == MOST_WAITING + 1
    approvals.check(SITE, signed)


def test_an_approval_of_another_run_or_by_another_key_approves_nothing(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY, {SITE: CAREFUL})
    signed, approvals = opened_run(federation), approvals_of(federation)
    approvals.decide(signed._replace(digest="5" * 64), approved=True)
    (other,) = (federation.paths[SITE] / "approvals").glob("*.decision")
    path = other.rename(other.with_stem(signed.digest[:16]))
    whole = path.read_bytes()
    forger = Approvals(federation.paths[SITE], open_site(federation.paths["south"]).signing_key)
    forger.decide(signed, approved=True)
    for content in (whole, path.read_bytes(), whole[:-5], whole.replace(b"true", b"null"), b""):
        path.write_bytes(content)
        with pytest.raises(KeyFileError, match="this decision about a run was altered, or is not this site's"):
            approvals.check(SITE, signed)
        assert answer_of(federation).has_error()


def test_a_site_does_not_train_outside_its_hours(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY)
    plan, now = plan_of(federation), datetime.now(UTC).astimezone()
    start, end = ((now + timedelta(hours=hours)).strftime("%H:%M") for hours in (2, 3))
    federation.write_settings(SITE, "localhost:1", replace(TERMS, further_policy=f'hours = "{start}-{end}"\n'))
    restart(federation, SITE)
    for answer in (answer_of(federation), train(federation, plan)):
        assert f'hours = "{start}-{end}" in its local time; it takes part again from ' in str(answer.error.reason)
        assert "(policy: hours)" in str(answer.error.reason)
    assert charges_of(federation, SITE) == 0


def test_a_site_trains_only_the_code_whose_digest_its_policy_lists(make_federation: FederationMaker) -> None:
    def terms(digest: str) -> str:
        return f'[policy.task_digests]\n"{NOISY.task}" = "{digest}"\n'

    federation = make_federation(NOISY, {SITE: replace(TERMS, further_policy=terms("0" * 64))})
    assert "(policy: task_digests)" in str(answer_of(federation).error.reason)
    with pytest.raises(PolicyError, match="does not allow this version"):
        open_site(federation.paths[SITE]).check_records()
    right = replace(TERMS, further_policy=terms(str(installed_digest(NOISY.task))))
    federation.write_settings(SITE, "localhost:1", right)
    restart(federation, SITE)
    assert answer_of(federation).has_content()


def test_a_researchers_run_is_joined_until_they_leave_and_nothing_is_charged_then(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(NOISY)
    sign_as(federation, enter(federation, "ines", "researcher"), NOISY)
    plan = plan_of(federation)
    leave(federation, "ines")
    document = federation.manifest.read_bytes()
    for answer in (ask(federation, QUERY, wire.QUERY.pack(wire.Query(document))),
                   ask(federation, TRAIN, pack_train(document, plan.to_bytes(), []))):  # fmt: skip
        assert "nobody in roster 3 of demo signed this run" in str(answer.error.reason)
    assert charges_of(federation, SITE) == 0


def test_a_report_still_reads_the_run_of_somebody_who_has_another_role_by_now(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY)
    sign_as(federation, enter(federation, "ines", "researcher"), NOISY)
    leave(federation, "ines")
    enter(federation, "ines", "auditor")
    run = read_past_run(read_site(federation.paths[SITE]), federation.manifest)
    assert (run.signer.name, run.signer.role) == ("ines", "researcher")


def test_an_auditors_run_is_refused_by_the_rosters_rule(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY)
    sign_as(federation, enter(federation, "rui", "auditor"), NOISY)
    answer = ask(federation, QUERY, wire.QUERY.pack(wire.Query(federation.manifest.read_bytes())))
    assert "only coordinators and researchers may sign runs" in str(answer.error.reason)
    assert charges_of(federation, SITE) == 0


def test_a_site_names_whose_runs_it_joins_and_who_may_have_the_model(make_federation: FederationMaker) -> None:
    strict = replace(TERMS, further_policy='signers = ["coordinator"]\nrecipients = ["ines"]\n')
    federation = make_federation(NOISY, {SITE: strict})
    ines, wanted = enter(federation, "ines", "researcher"), replace(NOISY, recipients=("ines", "auditor"))
    sign_as(federation, ines, wanted)
    assert "(policy: signers)" in str(answer_of(federation).error.reason)
    federation.sign(wanted)
    assert "a run whose model auditor may have" in str(answer_of(federation).error.reason)
    federation.sign(replace(NOISY, recipients=("ines",)))
    assert answer_of(federation).has_content()
    assert charges_of(federation, SITE) == 0


def test_a_run_ends_with_a_reason_once_who_signed_it_is_revoked(make_federation: FederationMaker) -> None:
    settings = replace(NOISY, rounds=3)
    federation = make_federation(settings)
    sign_as(federation, enter(federation, "ines", "researcher"), settings)
    before = roster_of(federation)

    class Watching(InlineGrid):
        """Notices, after the first round, that ines was revoked."""

        def newer_roster(self) -> Roster | None:
            if charges_of(federation, SITE) == 0 or roster_of(federation) != before:
                return None
            leave(federation, "ines")
            return roster_of(federation)

    with pytest.raises(AuthenticityError, match="nobody in roster 3 of demo signed this run"):
        run_with(federation, make_grid=Watching)
    events = events_at(federation.server)
    assert [event["released"] for event in events if event["event"] == "round"] == [True]
    assert "nobody in roster 3" in events[-1]["reason"]
    assert [charges_of(federation, site) for site in SITES] == [1] * len(SITES)
