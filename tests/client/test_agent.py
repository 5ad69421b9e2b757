"""The agent's process on the line: it comes back whenever the line breaks, and no message ends it."""

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from threading import Event, Thread
from typing import Any

import pytest
from flwr.app import Message, MessageType

from client.agent import attend
from client.exchange import Exchange
from privacy.errors import AuthenticityError, CloisterError, ConfigError, KeyFileError
from privacy.run.roster import Roster, sign_roster
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests import studies
from tests.client.agent_rounds import plan_of, update_of
from tests.federations import (
    SETTINGS,
    TERMS,
    FederationMaker,
    authority_of,
    await_condition,
    charges_of,
    node_of,
    roster_of,
    signed_run,
    task_name,
    tls_of,
)
from tests.ports import unused_port
from tests.transport.tunnels import TunnelProxy
from transport import messages as wire
from transport.flower import instruction, stamp
from transport.parcel import decode_reply, encode
from transport.run_messages import pack_train, read_readiness

SITE = "north"
LONG = 20.0


@dataclass
class Agent:
    """An agent in a thread."""

    stop: Event = field(default_factory=Event)
    errors: list[CloisterError] = field(default_factory=list)
    thread: Thread | None = None

    @property
    def ended(self) -> bool:
        return self.thread is not None and not self.thread.is_alive()


@dataclass
class Server:
    """The server's side of the line, which the test cuts and mends."""

    federation: Federation
    mailboxes: Mailboxes
    port: int
    hub: Hub | None = None

    def open(self, roster: Roster | None = None) -> None:
        place = read_consortium(self.federation.server)
        self.hub = Hub(roster or place.roster(), self.mailboxes, 64 << 20)
        self.hub.start(f"localhost:{self.port}", place.tls)

    def cut(self) -> None:
        if self.hub is not None:
            self.hub.stop(grace=0)
            self.hub = None

    @property
    def online(self) -> bool:
        return node_of(self.federation, SITE) in self.mailboxes.online(0)

    def send(self, message: Message) -> None:
        self.mailboxes.put(node_of(self.federation, SITE), message.metadata.message_id, encode(message))

    def receive(self, message: Message, seconds: float = LONG) -> Message:
        messages = self.mailboxes.take({message.metadata.message_id}, seconds)
        assert messages is not None
        assert messages[1] is not None
        return decode_reply(messages[1], message)


def query(federation: Federation, kind: str = MessageType.QUERY) -> Message:
    """Ask the site whether it takes part."""
    document = signed_run(federation)[0]
    return _message(federation, wire.QUERY.pack(wire.Query(document)), kind)


def train(federation: Federation) -> Message:
    """Ask the site to train."""
    plan = plan_of(federation)
    return _message(federation, pack_train(signed_run(federation)[0], plan.to_bytes(), []), MessageType.TRAIN)


def _message(federation: Federation, content: Any, kind: str) -> Message:  # noqa: ANN401 - a RecordDict
    message = instruction(content, kind=kind, node=node_of(federation, SITE), run_id=1, group="1", ttl=LONG)
    stamp(message)
    return message


@pytest.fixture
def port() -> int:
    return unused_port()


@pytest.fixture
def federation(make_federation: FederationMaker, port: int) -> Federation:
    return make_federation(replace(SETTINGS, task=task_name(studies.Held)), server=f"localhost:{port}")


@pytest.fixture
def server(federation: Federation, port: int) -> Iterator[Server]:
    server_ = Server(federation, Mailboxes({member.node_id for member in roster_of(federation).members}), port)
    yield server_
    server_.cut()


@contextmanager
def agent_of(federation: Federation, server: Server) -> Iterator[Agent]:
    """Run the site's agent while the test goes on."""
    agent = Agent()

    def run() -> None:
        try:
            attend(federation.paths[SITE], agent.stop)
        except CloisterError as error:
            agent.errors.append(error)

    agent.thread = Thread(target=run, name=SITE)
    agent.thread.start()
    try:
        yield agent
    finally:
        agent.stop.set()
        server.cut()  # whoever waits for a message is woken
        agent.thread.join(LONG)
    assert agent.ended


def test_an_agent_answers_until_it_is_stopped(federation: Federation, server: Server) -> None:
    server.open()
    with agent_of(federation, server) as agent:
        for _ in range(2):
            message = query(federation)
            server.send(message)
            assert read_readiness(server.receive(message).content).site == SITE
    assert agent.errors == []


