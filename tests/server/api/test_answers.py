"""Answers that are kept: never older than what this process wrote, nor than a second, and few."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel

from server.api import answers
from server.api.answers import Answers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.store.store import Store
    from tests.server.api.consortia import Consortium, Server


class Said(BaseModel):
    text: str


class Asked:
    """Questions to a store, and how often it was looked at."""

    def __init__(self, store: Store) -> None:
        self.store, self.answers, self.looks = store, Answers(store), 0

    def __call__(self, question: object = "?", text: str = "", look: Callable[[], None] = lambda: None) -> bytes:
        def said() -> Said:
            self.looks += 1
            look()
            return Said(text=text)

        return bytes(asyncio.run(self.answers.to(question, said)).body)


@pytest.fixture
def asked(shared_server: Server) -> Iterator[Asked]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "_SECONDS", 1000.0)
        yield Asked(shared_server.store)


def test_a_question_is_looked_up_once_and_again_after_any_write(asked: Asked, shared_server: Server) -> None:
    assert asked(text="a") == asked(text="b") == b'{"text":"a"}'
    assert asked("!", text="c") == b'{"text":"c"}'
    assert asked.looks == 2
    digest = shared_server.queue.submit(shared_server.consortium.sign("written"), "rosa").digest
    assert asked(text="d") == b'{"text":"d"}'
    asked.store.record(digest).append({"event": "started"})
    assert asked(text="e") == b'{"text":"e"}'


def test_what_is_written_while_the_store_is_read_is_looked_up_again(asked: Asked) -> None:
    digest = asked.store.newest().digest
    assert asked(text="before", look=lambda: asked.store.mark(digest, "failed", "x")) == b'{"text":"before"}'
    assert asked(text="after") == b'{"text":"after"}'


def test_what_another_process_writes_is_seen_within_a_second(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(answers.time, "monotonic", lambda: now)
    monkeypatch.setattr(answers, "_SECONDS", 1.0)
    assert asked(text="old") == b'{"text":"old"}'
    now = 0.9
    assert asked(text="new") == b'{"text":"old"}'
    now = 1.1
    assert asked(text="new") == b'{"text":"new"}'


def test_few_small_answers_are_kept(asked: Asked) -> None:
    for _ in range(2):
        assert len(asked("large", text="x" * 70_000)) > 70_000
    assert asked.looks == 2
    for number in range(1000):
        asked(number)
    assert len(asked.answers._kept) == 256


def test_a_change_shows_in_the_next_answer(consortium: Consortium, shared_server: Server) -> None:
    digest = shared_server.queue.submit(consortium.sign("changing"), "rosa").digest
    with shared_server.http(shared_server.token("rosa")) as http:
        for status in ("running", "failed", "waiting", "stopped"):
            shared_server.store.mark(digest, status)
            assert http.get(f"/v1/runs/{digest}").json()["status"] == status
            assert http.get("/v1/runs", params={"limit": 1}).json()["runs"][0]["status"] == status
            assert http.get(f"/v1/runs/{digest}/events").json()["status"] == status
