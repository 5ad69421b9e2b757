"""`cloister check` names what a proxy or another clock does to a site, for causes that are made for real."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from client import line_checks
from privacy.errors import ConfigError
from server.hub import hub as hubs
from simulations.engine.federation import Federation
from tests.cloister.commands.test_check import SITES, check, serving, settle, text_of
from tests.transport.tunnels import TunnelProxy
from transport.framing import measurement_answer

SERVER = "fed.example.test:9440"  # has no address here: only a proxy can reach it


@pytest.fixture(scope="module")
def distant(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A consortium whose server has a name that does not resolve here."""
    return Federation.create(tmp_path_factory.mktemp("distant") / "lungs", SITES, host="fed.example.test")


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation.create(tmp_path_factory.mktemp("near") / "lungs", SITES)


def through(federation: Federation, proxy: str, server: str = SERVER) -> Path:
    """Write the settings of a site that names a proxy."""
    place = settle(federation, server, tasks=())
    with (place / "site.toml").open("a", encoding="utf-8") as file:
        file.write(f'\n[network]\nproxy = "{proxy}"\n')
    return place


def test_a_proxy_that_opens_a_tunnel_is_named(distant: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOISTER_PROXY_USER", "north")
    monkeypatch.setenv("CLOISTER_PROXY_PASSWORD", "hunter2")
    with serving(distant) as here, TunnelProxy({SERVER: int(here.rpartition(":")[2])}, ("north", "hunter2")) as proxy:
        findings = check(through(distant, proxy.place))
    assert f"localhost:{proxy.port} (from the settings) opened a tunnel to {SERVER}" in text_of(findings, "proxy", "ok")
    assert [findings[name]["state"] for name in ("TLS", "line", "clock")] == ["ok"] * 3, findings
    assert not {"name", "port"} & set(findings)  # the proxy resolves and dials
    assert "hunter2" not in str(findings)


def test_a_password_in_the_settings_is_refused_with_its_line(distant: Federation) -> None:
    with pytest.raises(ConfigError, match=r"must hold no user and no password; set CLOISTER_PROXY_USER"):
        check(through(distant, "http://north:word@proxy:3128"))


def test_a_slow_line_and_a_server_that_cannot_measure_it_are_warnings(
    near: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(near) as server:
        place = settle(near, server, tasks=())
        with monkeypatch.context() as patch:
            patch.setattr(line_checks, "_SLOW", 1e9)
            assert "ask your network team whether" in text_of(check(place), "line", "warning")

        async def unknown(_: object, __: bytes, context: Any) -> None:  # noqa: ANN401 - gRPC's
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")  # as a server before this version

        monkeypatch.setattr(hubs.Hub, "_measure", unknown)
    with serving(near) as server:
        findings = check(settle(near, server, tasks=()))
    for name in ("line", "clock"):
        assert "install the same version of Cloister at both ends" in text_of(findings, name, "warning")


def test_a_clock_that_only_runs_with_short_rounds_mind_is_a_warning(
    near: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "measurement_answer", lambda request, clock: measurement_answer(request, clock - 20))
    with serving(near) as server:
        text = text_of(check(settle(near, server, tasks=())), "clock", "warning")
    assert "ahead of the server's; a run whose round_deadline_seconds is below 4" in text
