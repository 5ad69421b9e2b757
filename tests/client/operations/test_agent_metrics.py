"""What operators see of an agent, as long as it runs and at every stage."""

import socket
import subprocess
import sys
from dataclasses import replace
from threading import Event, Thread
from time import time

import httpx
import pytest

from client.agent import attend
from client.flower import open_site
from client.operations.watched import watched
from client.settings import read_site
from privacy.errors import BudgetError
from simulations.engine.federation import Federation
from tests.federations import NOISY, TERMS, FederationMaker, await_condition, restart, run_with
from tests.ports import unused_port
from tests.server.operations.test_server_metrics import samples


def ask(port: int, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=20, trust_env=False)


def metrics(port: int) -> dict[tuple[str, str], float]:
    return samples(ask(port, "/metrics").text)


def with_port(federation: Federation, site: str) -> int:
    """Give a site a port for operators."""
    port = unused_port()
    with (federation.paths[site] / "site.toml").open("a", encoding="utf-8") as file:
        file.write(f'\n[operations]\nlisten = "127.0.0.1:{port}"\n')
    return port


def test_an_agent_shows_its_rounds_and_what_is_spent(make_federation: FederationMaker) -> None:
    federation = make_federation(replace(NOISY, rounds=2), {"north": replace(TERMS, epsilon=1e6)})
    port, place = with_port(federation, "north"), read_site(federation.paths["north"])
    restart(federation, "north")
    with watched(place) as watch:
        before = metrics(port)
        assert before["cloister_epsilon_spent", "training"] == before["cloister_agent_last_round", ""] == 0
        assert before["cloister_epsilon_left", "training"] == before["cloister_epsilon_budget", "training"] == 1e6
        open_site(federation.paths["north"]).watch = watch
        run_with(federation)
        after = metrics(port)
        assert after["cloister_agent_last_round", ""] == after["cloister_agent_rounds_total", ""] == 2
        assert abs(time() - after["cloister_agent_last_round_timestamp_seconds", ""]) < 60
        spent = after["cloister_epsilon_spent", "training"]
        assert spent == pytest.approx(place.ledger.spent(place.settings.budget.delta))
        assert spent > 0
        assert after["cloister_epsilon_left", "training"] == pytest.approx(1e6 - spent)
        assert after["cloister_epsilon_spent", "held_out"] == 0
        assert 80 < after["cloister_certificate_days_left", ""] < 91
        assert 80 < after["cloister_roster_days_left", ""] < 91
        assert after["process_resident_memory_bytes", ""] > 1 << 20


def test_an_agent_is_ready_while_it_is_online(make_federation: FederationMaker) -> None:
    federation = make_federation()
    port = with_port(federation, "north")
    with watched(read_site(federation.paths["north"])) as watch:
        assert ask(port, "/livez").status_code == 200
        assert ask(port, "/readyz").text == "it has not reached the server yet\n"
        watch.trouble = ""
        assert ask(port, "/readyz").text == "ok\n"
        assert metrics(port)["cloister_agent_online", ""] == 1
        for error in (BudgetError("ε 3 of 2"), BudgetError("ε 4 of 2"), KeyError("Mrs Smith")):
            watch.note_refusal(error)
        shown = metrics(port)
        assert shown["cloister_agent_refusals_total", "BudgetError"] == 2
        assert shown["cloister_agent_refusals_total", "Unexpected"] == 1


def test_an_agent_that_cannot_reach_the_server_says_so_and_is_alive(make_federation: FederationMaker) -> None:
    federation = make_federation(server=f"localhost:{unused_port()}")
    port, stop = with_port(federation, "north"), Event()
    agent = Thread(target=attend, args=(federation.paths["north"], stop))
    agent.start()
    try:
        await_condition(lambda: is_open(port) and "localhost" in ask(port, "/readyz").text)
        assert ask(port, "/readyz").status_code == 503
        assert ask(port, "/livez").status_code == 200
    finally:
        stop.set()
        agent.join(60)
    assert not is_open(port)


def test_an_agent_whose_port_is_taken_works_without_it(
    make_federation: FederationMaker, caplog: pytest.LogCaptureFixture
) -> None:
    federation = make_federation()
    port = with_port(federation, "north")
    with socket.create_server(("127.0.0.1", port)), watched(read_site(federation.paths["north"])) as watch:
        watch.note_training(1)
    assert "the agent goes on without a port for operators" in caplog.text


def test_without_the_setting_there_is_no_port_and_no_web_server_is_loaded(make_federation: FederationMaker) -> None:
    place = read_site(make_federation().paths["north"])
    code = f"""
import sys
from pathlib import Path
from client.operations.watched import watched
from client.settings import read_site
with watched(read_site(Path({str(place.folder)!r}))):
    loaded = {{"uvicorn", "starlette", "prometheus_client"}} & sys.modules.keys()
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
