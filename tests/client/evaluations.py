"""What a site's evaluation adds up, record by record, and the vector that it makes of it."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from client.flower import open_site
from client.state.checkpoint import Checkpoint, CheckpointStore
from client.work.evaluation import HeldOutEvaluation
from privacy.run.settings import Evaluation, Privacy, RunSettings
from privacy.run.tables import Start
from simulations.engine.federation import Federation
from tests import studies
from tests.federations import SETTINGS, SITES, TERMS, FederationMaker, task_name
from tests.tables import table

if TYPE_CHECKING:
    from torch import Tensor

TASK = task_name(studies.Scored)
TERMS_HALF = replace(TERMS, tasks=(TASK,), held_out=0.5)
LOSS_BOUND = 0.5


def evaluation_of(federation: Federation) -> dict[str, object]:
    """Return what the evaluation of one site says of each held-out record, and its vector without noise."""
    path = federation.paths["south"]
    site = open_site(path)
    study = site.study(TASK)
    model = study.untrained(0)
    file = CheckpointStore(path / "models").save("exam", Checkpoint("ab" * 32, 1, model, 1.0))
    settings = RunSettings(
        name="exam",
        task=TASK,
        rounds=1,
        evaluation=Evaluation(metrics=("near", "odd"), loss_bound=LOSS_BOUND),
        start=Start(sha256(file.read_bytes()).hexdigest()),
        privacy=Privacy(noise_multiplier=1.0),
        cohort=SETTINGS.cohort,
    )
    evaluated, (inputs, targets) = HeldOutEvaluation(study, site), table(study.held_out)
    module = study.load_into(study.module(0), model)
    with torch.no_grad():
        outputs = module(inputs)
    records = [(outputs[row : row + 1], targets[row : row + 1]) for row in range(len(inputs))]
    metrics = [study.task.metrics(*record) for record in records]
    return {
        "metrics": {name: [_number(metric[name]) for metric in metrics] for name in ("near", "odd")},
        "losses": [_number(study.task.loss(*record)) for record in records],
        "loss_bound": LOSS_BOUND,
        "layout": evaluated.layout(settings).shapes,
        "layout_digest": evaluated.layout(settings).digest,
        "vector": evaluated._total(settings).tolist(),
    }


def made_up_evaluation() -> dict[str, object]:
    """Return that of a federation which is made for it."""
    with TemporaryDirectory() as folder:
        keys = Federation.create(Path(folder) / "keys", SITES)
        settings = replace(SETTINGS, task=TASK)
        maker = FederationMaker(keys.folder, Path(folder))
        return evaluation_of(maker(settings, dict.fromkeys(SITES, TERMS_HALF)))


def _number(value: Tensor) -> float | None:
    """Return a number as JSON has it: nothing, where it is none."""
    return None if value.isnan().any() else float(value)
