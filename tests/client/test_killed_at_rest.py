"""A site whose encryption, backup, restore or recovery is killed at any change of a file loses nothing.

Afterwards the site opens in its old state or in the new one, or says that the command has to be repeated; and it never
opens with fewer charges than it made.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree

import pytest

from client.backup import back_up
from client.protection import protect, ready, unprotect
from client.restoring import restore
from client.settings import read_site
from client.turn import TURN
from cloister.recovery import Since, charging, recover
from privacy.accounting.accounting import Mechanism
from privacy.at_rest.vault import FILE, KEY_FILE, Secret
from privacy.at_rest.vaults import forget
from privacy.errors import BackupError, CloisterError, ConfigError, LedgerError
from privacy.ledger.ledger import Budget, Release
from privacy.ledger.recovery import UNKNOWN
from privacy.storage import read_file
from tests.federations import NOISY, TERMS, FederationMaker
from tests.interrupted import killed_at

SITE, KEY = "north", bytes(range(32))
SECRET = Secret(KEY_FILE, KEY)
AMPLE = Budget(1000.0, 1e-5)
STEP = Mechanism(1.0, 0.1, 5)
MADE, KEPT = 4, 2  # charges that the site made; of those, in the backup


@pytest.fixture(params=["in the clear", "encrypted"])
def site(
    make_federation: FederationMaker, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A site's folder with its backup beside it; since that, it has charged twice more."""
    (tmp_path / "key").write_bytes(KEY)
    monkeypatch.setenv("CLOISTER_KEY_FILE", str(tmp_path / "key"))
    federation = make_federation(NOISY, {SITE: replace(TERMS, tasks=(NOISY.task,), epsilon=9.0, maximum_epsilon=3.0)})
    folder = tmp_path / "work" / SITE
    copytree(federation.paths[SITE], folder)
    if request.param == "encrypted":
        protect(read_site(folder), SECRET)
    charge(folder, 1, 2)
    back_up(read_site(folder), tmp_path / "backup")
    charge(folder, 3, 4)
    forget(folder)
    yield folder
    forget(folder)


def charge(folder: Path, *rounds: int) -> None:
    ledger = read_site(folder).ledger
    for number in rounds:
        ledger.reserve(Release("ab" * 32, number, 1), STEP, AMPLE)


def charges(folder: Path) -> list[Release]:
    """The charges of a site that opens."""
    forget(folder)
    place = read_site(folder)
    ready(place)
    assert read_file(folder / "keys" / "signing.key").startswith(b"-----BEGIN PRIVATE KEY")
    return [entry.release for entry in place.ledger.entries().charges]


def killed_everywhere(
    folder: Path, prepare: Callable[[], object], act: Callable[[], object], check: Callable[[], object], step: int
) -> None:
    """Let `act` be killed at every step-th change, each time in the same folder as it was before."""
    kept = folder.parent.with_name("kept")
    prepare()
    copytree(folder.parent, kept, symlinks=True)
    number = 0
    while True:
        rmtree(folder.parent)
        copytree(kept, folder.parent, symlinks=True)
        forget(folder)
        if not killed_at(number, folder.parent, act):
            break
        check()
        number += step
    assert number > 2 * step
    check()


def steps(*, whole: bool, few: int) -> int:
    return 1 if whole else few


soaked = pytest.param(True, marks=(pytest.mark.soak, pytest.mark.timeout(1800)))
whole = pytest.mark.parametrize("whole", [soaked, False], ids=["all", "some"])


@whole
def test_encryption(site: Path, *, whole: bool) -> None:
    encrypted = (site / FILE).exists()

    def act() -> None:
        unprotect(read_site(site)) if encrypted else protect(read_site(site), SECRET)

    def check() -> None:
        assert len(charges(site)) == MADE
        charge(site, 5)
        assert not list(site.rglob("*.old.new")) or not (site / FILE).exists()

    killed_everywhere(site, lambda: None, act, check, steps(whole=whole, few=29))


def test_a_backup(site: Path) -> None:
    backup = site.parent / "newer"

    def check() -> None:
        assert len(charges(site)) == MADE
        if backup.exists():
            assert len(charges(restore(backup, site.parent / "again").place.folder)) == MADE
        back_up(read_site(site), backup)
        assert [path.name for path in site.parent.iterdir() if "newer" in path.name] == ["newer"]

    killed_everywhere(site, lambda: None, lambda: back_up(read_site(site), backup), check, 1)


@whole
def test_a_restore_into_a_new_folder(site: Path, tmp_path: Path, *, whole: bool) -> None:
    def act() -> None:
        restore(tmp_path / "backup", site)

    def check() -> None:
        try:
            assert len(charges(site)) == KEPT
        except (BackupError, ConfigError) as error:
            assert "restore was interrupted here" in str(error) or not (site / "site.toml").exists()  # noqa: PT017
        act()
        assert len(charges(site)) == KEPT
        assert not list(site.glob(".rest*"))

    killed_everywhere(site, lambda: rmtree(site), act, check, steps(whole=whole, few=29))


@whole
def test_a_restore_that_charges_what_is_missing(site: Path, tmp_path: Path, *, whole: bool) -> None:
    def lose() -> None:
        (site / "ledger" / f"{SITE}-patients").unlink()
        (site / "keys" / "signing.key").unlink()

    def act() -> None:
        restore(tmp_path / "backup", site, charging(Since(None, None)))

    def check() -> None:
        try:
            assert UNKNOWN in charges(site)
        except (CloisterError, OSError):
            act()
        assert charges(site)[-1] == UNKNOWN

    killed_everywhere(site, lose, act, check, steps(whole=whole, few=29))


def test_recovery(site: Path, tmp_path: Path) -> None:
    def lose() -> None:
        newer = site.parent / "newer"
        site.rename(newer)
        restore(tmp_path / "backup", site)
        head = f"ledger-heads/{SITE}-patients"
        (newer / head).replace(site / head)
        rmtree(newer)
        (site / TURN).unlink()

    def act() -> None:
        recover(site, Since(None, None))

    def check() -> None:
        try:
            assert UNKNOWN in charges(site)
        except LedgerError as error:
            assert "lacks later charges" in str(error)  # noqa: PT017
            act()
        assert UNKNOWN in charges(site)

    killed_everywhere(site, lose, act, check, 1)
