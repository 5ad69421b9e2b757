"""Reference tasks whose records a source reads: the records are the same every time, and a round trains on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import dcmread
from safetensors.numpy import load_file

from client.data.sources.options import Csv, Dicom
from client.data.sources.registry import Source
from client.flower import open_site
from privacy.errors import DataError
from privacy.run.settings import Encryption
from simulations.tasks import chest, photographs, recommendation
from simulations.tasks.chest import Chest
from simulations.tasks.recommendation import FILMS, Recommendation
from simulations.tasks.references import REFERENCES, Reference
from tests.federations import NOISY, SITES, TERMS, FederationMaker, charges_of, models_of, run_with

if TYPE_CHECKING:
    from pathlib import Path

READ = [reference for reference in REFERENCES if reference.source is not None]


@pytest.mark.parametrize("reference", READ, ids=lambda reference: reference.name)
def test_the_guard_passes_it_and_a_round_trains_it(reference: Reference, make_federation: FederationMaker) -> None:
    run = replace(NOISY, task=reference.task, encryption=Encryption(update_bound=8.0, collusion_resistant=False))
    terms = replace(
        TERMS,
        tasks=(reference.task,),
        source=reference.source,
        records_per_person=reference.records_per_person,
    )
    federation = make_federation(run, dict.fromkeys(SITES, terms))
    for site in SITES:
        reference.write(federation.paths[site] / TERMS.file, np.arange(12))  # the same: the guard looks at them once
        if reference.name == "photographs" and site == "north":
            with (federation.paths[site] / "site.toml").open("a") as settings:
                settings.write('[training]\nprecision = "bfloat16"\n')
    (event,) = run_with(federation)
    assert event["sites"] == sorted(SITES)
    assert len(set(models_of(federation).values())) == 1
    assert all(charges_of(federation, site) == 1 for site in SITES)
    if reference.name == "photographs":
        assert open_site(federation.paths["north"]).settings.training.precision == "bfloat16"


@pytest.mark.parametrize("reference", READ, ids=lambda reference: reference.name)
def test_the_same_records_are_made_up_every_time(reference: Reference, tmp_path: Path) -> None:
    written = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        for made_up in (recommendation.ratings, photographs.findings, photographs._file, chest.patients, chest._file):
            made_up.cache_clear()
        reference.write(tmp_path / name / "records", np.array([3, 7]))
        written.append({
            file.relative_to(tmp_path / name): file.read_bytes()
            for file in (tmp_path / name).rglob("*") if file.is_file()
        })  # fmt: skip
    assert written[0] == written[1]


def test_all_ratings_of_a_person_are_one_record(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(
        "person,film,stars\nann,film 02,5\nbob,film 01,1\nann,film 01,2\nann,film 02,4\n"
    )
    loaded: Any = Recommendation().load_from(Source(tmp_path / "ratings.csv", Csv()))
    stars, targets, persons = loaded
    assert persons == ["ann", "bob"]
    assert stars[:, :3].tolist() == [[2, 4, 0], [1, 0, 0]]
    assert torch.equal(stars, targets)
    (tmp_path / "ratings.csv").write_text("person,film,stars\nann,film 99,5\n")
    with pytest.raises(DataError, match=r"line 2, column `film`: none of the task's 60 values"):
        Recommendation().load_from(Source(tmp_path / "ratings.csv", Csv()))


def test_what_is_trained_and_sent_is_about_films_only() -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in Recommendation().model().named_parameters()}
    assert shapes == {"level": (len(FILMS),), "films": (len(FILMS), 4)}


def test_what_the_persons_of_a_site_like_on_average_stays_there(make_federation: FederationMaker) -> None:
    task = "simulations.tasks.recommendation:LocalTaste"
    run = replace(NOISY, task=task, encryption=Encryption(update_bound=8.0, collusion_resistant=False))
    federation = make_federation(run, dict.fromkeys(SITES, replace(TERMS, tasks=(task,), source="csv")))
    for number, site in enumerate(SITES):
        recommendation.write_ratings(federation.paths[site] / TERMS.file, np.arange(12) + 12 * number)
    run_with(federation)
    own = [load_file(file) for path in federation.paths.values() for file in path.glob("local/*.safetensors")]
    assert [list(values) for values in own] == [["typical"]] * len(SITES)
    assert len({values["typical"].tobytes() for values in own}) == len(SITES)
    assert not any(b"typical" in model for model in models_of(federation).values())


def test_a_rating_is_predicted_from_the_other_ratings_of_the_same_person_by_ridge_regression() -> None:
    model = Recommendation().model()
    stars = torch.from_numpy(recommendation.ratings()[0][:5]).float()
    with torch.no_grad():
        predicted = model(stars)
        level, factors = model.get_parameter("level"), model.get_parameter("films")
        films = torch.cat([torch.full((len(FILMS), 1), 0.8), factors], 1)
        for person, film in [(0, int(stars[0].argmax())), (4, int(stars[4].argmax())), (2, int(stars[2].argmin()))]:
            others = (stars[person] > 0) & (torch.arange(len(FILMS)) != film)
            of_films, off = films[others], stars[person, others] - 3 - level[others]
            fitted = torch.linalg.solve(of_films.T @ of_films + torch.eye(5), of_films.T @ off)
            torch.testing.assert_close(
                predicted[person, film], 3 + level[film] + films[film] @ fitted, atol=1e-4, rtol=0
            )


def test_photographs_are_jpeg_files_of_150_by_150_pixels_in_colour(tmp_path: Path) -> None:
    photographs.write_photographs(tmp_path / "labels.csv", np.arange(4))
    files = sorted((tmp_path / "photographs").iterdir())
    assert len(files) == 4
    for file in files:
        with Image.open(file) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (150, 150))


def test_radiographs_are_dicom_files_of_which_a_patient_may_have_two(tmp_path: Path) -> None:
    chest.write_radiographs(tmp_path / "labels.csv", np.arange(12))
    loaded: Any = Chest().load_from(Source(tmp_path / "labels.csv", Dicom()))
    images, persons = loaded
    counts = Counter(persons)
    assert set(counts.values()) == {1, 2}
    kinds = set()
    for place, person in enumerate(persons):
        number = 1 + persons[:place].count(person)
        file = dcmread(tmp_path / "radiographs" / f"{person}-{number}.dcm")
        assert (file.PatientID, file.BitsAllocated, file.Modality) == (person, 16, "DX")
        kinds.add(file.PhotometricInterpretation)
        image, target = images[place]
        pixels = torch.from_numpy(chest.radiograph(int(person[1:]), number)[None])
        torch.testing.assert_close(image, Chest().form.finish(pixels), atol=1e-3, rtol=0)
        assert target == chest.patients()[0][int(person[1:])]
    assert kinds == {"MONOCHROME1", "MONOCHROME2"}


def test_of_each_patient_as_many_radiographs_are_used_as_the_site_says(make_federation: FederationMaker) -> None:
    task = "simulations.tasks.chest:Chest"
    federation = make_federation(
        replace(NOISY, task=task), dict.fromkeys(SITES, replace(TERMS, tasks=(task,), source="dicom"))
    )
    folder = federation.paths["north"]
    chest.write_radiographs(folder / TERMS.file, np.arange(10))
    study = open_site(folder).study(task)
    assert len(study.training) + len(study.held_out) == 10
