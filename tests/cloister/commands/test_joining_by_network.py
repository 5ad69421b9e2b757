"""Joining over the network, with the commands that people type and a joining port in this process."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.settings import read_site
from cloister.cli import app
from privacy.errors import AuthenticityError, CloisterError, KeyFileError, MalformedError, UnreachableError
from privacy.run.invitation import Invitation, read_invitation
from server.process import open_joining_port
from server.settings import read_consortium
from tests.ports import unused_port
from tests.private_keys import forms_of_private_keys
from transport.joining import Line

Files = dict[Path, bytes]


def cloister(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def files(folder: Path) -> Files:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Found a consortium and open its joining port."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:

        def make_consortium(*options: str, name: str = "lungs") -> Path:
            folder = tmp_path / name
            cloister("init", name, "--host", "localhost", "--joining-port", str(unused_port()), "--folder", folder,
                     *options)  # fmt: skip
            open_joining_port(read_consortium(folder / "server"), stack)
            return folder

        yield make_consortium


@pytest.fixture
def online(make: Callable[..., Path]) -> Path:
    """A consortium whose server answers at once."""
    return make("--online")


def token(folder: Path, site: str = "north") -> str:
    cloister("invite", site, "--folder", folder)
    return Path(f"{site}.invitation").read_text(encoding="utf-8").strip()


def persons_token(folder: Path) -> str:
    cloister("invite", "--person", "ines", "--role", "researcher", "--folder", folder)
    return Path("ines.invitation").read_text(encoding="utf-8").strip()


def test_sites_join_in_one_command_each(online: Path) -> None:
    for version, site in enumerate(("north", "south", "east"), start=1):
        shown = cloister("join", token(online, site))
        assert f"✓ {site} is a member, in roster {version}" in shown
        assert read_site(Path(site)).settings.site == site
    assert [member.site for member in read_consortium(online / "server").roster().members] == ["north", "south", "east"]


def test_what_a_site_sends_holds_no_part_of_a_private_key_and_not_the_secret(
    online: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, send = [], Line.send

    def recorded(self: Line, data: bytes) -> None:
        sent.append(data)
        send(self, data)

    monkeypatch.setattr(Line, "send", recorded)
    invitation = read_invitation(token(online))
    cloister("join", invitation.to_text())
    everything = b"".join(sent)
    assert invitation.proof in everything
    for form in (*forms_of_private_keys(Path("north")), bytes.fromhex(invitation.secret), invitation.secret.encode()):
        assert form not in everything


def test_a_second_run_says_that_the_site_is_a_member_and_changes_nothing(online: Path) -> None:
    text = token(online)
    cloister("join", text)
    before = files(Path.cwd())
    assert "✓ north is a member already; nothing was changed, in roster 1" in cloister("join", text)
    assert json.loads(cloister("join", text, "--json"))["member"] is True
    assert files(Path.cwd()) == before


def test_a_join_that_was_interrupted_goes_on_with_the_same_keys(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = token(online)
    with monkeypatch.context() as patch:
        patch.setattr("client.asking.read_answer", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        assert CliRunner().invoke(app, ["join", text]).exit_code != 0
    keys = {path: data for path, data in files(Path("north")).items() if path.suffix == ".key"}
    assert len(keys) == 3
    assert "✓ north is a member, in roster 1" in cloister("join", text)
    assert {path: path.read_bytes() for path in keys} == keys


def test_the_coordinator_approves_what_waits_at_the_server(make: Callable[..., Path]) -> None:
    folder = make()
    text = token(folder)
    assert "the server keeps the request until the coordinator runs: cloister roster approve" in cloister("join", text)
    assert json.loads(cloister("join", text, "--json"))["member"] is False
    assert "✓ north is a member; its next `cloister join` takes" in cloister("roster", "approve", "--folder", folder)
    assert "nobody waits to be approved" in cloister("roster", "approve", "--folder", folder)
    assert "✓ north is a member, in roster 1" in cloister("join", text)


def test_a_person_joins_by_the_same_port_in_one_command(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent, send = [], Line.send

    def recorded(self: Line, data: bytes) -> None:
        sent.append(data)
        send(self, data)

    monkeypatch.setattr(Line, "send", recorded)
    text = persons_token(online)
    assert "✓ ines is in the roster, roster 1" in cloister("person", "join", text)
    assert "✓ ines is in the roster already; nothing was changed, roster 1" in cloister("person", "join", text)
    (founder, ines) = read_consortium(online / "server").roster().people
    assert (founder.name, founder.role, ines.name, ines.role) == ("founder", "coordinator", "ines", "researcher")
    for form in forms_of_private_keys(Path("ines")):
        assert form not in b"".join(sent)
    assert "✓ north is a member, in roster 2" in cloister("join", token(online))


def test_a_person_waits_for_the_coordinators_approval_as_a_site_does(make: Callable[..., Path]) -> None:
    folder = make()
    text = persons_token(folder)
    assert "the server keeps the request until" in cloister("person", "join", text)
    shown = cloister("roster", "approve", "--folder", folder)
    assert "✓ ines is in the roster as researcher; its next `cloister person join` takes the welcome" in shown
    assert "✓ ines is in the roster, roster 1" in cloister("person", "join", text)


@pytest.mark.parametrize("whose", ["north", "ines"])
def test_an_invitation_that_is_withdrawn_is_unknown_at_the_running_server_at_once(
    make: Callable[..., Path], whose: str
) -> None:
    folder = make()
    text = token(folder) if whose == "north" else persons_token(folder)
    command = ("join",) if whose == "north" else ("person", "join")
    cloister("invite", "--withdraw", whose, "--folder", folder)
    before = files(folder)
    with pytest.raises(AuthenticityError, match=f"does not know this invitation of {whose}: it was withdrawn, or"):
        cloister(*command, text)
    assert not Path(whose).exists()
    assert files(folder) == before


def test_what_was_asked_with_an_invitation_is_withdrawn_with_it(make: Callable[..., Path]) -> None:
    folder = make()
    text = token(folder)
    assert "the server keeps the request" in cloister("join", text)
    cloister("invite", "--withdraw", "north", "--folder", folder)
    assert "nobody waits to be approved" in cloister("roster", "approve", "--folder", folder)
    with pytest.raises(AuthenticityError, match="it was withdrawn, or"):
        cloister("join", text)


def test_who_was_removed_does_not_come_back_with_an_invitation_that_it_never_used(online: Path) -> None:
    spare = token(online)
    cloister("join", token(online))
    cloister("join", token(online, "south"))
    other = token(online, "east")
    cloister("revoke", "north", "--folder", online)
    for folder in ("north", "elsewhere"):
        with pytest.raises(AuthenticityError, match="does not know this invitation of north"):
            cloister("join", spare, "--folder", folder)
    assert "✓ east is a member" in cloister("join", other)


def test_an_old_roster_put_back_at_the_server_does_not_bring_a_removed_site_back(online: Path) -> None:
    cloister("join", token(online))
    cloister("join", token(online, "south"))
    roster = online / "server" / "roster"
    old = roster.read_bytes()
    cloister("revoke", "north", "--folder", online)
    latest = roster.read_bytes()
    roster.write_bytes(old)
    with pytest.raises(KeyFileError, match="there is only roster 2, but roster 3 was signed; put the latest back"):
        cloister("renew", "--folder", online)
    roster.unlink()
    with pytest.raises(KeyFileError, match="there is no roster, but roster 3 was signed"):
        cloister("invite", "north", "--folder", online)
    roster.write_bytes(latest)
    assert "roster 4 (sites: 1)" in cloister("renew", "--folder", online)


def test_a_bad_request_at_the_server_keeps_nobody_else_out(make: Callable[..., Path]) -> None:
    folder = make()
    for site in ("north", "south"):
        cloister("join", token(folder, site))
    bad = next(iter((folder / "server" / "requests").iterdir()))
    bad.write_bytes(bad.read_bytes()[:-10])
    approved = json.loads(cloister("roster", "approve", "--folder", folder, "--json"))
    assert len(approved["sites"]) == 1
    assert "or was altered" in approved["refused"][0]


def test_who_was_removed_does_not_come_back_with_its_old_invitation(online: Path) -> None:
    old = token(online)
    cloister("join", old)
    cloister("join", token(online, "south"))
    cloister("roster", "remove", "north", "--folder", online)
    Path("north/keys/joined").unlink()
    with pytest.raises(
        AuthenticityError, match="north is no longer in the roster; to let it join anew: cloister invite"
    ):
        cloister("join", old)
    assert "✓ north is a member, in roster 4" in cloister("join", token(online))


def refused(text: str, error: type[CloisterError], match: str) -> None:
    """Check that joining is refused in one sentence, and that nothing on disk changes."""
    before = files(Path.cwd())
    with pytest.raises(error, match=match) as raised:
        cloister("join", text)
    assert "\n" not in str(raised.value)
    assert files(Path.cwd()) == before


def test_a_token_that_was_used_by_others_is_refused_before_any_key_is_made(online: Path) -> None:
    text = token(online)
    cloister("join", text, "--folder", "elsewhere")
    refused(text, AuthenticityError, "was used before, by other keys")


def test_a_damaged_token_is_refused(online: Path) -> None:
    text = token(online)
    for bad in (text[:-1], text[:40], f"{text[:50]}é{text[51:]}", text[:60] + text[61:], text + "A"):
        refused(bad, MalformedError, "damaged, or a part of it is missing; copy it again")


@pytest.mark.parametrize("around", ["\ufeff{}\r\n", "  {}\n", "\r\n{}\r\n"])
def test_a_token_with_space_around_it_is_taken(online: Path, around: str) -> None:
    Path("token").write_bytes(around.format(token(online)).encode())
    assert "✓ north is a member" in cloister("join", "token")


def test_an_expired_token_is_refused_here_and_by_the_server(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, now = token(online), time.time()
    with monkeypatch.context() as patch:
        patch.setattr("privacy.run.invitation.time.time", lambda: now + 25 * 3600)
        refused(text, AuthenticityError, "has expired; ask the coordinator for a new one")
        patch.setattr(Invitation, "check_valid", lambda _: None)  # as by a clock that is behind
        refused(text, AuthenticityError, "has expired; ask the coordinator for a new one")


def test_a_token_of_another_consortium_is_refused(online: Path, make: Callable[..., Path]) -> None:
    other, port = make("--online", name="hearts"), read_invitation(token(online)).joining_port
    foreign = read_invitation(token(other, "south"))
    misled = Invitation(foreign.name, foreign.server, port, foreign.authority, foreign.secret, foreign.expires)
    refused(misled.to_text(), AuthenticityError, "belongs to another consortium than this invitation")


def test_a_token_that_the_coordinator_forgot_is_refused(online: Path) -> None:
    text = token(online)
    for path in (online / "server" / "invitations").iterdir():
        path.unlink()
    refused(text, AuthenticityError, "does not know this invitation of north")


def test_a_server_under_another_name_gets_nothing(online: Path) -> None:
    invitation = read_invitation(token(online))
    other = Invitation(invitation.name, "127.0.0.1:9440", invitation.joining_port, invitation.authority,
                       invitation.secret, invitation.expires)  # fmt: skip
    refused(other.to_text(), AuthenticityError, "presents a certificate for another name")


def test_where_no_joining_port_answers_the_cause_is_named(online: Path) -> None:
    invitation = read_invitation(token(online))

    def at(port: int) -> str:
        return Invitation(invitation.name, invitation.server, port, invitation.authority, invitation.secret,
                          invitation.expires).to_text()  # fmt: skip

    refused(at(unused_port()), UnreachableError, "connection refused: nothing listens at this port; correct")
    with socket.create_server(("localhost", 0)) as other:
        other.settimeout(10)

        def speak() -> None:
            caller, _ = other.accept()
            caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
            caller.close()

        speaker = threading.Thread(target=speak)
        speaker.start()
        refused(
            at(other.getsockname()[1]), UnreachableError, "something at .* answers, but not with the TLS of a joining"
        )
        speaker.join()
