"""Kept steps count for one charge, are deleted before the update leaves, and cost nothing if they cannot be used."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import ClassVar

import pytest
from torch import Tensor
from typing_extensions import override

from client.agent import attend
from client.backup import back_up
from client.flower import open_site
from client.protection import protect
from client.settings import read_site
from client.state.partial_rounds import FOLDER
from privacy.at_rest.sealed import MAGIC
from privacy.at_rest.vault import Secret
from privacy.at_rest.vaults import forget
from privacy.errors import ConfigError
from privacy.run.manifest import open_run
from privacy.run.plan import RoundPlan
from privacy.run.settings import Training
from simulations.engine.federation import Federation
from tests.client.agent_rounds import SITE, plan_of, train, update_of
from tests.federations import NOISY, SITES, FederationMaker, charges_of, restart, roster_of, task_name
from tests.studies import Tiny, trains

PHRASE = "correct horse battery staple"


class Interrupted(Tiny):
    """Is interrupted after so many calls of its loss in training, or meets a bug."""

    calls: ClassVar[int] = 0
    error: ClassVar[type[BaseException]] = KeyboardInterrupt

    @override
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs.sum()  # so that it is called with the records: see `known_losses`
        if trains() and Interrupted.calls > 0:
            Interrupted.calls -= 1
            if Interrupted.calls == 0:
                raise Interrupted.error
        return super().loss(outputs, targets)


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    yield
    Interrupted.calls, Interrupted.error = 0, KeyboardInterrupt


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return made(make_federation)


def made(make_federation: FederationMaker, *, masked: bool = False) -> Federation:
    """Make a federation with a site that keeps its steps."""
    training = Training(steps_per_round=9, sample_rate=1.0, learning_rate=0.1)
    encryption = replace(NOISY.encryption, collusion_resistant=masked)
    settings = replace(NOISY, rounds=2, task=task_name(Interrupted), training=training, encryption=encryption)
    federation = make_federation(settings)
    with (federation.paths[SITE] / "site.toml").open("a", encoding="utf-8") as file:
        file.write("\n[training]\ncheckpoint_steps = 2\n")
    return federation


def kept(federation: Federation) -> list[Path]:
    return list((federation.paths[SITE] / FOLDER).glob("*"))


def interrupt(federation: Federation, plan: RoundPlan) -> Path:
    """Begin to train, and end in the middle; return the file with the kept steps."""
    Interrupted.calls = 7
    with pytest.raises(KeyboardInterrupt):
        train(federation, plan)
    restart(federation, SITE)
    (file,) = kept(federation)
    return file


def goes_on(caplog: pytest.LogCaptureFixture) -> bool:
    return "this round goes on after step" in caplog.text


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cloister.agent")


def test_a_round_goes_on_under_its_charge_and_its_steps_are_deleted_with_the_update(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(federation)
    interrupt(federation, plan)
    update = update_of(train(federation, plan))
    assert goes_on(caplog)
    assert kept(federation) == []
    assert update_of(train(federation, plan)) == update
    assert charges_of(federation, SITE) == 1


def test_another_attempt_goes_on_with_the_steps_of_the_first(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture
) -> None:
    federation = made(make_federation, masked=True)
    plan = plan_of(federation)
    interrupt(federation, plan)
    for attempt in (2, 3):  # the third sends the second's update under other masks
        assert update_of(train(federation, replace(plan, attempt=attempt, cohort=tuple(sorted(SITES)[:3])))).header
    assert caplog.text.count("this round goes on after step") == 1
    assert charges_of(federation, SITE) == 1


def _damaged(federation: Federation, file: Path) -> None:
    del federation
    file.write_bytes(file.read_bytes()[:-1])


def _gone(federation: Federation, file: Path) -> None:
    del federation
    file.unlink()


def _other_records(federation: Federation, file: Path) -> None:
    del file
    records = federation.paths[SITE] / "records.csv"
    records.write_text(records.read_text().replace("1,", "2,"), encoding="utf-8")


@pytest.mark.parametrize("change", [_damaged, _gone, _other_records])
def test_a_round_whose_steps_cannot_be_used_starts_again_under_its_charge(
    federation: Federation, caplog: pytest.LogCaptureFixture, change: Callable[[Federation, Path], None]
) -> None:
    plan = plan_of(federation)
    change(federation, interrupt(federation, plan))
    restart(federation, SITE)
    assert update_of(train(federation, plan)).header
    assert not goes_on(caplog)
    assert kept(federation) == []
    assert charges_of(federation, SITE) == 1


def test_a_round_that_fails_keeps_nothing_and_is_charged_again(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(federation)
    Interrupted.calls, Interrupted.error = 7, ValueError
    assert train(federation, plan).has_error()
    assert kept(federation) == []
    assert update_of(train(federation, plan)).header
    assert not goes_on(caplog)
    assert charges_of(federation, SITE) == 2


def test_steps_that_outlived_their_update_are_not_used_and_an_agent_deletes_them_when_it_starts(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(federation)
    file = interrupt(federation, plan)
    steps = file.read_bytes()
    update = update_of(train(federation, plan))
    file.write_bytes(steps)  # as if the agent had been killed before it deleted them
    assert update_of(train(federation, plan)) == update
    assert kept(federation) == []
    assert caplog.text.count("goes on after step") == 1
    file.write_bytes(steps)
    restart(federation, SITE).forget_steps()
    assert kept(federation) == []


def test_steps_under_an_open_charge_stay_when_an_agent_starts(federation: Federation) -> None:
    file = interrupt(federation, plan_of(federation))
    restart(federation, SITE).forget_steps()
    assert kept(federation) == [file]


def test_steps_of_a_run_that_was_stopped_are_deleted_once_it_has_expired(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(federation, plan_of(federation))
    expires = open_run(federation.manifest.read_bytes(), roster_of(federation)).manifest.expires
    monkeypatch.setattr("client.state.partial_rounds.time.time", lambda: expires - 1)
    site = restart(federation, SITE)
    site.forget_steps()
    assert len(kept(federation)) == 1
    monkeypatch.setattr("client.state.partial_rounds.time.time", lambda: expires + 1)
    site.forget_steps()
    assert kept(federation) == []


def test_in_an_encrypted_folder_the_steps_are_encrypted_and_no_backup_has_them(
    federation: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_PASSPHRASE", PHRASE)
    plan, place = plan_of(federation), read_site(federation.paths[SITE])
    protect(place, Secret.of_passphrase(PHRASE))
    open_site.cache_clear()
    file = interrupt(federation, plan)
    assert file.read_bytes().startswith(MAGIC)
    assert not any(entry.name.startswith(FOLDER) for entry in back_up(place, tmp_path / "backup").files)
    assert update_of(train(federation, plan)).header
    assert goes_on(caplog)
    forget(place.folder)


def test_several_processes_of_one_site_keep_no_steps(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"checkpoint_steps is for a single process, and torchrun starts 2"):
        attend(federation.paths[SITE], Event())
