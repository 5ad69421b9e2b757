"""What whoever controls the server, or the way to it, can put in the place of a message, without a key."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from privacy.errors import CloisterError
from privacy.run.plan import read_plan
from simulations.attacks.forged_sums import FORGED_SUMS
from simulations.attacks.transcript import Run, Transcript
from transport.messages import AGREE, EVALUATE, REVEAL, TRAIN, Delivery, Order
from transport.parcel import decode_instruction, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flwr.app import Message

    from privacy.codec.envelope import SignedUpdate
    from privacy.crypto.summation import EncryptedSum
    from privacy.run.roster import Roster

_Address = tuple[int, str]  # a site's node, and a kind of message


class Overheard:
    """Everything that has passed so far."""

    def __init__(self, document: bytes, roster: Roster, names: dict[int, str]) -> None:
        self._document, self._roster, self._names = document, roster, names
        self._trained: list[tuple[Message, RecordDict]] = []  # orders to train, with their answers
        self.questions: dict[_Address, list[bytes]] = {}
        self.answers: dict[_Address, list[RecordDict]] = {}

    def question(self, message: Message, data: bytes) -> None:
        """Remember a message."""
        self.questions.setdefault(_address(message), []).append(data)

    def answer(self, message: Message, answer: Message) -> None:
        """Remember an answer."""
        if answer.has_error():
            return
        self.answers.setdefault(_address(message), []).append(answer.content)
        if message.metadata.message_type == TRAIN.name:
            self._trained.append((message, answer.content))

    @cached_property
    def run(self) -> Run:
        """The run."""
        return Run.read(self._document, self._roster)

    def updates(self, plan: bytes) -> dict[str, SignedUpdate]:
        """Return the first update of each site for a plan."""
        sent: dict[str, SignedUpdate] = {}
        for message, answered in self._trained:
            if TRAIN.read(message.content).plan == plan:
                with suppress(CloisterError):  # altered
                    sent.setdefault(self._names[message.metadata.dst_node_id], TRAIN.read_reply(answered).update)
        return sent

    def earlier(self, message: Message, choice: int) -> bytes | None:
        """Return an earlier message to the same site; None if there is none."""
        node = message.metadata.dst_node_id
        earlier = [data for (to, _), every in self.questions.items() for data in every if to == node]
        return earlier[choice % len(earlier)] if earlier else None


def altered_answer(overheard: Overheard, message: Message, answer: Message, choice: int) -> RecordDict | None:
    """Return what the server gets instead of an answer; None if there is nothing."""
    rng, (node, kind) = random.Random(choice), _address(message)  # noqa: S311 - guards nothing
    others = [every[-1] for (other, of), every in overheard.answers.items() if of == kind and other != node]
    ways: list[Sequence[RecordDict]] = [overheard.answers.get((node, kind), []), others]
    if not answer.has_error():
        ways.append([_damaged(answer.content, rng)])
    found = [way for way in ways if way]
    return rng.choice(rng.choice(found)) if found else None


def altered_question(overheard: Overheard, message: Message, choice: int) -> bytes | None:
    """Return what a site gets instead of a message; None if there is nothing."""
    rng, (node, kind) = random.Random(choice), _address(message)  # noqa: S311 - guards nothing
    content = decode_instruction(b"".join(encode(message))).content
    own: dict[str, Callable[[], RecordDict | None]] = {
        TRAIN.name: lambda: _other_order(content, rng),
        AGREE.name: lambda: _other_set(content, rng),
        REVEAL.name: lambda: _other_set(content, rng),
        EVALUATE.name: lambda: _other_sum(overheard, content, rng),
    }
    if kind in own and rng.random() < 3 / 4:
        return _instead(message, own[kind]())
    others = [every[-1] for (other, of), every in overheard.questions.items() if of == kind and other != node]
    ways: list[Sequence[bytes]] = [overheard.questions.get((node, kind), []), others]
    if (damaged := _instead(message, _damaged(content, rng))) is not None:
        ways.append([damaged])
    found = [way for way in ways if way]
    return rng.choice(rng.choice(found)) if found else None


def _address(message: Message) -> _Address:
    return message.metadata.dst_node_id, message.metadata.message_type


def _instead(message: Message, content: RecordDict | None) -> bytes | None:
    """Return the bytes of a message with other content."""
    if content is None:
        return None
    other = decode_instruction(b"".join(encode(message)))
    other.content = content
    return b"".join(encode(other))


def _other_plan(plan: bytes, rng: random.Random) -> bytes:
    now = read_plan(plan)
    if rng.random() < 1 / 2:  # a plan that a site could take for a true one
        likely: list[dict[str, Any]] = [{"deadline": now.deadline - 1}, {"cohort": now.cohort[::-1]}, {"attempt": 2}]
        return replace(now, **rng.choice(likely)).to_bytes()
    changes: list[dict[str, Any]] = [
        {"round": now.round + 1}, {"round": max(1, now.round - 1)}, {"attempt": now.attempt + 1},
        {"cohort": now.cohort[:-1]}, {"cohort": now.cohort[::-1]}, {"base_model": "0" * 64}, {"minimum_cohort": 1},
        {"deadline": now.deadline + 1}, {"deadline": now.deadline - 1}, {"keys": "0" * 64}, {"epoch": now.epoch + 1},
        {"run": "0" * 64},
    ]  # fmt: skip
    return replace(now, **rng.choice(changes)).to_bytes()


def _other_order(content: RecordDict, rng: random.Random) -> RecordDict:
    order = TRAIN.read(content)
    return TRAIN.pack(Order(order.manifest, _other_plan(order.plan, rng), order.sums, order.head))


def _other_set(content: RecordDict, rng: random.Random) -> RecordDict:
    shown = REVEAL.read(content) if "signatures" in content else AGREE.read(content)
    left = rng.sample(list(shown.contributions), rng.randint(1, len(shown.contributions)))
    ways = [
        replace(shown, contributions=left),
        replace(shown, contributions=left[:-1]),
        replace(shown, plan=_other_plan(shown.plan, rng)),
        replace(shown, signatures=dict(list(shown.signatures.items())[1:])),
    ]
    return AGREE.pack(rng.choice(ways))


def _other_sum(overheard: Overheard, content: RecordDict, rng: random.Random) -> RecordDict | None:
    delivery = EVALUATE.read(content)
    now = _transcript(overheard, delivery.sums[0])
    earlier = [_transcript(overheard, EVALUATE.read(decode_instruction(data).content).sums[0]) for data in
               (every[0] for (_, kind), every in overheard.questions.items() if kind == EVALUATE.name)]  # fmt: skip
    sites = list(now.updates)
    if not sites:
        return None
    if rng.random() < 1 / 3:
        few = rng.sample(sites, min(len(sites), overheard.run.minimum - 1))
        total = now.sum(now.total(*few), now.contributions(*few))
    else:
        lie, chance = rng.choice(list(FORGED_SUMS.values())), np.random.default_rng(rng.randrange(1 << 30))
        try:
            total = lie(now, earlier[0] if earlier else now, chance)
        except (KeyError, IndexError, ValueError):  # there was no such update yet
            return None
    return EVALUATE.pack(Delivery(delivery.manifest, [total], delivery.receipt))


def _transcript(overheard: Overheard, total: EncryptedSum) -> Transcript:
    """Return what the server knows of a sum's round."""
    sent = overheard.updates(total.plan)
    parts = {
        site: part for part in total.contributions for site, update in sent.items() if update.header == part.header
    }
    return Transcript(
        overheard.run, read_plan(total.plan), {site: sent[site] for site in parts},
        pairs={site: part.pairs for site, part in parts.items()},
        reveals={site: part.reveal for site, part in parts.items()},
    )  # fmt: skip


