"""The agent as a Flower `ClientApp`: one handler for each kind of message in `transport.messages`.

Each message is admitted once: its handler gets the admitted run or round, and the message's contents.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from typing_extensions import override

from client.round.admission import admit
from client.round.aggregate import UnopenedError, open_sum, vouch
from client.round.judging import judge
from client.round.key_epochs import accept_letter, accept_pairs, lead_epoch
from client.round.masking import agree, prove, reveal
from client.round.readiness import get_ready
from client.round.receipts import keep_receipt
from client.round.train_round import train_round
from client.round.voting import undo, vote
from client.work.personal_training import train_later
from client.work.progress import look, shared
from client.work.subgroup_report import compare_later
from privacy.errors import CloisterError, DeviceError, StorageError
from privacy.failures import sentence
from privacy.log_fields import about, note
from privacy.run.plan import read_plan
from privacy.run.votes import Question
from transport.flower import ENDED, FAILED, REFUSED, reply
from transport.messages import (
    ACCEPT,
    AGREE,
    EVALUATE,
    JUDGE,
    LEAD,
    PAIRS,
    PROVE,
    QUERY,
    REVEAL,
    TRAIN,
    UNDO,
    Agreed,
    ContributorSet,
    Delivery,
    Keys,
    Letter,
    Order,
    Pairs,
    ProofRequest,
    Ready,
    RoundOutcome,
    Shared,
    Suspect,
    Trained,
    Undo,
)
from transport.reports import LARGEST_EPSILON, ReportedNumbers
from transport.run_messages import read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.round.admission import AdmittedRun, Round
    from client.site import Site
    from transport.mask_messages import Refusal, Verdict
    from transport.messages import MessageKind

Q = TypeVar("Q")
R = TypeVar("R")


class Planned(Protocol):
    """Contents of a message about a plan."""

    @property
    def plan(self) -> bytes:
        """The plan, as the server wrote it."""
        ...


P = TypeVar("P", bound=Planned)

log = logging.getLogger("cloister.agent")


def make_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """Make the app. It calls `site_of` for every message to get the node's site, opened if necessary."""
    return _SiteApp(site_of)


class _SiteApp(ClientApp):
    """Is pickled as what it is made of: Flower's engine sends it to processes, and its handlers cannot be pickled."""

    def __init__(self, site_of: Callable[[Context], Site]) -> None:
        super().__init__()
        self._site_of = site_of
        register = {"query": self.query, "train": self.train, "evaluate": self.evaluate}
        for kind, answer in _ANSWERS.items():
            main, _, action = kind.name.partition(".")
            register[main](*(action,) if action else ())(_answering(site_of, kind, answer))

    @override
    def __reduce__(self) -> tuple[Callable[..., ClientApp], tuple[Callable[[Context], Site]]]:
        return make_app, (self._site_of,)


def _answering(
    site_of: Callable[[Context], Site], kind: MessageKind[Any, Any], answer: Callable[[Site, Message], Any]
) -> Callable[[Message, Context], Message]:
    """Turn errors into replies that tell the server only what may leave the site."""

    @about()
    def answered(message: Message, context: Context) -> Message:
        site = None
        try:
            site = site_of(context)
            response = reply(kind.pack_reply(answer(site, message)), message)
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
            return reply(
                Error(FAILED, "the site's agent failed with an unexpected error; see the site's own log"), message
            )
        site.last_errors.pop(message.metadata.message_type, None)
        return response

    return answered


def _of_site(kind: MessageKind[Q, R], answer: Callable[[Site, Q], R]) -> Callable[[Site, Message], R]:
    """Answer a message that belongs to no run."""
    return lambda site, message: answer(site, kind.read(message.content))


def _of_run(kind: MessageKind[Q, R], answer: Callable[[AdmittedRun, Q], R]) -> Callable[[Site, Message], R]:
    """Answer a message of a run, which is admitted before anything else is read."""

    def answer_admitted(site: Site, message: Message) -> R:
        admitted = admit(site, read_manifest(message.content))
        note(run=admitted.run)
        return answer(admitted, kind.read(message.content))

    return answer_admitted


def _of_round(kind: MessageKind[P, R], answer: Callable[[Round, P], R]) -> Callable[[Site, Message], R]:
    """Answer a message about a plan, whose run is admitted before anything else is read."""

    def answer_planned(admitted: AdmittedRun, request: P) -> R:
        plan = read_plan(request.plan)
        note(round=plan.round)
        return answer(admitted.round(plan), request)

    return _of_run(kind, answer_planned)


def _log(site: Site | None, message: Message, error: BaseException) -> None:
    """Log an error in one sentence, unless only its numbers have changed: the server repeats its messages."""
    kind, text = message.metadata.message_type, sentence(error)
    before = site.last_errors.get(kind, "") if site else ""
    if re.sub(r"\d", "", before) != re.sub(r"\d", "", text):
        log.warning("%s: %s", kind, text)
    if site:
        site.watch.note_refusal(error)
        site.last_errors[kind] = text
    log.debug("%s", kind, exc_info=error)


