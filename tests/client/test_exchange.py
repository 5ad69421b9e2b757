"""A reply of any size arrives whole, and a short one leaves without a thread of its own."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.exchange import Exchange
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests.federations import tls_of
from transport.framing import FRAME_BYTES

SITES = ("north", "south")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.create(tmp_path, SITES)


@pytest.fixture
def mailboxes(federation: Federation) -> Mailboxes:
    roster = read_consortium(federation.server).roster()
    return Mailboxes({member.node_id for member in roster.members})


@pytest.fixture
def exchange(federation: Federation, mailboxes: Mailboxes) -> Iterator[Exchange]:
    place = read_consortium(federation.server)
    hub = Hub(place.roster(), mailboxes, 4 << 20)
    try:
        with Exchange(f"localhost:{hub.start('localhost:0', place.tls)}", tls_of(federation, "north")) as exchange:
            yield exchange
    finally:
        hub.stop(grace=0)


def _answered(federation: Federation, mailboxes: Mailboxes, exchange: Exchange, parts: tuple[bytes, ...]) -> bytes:
    """Push a reply, and return what the server took."""
    node = read_consortium(federation.server).roster().member("north").node_id
    mailboxes.put(node, "m", ())
    assert exchange.push(parts, "m")
    entry = mailboxes.take({"m"}, 0)
    assert entry is not None
    assert entry[1] is not None
    return bytes(entry[1])


@pytest.mark.parametrize("size", [1, FRAME_BYTES - 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES])
def test_a_reply_of_any_size_arrives_whole(
    federation: Federation, mailboxes: Mailboxes, exchange: Exchange, size: int
) -> None:
    parts = (b"h" * (size // 3), b"d" * (size - size // 3))
    assert _answered(federation, mailboxes, exchange, parts) == b"".join(parts)


def test_only_a_reply_in_several_chunks_starts_a_thread(
    federation: Federation, mailboxes: Mailboxes, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, start = list[threading.Thread](), threading.Thread.start

    def counted(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", counted)
    for size, threads in ((FRAME_BYTES, 0), (FRAME_BYTES + 1, 1)):
        started.clear()
        node = read_consortium(federation.server).roster().member("north").node_id
        mailboxes.put(node, str(size), ())
        assert exchange.push((bytes(size),), str(size))
        assert len(started) == threads
