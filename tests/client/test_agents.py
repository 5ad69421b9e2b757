"""Several sites in one process: each answers, one at a time, and what is wrong with one ends no other."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest
from flwr.app import Message, MessageType

from client.agents import attend_all
from privacy.errors import CloisterError, ConfigError
from privacy.run.plan import RoundPlan
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation
from tests import studies
from tests.client.agent_rounds import plan_of
from tests.federations import (
    SETTINGS,
    TERMS,
    FederationMaker,
    await_condition,
    node_of,
    roster_of,
    signed_run,
    task_name,
)
from tests.forked import ForkedAgents
from tests.ports import unused_port
from transport import messages as wire
from transport.flower import instruction, stamp
from transport.parcel import decode_reply, encode
from transport.run_messages import pack_train, read_readiness

HERE = ("north", "south")
LONG = 20.0


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(replace(SETTINGS, task=task_name(studies.Held)), server=f"localhost:{unused_port()}")


@contextmanager
def served(federation: Federation, *paths: Path) -> Iterator[tuple[Mailboxes, list[CloisterError]]]:
    """Run a server's port, and the agents of these sites in one process, in which the error ends that ends all."""
    place = read_consortium(federation.server)
    mailboxes = Mailboxes({member.node_id for member in roster_of(federation).members})
    hub = Hub(place.roster(), mailboxes, 64 << 20)
    port = (federation.paths["north"] / "site.toml").read_text().partition('server = "')[2].partition('"')[0]
    hub.start(port, place.tls)
    stop, errors = Event(), list[CloisterError]()

    def run() -> None:
        try:
            attend_all(paths, stop)
        except CloisterError as error:
            errors.append(error)

    agents = Thread(target=run)
    agents.start()
    try:
        yield mailboxes, errors
    finally:
        stop.set()
        hub.stop(grace=0)  # whoever waits for a message is woken
        agents.join(LONG)
    assert not agents.is_alive()


def send(federation: Federation, mailboxes: Mailboxes, site: str, plan: RoundPlan | None = None) -> Message:
    """Ask a site to train under a plan, or whether it takes part."""
    document, _, _ = signed_run(federation)
    content = pack_train(document, plan.to_bytes(), []) if plan else wire.QUERY.pack(wire.Query(document))
    kind = MessageType.TRAIN if plan else MessageType.QUERY
    message = instruction(content, kind=kind, node=node_of(federation, site), run_id=1, group="1", ttl=LONG)
    stamp(message)
    mailboxes.put(node_of(federation, site), message.metadata.message_id, encode(message))
    return message


def receive(mailboxes: Mailboxes, message: Message) -> Message:
    taken = mailboxes.take({message.metadata.message_id}, LONG)
    assert taken is not None
    assert taken[1] is not None
    return decode_reply(taken[1], message)


def test_sites_in_one_process_answer_for_themselves_and_their_logs_say_for_whom(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cloister.agent")
    with served(federation, *(federation.paths[site] for site in HERE)) as (mailboxes, errors):
        for site, message in {site: send(federation, mailboxes, site) for site in HERE}.items():
            assert read_readiness(receive(mailboxes, message).content).site == site
    assert errors == []
    online = [record.threadName for record in caplog.records if "online at" in record.getMessage()]
    assert sorted(filter(None, online)) == sorted(HERE)


def test_sites_in_one_process_take_turns(federation: Federation) -> None:
    holds = {site: federation.paths[site] / studies.HOLD for site in HERE}
    for hold in holds.values():
        hold.touch()
    plan = plan_of(federation)  # works with torch, so not beside the agents
    with served(federation, *(federation.paths[site] for site in HERE)) as (mailboxes, errors):
        messages = [send(federation, mailboxes, site, plan) for site in HERE]

        def training() -> list[str]:
            return [site for site, hold in holds.items() if hold.with_suffix(studies.MET).exists()]

        await_condition(lambda: bool(training()))
        (first,) = training()
        holds[first].unlink()
        await_condition(lambda: len(training()) == 2)
        holds[(set(HERE) - {first}).pop()].unlink()
        assert all(receive(mailboxes, message).has_content() for message in messages)
    assert errors == []


def test_what_is_wrong_with_one_site_is_logged_and_the_others_go_on(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    (federation.paths["south"] / "keys" / "sealing.key").unlink()
    nowhere, north = federation.folder / "nowhere", federation.paths["north"]
    with served(federation, nowhere, federation.paths["south"], north, north / "site.toml") as (mailboxes, errors):
        message = send(federation, mailboxes, "north")
        assert read_readiness(receive(mailboxes, message).content).site == "north"
    assert errors == []
    assert f"{nowhere}" in caplog.text
    assert "sealing.key: no such file" in caplog.text
    assert "are one site; the second is left out" in caplog.text


def test_if_no_site_can_go_on_the_command_fails(federation: Federation, caplog: pytest.LogCaptureFixture) -> None:
    for site in HERE:
        (federation.paths[site] / "keys" / "roster").unlink()
    with pytest.raises(ConfigError, match="the log says why"):
        attend_all([federation.paths[site] for site in HERE], Event())
    assert caplog.text.count("roster: no such file") == 2


def test_a_task_beside_one_site_is_not_another_sites(
    federation: Federation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    for site in HERE:
        (federation.paths[site] / "of_one_site.py").write_text(f"WHOSE = {site!r}\n", encoding="utf-8")
        federation.write_settings(site, "localhost:1", replace(TERMS, tasks=("of_one_site:Study",)))
    with pytest.raises(ConfigError, match="none of these sites"):
        attend_all([federation.paths[site] for site in HERE], Event())
    assert caplog.text.count("is a file beside its site.toml") == 2


def test_processes_that_train_one_site_together_do_not_serve_several(monkeypatch: pytest.MonkeyPatch) -> None:
    place = {"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="name one site"):
        attend_all([], Event())


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_the_agents_of_a_process_end_at_once_and_their_log_names_the_sites(federation: Federation) -> None:
    with ForkedAgents() as processes:
        log = federation.folder / "agents.log"
        agents = processes.start("agents", log, "agent", *(str(federation.paths[site]) for site in HERE))
        for site in HERE:  # nobody listens there
            processes.wait_for_line("agents", f"WARNING {site}: ", LONG)
        agents.terminate()
        assert agents.wait(LONG) == 130
        assert "left; nothing is lost" in log.read_text(encoding="utf-8")
