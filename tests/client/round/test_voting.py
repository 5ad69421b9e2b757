"""A site votes once on a model, charged before it looks; and goes back if the votes of all say so, and only then."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch
from flwr.app import Context, Message, MessageType

from client.flower import app as client_app
from client.flower import open_site
from client.round import voting
from client.round.admission import AdmittedRun, admit
from client.round.readiness import get_ready
from client.site import Site
from client.state.checkpoint import Checkpoint
from client.work.training import Study
from privacy.codec.update import Model
from privacy.errors import AuthenticityError, BudgetError, ProtocolError
from privacy.run.settings import RunSettings
from privacy.run.tables import Vote as VoteSettings
from privacy.run.votes import Question, Vote, cast
from simulations.engine.federation import Federation
from tests.federations import SETTINGS, SITES, TERMS, FederationMaker, restart, run_with, signed_run
from transport.vote_messages import find_vote

SPENT = 1.0
VOTED = replace(SETTINGS, rounds=2, vote=VoteSettings(epsilon=SPENT, tolerance=0.0))
CONSENT = replace(TERMS, vote_epsilon=SPENT)
NORTH = "north"


@pytest.fixture(scope="module")
def voted(federation_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds were opened, and voted on by those who have records held out: all but west."""
    terms = {site: replace(CONSENT, held_out=0.0 if site == "west" else 0.2) for site in SITES}
    federation = FederationMaker(federation_keys, tmp_path_factory.mktemp("voted"))(VOTED, terms)
    run_with(federation, keeping)
    return federation.folder


@pytest.fixture
def federation(voted: Path, tmp_path: Path) -> Iterator[Federation]:
    """A copy of it."""
    yield Federation(Path(copytree(voted, tmp_path / "federation")), SITES)
    open_site.cache_clear()


def keeping(message: Message, context: Context) -> Message:
    """Answer without the vote, so that nothing is undone."""
    answer = client_app(message, context)
    if answer.has_content():
        answer.content.pop("vote", None)
    return answer


def opened(federation: Federation, name: str = NORTH) -> tuple[Site, AdmittedRun, Checkpoint]:
    site, (_, manifest, run) = restart(federation, name), signed_run(federation)
    return site, AdmittedRun(site, manifest, run, site.algorithm(manifest)), site.checkpoint(manifest, run)


def question_of(site: Site, admitted: AdmittedRun, now: Checkpoint) -> Question:
    return Question(admitted.run, now.round, site.before(admitted.manifest, admitted.run).digest, now.digest)


def cast_by(federation: Federation, question: Question, rejects: Mapping[str, bool]) -> dict[str, Vote]:
    return {
        name: cast(question, restart(federation, name).signing_key, reject=reject) for name, reject in rejects.items()
    }


def votes_charged(site: Site) -> list[int]:
    return [entry.release.round for entry in site.held_out_ledger.entries().charges]


def test_each_round_is_charged_to_the_records_held_out_and_a_site_without_any_does_not_vote(
    federation: Federation,
) -> None:
    for name in SITES:
        site = restart(federation, name)
        assert votes_charged(site) == ([] if name == "west" else [1, 2])
        assert site.held_out_ledger.spent(TERMS.delta) == (0.0 if name == "west" else 2 * SPENT)
        assert len(site.ledger.entries().charges) == 2


