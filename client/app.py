"""The agent as a Flower `ClientApp`: query (does this site take part?), train, evaluate.

`app` runs under Flower's own engines. It finds its site in the node's configuration (`site`, a path), or, in Flower's
simulation, by the partition's number among the folders in the run's configuration (`sites`). An agent, and the `inline`
engine, have opened their sites already, and make the app with them.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.acceptance import admit
from client.epochs import accept_letter, accept_pairs, lead_epoch
from client.judging import judge
from client.masking import agree, prove, reveal
from client.opening import UnopenedError, open_sum, vouch
from client.progress import look, shared
from client.readiness import get_ready
from client.receipts import keep_receipt
from client.round import train_round
from client.site import Site, open_site
from client.voting import undo, vote
from privacy.errors import CloisterError, ConfigError, DeviceError, StorageError
from privacy.failures import sentence
from privacy.plan import read_plan
from transport.ceremony import pack_keys, pack_shared, read_lead, read_letter_from, read_pairs
from transport.contents import (
    pack_opened,
    pack_readiness,
    pack_update,
    read_manifest,
    read_plan_of_sum,
    read_sent,
    read_sum,
    read_train,
    take_sum,
)
from transport.flower import ENDED, FAILED, REFUSED, reply
from transport.heads import put_head, read_head
from transport.masking import (
    pack_agreed,
    pack_proof,
    pack_refusal,
    pack_revealed,
    pack_verdict,
    read_body,
    read_contributors,
    read_signatures,
    read_summed,
)
from transport.receipts import find_receipt
from transport.reports import LARGEST_EPSILON
from transport.votes import pack_undone, put_vote, read_votes

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.acceptance import AdmittedRun

log = logging.getLogger("cloister.agent")


def make_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """Make the app of nodes whose sites are open, or are opened by `site_of`, which is called for every message."""
    app = ClientApp()
    for register, work in (
        (app.query(), query),
        (app.query("lead"), lead),
        (app.query("accept"), accept_keys),
        (app.query("pairs"), share_secrets),
        (app.query("agree"), agree_on_contributors),
        (app.query("reveal"), reveal_mask),
        (app.query("prove"), prove_length),
        (app.query("judge"), judge_update),
        (app.query("undo"), undo_round),
        (app.train(), train),
        (app.evaluate(), open_and_evaluate),
    ):
        register(_answering(site_of, work))
    return app


def _site(context: Context) -> Site:
    if named := context.node_config.get("site"):
        return open_site(Path(str(named)))
    partition = context.node_config.get("partition-id")
    folders = _folders(str(context.run_config.get("sites", "")))
    if not isinstance(partition, int) or partition >= len(folders):
        msg = "this node does not know its site; set `site` in its configuration, or `sites` in the run's"
        raise ConfigError(msg)
    return open_site(folders[partition])


@lru_cache(maxsize=1)
def _folders(sites: str) -> list[Path]:
    return sorted(path.parent for path in Path(sites).glob("*/site.toml"))


def _answering(
    site_of: Callable[[Context], Site], work: Callable[[Site, Message], RecordDict]
) -> Callable[[Message, Context], Message]:
    """Turn errors into error replies that tell the server no more than may leave the site."""

    @wraps(work)
    def answer(message: Message, context: Context) -> Message:
        site = None
        try:
            site = site_of(context)
            made = reply(work(site, message), message)
        except CloisterError as error:
            _log(site, message, error)
            return reply(Error(ENDED if isinstance(error, DeviceError) else REFUSED, error.public), message)
        except OSError as error:
            _log(site, message, error)
            return reply(Error(FAILED, StorageError().public), message)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a bug in a task must not end the agent  # noqa: BLE001
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


def query(site: Site, message: Message) -> RecordDict:
    """Say whether this site takes part."""
    admitted = admit(site, read_manifest(message.content))
    known, sent = read_head(message.content), read_sent(message.content)
    readiness = get_ready(admitted, message.metadata.dst_node_id, known, sent)
    return put_head(pack_readiness(readiness), admitted.ledger.sign_head())


def lead(site: Site, message: Message) -> RecordDict:
    """Make the keys of a new epoch and seal them to every member."""
    keys, letters = lead_epoch(site, read_lead(message.content))
    return pack_keys(keys.epoch, keys.fingerprint, letters, site.keyring.own_letters(keys))


def accept_keys(site: Site, message: Message) -> RecordDict:
    """Take the keys that another site made."""
    keys = accept_letter(site, *read_letter_from(message.content))
    return pack_keys(keys.epoch, keys.fingerprint, {}, site.keyring.own_letters(keys))


def share_secrets(site: Site, message: Message) -> RecordDict:
    """Take the secrets of masks that others made, and bring those that this site made."""
    keys = accept_pairs(site, *read_pairs(message.content))
    return pack_shared(site.keyring.own_letters(keys), site.keyring.shares_with(keys))


def agree_on_contributors(site: Site, message: Message) -> RecordDict:
    """Sign who contributed to a masked sum, and give the seeds of the masks that are shared with others."""
    admitted = admit(site, read_manifest(message.content))
    plan, contributions = read_contributors(message.content)
    return pack_agreed(*agree(admitted.round(read_plan(plan)), contributions))


def reveal_mask(site: Site, message: Message) -> RecordDict:
    """Reveal the seed of this site's mask, once all contributors have agreed on each other."""
    admitted, content = admit(site, read_manifest(message.content)), message.content
    plan, contributions = read_contributors(content)
    signatures, summed = read_signatures(content), read_summed(content)
    return pack_revealed(reveal(admitted.round(read_plan(plan)), contributions, signatures, summed))


