"""A worker: it trains its part of each batch in rounds that the site's agent leads. See `client.team`."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

from client.dpsgd import take_part
from client.team import gather
from client.works import Works

if TYPE_CHECKING:
    from client.settings import SiteFolder

log = logging.getLogger("cloister.agent")


def assist(folder: SiteFolder) -> None:
    """Take part in what the agent hands out, until it ends. Nothing is read but the settings and the records.

    Raises:
        CloisterError: if the settings or records are wrong, or the agent ended without a word.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # it has nothing to leave in order, and Python would wait for its peers
    workplace = Works(folder)
    with gather(workplace.device) as team:
        if team is None:
            return
        team.compare(workplace.records_digest())
        log.info("worker %d of %d, on %s", team.rank, team.size - 1, workplace.device)
        while order := team.await_order():
            study = workplace.study(order.task)
            take_part(study.task, study.module(order.model_seed).to(workplace.device), study.training, order, team)
            log.info("worker %d took part in %d steps of %s", team.rank, order.steps, order.task)