def test_the_charge_is_on_disk_before_the_records_are_looked_at(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(VOTED, dict.fromkeys(SITES, CONSENT))
    seen, loss = list[list[int]](), Study.mean_loss

    def watched(study: Study, settings: RunSettings, model: Model) -> float:
        assert isinstance(study._site, Site)
        seen.append(votes_charged(study._site))
        return loss(study, settings, model)

    monkeypatch.setattr(Study, "mean_loss", watched)
    run_with(federation, keeping)
    assert len(seen) == 2 * len(SITES) * 2
    assert all(charged for charged in seen)


def test_a_model_gets_one_vote_however_often_it_is_asked_for(federation: Federation) -> None:
    site, admitted, now = opened(federation)
    first = voting.vote(admitted, now)
    assert first is not None
    for _ in range(20):  # each would be flipped with a probability of a quarter
        site, admitted, now = opened(federation)
        assert voting.vote(admitted, now) == first
    assert votes_charged(site) == [1, 2]


def test_a_vote_that_was_lost_is_not_cast_again(federation: Federation) -> None:
    site, admitted, now = opened(federation)
    for path in (site.place.folder / "outbox").glob("*.vote"):
        path.write_bytes(b"\xff")
    assert voting.vote(admitted, now) is None
    assert votes_charged(site) == [1, 2]


@pytest.mark.parametrize("place", ["write_atomically", "sha256"])
def test_an_agent_that_is_killed_while_it_votes_votes_once_under_one_charge(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Before its vote is kept, or before it is noted that it leaves."""
    site, admitted, now = opened(federation)
    later = replace(now, round=3)  # on which nobody voted yet

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(voting, place, die)
        with pytest.raises(KeyboardInterrupt):
            voting.vote(admitted, later)
    site = restart(federation, NORTH)
    vote = voting.vote(admitted, later)
    assert vote is not None
    assert votes_charged(site) == [1, 2, 3]
    assert voting.vote(replace(admitted, site=restart(federation, NORTH)), later) == vote


@pytest.mark.parametrize(("shift", "tolerance", "worse"), [(0.0, 0.0, False), (0.5, 1.0, False), (0.5, 0.4, True)])
def test_the_answer_is_whether_the_loss_grew_by_more_than_the_tolerance(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, shift: float, tolerance: float, *, worse: bool
) -> None:
    site, admitted, now = opened(federation)
    settings = replace(admitted.manifest.settings, vote=VoteSettings(epsilon=SPENT, tolerance=tolerance))
    before = site.before(admitted.manifest, admitted.run).model
    monkeypatch.setattr(Study, "mean_loss", lambda _, __, model: 1.0 + shift * (model is now.model))
    assert voting._is_worse(site, settings, before, now.model) == worse


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_is_worse(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    site, admitted, now = opened(federation)
    monkeypatch.setattr(site.study(VOTED.task).task, "loss", lambda *_: torch.tensor(loss))
    assert voting._is_worse(site, admitted.manifest.settings, now.model, now.model)


@pytest.mark.parametrize("error", [ValueError("age 47"), SystemExit("age 47"), GeneratorExit("age 47")])
def test_a_loss_that_cannot_be_computed_is_worse_and_its_words_are_logged_nowhere(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    site, admitted, now = opened(federation)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(site.study(VOTED.task).task, "loss", fail)
    with caplog.at_level("INFO", "cloister.agent"):
        assert voting._is_worse(site, admitted.manifest.settings, now.model, now.model)
    assert type(error).__name__ in caplog.text
    assert "47" not in caplog.text


def test_a_site_whose_held_out_budget_does_not_cover_all_votes_reports_it_before_the_run(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(VOTED, dict.fromkeys(SITES, CONSENT))
    document, _, _ = signed_run(federation)
    settings = federation.paths[NORTH] / "site.toml"
    settings.write_text(settings.read_text().replace("[policy]", "held_out_epsilon = 1.5\n\n[policy]"))
    site = restart(federation, NORTH)
    with pytest.raises(BudgetError, match=r"held-out.* to ε 2\.00, over its budget of 1\.50"):
        get_ready(admit(site, document), 1)


def test_a_site_goes_back_once_half_of_the_votes_reject_and_the_round_is_over_for_good(federation: Federation) -> None:
    site, admitted, now = opened(federation)
    question, before = question_of(site, admitted, now), site.before(admitted.manifest, admitted.run)
    votes = cast_by(federation, question, {"north": False, "south": True, "east": True, "west": False})
    undone = voting.undo(admitted, question, votes)
    assert (undone.digest, undone.round, undone.update_bound) == (before.digest, now.round, before.update_bound)
    site, admitted, again = opened(federation)
    assert (again.digest, again.round) == (before.digest, now.round)
    assert voting.undo(admitted, question, votes).digest == before.digest
    assert voting.vote(admitted, again) is None
    assert list((site.place.folder / "outbox").glob("*.residual")) == []


def test_votes_that_are_not_on_this_model_or_do_not_reject_it_change_nothing(federation: Federation) -> None:
    site, admitted, now = opened(federation)
    question = question_of(site, admitted, now)
    rejects: dict[str, bool] = dict.fromkeys(SITES, True)
    good = cast_by(federation, question, rejects)
    cases: list[tuple[Question, dict[str, Vote], type[Exception]]] = [
        (question, cast_by(federation, question, {**rejects, "north": False, "south": False, "east": False}),
         ProtocolError),
        (question, {name: good[name] for name in ("north", "south")}, ProtocolError),
        (question, {**good, "mallory": good["north"]}, ProtocolError),
        (question, {**good, "south": good["north"]}, AuthenticityError),
        (question, {**good, "south": replace(good["south"], reject=False)}, AuthenticityError),
    ]  # fmt: skip
    others = replace(question, round=1), replace(question, after="0" * 64), replace(question, before="0" * 64)
    cases += [(other, cast_by(federation, other, rejects), ProtocolError) for other in others]
    for about, votes, error in cases:
        with pytest.raises(error):
            voting.undo(admitted, about, votes)
        assert site.checkpoint(admitted.manifest, admitted.run).digest == now.digest


def test_the_first_round_is_undone_too(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(VOTED, rounds=1), dict.fromkeys(SITES, CONSENT))
    run_with(federation, keeping)
    site, admitted, now = opened(federation)
    question = question_of(site, admitted, now)
    rejects: dict[str, bool] = dict.fromkeys(SITES, True)
    voting.undo(admitted, question, cast_by(federation, question, rejects))
    site, admitted, again = opened(federation)
    assert again.round == 1
    assert again.digest == site.study(VOTED.task).untrained(VOTED.model_seed).digest


def test_votes_are_sent_only_with_the_digest_of_the_model(make_federation: FederationMaker) -> None:
    vote = VoteSettings(epsilon=20.0, tolerance=1e6)  # nobody rejects
    federation = make_federation(replace(VOTED, vote=vote), dict.fromkeys(SITES, replace(CONSENT, vote_epsilon=20.0)))
    counts = dict[str, int]()

    def heard(message: Message, context: Context) -> Message:
        answer = client_app(message, context)
        if answer.has_content() and find_vote(answer.content):
            counts[message.metadata.message_type] = counts.get(message.metadata.message_type, 0) + 1
        return answer

    run_with(federation, heard)
    assert counts == {MessageType.EVALUATE: 2 * len(SITES)}


def test_a_run_without_votes_reads_and_charges_nothing_held_out_for_one(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(SETTINGS)
    monkeypatch.setattr(Study, "mean_loss", lambda *_: pytest.fail("it voted"))
    run_with(federation)
    assert votes_charged(restart(federation, NORTH)) == []