def prove_length(site: Site, message: Message) -> RecordDict:
    """Prove that this site's update is no longer than the run allows."""
    admitted, content = admit(site, read_manifest(message.content)), message.content
    total, signatures, summed = read_sum(content), read_signatures(content), read_summed(content)
    return pack_proof(prove(admitted.round(read_plan(total.plan)), total, signatures, summed))


def judge_update(site: Site, message: Message) -> RecordDict:
    """Say whether a member's update is right, after a masked sum did not open."""
    admitted = admit(site, read_manifest(message.content))
    plan, body, accusation = read_body(message.content)
    return pack_verdict(judge(admitted.round(read_plan(plan)), body, accusation))


def train(site: Site, message: Message) -> RecordDict:
    """Train a round and return the signed, encrypted update."""
    admitted = admit(site, read_manifest(message.content))
    admitted.ledger.check_head(read_head(message.content))
    plan, missed = read_train(message.content)
    update = train_round(admitted.round(read_plan(plan)), missed)
    return put_head(pack_update(update, _report(admitted)), admitted.ledger.sign_head())


def open_and_evaluate(site: Site, message: Message) -> RecordDict:
    """Open a round's sum, keep the model, sign its digest and vote; or, if it has masks, say why it does not open."""
    admitted, plan = admit(site, read_manifest(message.content)), read_plan_of_sum(message.content)
    receipt = find_receipt(message.content)
    try:
        checkpoint = open_sum(admitted, take_sum(message.content))
    except UnopenedError as error:
        if not admitted.settings.encryption.collusion_resistant:
            raise
        return pack_refusal(error.refusal)
    if receipt:
        keep_receipt(site, read_plan(plan), receipt)
    own = vote(admitted, checkpoint)
    found = look(admitted, checkpoint)
    return put_vote(pack_opened(vouch(site, plan, checkpoint), shared(found, site.settings.policy)), own)


def undo_round(site: Site, message: Message) -> RecordDict:
    """Go back to the model before, if the sites' votes say so, and report its digest."""
    admitted = admit(site, read_manifest(message.content))
    return pack_undone(undo(admitted, *read_votes(message.content, admitted.run)).digest)


def _report(admitted: AdmittedRun) -> dict[str, float]:
    """Return what the policy lets out beside an update. What cannot be said is left out: the update is paid for."""
    if "epsilon" not in admitted.site.settings.policy.share:
        return {}
    try:
        spent = admitted.ledger.spent(admitted.limit.delta)
    except Exception as error:  # whatever an accountant meets
        log.warning("the update is sent without the ε spent, which cannot be computed: %s", sentence(error))
        log.debug("ε", exc_info=error)
        return {}
    return {"epsilon": spent} if spent <= LARGEST_EPSILON else {}  # without noise, it is infinite


app = make_app(_site)
