"""The agent as a Flower `ClientApp`: query (does this site take part?), train, evaluate.

The same app runs under every engine. It finds its site in the node's configuration (`site`, a path), or, in
Flower's simulation, by the partition's number among the folders in the run's configuration (`sites`).
"""

from __future__ import annotations

import logging
import re
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.acceptance import accept, get_ready
from client.epochs import accept_letter, lead_epoch
from client.masking import reveal
from client.opening import evaluate, open_sum
from client.round import train_round
from client.site import Site, open_site
from privacy.errors import CloisterError, ConfigError, StorageError
from privacy.failures import sentence
from privacy.heads import check_head, sign_head
from transport.ceremony import pack_keys, read_lead, read_letter_from
from transport.contents import pack_opened, pack_readiness, pack_update, read_manifest, read_sent, read_train, take_sum
from transport.flower import FAILED, REFUSED, reply
from transport.heads import put_head, read_head
from transport.masking import pack_revealed, read_reveal

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("cloister.agent")

app = ClientApp()


def _site(context: Context) -> Site:
    if named := context.node_config.get("site"):
        return open_site(Path(str(named)))
    partition = context.node_config.get("partition-id")
    folders = sorted(path.parent for path in Path(str(context.run_config.get("sites", ""))).glob("*/site.toml"))
    if not isinstance(partition, int) or partition >= len(folders):
        msg = "this node does not know its site; set `site` in its configuration, or `sites` in the run's"
        raise ConfigError(msg)
    return open_site(folders[partition])


def _answering(work: Callable[[Site, Message], RecordDict]) -> Callable[[Message, Context], Message]:
    """Turn errors into error replies that tell the server no more than may leave the site."""

    @wraps(work)
    def answer(message: Message, context: Context) -> Message:
        site = None
        try:
            site = _site(context)
            made = reply(work(site, message), message)
        except CloisterError as error:
            _log(site, message, error)
            return reply(Error(REFUSED, error.public), message)
        except OSError as error:
            _log(site, message, error)
            return reply(Error(FAILED, StorageError().public), message)
        except (Exception, SystemExit) as error:  # a bug in a task must not end the agent  # noqa: BLE001
            _log(site, message, error)
            return reply(Error(FAILED, "the site's agent met an unexpected error; the site's own log has it"), message)
        site.said.pop(message.metadata.message_type, None)
        return made

    return answer


def _log(site: Site | None, message: Message, error: BaseException) -> None:
    """Log an error in one sentence, once while only its numbers change: a server asks again and again."""
    kind, said = message.metadata.message_type, sentence(error)
    before = site.said.get(kind, "") if site else ""
    if re.sub(r"\d", "", before) != re.sub(r"\d", "", said):
        log.warning("%s: %s", kind, said)
    if site:
        site.said[kind] = said
    log.debug("%s", kind, exc_info=error)


@app.query()
@_answering
def query(site: Site, message: Message) -> RecordDict:
    """Say whether this site takes part."""
    document, known, sent = read_manifest(message.content), read_head(message.content), read_sent(message.content)
    readiness = get_ready(site, document, message.metadata.dst_node_id, known, sent)
    ledger, _ = site.account(accept(site, document).manifest.settings)
    return put_head(pack_readiness(readiness), sign_head(ledger, site.signing_key))


@app.query("lead")
@_answering
def lead(site: Site, message: Message) -> RecordDict:
    """Make the keys of a new epoch and seal them to every member."""
    keys, letters = lead_epoch(site, read_lead(message.content))
    return pack_keys(keys.epoch, keys.fingerprint, letters)


@app.query("accept")
@_answering
def accept_keys(site: Site, message: Message) -> RecordDict:
    """Take the keys that another site made."""
    keys = accept_letter(site, *read_letter_from(message.content))
    return pack_keys(keys.epoch, keys.fingerprint)


@app.query("reveal")
@_answering
def reveal_mask(site: Site, message: Message) -> RecordDict:
    """Reveal the seed of this site's mask, once its whole cohort has sent an update."""
    return pack_revealed(reveal(site, read_manifest(message.content), *read_reveal(message.content)))


@app.train()
@_answering
def train(site: Site, message: Message) -> RecordDict:
    """Train a round and return the signed, encrypted update."""
    document = read_manifest(message.content)
    ledger, limit = site.account(accept(site, document).manifest.settings)
    check_head(ledger, read_head(message.content), site.signing_key)
    plan, missed = read_train(message.content)
    update = train_round(site, document, plan, missed)
    report = {}
    if "epsilon" in site.settings.policy.share:
        report["epsilon"] = ledger.spent(limit.delta)
    return put_head(pack_update(update, report), sign_head(ledger, site.signing_key))


@app.evaluate()
@_answering
def open_and_evaluate(site: Site, message: Message) -> RecordDict:
    """Open a round's sum, keep the model, and report its digest."""
    accepted = accept(site, read_manifest(message.content))
    checkpoint = open_sum(site, accepted, take_sum(message.content))
    return pack_opened(checkpoint.digest, evaluate(site, accepted.manifest, checkpoint))