def query(site: Site, message: Message) -> Ready:
    """Answer whether this site takes part."""
    admitted, request = admit(site, read_manifest(message.content)), QUERY.read(message.content)
    readiness = get_ready(admitted, message.metadata.dst_node_id, request.head, request.sent)
    return Ready(readiness, admitted.ledger.sign_head())


def lead(site: Site, epoch: int) -> Keys:
    """Make the keys of a new epoch and seal them to every member."""
    keys, letters = lead_epoch(site, epoch)
    return Keys(keys.epoch, keys.fingerprint, letters, site.keyring.own_letters(keys))


def accept_keys(site: Site, letter: Letter) -> Keys:
    """Accept the keys that another site made."""
    keys = accept_letter(site, letter.leader, letter.sealed)
    return Keys(keys.epoch, keys.fingerprint, {}, site.keyring.own_letters(keys))


def share_secrets(site: Site, pairs: Pairs) -> Shared:
    """Accept the mask secrets that other sites made, and return this site's own."""
    keys = accept_pairs(site, pairs.fingerprint, pairs.letters)
    return Shared(site.keyring.own_letters(keys), site.keyring.paired_with(keys))


def agree_on_contributors(current: Round, question: ContributorSet) -> Agreed:
    """Sign the set of contributors to a masked sum, and return the seeds of masks shared with absent sites."""
    return Agreed(*agree(current, question.contributions))


def reveal_mask(current: Round, question: ContributorSet) -> bytes:
    """Reveal the seed of this site's mask, once all contributors have signed their set."""
    return reveal(current, question.contributions, question.signatures, question.summed)


def prove_length(current: Round, request: ProofRequest) -> bytes:
    """Prove that the norm of this site's update is within the run's limit."""
    return prove(current, request.total, request.signatures, request.summed)


def judge_update(current: Round, suspect: Suspect) -> Verdict:
    """Return a verdict on a member's update, after a masked sum did not open."""
    return judge(current, suspect.update, suspect.accusation)


def train(current: Round, order: Order) -> Trained:
    """Train a round and return the signed, encrypted update."""
    current.ledger.check_head(order.head)
    update = train_round(current, order.sums)
    current.site.watch.note_training(current.plan.round)
    return Trained(update, _report(current), current.ledger.sign_head())


def open_and_evaluate(admitted: AdmittedRun, delivery: Delivery) -> RoundOutcome | Refusal:
    """Open a round's sum, keep the model, sign its digest and vote; if a masked sum does not open, say why."""
    site, plan = admitted.site, delivery.sums[0].plan
    note(round=read_plan(plan).round)
    try:
        checkpoint = open_sum(admitted, delivery.sums.pop())
    except UnopenedError as error:
        if not admitted.settings.encryption.collusion_resistant:
            raise
        return error.refusal
    if delivery.receipt:
        keep_receipt(site, read_plan(plan), delivery.receipt)
    own = vote(admitted, checkpoint)
    metrics = shared(look(admitted, checkpoint), site.settings.policy)
    compare_later(admitted, checkpoint.round)
    train_later(admitted, checkpoint.round)
    return RoundOutcome(vouch(site, plan, checkpoint), ReportedNumbers(metrics), own)


def undo_round(admitted: AdmittedRun, request: Undo) -> str:
    """Restore the previous model, if the sites' votes say so, and return its digest."""
    question = Question(admitted.run, request.round, request.before, request.after)
    undone = undo(admitted, question, request.votes)
    compare_later(admitted, undone.round)
    train_later(admitted, undone.round)
    return undone.digest


def _report(admitted: AdmittedRun) -> ReportedNumbers:
    """Return what the policy lets out with an update. Omit what cannot be computed: the update is charged already."""
    if "epsilon" not in admitted.site.settings.policy.disclose:
        return ReportedNumbers()
    try:
        spent = admitted.ledger.spent(admitted.limit.delta)
    except Exception as error:  # whatever an accountant raises
        log.warning("the update is sent without the ε spent, which could not be computed: %s", sentence(error))
        log.debug("ε", exc_info=error)
        return ReportedNumbers()
    return ReportedNumbers({"epsilon": spent} if spent <= LARGEST_EPSILON else {})  # without noise, it is infinite


_ANSWERS: dict[MessageKind[Any, Any], Callable[[Site, Message], Any]] = {
    QUERY: query,
    LEAD: _of_site(LEAD, lead),
    ACCEPT: _of_site(ACCEPT, accept_keys),
    PAIRS: _of_site(PAIRS, share_secrets),
    TRAIN: _of_round(TRAIN, train),
    AGREE: _of_round(AGREE, agree_on_contributors),
    REVEAL: _of_round(REVEAL, reveal_mask),
    PROVE: _of_round(PROVE, prove_length),
    EVALUATE: _of_run(EVALUATE, open_and_evaluate),
    JUDGE: _of_round(JUDGE, judge_update),
    UNDO: _of_run(UNDO, undo_round),
}
"""The handler of each kind of message."""
