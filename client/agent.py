"""The agent's process: dial the server, answer its messages one at a time, come back whenever the line breaks.

Messages go through the same `ClientApp` that Flower's own engines run. What comes in is answered in order; a reply that
could not be delivered is sent again as it was, never made again.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from flwr.app import Context, RecordDict

from client.app import app
from client.exchange import Exchange
from client.site import open_site
from privacy.errors import MalformedError, ProtocolError, UnreachableError
from transport.channel import probe
from transport.parcel import decode_instruction, encode

if TYPE_CHECKING:
    from pathlib import Path
    from threading import Event

    from client.site import Site

log = logging.getLogger("cloister.agent")

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 15.0  # seconds between attempts to reach the server


def attend(path: Path, stop: Event) -> None:
    """Serve as the agent of the site in this folder until `stop` is set.

    Raises:
        CloisterError: if the site's own settings, keys or records are wrong, or the server refuses the site.
    """
    site = open_site(path)
    for task, count in site.check_records().items():
        log.info("data: %d training records, fit %s", count, task)
    delay = _FIRST_DELAY
    while not stop.is_set():
        try:
            probe(site.settings.server, site.place.tls)
            with Exchange(site.settings.server, site.place.tls) as exchange:
                log.info("online at %s; %s", site.settings.server, _limits(site))
                delay = _FIRST_DELAY
                _answer_all(exchange, path, site, stop)
        except (UnreachableError, MalformedError) as error:
            log.warning("%s; trying again in %.0f s", error, delay)
            stop.wait(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads agents out, guards nothing
            delay = min(2 * delay, _LONGEST_DELAY)


def _answer_all(exchange: Exchange, path: Path, site: Site, stop: Event) -> None:
    context = Context(
        run_id=0,
        node_id=site.roster.member(site.name).node_id,
        node_config={"site": str(path)},
        state=RecordDict(),
        run_config={},
    )
    while not stop.is_set():
        data = exchange.pull()
        if data is None:
            continue
        message = decode_instruction(data)
        answer = encode(app(message, context))
        try:
            # If the line breaks here, the server offers the message again, and the outbox has the same update for it.
            if not exchange.push(answer, message.metadata.message_id):
                log.info("a reply came too late; the round had closed")
        except ProtocolError as error:
            log.warning("%s", error)


def _limits(site: Site) -> str:
    budget, policy = site.settings.budget, site.settings.policy
    spent = site.ledger.spent(budget.delta)
    return f"spent ε {spent:.2f} of {budget.epsilon:.2f}, cohort ≥ {policy.minimum_cohort}, encryption always"
