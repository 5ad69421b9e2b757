"""A site comes back from its backup, and never with fewer charges than it made."""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from shutil import copytree

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.backup import back_up
from client.protection import protect
from client.restoring import restore
from client.settings import SiteFolder, read_site
from client.turn import TURN
from cloister.recovery import Since, charging, recover
from privacy.accounting.accounting import Mechanism
from privacy.at_rest.vault import Secret
from privacy.at_rest.vaults import forget
from privacy.errors import BackupError, BudgetError, CloisterError, ConfigError, LedgerError, VaultError
from privacy.ledger.ledger import Budget, Release
from privacy.ledger.recovery import Limits, most_charged
from privacy.locks import locked
from privacy.storage import read_file, write_atomically
from simulations.engine.federation import Federation
from tests.federations import NOISY, SITES, TERMS, FederationMaker, signed_run
from transport.pki import key_pem

SITE, PHRASE = "north", "correct horse battery staple"
AMPLE = Budget(1000.0, 1e-5)
STEP = Mechanism(1.0, 0.1, 5)


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    return make_federation(NOISY, {SITE: replace(TERMS, tasks=(NOISY.task,), epsilon=9.0, maximum_epsilon=3.0)})


@pytest.fixture(params=["in the clear", "encrypted"])
def place(
    federation: Federation, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SiteFolder]:
    """A site with two charges."""
    place = read_site(federation.paths[SITE])
    charged(place, 1, 2)
    monkeypatch.setenv("CLOISTER_PASSPHRASE", PHRASE)
    if request.param == "encrypted":
        protect(place, Secret.of_passphrase(PHRASE))
    yield read_site(place.folder)
    forget(place.folder)


def charged(place: SiteFolder, *rounds: int) -> None:
    for number in rounds:
        place.ledger.reserve(Release("ab" * 32, number, 1), STEP, AMPLE)


def rounds_of(folder: Path) -> list[int]:
    return [entry.release.round for entry in read_site(folder).ledger.entries().charges]


def test_a_site_comes_back_in_a_new_folder(place: SiteFolder, tmp_path: Path) -> None:
    header = back_up(place, tmp_path / "backup")
    assert header.site == SITE
    assert not [file.name for file in header.files if file.name.startswith("records")]
    restored = restore(tmp_path / "backup", tmp_path / "again")
    assert rounds_of(tmp_path / "again") == [1, 2]
    names = {file.name for file in header.files}
    assert {path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*")
            if path.is_file()} - {TURN} == names  # fmt: skip
    for name in ("keys/signing.key", "keys/roster"):
        assert read_file(tmp_path / "again" / name) == read_file(place.folder / name)
    charged(restored.place, 3)
    assert not list(tmp_path.glob(".*restoring"))


