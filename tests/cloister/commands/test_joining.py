"""Founding a consortium, joining it and leaving it, with the commands that people type."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.joining import begin
from client.settings import read_site
from client.site import Site
from cloister.cli import app
from privacy.errors import AuthenticityError, CloisterError, ConfigError
from privacy.run.invitation import read_invitation
from server.coordinator import Coordinator
from server.settings import read_consortium
from tests.private_keys import forms_of_private_keys
from transport.pki import check_server_certificate, read_certificate

SITES = ("north", "south", "east")
TASK = "simulations.tasks.diagnosis:Diagnosis"


def cloister(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def report(*arguments: str | Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(cloister(*arguments, "--json"))
    return result


@pytest.fixture
def lungs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A consortium of three sites, each in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    cloister("init", "lungs", "--host", "localhost")
    for site in SITES:
        cloister("invite", site)
        cloister("join", f"{site}.invitation", "--files")
    cloister("roster", "approve", *(f"{site}/{site}.request" for site in SITES))
    for site in SITES:
        cloister("join", f"{site}.welcome")
    return tmp_path


def test_three_sites_join_and_open_with_the_keys_that_they_made(lungs: Path) -> None:
    roster = read_consortium(lungs / "server").roster()
    assert sorted(member.site for member in roster.members) == sorted(SITES)
    for site in SITES:
        settings = lungs / site / "site.toml"
        settings.write_text(settings.read_text().replace("tasks = []", f'tasks = ["{TASK}"]'))
        assert Site(read_site(settings)).roster == roster
    output = cloister("roster", "show")
    assert "lungs, roster 1, valid until" in output
    assert "north" in output


def test_no_private_key_leaves_the_folder_in_which_it_was_made(lungs: Path) -> None:
    for site in SITES:
        forms = forms_of_private_keys(lungs / site)
        outside = [path for path in lungs.rglob("*") if path.is_file() and lungs / site / "keys" not in path.parents]
        assert len(outside) > 15
        for path in outside:
            assert not any(form in path.read_bytes() for form in forms), path


def test_an_invitation_works_once(lungs: Path) -> None:
    old = (lungs / "north.invitation").read_text()
    with pytest.raises(AuthenticityError, match="was used before, by other keys; ask the coordinator for a new one"):
        Coordinator(lungs / "coordinator").approve([begin(lungs / "thief", read_invitation(old))])
    with pytest.raises(ConfigError, match="north is in the roster already"):
        cloister("invite", "north")


def test_a_lost_welcome_is_made_anew_under_the_same_roster(lungs: Path) -> None:
    (lungs / "north.welcome").unlink()
    assert report("roster", "approve", "north/north.request") == {"version": 1, "sites": ["north"], "people": {}}
    cloister("join", "north.welcome")


def test_a_site_that_leaves_is_in_no_later_roster_and_others_refuse_an_older_one(lungs: Path) -> None:
    before = (lungs / "server" / "roster").read_bytes()
    (lungs / "old").write_bytes(before)
    assert report("roster", "remove", "east")["members"] == ["north", "south"]
    assert report("roster", "take", "server/roster", "--site", "north")["version"] == 2
    with pytest.raises(AuthenticityError, match="roster 1 is older than the one here, 2"):
        cloister("roster", "take", "old", "--site", "north")
    with pytest.raises(CloisterError, match="'east' is not a member"):
        cloister("roster", "take", "server/roster", "--site", "east")
    with pytest.raises(ConfigError, match="east is not in the roster of lungs"):
        cloister("roster", "remove", "east")


def test_roster_and_certificates_are_renewed_for_the_same_keys(lungs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = lungs / "server" / "tls.pem", lungs / "north" / "keys" / "tls.pem"
    before = [read_certificate(file) for file in files]
    later = time.time() + 100 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    assert report("roster", "renew")["expires"] > later
    cloister("roster", "approve", "north/north.request")
    cloister("join", "north.welcome")
    for file, old in zip(files, before, strict=True):
        assert read_certificate(file).public_key() == old.public_key()
        assert read_certificate(file).serial_number != old.serial_number
    check_server_certificate(files[0], lungs / "server" / "authority.pem")
    assert report("roster", "take", "server/roster", "--site", "north")["version"] == 2


def test_another_consortium_cannot_take_over_a_site(lungs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lungs / "other").mkdir()
    monkeypatch.chdir(lungs / "other")
    cloister("init", "hearts", "--host", "localhost")
    cloister("invite", "north")
    with pytest.raises(ConfigError, match="belongs to another consortium"):
        cloister("join", "north.invitation", "--folder", lungs / "north")
    cloister("join", "north.invitation", "--files")
    cloister("roster", "approve", "north/north.request")
    with pytest.raises(AuthenticityError, match="of another consortium"):
        cloister("join", "north.welcome", "--folder", lungs / "north")
    with pytest.raises(AuthenticityError, match="no invitation of this consortium"):
        cloister("roster", "approve", lungs / "south" / "south.request")


def test_a_consortium_is_founded_with_an_api_or_without(lungs: Path) -> None:
    assert read_consortium(lungs / "server").settings.api is None
    assert report("init", "b", "--host", "fed.example.org", "--folder", "b", "--api")["api"] == "fed.example.org:9442"
    api = read_consortium(Path("b/server")).settings.api
    assert api is not None
    assert api.listen == "0.0.0.0:9442"
    assert "people sign in at localhost:9442" in cloister("init", "c", "--host", "localhost", "--folder", "c", "--api")


def test_a_welcome_for_other_keys_is_refused(lungs: Path) -> None:
    for name in ("tls.key", "signing.key", "sealing.key"):
        kept = (lungs / "north" / "keys" / name).read_bytes()
        (lungs / "north" / "keys" / name).write_bytes((lungs / "south" / "keys" / name).read_bytes())
        with pytest.raises(AuthenticityError, match="join again with a new invitation"):
            cloister("join", "north.welcome")
        (lungs / "north" / "keys" / name).write_bytes(kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("init", "lungs", "--host", "localhost"), "exists already"),
        (("init", "a\nb", "--host", "localhost", "--folder", "b"), "printable"),
        (("init", "b", "--host", "https://fed", "--folder", "b"), "is not a host"),
        (("init", "b", "--host", "fed", "--folder", "b", "--api", "--port", "9442"), "9442 is for people .*--port"),
        (("init", "b", "--host", "fed", "--folder", "b", "--api", "--joining-port", "9442"), "another --joining-port"),
        (("invite", "North"), "is not a site's name"),
        (("join", "nothing"), "no such file"),
        (("join", "north/site.toml"), "not an invitation"),
        (("join", "north.welcome", "--folder", "nowhere"), "has no keys"),
        (("roster", "approve", "north.invitation"), "not a request to join"),
        (("roster", "show", "--folder", "nowhere"), "name an existing settings file"),
    ],
)
def test_bad_input_gets_one_sentence(lungs: Path, arguments: tuple[str, ...], message: str) -> None:
    before = {path: path.read_bytes() for path in lungs.rglob("*") if path.is_file()}
    with pytest.raises(CloisterError, match=message) as raised:
        cloister(*arguments)
    assert "\n" not in str(raised.value)
    assert {path: path.read_bytes() for path in lungs.rglob("*") if path.is_file()} == before


def test_revoke_and_renew_report_what_they_changed(lungs: Path) -> None:
    assert report("revoke", "east")["members"] == ["north", "south"]
    waiting = lungs / "server" / "renewals" / "north.pem"
    waiting.parent.mkdir()
    waiting.write_bytes((lungs / "north" / "keys" / "tls.pem").read_bytes())
    renewed = report("renew")
    assert renewed["version"] == 3
    assert renewed["certificates"] == ["north"]
    answer = read_certificate(waiting.parent / "answers" / "north.pem")
    assert answer.public_key() == read_certificate(lungs / "north" / "keys" / "tls.pem").public_key()
    assert not waiting.exists()


def test_a_certificate_of_a_site_that_left_is_not_renewed(lungs: Path) -> None:
    waiting = lungs / "server" / "renewals" / "east.pem"
    waiting.parent.mkdir()
    waiting.write_bytes((lungs / "east" / "keys" / "tls.pem").read_bytes())
    cloister("revoke", "east")
    assert report("renew")["certificates"] == []
    assert not waiting.exists()


def test_a_site_refuses_a_second_roster_of_its_version_and_keeps_its_own(lungs: Path) -> None:
    first = (lungs / "north" / "keys" / "roster").read_bytes()
    cloister("renew")
    cloister("roster", "take", "server/roster", "--site", "north")
    kept = {path: path.read_bytes() for path in (lungs / "north").rglob("*") if path.is_file()}
    (lungs / "coordinator" / "latest-roster").write_text("1")  # as after a restore from an old backup
    (lungs / "server" / "roster").write_bytes(first)
    cloister("renew")
    with pytest.raises(AuthenticityError, match="the authority signed two rosters 2: the one here has the digest"):
        cloister("roster", "take", "server/roster", "--site", "north")
    assert {path: path.read_bytes() for path in (lungs / "north").rglob("*") if path.is_file()} == kept
    cloister("renew")
    cloister("roster", "take", "server/roster", "--site", "north")
