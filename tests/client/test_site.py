"""A site is what lies in its folder: its keys are those of the roster, and records are read when they are needed."""

from dataclasses import replace
from pathlib import Path
from shutil import copyfile, copytree

import numpy as np
import pytest

from client.flower import open_site
from client.settings import read_site
from client.site import Site
from privacy.errors import AuthenticityError, DataError, KeyFileError, TaskError
from privacy.run.settings import Evaluation, Privacy, RunSettings
from privacy.run.tables import Start
from tests.federations import SETTINGS, SITES, TERMS, FederationMaker, restart, signed_run


@pytest.fixture
def folder(make_federation: FederationMaker) -> Path:
    return make_federation().paths["north"]


def test_a_process_opens_a_site_only_once(make_federation: FederationMaker) -> None:
    federation = make_federation()
    north = open_site(federation.paths["north"])
    assert open_site(federation.paths["north"]) is north
    assert open_site(federation.paths["south"]) is not north
    assert (north.name, north.device.type, north.group) == ("north", "cpu", None)


def test_more_sites_than_any_cache_would_hold_keep_their_records(make_federation: FederationMaker) -> None:
    federation = make_federation()
    copies = [copytree(federation.paths["north"], federation.folder / f"north-{number}") for number in range(40)]
    studies = [open_site(path).study(SETTINGS.task) for path in copies]
    assert [open_site(path).study(SETTINGS.task) for path in copies] == studies


@pytest.mark.parametrize("key", ["signing.key", "sealing.key"])
def test_keys_that_the_roster_does_not_list_are_refused(make_federation: FederationMaker, key: str) -> None:
    federation = make_federation()
    copyfile(federation.paths["south"] / "keys" / key, federation.paths["north"] / "keys" / key)
    with pytest.raises(KeyFileError, match="roster lists keys for north that are not this site's keys; join again"):
        Site(read_site(federation.paths["north"]))


@pytest.mark.parametrize("key", ["signing.key", "sealing.key", "roster", "authority.pem"])
def test_a_key_that_is_missing_is_named_with_what_to_do(folder: Path, key: str) -> None:
    (folder / "keys" / key).unlink()
    with pytest.raises(KeyFileError, match=rf"keys/{key}: no such file or directory; (restore|check)"):
        Site(read_site(folder))


def test_a_sealing_key_of_another_form_is_refused(folder: Path) -> None:
    path = folder / "keys" / "sealing.key"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KeyFileError):
        Site(read_site(folder))


def test_records_are_read_when_they_are_asked_for(folder: Path) -> None:
    (folder / TERMS.file).unlink()
    site = Site(read_site(folder))
    with pytest.raises(DataError, match=r"records\.csv: No such file or directory; name a CSV file"):
        site.check_records()


def test_records_are_counted_for_every_task_that_the_policy_allows(folder: Path) -> None:
    assert Site(read_site(folder)).check_records() == {SETTINGS.task: 20}


def test_a_policy_with_a_task_that_is_not_installed_is_noticed(make_federation: FederationMaker) -> None:
    terms = replace(TERMS, tasks=("nowhere:Task",))
    federation = make_federation(terms=dict.fromkeys(SITES, terms))
    with pytest.raises(TaskError, match="nowhere"):
        Site(read_site(federation.paths["north"])).check_records()


def test_before_the_first_round_all_sites_have_the_untrained_model(make_federation: FederationMaker) -> None:
    federation = make_federation()
    _, manifest, run = signed_run(federation)
    north, south = (open_site(federation.paths[site]).checkpoint(manifest, run) for site in ("north", "south"))
    assert north.round == 0
    assert north.digest == south.digest
    assert north.update_bound == manifest.packing.update_bound
    assert restart(federation, "north").checkpoint(manifest, run).digest == north.digest


def test_a_model_that_was_saved_is_what_a_site_goes_on_from(make_federation: FederationMaker) -> None:
    federation = make_federation()
    _, manifest, run = signed_run(federation)
    site = open_site(federation.paths["north"])
    first = site.checkpoint(manifest, run)
    moved = replace(first.model, vector=first.model.vector + np.float32(1))
    site.models.save(manifest.settings, replace(first, round=1, model=moved))
    again = restart(federation, "north")
    assert (again.checkpoint(manifest, run).round, again.checkpoint(manifest, run).digest) == (1, moved.digest)
    assert again.before(manifest, run).digest == first.digest


def test_a_manifest_is_checked_the_first_time_and_known_by_its_bytes_then(make_federation: FederationMaker) -> None:
    federation = make_federation()
    document, manifest, run = signed_run(federation)
    site = open_site(federation.paths["north"])
    assert site.open_run(document)[:3] == (document, manifest, run)
    assert site.open_run(bytes(document)) is site.open_run(document)
    changed = document.replace(b'"rounds": 1', b'"rounds": 9')
    assert changed != document
    for _ in range(2):
        with pytest.raises(AuthenticityError):
            site.open_run(changed)


def test_what_a_run_does_is_chosen_by_its_kind_and_made_once(folder: Path) -> None:
    site = Site(read_site(folder))
    evaluation = RunSettings(
        name="exam",
        task=SETTINGS.task,
        rounds=1,
        evaluation=Evaluation(metrics=("near",)),
        start=Start("0" * 64),
        privacy=Privacy(noise_multiplier=1.0),
        cohort=SETTINGS.cohort,
    )
    assert site.work(SETTINGS) is site.work(SETTINGS) is site.study(SETTINGS.task)
    assert site.work(evaluation) is site.work(evaluation)
    assert site.work(evaluation) is not site.work(SETTINGS)
