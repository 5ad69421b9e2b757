"""The worker: train a part of each batch in rounds that the site's agent leads. See `process_group`."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

from client.dpsgd.process_group import gather
from client.dpsgd.training_steps import take_part
from client.work.works import Works

if TYPE_CHECKING:
    from client.settings import SiteFolder

log = logging.getLogger("cloister.agent")


def assist(folder: SiteFolder) -> None:
    """Take part in the agent's rounds until it ends. A worker reads only the settings and the records.

    Raises:
        CloisterError: if the settings or records are wrong, or the agent ended without notice.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # there is nothing to clean up, and Python would wait for the peers
    context = Works(folder)
    with gather(context.device) as group:
        if group is None:
            return
        group.compare(context.records_digest())
        log.info("worker %d of %d, on %s", group.rank, group.size - 1, context.device)
        while order := group.await_order():
            study = context.study(order.task)
            take_part(study.task, study.module(order.model_seed).to(context.device), study.training, order, group)
            log.info("worker %d took part in %d steps of %s", group.rank, order.steps, order.task)
