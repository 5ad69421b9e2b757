"""Records from a source train in a real round: tables with persons, and images that are read when they are used."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from client.flower import open_site
from privacy.run.settings import Encryption
from tests.client.data.sources.cohorts import HEADER, ROWS, Picture, Visits
from tests.federations import NOISY, SITES, TERMS, FederationMaker, charges_of, models_of, run_with, task_name

if TYPE_CHECKING:
    from client.task.task import Task
    from simulations.engine.federation import Federation


def federation_of(make: FederationMaker, task: type[Task], source: str) -> Federation:
    run = replace(NOISY, task=task_name(task), encryption=Encryption(update_bound=1.0, collusion_resistant=False))
    federation = make(run, dict.fromkeys(SITES, replace(TERMS, tasks=(task_name(task),))))
    for path in federation.paths.values():
        with (path / "site.toml").open("a") as settings:
            settings.write(f'\n[data.source]\nname = "{source}"\n')
    return federation


def check_round(federation: Federation) -> None:
    (event,) = run_with(federation)
    assert event["sites"] == sorted(SITES)
    assert event["released"]
    assert len(set(models_of(federation).values())) == 1
    assert all(charges_of(federation, site) == 1 for site in SITES)


def test_tables_train_and_of_each_person_one_record_is_used(make_federation: FederationMaker) -> None:
    federation = federation_of(make_federation, Visits, "csv")
    rows = [f"{row},patient {number // 2}" for number, row in enumerate(ROWS * 8)]
    for site in SITES:
        text = "\n".join([f"{HEADER},patient", *rows, ""])
        (federation.paths[site] / TERMS.file).write_text(text, encoding="utf-8")
    check_round(federation)
    study = open_site(federation.paths["north"]).study(task_name(Visits))
    assert study.count() + len(study.held_out) == 12


def test_images_train(make_federation: FederationMaker) -> None:
    federation = federation_of(make_federation, Picture, "images")
    for site in SITES:
        folder, rows = federation.paths[site], ["file,label"]
        for number in range(20):
            kind = number % 2
            pixels = np.full((8, 9), 40 + 150 * kind + number, np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            rows.append(f"{number}.png,{('benign', 'malignant')[kind]}")
        (folder / TERMS.file).write_text("\n".join(rows), encoding="utf-8")
    check_round(federation)