def test_an_encrypted_backup_shows_nothing(place: SiteFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, key = back_up(place, tmp_path / "backup"), read_file(place.folder / "keys" / "signing.key")
    assert (key in (tmp_path / "backup").read_bytes()) != bool(header.mac)
    if header.mac:
        monkeypatch.setenv("CLOISTER_PASSPHRASE", PHRASE[::-1])
        with pytest.raises(VaultError, match="does not open"):
            restore(tmp_path / "backup", tmp_path / "again")
        assert not (tmp_path / "again" / "site.toml").exists()


def test_a_newer_ledger_in_the_folder_stays(place: SiteFolder, tmp_path: Path) -> None:
    back_up(place, tmp_path / "backup")
    charged(place, 3)
    (place.folder / "keys" / "signing.key").unlink()
    kept = restore(tmp_path / "backup", place.folder).kept
    assert f"ledger/{SITE}-patients" in kept
    assert rounds_of(place.folder) == [1, 2, 3]
    charged(read_site(place.folder), 4)


def test_the_folders_own_settings_stay(place: SiteFolder, tmp_path: Path) -> None:
    back_up(place, tmp_path / "backup")
    settings = (place.folder / "site.toml").read_bytes() + b"\n# stricter since\n"
    (place.folder / "site.toml").write_bytes(settings)
    assert "site.toml" in restore(tmp_path / "backup", place.folder).kept
    assert (place.folder / "site.toml").read_bytes() == settings


def lose(place: SiteFolder, tmp_path: Path) -> None:
    """Charge more than the backup has, and lose the ledger."""
    back_up(place, tmp_path / "backup")
    charged(place, 3, 4)
    place.ledger.path.unlink()


def test_a_backup_that_lacks_entries_is_refused_and_nothing_changes(place: SiteFolder, tmp_path: Path) -> None:
    lose(place, tmp_path)
    before = {path: path.read_bytes() for path in place.folder.rglob("*") if path.is_file()}
    with pytest.raises(BackupError, match=r"lacks later charges of north .*; if there is none, see --charge-missing"):
        restore(tmp_path / "backup", place.folder)
    assert {path: path.read_bytes() for path in place.folder.rglob("*") if path.is_file()} == before


def refused(place: SiteFolder, backup: Path) -> None:
    with pytest.raises(BackupError, match="this backup lacks later charges of north"):
        restore(backup, place.folder)


def test_a_newer_ledger_is_not_rolled_back_where_the_settings_are_lost(place: SiteFolder, tmp_path: Path) -> None:
    back_up(place, tmp_path / "backup")
    charged(place, 3)
    settings = (place.folder / "site.toml").read_bytes()
    (place.folder / "site.toml").unlink()
    assert f"ledger/{SITE}-patients" in restore(tmp_path / "backup", place.folder).kept
    assert rounds_of(place.folder) == [1, 2, 3]
    assert (place.folder / "site.toml").read_bytes() == settings
    (place.folder / "site.toml").unlink()
    place.ledger.path.unlink()
    refused(place, tmp_path / "backup")


def test_a_ledger_of_people_whom_the_settings_no_longer_name_is_not_rolled_back(
    place: SiteFolder, tmp_path: Path
) -> None:
    other, release = place.ledger_of("earlier-patients"), Release("cd" * 32, 1, 1)
    other.reserve(release, STEP, AMPLE)
    back_up(place, tmp_path / "backup")
    other.reserve(replace(release, round=2), STEP, AMPLE)
    assert "ledger/earlier-patients" in restore(tmp_path / "backup", place.folder).kept
    other.path.write_bytes(b"damaged")
    refused(place, tmp_path / "backup")
    with pytest.raises(BackupError, match="lacks later charges"):
        restore(tmp_path / "backup", place.folder, charging(Since(None, None)))


def test_a_ledger_that_is_signed_with_a_later_key_is_not_rolled_back(place: SiteFolder, tmp_path: Path) -> None:
    back_up(place, tmp_path / "backup")
    old = place.ledger.public_key
    write_atomically(place.folder / "keys" / "signing.key", key_pem(Ed25519PrivateKey.generate()))
    later = read_site(place.folder)
    later.ledger.adopt(old)
    charged(later, 3)
    refused(later, tmp_path / "backup")
    assert rounds_of(place.folder) == [1, 2, 3]


def test_where_nothing_is_missing_no_charge_is_announced(place: SiteFolder, tmp_path: Path) -> None:
    lose(place, tmp_path)
    restore(tmp_path / "backup", place.folder, charging(Since(None, None)))
    count = len(rounds_of(place.folder))
    with pytest.raises(BackupError, match="so nothing is charged; restore without --charge-missing"):
        restore(tmp_path / "backup", place.folder, charging(Since(None, None)))
    assert len(rounds_of(place.folder)) == count


def test_what_is_missing_is_charged_at_the_most_that_the_named_run_can_have_cost(
    place: SiteFolder, federation: Federation, tmp_path: Path
) -> None:
    lose(place, tmp_path)
    restore(tmp_path / "backup", place.folder, charging(Since(None, [federation.manifest], [place.folder])))
    restored = read_site(place.folder)
    limit = restored.settings.limit
    (*before, charge) = restored.ledger.entries().charges
    assert [entry.release.round for entry in before] == [1, 2]
    assert charge.release == Release(signed_run(federation)[2], 0, 0)
    one = Mechanism(2.0, 1.0, 1)
    more = Mechanism(2.0, 1.0, charge.mechanism.steps + 1)
    assert restored.ledger.cost([charge.mechanism], limit.delta) <= limit.run_epsilon * 1.02
    assert restored.ledger.cost([more], limit.delta) > limit.run_epsilon  # no more fits under the run's limit
    with pytest.raises(BudgetError, match="over the limit of"):
        restored.ledger.reserve(Release(charge.release.run, 1, 1), one, limit)
    charged(restored, 5)  # another run


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ("maximum_epsilon = 3.0", "maximum_epsilon = 1.0"),
        ("delta = 1e-05", "delta = 1e-09"),
        ("held_out = 0.2", "held_out = 0.2\nrecords_per_person = 3"),
    ],
)
def test_a_bound_holds_under_all_the_settings_that_stood(
    federation: Federation, tmp_path: Path, then: str, now: str
) -> None:
    place = read_site(federation.paths[SITE])
    back_up(place, tmp_path / "backup")
    _, manifest, digest = signed_run(federation)
    with suppress(BudgetError):
        for number in count(1):
            place.ledger.reserve(Release(digest, number, 1), manifest.round_cost, place.settings.limit)
    made = len(place.ledger.mechanisms())
    place.ledger.path.unlink()
    settings = place.folder / "site.toml"
    (tmp_path / "before.toml").write_text(settings.read_text())
    settings.write_text(settings.read_text().replace(then, now))
    assert settings.read_text() != (tmp_path / "before.toml").read_text()
    copytree(place.folder, tmp_path / "blind")
    since = Since(None, [federation.manifest], [tmp_path / "before.toml"])
    (charge,) = restore(tmp_path / "backup", place.folder, charging(since, settings)).place.ledger.entries().charges
    assert charge.mechanism.steps >= made * manifest.round_cost.steps
    assert len(read_site(place.folder).ledger.mechanisms()) == 1
    limit = read_site(tmp_path / "blind").settings  # what the present settings alone would bound
    ledger = read_site(place.folder).ledger.at(tmp_path / "none", None)
    alone = most_charged(ledger, manifest.round_cost, [Limits(limit.limit, limit.data.records_per_person)])
    assert alone is None or alone.steps < made * manifest.round_cost.steps