def _damaged(content: RecordDict, rng: random.Random) -> RecordDict:
    """Return content in which one bit, letter or number is another."""
    places = sorted((name, key) for name, record in content.items() for key in record)  # protobuf keeps no order
    if not places:
        return content
    large = [(name, key) for name, key in places if isinstance(content[name][key], Array)]
    where, changed = rng.choice(large if large and rng.random() < 1 / 2 else places), RecordDict()
    for name, record in content.items():
        items: dict[str, Any] = {
            key: _other(value, rng) if (name, key) == where else value for key, value in record.items()
        }
        changed[name] = ArrayRecord(items) if isinstance(record, ArrayRecord) else ConfigRecord(items)
    return changed


def _other(value: Any, rng: random.Random) -> Any:  # noqa: ANN401 - whatever a record holds
    if isinstance(value, Array):
        return Array(value.dtype, value.shape, value.stype, _other(value.data, rng))
    if isinstance(value, bytes) and value:
        place = rng.randrange(len(value))
        return value[:place] + bytes([value[place] ^ 1 << rng.randrange(8)]) + value[place + 1 :]
    if isinstance(value, str) and value:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice("0123456789abcdef".replace(value[place], "")) + value[place + 1 :]
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list) and value:
        return [*value[:-1], _other(value[-1], rng)]
    return value
