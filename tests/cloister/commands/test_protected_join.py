"""`cloister join --protect` and `init --protect`: no key is ever on disk in the clear, wherever they are killed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.settings import read_site
from client.turn import TURN
from cloister.cli import app
from privacy.at_rest.sealed import MAGIC
from privacy.at_rest.vault import FILE
from privacy.at_rest.vaults import forget, is_protected
from privacy.errors import CloisterError, ConfigError, VaultError
from server.settings import read_consortium
from tests.federations import await_condition
from tests.interrupted import killed_at
from tests.ports import unused_port
from transport.pki import read_signing_key, read_tls_key

OPEN = {
    "north": {"site.toml", "north.request", FILE, TURN},
    "coordinator": {"authority.pem", "coordinator.toml", "latest-roster", FILE},
    "server": {"authority.pem", "tls.pem", "consortium.toml", "roster", FILE},
}
PHRASE = "correct horse battery staple"


def cloister(*arguments: str | Path) -> str:
    for folder in OPEN:
        forget(Path(folder))
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a key file, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_bytes(bytes(range(32)))
    monkeypatch.setenv("CLOISTER_KEY_FILE", str(tmp_path / "key"))
    yield tmp_path
    for folder in OPEN:
        forget(tmp_path / folder)


def check_no_key_in_the_clear(folder: Path) -> None:
    """Every file is encrypted, empty or not to be encrypted; a temporary one as the one that it becomes."""
    for path in folder.rglob("*"):
        if path.is_file():
            data, name = path.read_bytes(), path.relative_to(folder).as_posix()
            opened = any(name == each or name.startswith(f".{each}.") for each in OPEN[folder.name])
            assert opened or not data or data.startswith(MAGIC), name
            assert b"PRIVATE KEY" not in data, name


def killed_everywhere(here: Path, folders: tuple[str, ...], *arguments: str, step: int) -> None:
    """Let a command be killed at every step-th change of a file, and in the end finish it from there."""
    number = 0
    while killed_at(number, here, lambda: cloister(*arguments)):
        for folder in folders:
            check_no_key_in_the_clear(here / folder)
        number += step
    assert number > 2 * step


def test_a_site_joins_with_keys_that_were_never_in_the_clear(here: Path) -> None:
    cloister("init", "lungs", "--host", "localhost")
    cloister("invite", "north")
    joining = ("join", "north.invitation", "--files", "--key-file", "key")
    killed_everywhere(here, ("north",), *joining, step=3)  # each goes on where the one before was killed
    check_no_key_in_the_clear(here / "north")
    cloister("roster", "approve", "north/north.request")
    cloister("join", "north.welcome")
    check_no_key_in_the_clear(here / "north")
    assert json.loads(cloister(*joining, "--json"))["member"]
    read_signing_key(read_site(here / "north").path(Path("keys/signing.key")))


def test_a_consortium_is_founded_with_keys_that_were_never_in_the_clear(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    founding = ("init", "lungs", "--host", "localhost", "--key-file", "key")
    killed_everywhere(here, ("coordinator", "server"), *founding, "--folder", ".", step=9)
    cloister("invite", "north")
    for folder in ("coordinator", "server"):
        assert is_protected(here / folder)
        check_no_key_in_the_clear(here / folder)
    read_tls_key(read_consortium(here / "server").tls.key)
    monkeypatch.delenv("CLOISTER_KEY_FILE")
    with pytest.raises(
        VaultError, match="coordinator is encrypted with a key file; name the file in CLOISTER_KEY_FILE"
    ):
        cloister("invite", "south")


def test_a_refused_invitation_leaves_nothing(here: Path) -> None:
    cloister("init", "lungs", "--host", "localhost", "--joining-port", "9")
    cloister("invite", "north")
    with pytest.raises(CloisterError):  # nobody is at that port
        cloister("join", "north.invitation", "--key-file", "new.key")
    assert not (here / "north").exists()
    assert not (here / "new.key").exists()


def test_a_site_that_had_keys_in_the_clear_encrypts_them_too(here: Path) -> None:
    cloister("init", "lungs", "--host", "localhost")
    cloister("invite", "north")
    cloister("join", "north.invitation", "--files")
    before = (here / "north" / "keys" / "tls.key").read_bytes()
    cloister("join", "north.invitation", "--files", "--key-file", "key")
    check_no_key_in_the_clear(here / "north")
    cloister("protect", "north", "--off")
    assert (here / "north" / "keys" / "tls.key").read_bytes() == before


def test_with_a_passphrase_it_is_asked_for_or_taken_from_the_environment(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloister("init", "lungs", "--host", "localhost")
    cloister("invite", "north")
    with pytest.raises(ConfigError, match="there is no terminal to ask for a passphrase; set CLOISTER_PASSPHRASE"):
        cloister("join", "north.invitation", "--files", "--protect")
    assert not (here / "north").exists()
    monkeypatch.setenv("CLOISTER_PASSPHRASE", PHRASE)
    cloister("join", "north.invitation", "--files", "--protect")
    check_no_key_in_the_clear(here / "north")


def test_a_running_server_and_protect_keep_out_of_each_others_way(here: Path) -> None:
    from threading import Event, Thread  # noqa: PLC0415

    from server.process import serve  # noqa: PLC0415

    ports = "--port", str(unused_port()), "--joining-port", "0"
    cloister("init", "lungs", "--host", "localhost", *ports, "--key-file", "key")
    settings = here / "server" / "consortium.toml"
    settings.write_text(settings.read_text() + '\n[joining]\nlisten = "127.0.0.1:0"\n')
    ended, said = Event(), list[str]()
    server = Thread(target=serve, args=(here / "server", said.append, ended))
    server.start()
    try:
        await_condition(lambda: bool(said))
        with pytest.raises(VaultError, match="server: a server or another command uses this folder; stop it"):
            cloister("protect", "server", "--off")
    finally:
        ended.set()
        server.join()
    cloister("protect", "server", "--off")
    assert (here / "server" / "tls.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY")


@pytest.mark.parametrize("folder", ["server", "coordinator"])
def test_a_folder_without_a_ledger_is_copied_and_not_backed_up(here: Path, folder: str) -> None:
    cloister("init", "lungs", "--host", "localhost")
    with pytest.raises(ConfigError, match=rf"{folder} is a {folder}'s folder and has no ledger to guard: .* copy"):
        cloister("backup", folder, "backup")
    assert not (here / "backup").exists()