def test_what_the_named_settings_cannot_explain_is_not_accepted(
    place: SiteFolder, federation: Federation, tmp_path: Path
) -> None:
    settings = place.folder / "site.toml"
    settings.write_text(settings.read_text().replace("maximum_epsilon = 3.0", "maximum_epsilon = 0.001"))
    lose(place, tmp_path)
    since = Since(None, [federation.manifest], [settings])
    with pytest.raises(LedgerError, match="no run that you named can have made them under the settings"):
        restore(tmp_path / "backup", place.folder, charging(since, settings))
    assert not place.ledger.path.exists()
    for runs, named in (([federation.manifest], []), ([], [settings])):
        with pytest.raises(ConfigError, match=r"every site\.toml that stood since"):
            Since(None, runs, named)
    with pytest.raises(ConfigError, match="--settings goes with --run"):
        Since(None, None, [settings])


def test_settings_of_another_site_bound_nothing(federation: Federation, tmp_path: Path) -> None:
    place = read_site(federation.paths[SITE])
    charged(place, 1)
    lose(place, tmp_path)
    since = Since(None, [federation.manifest], [federation.paths["south"]])
    with pytest.raises(ConfigError, match="these are settings of south, not of north; name this site's own"):
        restore(tmp_path / "backup", place.folder, charging(since))
    assert not place.ledger.path.exists()


def test_a_loss_that_no_head_shows_is_charged_if_one_insists(place: SiteFolder) -> None:
    with pytest.raises(
        LedgerError, match="if no head is left anywhere and charges are lost all the same, add --without"
    ):
        recover(place.folder, Since(None, None))
    assert [charge["steps"] for charge in recover(place.folder, Since(None, None), without_head=True)] == [1, 1]
    with pytest.raises(BudgetError, match="over its budget"):
        charged(read_site(place.folder), 5)


def test_a_site_is_restored_where_a_folder_is_on_another_disk(place: SiteFolder, tmp_path: Path) -> None:
    other = Path(tempfile.mkdtemp(dir="/dev/shm")) if Path("/dev/shm").is_dir() else tmp_path  # noqa: S108
    try:
        back_up(place, tmp_path / "backup")
        ledger = f"{SITE}-patients"
        shutil.move(place.folder / "ledger", other / "ledger")
        (place.folder / "ledger").symlink_to(other / "ledger", target_is_directory=True)
        (other / "ledger" / ledger).unlink()
        restore(tmp_path / "backup", place.folder)
        assert (place.folder / "ledger").is_symlink()
        assert (other / "ledger" / ledger).exists()
        assert rounds_of(place.folder) == [1, 2]
        assert {path.name for path in place.folder.parent.iterdir()} == {*SITES, "server", "coordinator"}
    finally:
        shutil.rmtree(other, ignore_errors=True)


def test_a_restore_through_a_link_changes_nothing(place: SiteFolder, tmp_path: Path) -> None:
    back_up(place, tmp_path / "backup")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="link is a link"):
        restore(tmp_path / "backup", tmp_path / "link")
    assert not list((tmp_path / "real").iterdir())


