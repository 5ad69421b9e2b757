"""Sites reach their server through an HTTP proxy, with its own name and TLS; a refusal is one sentence."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread

import pytest

from client.exchange import Exchange
from privacy.errors import AuthenticityError, ConfigError, UnreachableError
from simulations.engine.federation import Federation
from tests.federations import tls_of
from tests.ports import unused_port
from tests.transport.hubs import listening
from tests.transport.tunnels import TunnelProxy
from transport.channel import probe
from transport.proxies import Proxy, check_setting, proxy_for

SERVER = "fed.example.test:9440"  # has no address here: only a proxy can reach it
LOGIN = ("north", "s3cret: é@/")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation.create(tmp_path_factory.mktemp("proxies"), ("north", "south"), host="fed.example.test")


@pytest.fixture(scope="module")
def port(federation: Federation) -> Iterator[int]:
    with listening(federation) as number:
        yield number


def reach(federation: Federation, proxy: Proxy | None, server: str = SERVER) -> None:
    """Probe the server, and pull from it, as an agent does."""
    files = tls_of(federation, "north")
    probe(server, files, proxy=proxy)
    with Exchange(server, files, proxy) as exchange:
        assert exchange.pull(wait=0) is None


@pytest.mark.parametrize("login", [None, LOGIN])
@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_a_server_is_reached_through_a_proxy_that_resolves_its_name(
    federation: Federation, port: int, login: tuple[str, str] | None, host: str
) -> None:
    user, password = login or ("", "")
    environment = {"CLOISTER_PROXY_USER": user, "CLOISTER_PROXY_PASSWORD": password}
    with TunnelProxy({SERVER: port}, login, host=host) as proxy:
        reach(federation, proxy_for("fed.example.test", f"http://{proxy.place}", environment))
    assert proxy.asked == [SERVER] * 2


def test_a_proxy_and_password_in_a_variable_are_used(federation: Federation, port: int) -> None:
    with TunnelProxy({SERVER: port}, LOGIN) as proxy:
        environment = {"https_proxy": f"http://north:s3cret%3A%20%C3%A9%40%2F@{proxy.place}/"}
        reach(federation, proxy_for("fed.example.test", None, environment))


def test_a_proxy_sees_no_certificate_of_the_site_and_no_call(federation: Federation, port: int) -> None:
    with TunnelProxy({SERVER: port}) as proxy:
        reach(federation, proxy_for("fed.example.test", proxy.place, {}))
    assert b"north" not in proxy.passed
    assert b"Exchange" not in proxy.passed


def test_through_a_proxy_a_server_must_still_show_its_own_name(federation: Federation, port: int) -> None:
    other = "other.example.test:9440"
    with TunnelProxy({other: port}) as proxy:
        through = proxy_for("other.example.test", proxy.place, {})
        with pytest.raises(AuthenticityError, match="a certificate for another name"):
            probe(other, tls_of(federation, "north"), proxy=through)
        with Exchange(other, tls_of(federation, "north"), through) as exchange, pytest.raises(UnreachableError):
            exchange.pull(wait=0)


@pytest.mark.parametrize(
    ("status", "login", "said"),
    [
        ("", ("north", "other"), "asks for a user and a password (407); set CLOISTER_PROXY_USER"),
        ("403 Forbidden", None, "does not let this site reach fed.example.test:9440 (403 “Forbidden”); have your"),
        ("503 Service Unavailable", None, "cannot reach fed.example.test:9440 (503 “Service Unavailable”); check"),
    ],
)
def test_what_a_proxy_refuses_is_said_in_one_sentence(
    federation: Federation, status: str, login: tuple[str, str] | None, said: str
) -> None:
    with TunnelProxy(login=login, refusal=status) as proxy:
        through = proxy_for("fed.example.test", proxy.place, {})
        with pytest.raises(UnreachableError) as caught:
            probe(SERVER, tls_of(federation, "north"), proxy=through)
    assert said in str(caught.value)
    assert f"the proxy localhost:{proxy.port} (from the settings)" in str(caught.value)


def test_a_wrong_password_is_said_and_never_shown(federation: Federation) -> None:
    environment = {"https_proxy": "http://north:hunter2@", "CLOISTER_PROXY_USER": ""}
    with TunnelProxy(login=LOGIN) as proxy:
        environment["https_proxy"] += proxy.place
        through = proxy_for("fed.example.test", None, environment)
        with pytest.raises(UnreachableError, match="does not accept this user and password") as caught:
            probe(SERVER, tls_of(federation, "north"), proxy=through)
    assert "hunter2" not in f"{caught.value}{through!r}{through}"


def test_a_proxy_that_is_down_silent_or_no_proxy_is_named_within_seconds(federation: Federation) -> None:
    files, start = tls_of(federation, "north"), time.monotonic()
    with socket.create_server(("localhost", unused_port())) as listener:
        through = proxy_for("fed.example.test", f"localhost:{listener.getsockname()[1]}", {})
        with pytest.raises(UnreachableError, match=r"cannot reach the proxy .*: no answer; check its name and port"):
            probe(SERVER, files, 0.3, through)

        def speak() -> None:
            for _ in range(2):  # the first has given up
                caller, _ = listener.accept()
                with caller, suppress(OSError):
                    caller.recv(1 << 12)
                    caller.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        speaker = Thread(target=speak, daemon=True)
        speaker.start()
        with pytest.raises(UnreachableError, match="does not answer as an HTTP proxy"):
            probe(SERVER, files, proxy=through)
        speaker.join(10)
    with pytest.raises(UnreachableError, match=r"cannot reach the proxy .*: connection refused"):
        probe(SERVER, files, proxy=through)
    assert time.monotonic() - start < 20  # loaded machines


# --- Which proxy ----------------------------------------------------------------------------------------------------

PROXY = "http://proxy.example.test:8080"


@pytest.mark.parametrize(
    ("host", "setting", "environment", "expected"),
    [
        ("fed.example.org", None, {}, None),
        ("fed.example.org", None, {"https_proxy": PROXY}, "proxy.example.test:8080"),
        ("fed.example.org", None, {"HTTPS_PROXY": PROXY}, "proxy.example.test:8080"),
        ("fed.example.org", None, {"ALL_PROXY": "proxy.example.test"}, "proxy.example.test:3128"),
        ("fed.example.org", None, {"http_proxy": PROXY}, None),  # not for what is encrypted
        ("fed.example.org", None, {"https_proxy": ""}, None),
        ("fed.example.org", "[2001:db8::1]", {"https_proxy": PROXY}, "[2001:db8::1]:3128"),
        ("fed.example.org", "none", {"https_proxy": PROXY}, None),
        ("fed.example.org", None, {"https_proxy": PROXY, "no_proxy": "example.org"}, None),
        ("fed.example.org", None, {"https_proxy": PROXY, "NO_PROXY": "a.test, .example.org"}, None),
        ("fed.example.org", None, {"https_proxy": PROXY, "no_proxy": "*"}, None),
        ("fed.example.org", None, {"https_proxy": PROXY, "no_proxy": "ample.org,fed"}, "proxy.example.test:8080"),
        ("192.0.2.7", None, {"https_proxy": PROXY, "no_proxy": "192.0.2.0/24"}, None),
        ("192.0.2.7", None, {"https_proxy": PROXY, "no_proxy": "192.0.3.0/24,x/y"}, "proxy.example.test:8080"),
        ("2001:db8::5", None, {"https_proxy": PROXY, "no_proxy": "[2001:db8::5]"}, None),
        ("localhost", None, {"https_proxy": PROXY}, None),
        ("127.0.0.1", None, {"https_proxy": PROXY}, None),
        ("::1", None, {"https_proxy": PROXY}, None),
        ("localhost", "proxy.example.test:8080", {"no_proxy": "*"}, "proxy.example.test:8080"),
    ],
)
def test_which_proxy_is_used(host: str, setting: str | None, environment: dict[str, str], expected: str | None) -> None:
    proxy = proxy_for(host, setting, environment)
    assert (str(proxy.address) if proxy else None) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://user:word@proxy:3128", r"must hold no user and no password; set CLOISTER_PROXY_USER"),
        ("socks5://proxy:1080", r"begins with socks5://, and Cloister can use HTTP proxies only"),
        ("https://proxy:3128", r"begins with https://"),
        ("proxy:99999", r"cannot be used: .*a port is a number"),
        ("", r"cannot be used"),
    ],
)
def test_a_setting_that_is_no_proxy_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        check_setting(text)
    assert "word@" not in str(caught.value)


def test_a_variable_that_is_no_proxy_is_refused_without_its_password() -> None:
    for text in ("http://user:word@proxy:x", "user:socks5://word@pro xy", "ftp://user:word@proxy"):
        with pytest.raises(ConfigError, match="https_proxy") as caught:
            proxy_for("fed.example.org", None, {"https_proxy": text})
        assert "word" not in str(caught.value)
