"""What a federation is worth: the same model trained by each site alone, and on everybody's records without privacy.

Only possible where one program has all records, as here; nothing of it touches a ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from client.dpsgd import train
from client.site import open_site
from privacy.randomness import Randomness
from privacy.update import Model

if TYPE_CHECKING:
    from client.study import Records, Study
    from privacy.manifest import Manifest
    from simulations.federation import Federation

_POOLED_STEPS = 500
_POOLED_RATE = 0.5


def accuracy_alone(federation: Federation, manifest: Manifest) -> dict[str, float]:
    """Accuracy on everybody's held-out records of a model that each site trains alone, at the same noise and steps."""
    studies = _studies(federation, manifest)
    held_out = _together([study.held_out for study in studies.values()])
    results = {}
    for site, study in studies.items():
        model = study.untrained(manifest.settings.model_seed)
        size = manifest.settings.cohort.sizes[site]
        for _ in range(manifest.settings.rounds):
            module = study.load_into(study.module(manifest.settings.model_seed), model)
            train(study.task, module, study.training, size, manifest, Randomness.fresh())
            update = study.difference(module, model)
            model = Model(model.vector + update.vector, model.layout)
        results[site] = _accuracy(study, study.load_into(study.module(manifest.settings.model_seed), model), held_out)
    return results


def accuracy_pooled(federation: Federation, manifest: Manifest) -> float:
    """Accuracy of the same model trained on all records in one place, without privacy: what is given up for it."""
    studies = list(_studies(federation, manifest).values())
    inputs, targets = _together([study.training for study in studies])
    module = studies[0].module(manifest.settings.model_seed).to(inputs.device)
    # The usual ridge penalty of logistic regression, one record's worth: without it the pooled model overfits.
    optimizer = torch.optim.SGD(module.parameters(), lr=_POOLED_RATE, momentum=0.9, weight_decay=1 / len(inputs))
    for _ in range(_POOLED_STEPS):
        optimizer.zero_grad()
        studies[0].task.loss(module(inputs), targets).backward()
        optimizer.step()
    return _accuracy(studies[0], module, _together([study.held_out for study in studies]))


def _studies(federation: Federation, manifest: Manifest) -> dict[str, Study]:
    return {site: open_site(path).study(manifest.settings.task) for site, path in federation.paths.items()}


def _together(parts: list[Records]) -> Records:
    return torch.cat([inputs for inputs, _ in parts]), torch.cat([targets for _, targets in parts])


def _accuracy(study: Study, module: torch.nn.Module, records: Records) -> float:
    inputs, targets = records
    with torch.no_grad():
        return float(study.task.metrics(module(inputs), targets)["accuracy"].mean())
