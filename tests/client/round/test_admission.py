"""A message is admitted once; each kind of message is answered, and each kind of run has its work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args
from unittest.mock import Mock

from client import app
from client.flower import app as client_app
from client.work import works
from privacy.ledger.entries import Purpose
from privacy.run.policy import check_policy
from tests.client.round.masked_rounds import MASKED
from tests.federations import FederationMaker, run_with
from transport.messages import ACCEPT, KINDS, LEAD, PAIRS

if TYPE_CHECKING:
    import pytest
    from flwr.app import Context, Message

ABOUT_KEYS = {LEAD.name, ACCEPT.name, PAIRS.name}


def test_each_message_about_a_run_is_checked_against_the_policy_once(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, seen = Mock(wraps=check_policy), set[str]()
    monkeypatch.setattr("client.round.admission.check_policy", check)

    def answer(message: Message, context: Context) -> Message:
        check.reset_mock()
        kind = message.metadata.message_type
        answer_ = client_app(message, context)
        assert check.call_count == (0 if kind in ABOUT_KEYS else 1), kind
        seen.add(kind)
        return answer_

    bounded = replace(MASKED, rounds=1, encryption=replace(MASKED.encryption, update_norm=1e6))
    (event,) = run_with(make_federation(bounded), answer)
    assert event["released"]
    assert seen == KINDS.keys() - ABOUT_KEYS - {"query.judge", "query.undo"}  # the sites have keys already


def test_each_kind_of_message_is_answered() -> None:
    assert app._ANSWERS.keys() == set(KINDS.values())


def test_each_kind_of_run_that_a_ledger_knows_has_its_work() -> None:
    assert works._KINDS.keys() == set(get_args(Purpose)) - {"vote"}
