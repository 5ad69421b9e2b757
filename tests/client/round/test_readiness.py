"""What a site can know before it is charged, it says before it is charged."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from client.data.records import read_csv
from client.dpsgd import training_steps
from client.flower import open_site
from client.round.admission import admit
from client.round.readiness import get_ready
from client.work.training import Study
from privacy.errors import (
    DataError,
    KeyFileError,
    LedgerError,
    ProtocolError,
    RefusedError,
)
from privacy.run.roster import sign_roster
from tests import studies
from tests.client.agent_rounds import QUERY, ask, plan_of, train
from tests.client.work.test_evaluation import evaluation
from tests.client.work.test_survey import SURVEY
from tests.federations import (
    NOISY,
    SETTINGS,
    SITES,
    TERMS,
    FederationMaker,
    authority_of,
    certify,
    charges_of,
    node_of,
    restart,
    roster_of,
    run_with,
    signed_run,
    task_name,
)
from transport import messages as wire

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from simulations.engine.federation import Federation

SITE = "north"


class Classes(studies.Tiny):
    """Two classes, in records of three."""

    @override
    def model(self) -> nn.Module:
        return nn.Linear(2, 2)

    @override
    def load(self, path: Path) -> tuple[Tensor, Tensor]:
        inputs, targets = read_csv(path, features=("a", "b"), target="y")
        return torch.from_numpy(inputs), torch.from_numpy(targets).long()

    @override
    def example(self) -> tuple[Tensor, Tensor]:
        return torch.rand(4, 2), torch.tensor([0, 1, 0, 1])

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)


def ready(federation: Federation, site: str = SITE, sent: float | None = None) -> None:
    """Ask a site whether it is ready, as if it had just been started."""
    restart(federation, site)
    get_ready(admit(open_site(federation.paths[site]), signed_run(federation)[0]), node_of(federation, site), sent=sent)


def write_records(federation: Federation, *rows: str, site: str = SITE) -> Path:
    path = federation.paths[site] / TERMS.file
    path.write_text("\n".join(["a,b,y", *rows, ""]), encoding="utf-8")
    return path


# --- Records --------------------------------------------------------------------------------------------------------


def test_labels_that_the_loss_cannot_take_cost_nothing_and_the_others_go_on(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(NOISY, task=task_name(Classes)))
    for site in SITES[1:]:
        write_records(federation, *["1,2,0", "3,4,1"] * 10, site=site)
    (event,) = run_with(federation)
    assert event["problems"] == {
        SITE: "“A site's records cannot be used as they are; the reason is in the site's own log”"
    }
    assert event["sites"] == event["cohort"] == sorted(SITES[1:])
    assert charges_of(federation, SITE) == 0


def test_a_record_that_the_loss_cannot_handle_is_named_but_not_printed(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(NOISY, task=task_name(Classes)))
    path = write_records(federation, *["1,2,0", "3,4,1"] * 40, "5,6,7131")
    for step in (lambda: open_site(path.parent).check_records(), lambda: ready(federation)):
        with pytest.raises(DataError) as caught:
            step()
        assert str(caught.value).startswith(
            f"{path}: {task_name(Classes)} cannot use the target of record 81, in the order in which its load() "
            "returns them: its label is out of range, and the model has 2 outputs, for 0 to 1; correct the record"
        )
        assert "7131" not in str(caught.value)


@pytest.mark.parametrize("label", [-1, -100, 2, 2**31, -(2**31)])
def test_a_label_that_is_not_a_class_is_named_among_good_ones(make_federation: FederationMaker, label: int) -> None:
    """A mean of cross-entropies leaves out labels of -100, and so hides that there is none of that record."""
    federation = make_federation(replace(NOISY, task=task_name(Classes)))
    write_records(federation, *["1,2,0", "3,4,1"] * 40, f"5,6,{label}")
    with pytest.raises(
        DataError, match=r"cannot use the target of record 81, .*: its label is out of range, and the model"
    ):
        ready(federation)


def test_a_value_whose_loss_is_not_finite_is_named_with_its_column(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY)
    write_records(federation, *["1,2,0", "3,4,1"] * 5, "1,1e30,1")
    with pytest.raises(DataError, match=r"input column 2 of record 11, .*: the loss is not finite"):
        ready(federation)


def test_statements_about_records_depend_on_the_task_alone(make_federation: FederationMaker) -> None:
    """Else a run, which others sign, could choose what it learns of them."""
    seeds = []
    for name, settings in (("one", NOISY), ("other", replace(NOISY, model_seed=7))):
        federation = make_federation(settings, name=name)
        write_records(federation, *["1,2,0", "3,4,1"] * 5, "1,1e30,1")
        with pytest.raises(DataError) as caught:
            ready(federation)
        seeds.append(str(caught.value).replace(str(federation.folder), ""))
    assert seeds[0] == seeds[1]


@pytest.mark.parametrize("held_out", [0.99, 0.9])
def test_a_site_without_remaining_records_is_not_charged_and_the_others_go_on(
    make_federation: FederationMaker, held_out: float
) -> None:
    federation = make_federation(NOISY, {SITE: replace(TERMS, held_out=held_out)})
    write_records(federation, "1,2,0", "3,4,1")
    with pytest.raises(DataError, match=f"held_out = {held_out:g} leaves no records to train on"):
        ready(federation)
    (event,) = run_with(federation)
    assert event["released"]
    assert event["cohort"] == sorted({*SITES} - {SITE})
    assert charges_of(federation, SITE) == 0


def test_a_survey_and_an_evaluation_need_records_too(make_federation: FederationMaker) -> None:
    task_asked = task_name(studies.Asked)
    terms = {SITE: replace(TERMS, tasks=(task_asked,), held_out=0.99), "south": replace(TERMS, held_out=0.0)}
    federation = make_federation(replace(SURVEY, task=task_asked), terms)
    write_records(federation, "1,2,0", "3,4,1")
    with pytest.raises(DataError, match="leaves no records to add up"):
        ready(federation)
    evaluated = replace(evaluation("0" * 64, metrics=("accuracy",)), task=SETTINGS.task)
    with pytest.raises(DataError, match="leaves no records to evaluate on"):
        open_site(federation.paths["south"]).work(evaluated).check_records(evaluated)


# --- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    ],
    ids=["Python", "CPU", "GPU"],
)
def test_a_model_whose_step_does_not_fit_in_memory_is_a_refusal_before_any_charge(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("client.work.training.train", fail)
    federation = make_federation(NOISY)
    with pytest.raises(RefusedError, match="a step needs more memory than is left; set a smaller physical_batch"):
        ready(federation)
    assert charges_of(federation, SITE) == 0


def test_a_trial_step_uses_a_full_physical_batch(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = Mock(wraps=training_steps.train)
    monkeypatch.setattr("client.work.training.train", tried)
    federation = make_federation(NOISY)
    ready(federation)
    write_records(federation, *["1,2,0", "3,4,1"] * 400)
    ready(federation)
    assert [len(call.args[2]) for call in tried.call_args_list] == [20, 512]


# --- Disk -----------------------------------------------------------------------------------------------------------


def _file_for_a_folder(name: str) -> Callable[[Path], None]:
    def spoil(site: Path) -> None:
        (site / name).write_text("")

    return spoil


def _dangling_link(site: Path) -> None:
    (site / "models").symlink_to(site / "nowhere" / "models")
    (site / "nowhere").write_text("")


DISKS = {"outbox": _file_for_a_folder("outbox"), "models": _file_for_a_folder("models"), "link": _dangling_link}


@pytest.mark.parametrize("spoil", DISKS.values(), ids=DISKS)
def test_a_disk_that_cannot_be_written_is_reported_before_any_charge_and_the_others_go_on(
    make_federation: FederationMaker, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    federation = make_federation(replace(NOISY, rounds=2))
    spoil(federation.paths[SITE])
    for event in run_with(federation):
        assert event["problems"][SITE].startswith("“A disk is full, or a file or a database on it")
        assert event["cohort"] == sorted({*SITES} - {SITE})
    assert charges_of(federation, SITE) == 0
    assert f"{federation.paths[SITE]}" in caplog.text


def test_a_ledger_that_cannot_be_written_is_reported_before_a_round_is_planned(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(NOISY)
    open_site(federation.paths[SITE]).ledger.path.mkdir(parents=True)
    with pytest.raises(LedgerError, match="no update is sent until"):
        ready(federation)


def test_a_last_head_that_cannot_be_stored_is_reported_before_a_round_is_planned(
    make_federation: FederationMaker,
) -> None:
    federation = make_federation(NOISY)
    heads = federation.paths[SITE] / "ledger-heads"
    ready(federation)
    assert list(heads.iterdir()) == []  # nothing was charged
    heads.rmdir()
    heads.write_text("a file where a folder should be")
    with pytest.raises(LedgerError, match="ledger-heads: File exists; no update is sent until"):
        ready(federation)


def test_disk_space_for_a_round_is_reserved_while_a_site_trains_and_then_freed(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, blocks = make_federation(NOISY), dict[str, int]()
    release, folder = Study.release, federation.paths[SITE]

    def watched(self: Study, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - what it returns
        blocks.update({path.parent.name: 512 * path.stat().st_blocks for path in folder.rglob(".space")})
        return release(self, *arguments, **named)

    monkeypatch.setattr(Study, "release", watched)
    plan = plan_of(federation)
    assert list(folder.rglob(".space")) == []
    assert train(federation, plan).has_content()
    assert list(folder.rglob(".space")) == []
    (update,) = (path for path in (folder / "outbox").iterdir() if path.suffix == ".update")
    assert set(blocks) == {"outbox", "models", "ledger"}
    assert blocks["outbox"] >= update.stat().st_size


def test_a_disk_that_fails_while_a_site_trains_leaves_no_half_file_and_costs_no_second_charge(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = make_federation(NOISY)
    plan, folder, release = plan_of(federation), federation.paths[SITE], Study.release

    def spoiling(self: Study, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - what it returns
        (folder / "outbox").rename(folder / "elsewhere")
        (folder / "outbox").write_text("")
        return release(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Study, "release", spoiling)
        answer = train(federation, plan)
    assert str(answer.error.reason).startswith("A disk is full, or a file or a database on it")
    (folder / "outbox").unlink()
    (folder / "elsewhere").rename(folder / "outbox")
    assert [path.name for path in (folder / "outbox").iterdir()] == [".space"]
    assert train(federation, plan).has_content()
    assert charges_of(federation, SITE) == 1
    assert list(folder.rglob(".*")) == []


def test_a_damaged_outbox_is_reported_before_a_round_is_planned(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(NOISY, rounds=2))
    assert train(federation, plan_of(federation)).has_content()
    (update,) = (federation.paths[SITE] / "outbox").glob("*.update")
    update.write_bytes(update.read_bytes()[:-1])
    with pytest.raises(KeyFileError, match="this file is damaged"):
        ready(federation)


# --- Dates and clocks -----------------------------------------------------------------------------------------------


def test_a_roster_that_ends_before_a_round_would_is_a_refusal(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY)
    soon = sign_roster(replace(roster_of(federation), expires=time.time() + 30), authority_of(federation).key)
    (federation.paths[SITE] / "keys" / "roster").write_bytes(soon.to_bytes())
    with pytest.raises(RefusedError, match=r"north's roster expires on 20.* UTC, before a round could end"):
        ready(federation)


def test_a_certificate_that_ends_before_a_round_would_is_a_refusal(
    make_federation: FederationMaker, tmp_path: Path
) -> None:
    federation = make_federation(NOISY)
    files = certify(tmp_path / "tls", authority_of(federation), name=SITE, days=30 / 86400, server=False)
    files.certificate.replace(federation.paths[SITE] / "keys" / "tls.pem")
    with pytest.raises(RefusedError, match="north's TLS certificate expires on"):
        ready(federation)


@pytest.mark.parametrize(("hours", "way"), [(-1, "3600 s ahead of"), (1, "3600 s behind")])
def test_a_message_about_disagreeing_clocks_states_both_times(
    make_federation: FederationMaker, hours: int, way: str
) -> None:
    federation, sent = make_federation(NOISY), time.time() + 3600 * hours
    with pytest.raises(ProtocolError) as caught:
        ready(federation, sent=sent)
    times = [time.strftime("%Y-%m-%d %H:", time.gmtime(moment)) for moment in (time.time(), sent)]
    assert f"north's clock is {way} the server's" in str(caught.value)
    assert all(text in str(caught.value) for text in times)


def test_a_site_whose_clock_is_a_little_off_takes_part(make_federation: FederationMaker) -> None:
    federation = make_federation(NOISY)  # whose rounds end after 60 s
    for offset in (-25.0, 25.0):
        ready(federation, sent=time.time() + offset)


# --- Messages -------------------------------------------------------------------------------------------------------


def test_the_same_refusal_again_is_logged_once(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "cloister")
    federation = make_federation(NOISY)
    (federation.paths[SITE] / "outbox").write_text("")
    for _ in range(3):
        assert ask(federation, QUERY, wire.QUERY.pack(wire.Query(signed_run(federation)[0]))).has_error()
    assert caplog.text.count("a round needs") == 1
    (federation.paths[SITE] / "outbox").unlink()
    assert ask(federation, QUERY, wire.QUERY.pack(wire.Query(signed_run(federation)[0]))).has_content()
    (federation.paths[SITE] / "outbox").rmdir()
    (federation.paths[SITE] / "outbox").write_text("")
    assert ask(federation, QUERY, wire.QUERY.pack(wire.Query(signed_run(federation)[0]))).has_error()
    assert caplog.text.count("a round needs") == 2
