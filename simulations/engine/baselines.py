"""Measure what a federation is worth: train the same model at each site alone, and on pooled records without privacy.

This needs one program with all records, as in a simulation. It touches no ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from client.data.inputs import call, device_of
from client.data.site_records import pooled
from client.flower import open_site
from privacy.noise.randomness import Randomness
from simulations.engine.keyless_rounds import Sites, rounds

if TYPE_CHECKING:
    from client.data.site_records import Records
    from client.work.training import Study
    from privacy.codec.update import Model
    from privacy.run.manifest import Manifest
    from simulations.engine.federation import Federation

_POOLED_STEPS = 500
_POOLED_RATE = 0.5


def accuracy_together(federation: Federation, manifest: Manifest, model: Model) -> float:
    """Return the accuracy of the sites' shared model on all sites' held-out records."""
    studies = list(studies_of(federation, manifest).values())
    return accuracy(studies[0], model, pooled([study.held_out for study in studies]))


def accuracy_alone(federation: Federation, manifest: Manifest) -> dict[str, float]:
    """Return the accuracy on all held-out records of models that sites train alone, with the same noise and steps."""
    studies = studies_of(federation, manifest)
    held_out = pooled([study.held_out for study in studies.values()])
    results = {}
    for site, study in studies.items():
        alone = Sites({site: study}, {site: 1.0}, manifest, lambda *_: Randomness.fresh())
        *_, model = rounds(study.start(manifest.settings), manifest.settings.rounds, alone.exact_mean)
        results[site] = accuracy(study, model, held_out)
    return results


def accuracy_pooled(federation: Federation, manifest: Manifest) -> float:
    """Return the accuracy of the same model trained on pooled records without privacy."""
    studies = list(studies_of(federation, manifest).values())
    inputs, targets = pooled([study.training for study in studies]).whole()
    module = studies[0].module(manifest.settings.model_seed).to(device_of(inputs))
    # The usual ridge penalty of logistic regression, worth one record: without it, the pooled model overfits.
    optimizer = torch.optim.SGD(module.parameters(), lr=_POOLED_RATE, momentum=0.9, weight_decay=1 / len(targets))
    for _ in range(_POOLED_STEPS):
        optimizer.zero_grad()
        studies[0].task.loss(call(module, inputs), targets).backward()
        optimizer.step()
    return _right(studies[0], module, pooled([study.held_out for study in studies]))


def studies_of(federation: Federation, manifest: Manifest) -> dict[str, Study]:
    """Return every site's study."""
    return {site: open_site(path).study(manifest.settings.task) for site, path in federation.paths.items()}


def accuracy(study: Study, model: Model, records: Records) -> float:
    """Return the share of records that a model classifies correctly."""
    return _right(study, study.load_into(study.module(0), model), records)


def _right(study: Study, module: torch.nn.Module, records: Records) -> float:
    inputs, targets = records.whole()
    with torch.no_grad():
        return float(study.task.metrics(call(module, inputs), targets)["accuracy"].mean())
