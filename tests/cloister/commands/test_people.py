"""People in a consortium: invited, joined, listed, signing runs, and gone again, with the commands that people type."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from client.person import read_person
from cloister.cli import app
from privacy.errors import AuthenticityError, CloisterError, ConfigError, KeyFileError, RefusedError, VaultError
from privacy.run.manifest import open_run
from server.settings import read_consortium
from tests.private_keys import forms_of_private_keys

if TYPE_CHECKING:
    from privacy.run.roster import Roster

RUN = Path(__file__).parents[3] / "simulations" / "tasks" / "diagnosis.toml"
Files = dict[Path, bytes]

pytestmark = pytest.mark.usefixtures("lungs")


def cloister(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def report(*arguments: str | Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(cloister(*arguments, "--json").splitlines()[-1])
    return result


def files(folder: Path) -> Files:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def roster() -> Roster:
    return read_consortium(Path("server")).roster()


def enter(name: str, role: str) -> str:
    cloister("invite", "--person", name, "--role", role)
    cloister("person", "join", f"{name}.invitation", "--files")
    cloister("roster", "approve", f"{name}/{name}.request")
    return cloister("person", "join", f"{name}.welcome")


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A consortium of three sites, founded by ana."""
    folder = tmp_path_factory.mktemp("founded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cloister("init", "lungs", "--host", "localhost", "--person", "ana")
        for site in ("north", "south", "east"):
            cloister("invite", site)
            cloister("join", f"{site}.invitation", "--files")
        cloister("roster", "approve", *(f"{site}/{site}.request" for site in ("north", "south", "east")))
    return folder


@pytest.fixture
def lungs(founded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which commands run."""
    folder = Path(copytree(founded, tmp_path / "lungs"))
    monkeypatch.chdir(folder)
    return folder


def test_who_founds_a_consortium_is_its_first_coordinator() -> None:
    assert report("roster", "show")["people"] == {"ana": "coordinator"}
    assert report("sign", RUN, "--out", "run.manifest")["signed_by"] == {"name": "ana", "role": "coordinator"}


def test_a_person_joins_signs_is_listed_and_is_gone_again() -> None:
    enter("ines", "researcher")
    assert report("roster", "show")["people"] == {"ana": "coordinator", "ines": "researcher"}
    shown = cloister("roster", "show")
    assert "researcher" in shown
    assert "ines" in shown
    signed = report("sign", RUN, "--as", "ines", "--out", "run.manifest")
    assert signed["signed_by"] == {"name": "ines", "role": "researcher"}
    assert open_run(Path("run.manifest").read_bytes(), roster()).signer.name == "ines"
    assert report("renew")["people"] == {"ana": "coordinator", "ines": "researcher"}
    assert report("revoke", "ines")["people"] == {"ana": "coordinator"}
    with pytest.raises(AuthenticityError, match="nobody in roster 4 of lungs signed this run"):
        open_run(Path("run.manifest").read_bytes(), roster())
    with pytest.raises(AuthenticityError, match="roster 4 does not list ines"):
        cloister("roster", "take", "server/roster", "--site", "ines")


def test_a_persons_key_is_made_in_their_folder_and_is_theirs_alone() -> None:
    cloister("invite", "--person", "ines", "--role", "researcher")
    cloister("person", "join", "ines.invitation", "--files")
    key = Path("ines/keys/signing.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    request = Path("ines/ines.request").read_bytes()
    assert not any(form in request for form in forms_of_private_keys(Path("ines")))


def test_an_auditor_cannot_sign_a_run() -> None:
    assert "cloister sign" not in enter("rui", "auditor")
    with pytest.raises(
        RefusedError, match="rui is auditor in roster 2, and only coordinators and researchers may sign runs; give"
    ):
        cloister("sign", RUN, "--as", "rui", "--out", "run.manifest")
    assert not Path("run.manifest").exists()


def test_a_person_takes_a_newer_roster_and_no_second_one_of_the_same_version() -> None:
    enter("ines", "researcher")
    cloister("renew")
    assert report("roster", "take", "server/roster", "--site", "ines")["version"] == 3
    kept = files(Path("ines"))
    Path("coordinator/latest-roster").write_text("2")  # as after a restore from an old backup
    Path("server/roster").write_bytes(Path("ines/keys/roster-2").read_bytes())
    cloister("renew")
    with pytest.raises(AuthenticityError, match="the authority signed two rosters 3: the one here has the digest"):
        cloister("roster", "take", "server/roster", "--site", "ines")
    assert files(Path("ines")) == kept


def test_an_encrypted_folder_signs_with_its_passphrase_only(monkeypatch: pytest.MonkeyPatch) -> None:
    enter("ines", "researcher")
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "seven small otters")
    forms = forms_of_private_keys(Path("ines"))
    cloister("protect", "ines")
    for form in forms:
        assert not any(form in data for data in files(Path("ines")).values())
    assert b"PRIVATE" not in Path("ines/keys/signing.key").read_bytes()
    cloister("sign", RUN, "--as", "ines", "--out", "run.manifest")
    other = Path("ines").rename("elsewhere")
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "seven large otters")
    with pytest.raises(VaultError):
        cloister("sign", RUN, "--as", other, "--out", "run.manifest")


def test_the_last_coordinator_stays_until_there_is_another() -> None:
    with pytest.raises(ConfigError, match="ana is the last coordinator of lungs; invite another one first"):
        cloister("revoke", "ana")
    enter("bea", "coordinator")
    cloister("revoke", "ana")
    assert report("roster", "show")["people"] == {"bea": "coordinator"}
    with pytest.raises(AuthenticityError, match="roster 3 of lungs lists nobody with ana's key"):
        cloister("sign", RUN, "--out", "run.manifest")
    cloister("sign", RUN, "--as", "bea", "--roster", "server/roster", "--out", "run.manifest")


def test_a_run_names_only_recipients_whom_the_roster_has() -> None:
    Path("run.toml").write_text('recipients = ["researcher", "tom"]\n' + RUN.read_text(encoding="utf-8"))
    with pytest.raises(ConfigError, match="recipients names tom, whom roster 1 does not list"):
        cloister("sign", "run.toml", "--out", "run.manifest")
    enter("tom", "operator")
    cloister("sign", "run.toml", "--out", "run.manifest")
    assert open_run(Path("run.manifest").read_bytes(), roster()).manifest.settings.recipients == ("researcher", "tom")


def test_an_invitation_that_nobody_used_is_withdrawn() -> None:
    cloister("invite", "--person", "ines", "--role", "researcher")
    cloister("person", "join", "ines.invitation", "--files")
    assert report("invite", "--withdraw", "ines") == {"name": "ines", "withdrawn": 1}
    with pytest.raises(AuthenticityError, match="no invitation of this consortium belongs to this request, or it was"):
        cloister("roster", "approve", "ines/ines.request")
    assert report("roster", "show")["version"] == 1
    with pytest.raises(ConfigError, match="there is no unused invitation of ines; nothing was changed"):
        cloister("invite", "--withdraw", "ines")
    with pytest.raises(
        ConfigError, match="no unused invitation of north; it has joined, which `cloister revoke north`"
    ):
        cloister("invite", "--withdraw", "north")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("invite", "--person", "auditor", "--role", "auditor"), "auditor is a role, not a name"),
        (("invite", "--person", "Ines", "--role", "auditor"), "'Ines' is not a person's name"),
        (("invite", "--person", "ines", "--role", "director"), "'director' is not a role; roles are coordinator, "),
        (("invite", "--person", "ines"), "--person NAME and --role ROLE"),
        (("invite", "west", "--role", "auditor"), "--person NAME and --role ROLE"),
        (("invite", "west", "--person", "ines", "--role", "auditor"), "name one site to invite, one person"),
        (("invite",), "name one site to invite, one person"),
        (("invite", "--person", "north", "--role", "auditor"), "north is in the roster already"),
        (("invite", "ana"), "ana is in the roster already"),
        (("join", "rui.invitation"), "is for a person, rui; use: cloister person join rui.invitation"),
        (("person", "join", "west.invitation"), "is for the site west; use: cloister join west.invitation"),
        (("person", "join", "rui.invitation", "--folder", "north"), "is the folder of another site or person"),
        (("join", "west.invitation", "--folder", "ines"), "is the folder of another site or person"),
        (("person", "join", "rui.invitation", "--folder", "ines"), "is the folder of another site or person"),
        (("person", "join", "ines.welcome", "--folder", "north"), "the folder of a site, and this welcome is for a p"),
        (("person", "join", "north.welcome", "--folder", "ines"), "the folder of a person, and this welcome is for a"),
        (("sign", RUN, "--as", "nobody", "--out", "run"), "nobody: no such folder; name yours with --as"),
        (("sign", RUN, "--as", "north", "--out", "run"), "north is a site's folder; name a coordinator's"),
        (("roster", "take", "east.welcome", "--site", "ines"), "not a signed Cloister roster"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_sentence_and_changes_nothing(lungs: Path, arguments: tuple[str, ...], message: str) -> None:
    enter("ines", "researcher")
    cloister("invite", "west")
    cloister("invite", "--person", "rui", "--role", "auditor")
    before = files(lungs)
    with pytest.raises(CloisterError, match=message) as raised:
        cloister(*arguments, *(["--files"] if "join" in arguments else []))
    assert "\n" not in str(raised.value)
    assert files(lungs) == before


def test_a_token_of_another_consortium_is_refused_and_changes_nothing(lungs: Path) -> None:
    enter("ines", "researcher")
    cloister("init", "hearts", "--host", "localhost", "--folder", "hearts")
    cloister("invite", "--person", "ines", "--role", "researcher", "--folder", "hearts", "--out", "other.invitation")
    before = files(lungs)
    with pytest.raises(ConfigError, match="ines belongs to another consortium; name another folder with --folder"):
        cloister("person", "join", "other.invitation", "--files")
    assert files(lungs) == before


def _utf16(text: bytes) -> bytes:
    return text.decode().encode("utf-16")


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: text[9:], _utf16, lambda _: b"",
                                    lambda text: text.replace(b"a", "é".encode("latin-1"), 1),
                                    lambda text: text.replace(b"-3.", b"-2.")],
                         ids=["cut", "begun late", "UTF-16", "empty", "Latin-1", "another version"])  # fmt: skip
def test_a_damaged_token_gets_one_sentence_and_changes_nothing(lungs: Path, damage: Any) -> None:  # noqa: ANN401
    cloister("invite", "--person", "ines", "--role", "researcher")
    path = Path("ines.invitation")
    path.write_bytes(damage(path.read_bytes().strip()))
    before = files(lungs)
    with pytest.raises(CloisterError) as raised:
        cloister("person", "join", path, "--files")
    assert "\n" not in str(raised.value)
    assert files(lungs) == before


@pytest.mark.parametrize("around", ["\ufeff{}\r\n", "{}\n", "\r\n{}"])
def test_a_token_comes_from_standard_input_with_whatever_an_editor_added(around: str) -> None:
    cloister("invite", "--person", "ines", "--role", "researcher")
    text = around.format(Path("ines.invitation").read_text().strip())
    done = CliRunner().invoke(app, ["person", "join", "-", "--files"], input=text.encode(), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert read_person(Path("ines")).settings.name == "ines"


def test_nothing_on_standard_input_is_said_so() -> None:
    with pytest.raises(ConfigError, match="nothing came by standard input"):
        CliRunner().invoke(app, ["join", "-"], input=b"", catch_exceptions=False)


def test_a_signing_key_of_the_wrong_kind_is_named() -> None:
    enter("ines", "researcher")
    Path("ines/keys/signing.key").write_bytes(Path("north/keys/tls.key").read_bytes())
    with pytest.raises(KeyFileError, match="not an Ed25519 key"):
        cloister("sign", RUN, "--as", "ines", "--out", "run.manifest")
