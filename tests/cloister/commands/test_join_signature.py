"""A site joins over gRPC, as it does where TLS is ended on the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import grpc
import pytest
from typer.testing import CliRunner

from client.settings import read_site
from cloister.cli import app
from privacy.errors import AuthenticityError, CloisterError, ConfigError, KeyFileError
from privacy.run.enrolment import LARGEST_REQUEST
from privacy.run.invitation import Invitation, read_invitation
from server.process import serve
from tests.cloister.commands.test_joining_by_network import cloister, token
from tests.ports import unused_port
from transport.channel import JOINING
from transport.framing import FRAME_BYTES
from transport.sign_in import carrying

LONG = 60.0
AUTHORITY = "lungs/server/authority.pem"  # here nothing is before the server, so its own certificate arrives


@contextmanager
def joining(folder: Path) -> Iterator[str]:
    """Let sites join; give the address at which they do so over gRPC."""
    server, listening, ended = f"localhost:{unused_port()}", Event(), Event()
    with (folder / "server" / "consortium.toml").open("a", encoding="utf-8") as settings:
        settings.write(f'\n[signature]\nlisten = "{server}"\n')
    thread = Thread(target=serve, args=(folder / "server", lambda _: listening.set(), ended))
    thread.start()
    try:
        assert listening.wait(LONG)
        yield server
    finally:
        ended.set()
        thread.join(LONG)


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that founds a consortium, in a folder of this name."""
    monkeypatch.chdir(tmp_path)

    def new(name: str, *options: str) -> Path:
        cloister("init", name, "--host", "localhost", "--joining-port", str(unused_port()), "--folder", name, *options)
        return tmp_path / name

    return new


def options(server: str, bundle: str = AUTHORITY) -> tuple[str, ...]:
    return "--authentication", "signature", "--server", server, "--ca-bundle", bundle


def refused(kind: type[CloisterError], text: str, *arguments: str) -> None:
    with pytest.raises(kind, match=text) as caught:
        CliRunner().invoke(app, ["join", *arguments], catch_exceptions=False)
    assert "\n" not in str(caught.value)


def test_a_site_joins_once_and_its_settings_say_how_it_signs_in(found: Callable[..., Path]) -> None:
    folder = found("lungs", "--online")
    text = token(folder)
    with joining(folder) as server:
        assert "✓ north is a member, in roster 1" in cloister("join", text, *options(server))
        assert "✓ north is a member already" in cloister("join", text, *options(server))
        refused(AuthenticityError, "was used before, by other keys", text, *options(server), "--folder", "another")
    assert not Path("another").exists()
    site = read_site(Path("north"))
    assert site.settings.server == server
    assert site.settings.network.authentication == "signature"
    assert site.ca_bundle.read_bytes() == Path(AUTHORITY).read_bytes()
    assert site.signer
    assert site.signer.roster_version == 1


def test_a_site_that_waits_for_the_coordinator_asks_again(found: Callable[..., Path]) -> None:
    folder = found("lungs")
    text = token(folder)
    with joining(folder) as server:
        assert "the server keeps the request" in cloister("join", text, *options(server))
        cloister("roster", "approve", "--folder", str(folder))
        assert "✓ north is a member, in roster 1" in cloister("join", text, *options(server))


def test_an_invitation_that_is_not_this_servers_is_refused(found: Callable[..., Path]) -> None:
    folder, other = found("lungs", "--online"), found("other", "--online")
    with joining(folder) as server:
        refused(AuthenticityError, "belongs to another consortium", token(other), *options(server))
        own = read_invitation(token(folder))
        unknown = replace(own, secret="0" * 64)
        refused(AuthenticityError, "does not know this invitation of north", unknown.to_text(), *options(server))
        (record,) = (folder / "server" / "invitations").iterdir()
        record.write_text(record.read_text().replace(str(own.expires), "1"))
        refused(AuthenticityError, "the invitation of north has expired", own.to_text(), *options(server))
    assert not Path("north").exists()


def test_wrong_options_are_named(found: Callable[..., Path]) -> None:
    text = token(found("lungs", "--online"))
    for wrong in (("--authentication", "none"), ("--ca-bundle", AUTHORITY)):
        refused(
            ConfigError, "--authentication is tls or signature, and --ca-bundle is for signature only", text, *wrong
        )
    refused(KeyFileError, "none.pem: no such file", text, *options("localhost:1", "none.pem"))
    refused(CloisterError, "is not an address", text, *options("localhost"))
    assert not Path("north").exists()


def test_a_request_without_a_proof_is_not_read(found: Callable[..., Path]) -> None:
    folder, sent = found("lungs", "--online"), list[int]()
    own: Invitation = read_invitation(token(folder))

    def endless() -> Iterator[bytes]:
        for number in range(100):
            sent.append(number)
            yield bytes(FRAME_BYTES)

    credentials = grpc.ssl_channel_credentials(Path(AUTHORITY).read_bytes())
    with joining(folder) as server, grpc.secure_channel(server, credentials) as channel:
        ask = channel.stream_stream(f"/{JOINING}/Ask", bytes, bytes)
        for metadata in ((), carrying(bytes(32)), carrying(own.proof[:-1])):
            with pytest.raises(grpc.RpcError) as caught:
                list(ask(endless(), timeout=LONG, metadata=metadata))
            assert caught.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED}
        assert len(sent) < 100
        with pytest.raises(grpc.RpcError) as caught:
            list(ask(iter([bytes(LARGEST_REQUEST + 1)]), timeout=LONG, metadata=carrying(own.proof)))
        assert "this is no request to join" in str(caught.value.details())
