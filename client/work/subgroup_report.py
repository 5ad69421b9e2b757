"""Compare the subgroups of a task's held-out records exactly, after a run's last round, for this site alone.

The figures go to the log and to `metrics/NAME-RUN.subgroups.json`. Nothing of them leaves the site, whatever the policy
discloses: they are computed once the site has answered the server. `client.work.evaluation` sums the same figures over
all sites, with noise.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from client.data.site_records import predictions
from client.task.user_code import foreign
from client.work.scored import Scores
from client.work.subgrouped import by_subgroup, held_out_places
from client.work.sums import OWN
from client.work.training import Study
from privacy.failures import sentence
from privacy.storage import write_atomically

if TYPE_CHECKING:
    from client.round.admission import AdmittedRun
    from privacy.analytics.scores import Prediction
    from privacy.codec.update import Model

log = logging.getLogger("cloister.agent")


def compare_later(admitted: AdmittedRun, number: int) -> None:
    """Compare the subgroups after a run's last round, once the site has answered."""
    settings = admitted.settings
    if settings.takes_steps and number == settings.rounds:
        admitted.site.later(lambda: _compare(admitted))


def _compare(admitted: AdmittedRun) -> None:
    """Compare the subgroups, if the task declares some; a failure is only logged."""
    site, settings, work = admitted.site, admitted.settings, admitted.work
    if not (isinstance(work, Study) and work.task.subgroups and work.prediction):
        return
    try:
        checkpoint = admitted.checkpoint()
        model = site.personal(admitted.manifest, admitted.run, site.models.result(settings, checkpoint))
        columns = _exact(work, work.prediction, settings.model_seed, model) if len(work.held_out) else {}
        report = {"run": admitted.run, "model": checkpoint.digest, "records": len(work.held_out), "subgroups": columns}
        path = site.place.folder / OWN / f"{settings.name}-{admitted.run[:8]}.subgroups.json"
        write_atomically(path, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        for column, table in columns.items():
            gaps = ", ".join(f"{name} {_shown(gap)}" for name, gap in table["gaps"].items())
            log.info("this site alone by %s: %s", column, gaps or f"see {path}")
    except Exception as error:
        log.warning("subgroups were not compared; the run is complete: %s", sentence(error))
        log.debug("subgroups", exc_info=error)


def _exact(study: Study, prediction: Prediction, seed: int, model: Model) -> dict[str, Any]:
    scores = Scores(study.task)
    with foreign(study.name, "subgroup_of() or scored() of held-out records"):
        module = study.load_into(study.module(seed), model).eval()
        scores.add(*predictions(module, study.held_out, study.at_once))
        return {
            name: by_subgroup(study, name, prediction, tuple(study.task.named_metrics)).exact(
                held_out_places(study, name), *scores.joined()
            )
            for name in study.task.subgroup_values
        }


def _shown(gap: dict[str, Any]) -> str:
    return "undefined" if gap["value"] is None else f"{gap['value']:.3f}"
