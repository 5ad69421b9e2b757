"""A server's port for operators, from when it waits to lead until it ends."""

from pathlib import Path
from threading import Event

import httpx
import pytest

from privacy.errors import StorageError
from server.operations.operating import operating
from server.process import open_service
from server.settings import read_consortium
from server.store.store import Store
from server.store.watching import StoreWatch
from simulations.engine.federation import Federation
from tests.federations import FederationMaker, await_condition, opened_run
from tests.ports import unused_port
from tests.server.operations.test_server_metrics import samples


class Operated:
    """A federation's server folder with a port for operators."""

    def __init__(self, federation: Federation) -> None:
        self.federation, self.port = federation, unused_port()
        self.settings(f"[operations]\nlisten = '127.0.0.1:{self.port}'")
        self.place = read_consortium(federation.server)

    def settings(self, further: str) -> None:
        text = f'consortium = "demo"\nlisten = "localhost:{unused_port()}"\n{further}\n'
        (self.federation.server / "consortium.toml").write_text(text, encoding="utf-8")

    def ask(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=20, trust_env=False)

    def metrics(self) -> dict[tuple[str, str], float]:
        return samples(self.ask("/metrics").text)


@pytest.fixture
def operated(make_federation: FederationMaker) -> Operated:
    return Operated(make_federation())


def test_a_server_that_leads_is_ready_and_shows_its_runs(operated: Operated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.watching._SECONDS", 0.0)
    with open_service(operated.place, print, Event()) as service:
        assert operated.ask("/readyz").text == operated.ask("/livez").text == "ok\n"
        service.submit(opened_run(operated.federation).document, "founder")
        metrics = operated.metrics()
        assert metrics["cloister_server_leading", ""] == metrics["cloister_server_ready", ""] == 1
        assert metrics["cloister_sites_members", ""] == 4
        assert metrics["cloister_sites_online", ""] == metrics["cloister_runs", "failed"] == 0
        assert metrics["cloister_runs", "waiting"] == 1
        assert 80 < metrics["cloister_certificate_days_left", ""] < 91
        assert 80 < metrics["cloister_roster_days_left", ""] < 91
    with pytest.raises(httpx.ConnectError):
        operated.ask("/livez")


def test_a_server_that_waits_to_lead_is_alive_but_not_ready(operated: Operated) -> None:
    Store.open(operated.place).close()
    with operating(operated.place):
        answer = operated.ask("/readyz")
        assert (answer.status_code, answer.text) == (503, "another process leads; this one waits to take over\n")
        assert operated.ask("/livez").text == "ok\n"
        assert operated.metrics()["cloister_server_leading", ""] == 0


def test_a_server_that_cannot_reach_its_store_does_not_blame_another_process(operated: Operated) -> None:
    away = f"postgresql+psycopg://owner@127.0.0.1:{unused_port()}/postgres"
    operated.settings(f"[operations]\nlisten = '127.0.0.1:{operated.port}'\n[store]\nurl = '{away}'")
    with operating(read_consortium(operated.federation.server)):
        answer = operated.ask("/readyz")
        assert answer.status_code == 503
        assert answer.text.startswith(f"{away}: PostgreSQL cannot be used (")
        assert "another process" not in answer.text


def test_a_store_that_is_damaged_or_full_makes_a_server_unready(
    operated: Operated, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.open(operated.place).close()
    watch = StoreWatch(operated.place)
    assert not watch.look().trouble
    monkeypatch.setattr("server.store.watching._SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("server.store.watching._ROOM", 1 << 62)
        assert "make room on it" in watch.look().trouble
    assert not watch.look().trouble
    watch.close()
    for file in Path(operated.federation.server).glob("store.sqlite*"):
        file.write_bytes(b"no database" * 1000)
    assert "this database is damaged" in watch.look().trouble
    watch.close()


def test_a_store_that_is_removed_meanwhile_is_not_made_anew(operated: Operated) -> None:
    folder = Path(operated.federation.server)
    with Store.open(operated.place) as store:
        store.runs()
        for file in folder.glob("store.sqlite*"):
            file.unlink()
        watch = StoreWatch(operated.place)
        assert "store.sqlite is missing; restore it from the server's backup" in watch.look().trouble
        watch.close()
        store.database.close()
        with pytest.raises(StorageError, match="is missing; restore it"):
            store.runs()
    assert not list(folder.glob("store.sqlite*"))


def test_looking_often_asks_the_store_now_and_then(operated: Operated) -> None:
    Store.open(operated.place).close()
    watch = StoreWatch(operated.place)
    assert all(watch.look() is watch.look() for _ in range(100))
    watch.close()


def test_without_the_settings_there_is_no_port(operated: Operated) -> None:
    operated.settings("")
    place = read_consortium(operated.federation.server)
    with open_service(place, print, Event()) as service:
        await_condition(lambda: service.status().roster is not None)
        with pytest.raises(httpx.ConnectError):
            operated.ask("/livez")
