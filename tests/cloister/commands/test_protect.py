"""`cloister protect` and `cloister export`, at a terminal and unattended."""

import json
import os
import pty
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree

import pytest
from typer.testing import CliRunner

from cloister.cli import app
from privacy.at_rest.vaults import forget
from privacy.errors import ConfigError, KeyFileError, VaultError
from simulations.engine.federation import Federation
from tests.federations import TERMS

SITE, PHRASE, ANOTHER = "north", "correct horse battery staple", "another passphrase"


@pytest.fixture
def site(federation_keys: Path, tmp_path: Path) -> Path:
    federation = Federation(Path(copytree(federation_keys, tmp_path / "federation")), (SITE,))
    federation.write_settings(SITE, "localhost:1", TERMS)
    return federation.paths[SITE]


@pytest.fixture
def cloister(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Runs a command as a process that has just started, with these variables; returns what it prints."""

    def run(*arguments: str | Path, **env: str) -> str:
        forget(site)
        with monkeypatch.context() as patch:
            for name in ("CLOISTER_PASSPHRASE", "CLOISTER_NEW_PASSPHRASE", "CLOISTER_KEY_FILE"):
                patch.delenv(name, raising=False)
            for name, value in env.items():
                patch.setenv(name, value)
            return CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False).output

    yield run
    forget(site)


def test_unattended_with_a_passphrase(site: Path, cloister: Callable[..., str]) -> None:
    key = (site / "keys" / "signing.key").read_bytes()
    with pytest.raises(ConfigError, match="there is no terminal"):
        cloister("protect", site)
    with pytest.raises(ConfigError, match="at least 12 characters; nothing was changed"):
        cloister("protect", site, CLOISTER_PASSPHRASE=PHRASE[:5])
    files = sum(path.is_file() for path in (site / "keys").rglob("*"))
    done = json.loads(cloister("protect", site, "--json", CLOISTER_PASSPHRASE=PHRASE).splitlines()[-1])
    assert (done["encrypted"], done["files"]) == (True, files)
    out = site.parent / "signing.key"
    for command in (["export", site, "keys/signing.key", out], ["ledger", "show", site], ["agent", site]):
        with pytest.raises(VaultError, match="set CLOISTER_PASSPHRASE"):
            cloister(*command)
        with pytest.raises(VaultError, match="does not open the encrypted folder; check it and try again"):
            cloister(*command, CLOISTER_PASSPHRASE=PHRASE[::-1])
    cloister("export", site, "keys/signing.key", out, CLOISTER_PASSPHRASE=PHRASE)
    assert out.read_bytes() == key
    assert SITE in cloister("ledger", "show", site, CLOISTER_PASSPHRASE=PHRASE)
    new = {"CLOISTER_PASSPHRASE": PHRASE, "CLOISTER_NEW_PASSPHRASE": ANOTHER}
    assert json.loads(cloister("protect", site, "--json", **new).splitlines()[-1])["changed_secret"]
    with pytest.raises(VaultError, match="does not open"):
        cloister("protect", site, "--off", CLOISTER_PASSPHRASE=PHRASE)
    cloister("protect", site, "--off", CLOISTER_PASSPHRASE=ANOTHER)
    assert (site / "keys" / "signing.key").read_bytes() == key
    with pytest.raises(ConfigError, match="is not encrypted"):
        cloister("protect", site, "--off")


def test_unattended_with_a_key_file(site: Path, cloister: Callable[..., str]) -> None:
    key_file = site.parent / "north.key"
    with pytest.raises(ConfigError, match="another place"):
        cloister("protect", site, "--key-file", site / "vault.key")
    cloister("protect", site, "--key-file", key_file)
    assert (key_file.stat().st_size, key_file.stat().st_mode & 0o77) == (32, 0)
    with pytest.raises(VaultError, match="name the file in CLOISTER_KEY_FILE"):
        cloister("ledger", "show", site)
    assert SITE in cloister("ledger", "show", site, CLOISTER_KEY_FILE=str(key_file))
    key_file.write_bytes(b"short")
    with pytest.raises(VaultError, match="this one has 5"):
        cloister("ledger", "show", site, CLOISTER_KEY_FILE=str(key_file))


def test_a_file_is_exported_by_whichever_path_it_is_named(site: Path, cloister: Callable[..., str]) -> None:
    (site / "ledger").mkdir()
    (site / "ledger" / "people").write_bytes(b"one\ntwo\n")
    link, out = site.parent / "link", site.parent / "out"
    link.symlink_to(site, target_is_directory=True)
    key = {"CLOISTER_KEY_FILE": str(site.parent / "key")}
    cloister("protect", site, "--key-file", site.parent / "key")
    named = site / "ledger" / "people"
    for file in ("ledger/people", named, link / "ledger" / "people", site / "keys/../ledger/people",
                 os.path.relpath(named)):  # fmt: skip
        cloister("export", site, file, out, **key)
        assert out.read_bytes() == b"one\ntwo\n"
        out.unlink()
    for file, told in (("ledger/none", "no such file"), ("keys", "directory"), ("/etc/hostname", "is not in"),
                       ("../federation", "is not in")):  # fmt: skip
        with pytest.raises(KeyFileError, match=f"{told}.*name a file in the folder"):
            cloister("export", site, file, out, **key)
        assert not out.exists()


def test_at_a_terminal_the_passphrase_is_asked_for_and_not_shown(site: Path) -> None:
    said = at_terminal(["protect", str(site)], [PHRASE, PHRASE])
    assert PHRASE not in said
    assert "new passphrase for" in said
    assert "files encrypted" in said
    assert "the two passphrases differ" in at_terminal(["protect", str(site)], [PHRASE, PHRASE + "1", PHRASE + "2"])


def at_terminal(arguments: list[str], answers: list[str]) -> str:
    """Run a command at a terminal, answer its questions for passphrases, and return what the terminal showed."""
    child, terminal = pty.fork()
    if not child:
        os.environ.pop("CLOISTER_PASSPHRASE", None)
        os.execv(sys.executable, [sys.executable, "-m", "cloister", *arguments])  # noqa: S606 - our own command
    said, left = b"", list(answers)
    while True:
        try:
            said += os.read(terminal, 1 << 12)
        except OSError:  # the command has ended
            break
        if left and said.count(b": ") > len(answers) - len(left) and said.rstrip(b" ").endswith(b":"):
            os.write(terminal, left.pop(0).encode() + b"\n")
    os.waitpid(child, 0)
    os.close(terminal)
    return said.decode()