def test_an_agent_goes_through_the_proxy_of_its_settings(
    federation: Federation, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.open()
    with TunnelProxy() as proxy, (federation.paths[SITE] / "site.toml").open("a", encoding="utf-8") as settings:
        settings.write(f'\n[network]\nproxy = "{proxy.place}"\n')
        settings.flush()
        with caplog.at_level(logging.INFO, "cloister.agent"), agent_of(federation, server):
            message = query(federation)
            server.send(message)
            assert read_readiness(server.receive(message).content).site == SITE
    assert set(proxy.asked) == {f"localhost:{server.port}"}
    assert f"online at localhost:{server.port} through the proxy {proxy.place} (from the settings)" in caplog.text


def test_an_agent_warns_of_metrics_that_its_policy_lets_out(
    federation: Federation, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    terms = replace(TERMS, tasks=(task_name(studies.Held),), disclose=("epsilon", "loss", "accuracy"))
    federation.write_settings(SITE, f"localhost:{server.port}", terms)
    server.open()
    with agent_of(federation, server):
        await_condition(lambda: "`disclose` lists loss, accuracy: sent after every round without noise" in caplog.text)


def test_an_agent_that_starts_before_the_server_waits_for_it_and_logs_that_once(
    federation: Federation, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "cloister.agent"), agent_of(federation, server) as agent:
        with _hanging_up(server.port) as attempts:
            await_condition(lambda: len(attempts) >= 3)
        server.open()
        await_condition(lambda: server.online)
        causes = [line for line in caplog.messages if "retrying until it answers" in line]
        assert 1 <= len(set(causes)) == len(causes)  # between the two servers, the port is closed
        assert f"localhost:{server.port}" in caplog.text
    assert agent.errors == []


def test_an_agent_that_gets_through_the_probe_and_no_further_waits_longer_each_time(
    federation: Federation, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "cloister.agent"), _only_handshakes(server) as attempts:
        with agent_of(federation, server) as agent:
            # After a success, it would be half of this at most.
            await_condition(lambda: any(later - earlier > 0.8 for earlier, later in pairwise(attempts)))
            await_condition(lambda: "retrying until it answers" in caplog.text)
        assert agent.errors == []
    assert caplog.text.count("retrying until it answers") == 1
    assert "online at" not in caplog.text


@contextmanager
def _only_handshakes(server: Server) -> Iterator[list[float]]:
    """A server that welcomes every site, and ends the connection as soon as it is asked for anything."""
    files, attempts = read_consortium(server.federation.server).tls, list[float]()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    context.set_alpn_protocols(["h2"])
    with socket.create_server(("localhost", server.port)) as listener:

        def take() -> None:
            with suppress(OSError):
                while True:
                    plain, _ = listener.accept()
                    attempts.append(time.monotonic())
                    with suppress(OSError), context.wrap_socket(plain, server_side=True) as secured:
                        secured.sendall(b"?")

        thread = Thread(target=take)
        thread.start()
        try:
            yield attempts
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(LONG)


@contextmanager
def _hanging_up(port: int) -> Iterator[list[object]]:
    """Take connections and close them, as a proxy does whose server is not there yet."""
    attempts: list[object] = []
    with socket.create_server(("localhost", port)) as listener:

        def take() -> None:
            with suppress(OSError):
                while True:
                    connection, address = listener.accept()
                    connection.close()
                    attempts.append(address)

        thread = Thread(target=take)
        thread.start()
        try:
            yield attempts
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(LONG)


def test_an_agent_comes_back_when_the_server_does_and_sends_the_update_that_it_had_made(
    federation: Federation, server: Server
) -> None:
    folder = federation.paths[SITE]
    (folder / studies.HOLD).touch()
    message = train(federation)
    server.open()
    with agent_of(federation, server) as agent:
        server.send(message)
        await_condition((folder / studies.HOLD).with_suffix(studies.MET).exists)
        server.cut()  # while it works
        (folder / studies.HOLD).unlink()
        await_condition(lambda: any((folder / "outbox").glob("*.update")))
        server.open()
        first = update_of(server.receive(message))
        assert charges_of(federation, SITE) == 1
        again = _message(federation, message.content, MessageType.TRAIN)
        server.send(again)
        assert update_of(server.receive(again)) == first
    assert charges_of(federation, SITE) == 1
    assert agent.errors == []


def test_a_reply_that_comes_too_late_does_not_end_the_agent(
    federation: Federation, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    folder = federation.paths[SITE]
    (folder / studies.HOLD).touch()
    message, after = train(federation), query(federation)
    server.open()
    with caplog.at_level(logging.INFO, "cloister.agent"), agent_of(federation, server) as agent:
        server.send(message)
        await_condition((folder / studies.HOLD).with_suffix(studies.MET).exists)
        server.mailboxes.withdraw({message.metadata.message_id})
        server.send(after)
        (folder / studies.HOLD).unlink()
        assert server.receive(after).has_content()
        assert server.mailboxes.take({message.metadata.message_id}, 0) is None
    assert "came too late" in caplog.text
    assert agent.errors == []


def test_a_reply_that_the_server_refuses_does_not_end_the_agent(
    federation: Federation, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    folder = federation.paths[SITE]
    (folder / studies.HOLD).touch()
    message, after = train(federation), query(federation)
    server.open()
    with agent_of(federation, server) as agent:
        server.send(message)
        await_condition((folder / studies.HOLD).with_suffix(studies.MET).exists)
        with Exchange(f"localhost:{server.port}", tls_of(federation, SITE)) as another:
            assert another.push((b"a reply of another agent of this site",), message.metadata.message_id)
        server.send(after)
        (folder / studies.HOLD).unlink()
        assert server.receive(after).has_content()
    assert f"{SITE}: another reply to this message was already accepted; this one was refused" in caplog.messages
    assert agent.errors == []


@pytest.mark.parametrize("kind", ["train.unheard_of", "query.unheard_of", "system"])
def test_a_message_that_the_app_does_not_know_gets_an_error_and_does_not_end_the_agent(
    federation: Federation, server: Server, kind: str
) -> None:
    message, after = query(federation, kind), query(federation)
    server.open()
    with agent_of(federation, server) as agent:
        server.send(message)
        server.send(after)
        assert "unexpected error" in str(server.receive(message).error.reason)
        assert server.receive(after).has_content()
    assert agent.errors == []


@pytest.mark.parametrize("data", [b"garbage \xff", b"\x08"], ids=["no parcel", "cut"])
def test_bytes_that_are_not_a_message_do_not_end_the_agent(
    federation: Federation, server: Server, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    after = query(federation)
    server.mailboxes.put(node_of(federation, SITE), "garbage", (data,))
    server.send(after)
    server.open()
    with agent_of(federation, server) as agent:
        await_condition(lambda: "not a Cloister message" in caplog.text)
        server.mailboxes.withdraw({"garbage"})  # nobody will answer it
        assert server.receive(after).has_content()
    assert agent.errors == []


# --- What ends an agent ---------------------------------------------------------------------------------------------


def complaint(federation: Federation, server: Server, kind: type[CloisterError]) -> str:
    """With what error the agent ends, which must be soon."""
    started = time.monotonic()
    with agent_of(federation, server) as agent:
        await_condition(lambda: agent.ended)
    assert time.monotonic() - started < 15  # loaded machines
    (error,) = agent.errors
    assert type(error) is kind
    return str(error)


def test_a_site_missing_from_the_servers_roster_gets_the_reason_and_ends(
    federation: Federation, server: Server
) -> None:
    roster = roster_of(federation)
    server.open(replace(roster, members=tuple(member for member in roster.members if member.site != SITE)))
    message = complaint(federation, server, AuthenticityError)
    assert f"the server at localhost:{server.port} refuses this site" in message
    assert "ask the coordinator to add this site" in message


def test_a_site_of_another_consortium_gets_the_reason_and_ends(
    federation: Federation,
    server: Server,
    tmp_path: Any,  # noqa: ANN401
) -> None:
    server.federation = Federation.create(tmp_path / "another", ("north", "south", "east"))
    server.open()
    assert f"localhost:{server.port} presents a certificate" in complaint(federation, server, AuthenticityError)


def _lose_settings(federation: Federation) -> None:
    (federation.paths[SITE] / "site.toml").unlink()


def _lose_signing_key(federation: Federation) -> None:
    (federation.paths[SITE] / "keys" / "signing.key").unlink()


def _mistype_address(federation: Federation) -> None:
    file = federation.paths[SITE] / "site.toml"
    file.write_text(file.read_text().replace("localhost:", "localhost:-"))


def _let_roster_expire(federation: Federation) -> None:
    roster = replace(roster_of(federation), expires=time.time() - 1)
    signed = sign_roster(roster, authority_of(federation).key)
    (federation.paths[SITE] / "keys" / "roster").write_bytes(signed.to_bytes())


@pytest.mark.parametrize(
    ("spoil", "kind", "reason"),
    [
        (_lose_settings, ConfigError, "name an existing settings file"),
        (_lose_signing_key, KeyFileError, "restore this key from its owner's backup"),
        (_mistype_address, ConfigError, "is not an address; a port is a number from 1 to 65535"),
        (_let_roster_expire, KeyFileError, "has expired; ask the coordinator for a newer one"),
    ],
)
def test_a_fault_of_the_site_itself_is_reported_and_ends_the_agent(
    federation: Federation, server: Server, spoil: Callable[[Federation], None], kind: type[CloisterError], reason: str
) -> None:
    spoil(federation)
    server.open()
    assert reason in complaint(federation, server, kind)