def test_keys_elsewhere_in_the_folder_come_back_too(federation: Federation, tmp_path: Path) -> None:
    folder = federation.paths[SITE]
    settings = folder / "site.toml"
    settings.write_text(settings.read_text() + '\n[keys]\ntls_key = "own.key"\n')
    (folder / "keys" / "tls.key").rename(folder / "own.key")
    back_up(read_site(folder), tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "again")
    assert (tmp_path / "again" / "own.key").read_bytes() == (folder / "own.key").read_bytes()


def test_if_no_run_is_known_the_budget_is_spent(place: SiteFolder, tmp_path: Path) -> None:
    lose(place, tmp_path)
    restore(tmp_path / "backup", place.folder, charging(Since(None, None)))
    with pytest.raises(BudgetError, match="over its budget"):
        charged(read_site(place.folder), 5)


def test_a_loss_that_only_the_server_shows_is_charged_later(place: SiteFolder, tmp_path: Path) -> None:
    back_up(place, tmp_path / "backup")
    charged(place, 3)
    known = place.ledger.sign_head()
    again = restore(tmp_path / "backup", tmp_path / "again").place
    with pytest.raises(LedgerError, match="see `cloister ledger recover --help`"):
        again.ledger.check_head(known)
    with pytest.raises(LedgerError, match="nothing is missing from this site's ledgers"):
        recover(again.folder, Since(None, None))
    heads = tmp_path / "ledger-heads.json"
    stored = {SITE: {"head": known.head, "signature": known.signature.hex()},
              "south": {"head": known.head, "signature": "00" * 64}}  # fmt: skip
    heads.write_text(json.dumps(stored))
    assert [charge["steps"] for charge in recover(again.folder, Since(heads, None))] == [1, 1]
    again = read_site(again.folder)
    again.ledger.check_head(known)
    with pytest.raises(BudgetError):
        charged(again, 4)
    with pytest.raises(LedgerError, match="nothing is missing"):
        recover(again.folder, Since(heads, None))


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0",
        lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        lambda data: data.replace(b'"keys/', b'"../s/', 1),
        lambda data: data.replace(b'"site": "north"', b'"site": "nxrth"', 1),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"backup-1", b"backup-2", 1),
        lambda data: data.replace(b'"keys/', b'"\\ud8/', 1),
        lambda data: data.replace(b'"keys/roster"', b'".restored/1"', 1),
        lambda data: re.sub(rb'(authority.pem", )\d', rb"\g<1>Infinity, ", data, count=1),
        lambda _: b"",
    ],
    ids=[
        "cut",
        "halved",
        "longer",
        "flipped",
        "path",
        "site",
        "byte order mark",
        "version",
        "surrogate",
        "own state",
        "infinity",
        "empty",
    ],
)
def test_a_damaged_backup_is_one_sentence_and_changes_nothing(
    place: SiteFolder, tmp_path: Path, edit: Callable[[bytes], bytes], request: pytest.FixtureRequest
) -> None:
    back_up(place, tmp_path / "backup")
    data = (tmp_path / "backup").read_bytes()
    (tmp_path / "bad").write_bytes(edit(data))
    if "site" in request.node.name and b'"mac": ""' in data:
        return  # without encryption, nothing vouches for the name
    with pytest.raises(CloisterError, match=r"bad: this (backup is damaged|is no backup)"):
        restore(tmp_path / "bad", place.folder)
    assert rounds_of(place.folder) == [1, 2]


def test_a_backup_of_another_site_or_of_a_folder_encrypted_otherwise_is_refused(
    federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_PASSPHRASE", PHRASE)
    places = [read_site(federation.paths[site]) for site in (SITE, "south")]
    back_up(places[1], tmp_path / "backup")
    with pytest.raises(BackupError, match="belongs to north, this backup to south"):
        restore(tmp_path / "backup", places[0].folder)
    protect(places[1], Secret.of_passphrase(PHRASE))
    with pytest.raises(BackupError, match="is not encrypted as this backup is; restore into a new folder"):
        restore(tmp_path / "backup", places[1].folder)


def test_while_an_agent_runs_nothing_is_copied(federation: Federation, tmp_path: Path) -> None:
    place = read_site(federation.paths[SITE])
    with (place.folder / TURN).open("ab") as file:
        assert locked(file)
        with pytest.raises(VaultError, match="an agent of this site is running"):
            back_up(place, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
