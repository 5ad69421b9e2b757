"""A site joins through an HTTP proxy with a password, which its agent's settings then name; and over IPv6."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.settings import read_site
from cloister.cli import app
from privacy.errors import ConfigError, UnreachableError
from privacy.run.invitation import read_invitation
from server.process import open_joining_port
from server.settings import read_consortium
from tests.cloister.commands.test_joining_by_network import cloister, token
from tests.ports import unused_port
from tests.private_keys import forms_of_private_keys
from tests.transport.tunnels import TunnelProxy

LOGIN = ("north", "hunter2")


def test_a_site_joins_through_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    port = unused_port()
    cloister("init", "lungs", "--host", "fed.example.test", "--joining-port", str(port), "--folder", "lungs",
             "--online")  # fmt: skip
    text = token(tmp_path / "lungs")
    server = f"fed.example.test:{port}"
    with ExitStack() as stack:
        open_joining_port(read_consortium(tmp_path / "lungs" / "server"), stack)
        proxy = stack.enter_context(TunnelProxy({server: port}, LOGIN))
        with pytest.raises(UnreachableError, match="asks for a user and a password"):
            cloister("join", text, "--proxy", proxy.place)
        with pytest.raises(UnreachableError, match="cannot reach the joining port"):
            cloister("join", text, "--proxy", "none")
        assert not Path("north").exists()
        monkeypatch.setenv("CLOISTER_PROXY_USER", LOGIN[0])
        monkeypatch.setenv("CLOISTER_PROXY_PASSWORD", LOGIN[1])
        assert "✓ north is a member, in roster 1" in cloister("join", text, "--proxy", proxy.place)
    assert proxy.asked == [server] * 3  # one was refused; the site connects twice
    place = read_site(Path("north"))
    assert place.settings.network.proxy == proxy.place
    assert place.proxy is not None
    for form in (*forms_of_private_keys(Path("north")), bytes.fromhex(read_invitation(text).secret)):
        assert form not in proxy.passed


def test_a_site_joins_through_the_proxy_of_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    port = unused_port()
    cloister("init", "lungs", "--host", "fed.example.test", "--joining-port", str(port), "--folder", "lungs",
             "--online")  # fmt: skip
    with ExitStack() as stack:
        open_joining_port(read_consortium(tmp_path / "lungs" / "server"), stack)
        proxy = stack.enter_context(TunnelProxy({f"fed.example.test:{port}": port}, LOGIN))
        monkeypatch.setenv("https_proxy", f"http://{':'.join(LOGIN)}@{proxy.place}")
        monkeypatch.delenv("no_proxy", raising=False)
        assert "✓ north is a member" in cloister("join", token(tmp_path / "lungs"))
    assert "proxy" not in (tmp_path / "north" / "site.toml").read_text(encoding="utf-8")


def test_a_proxy_that_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cloister("init", "lungs", "--host", "localhost", "--folder", "lungs", "--online")
    with pytest.raises(ConfigError, match="must hold no user and no password"):
        CliRunner().invoke(
            app, ["join", token(tmp_path / "lungs"), "--proxy", "http://a:b@proxy:1"], catch_exceptions=False
        )


def test_a_site_joins_over_ipv6(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cloister("init", "lungs", "--host", "::1", "--joining-port", str(unused_port()), "--folder", "lungs", "--online")
    text = token(tmp_path / "lungs")
    assert read_invitation(text).server == "[::1]:9440"
    with ExitStack() as stack:
        open_joining_port(read_consortium(tmp_path / "lungs" / "server"), stack)
        assert "✓ north is a member" in cloister("join", text)
    assert read_site(Path("north")).settings.server == "[::1]:9440"
