"""A site's keyring only goes forward, and survives restarts; a site makes and takes keys only as the roster says."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from shutil import rmtree
from typing import TYPE_CHECKING

import pytest

from client.round.key_epochs import accept_letter, lead_epoch
from client.state.keyring import Keyring
from privacy.crypto.key_epoch import EpochKeys
from privacy.errors import AuthenticityError, KeyFileError, ProtocolError
from tests.federations import SITES, restart

if TYPE_CHECKING:
    from pathlib import Path

    from client.site import Site
    from tests.federations import FederationMaker


@cache
def keys(epoch: int, which: str = "usual") -> EpochKeys:
    del which  # another name, other keys
    return EpochKeys.generate(epoch)


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "epochs")


def test_secrets_that_several_processes_share_at_once_are_all_kept(tmp_path: Path) -> None:
    names, epoch = [f"site-{number}" for number in range(24)], keys(1)

    def share(name: str) -> None:
        Keyring(tmp_path / "epochs").keep_pairs(epoch, {name: name.encode(), "all": name.encode()})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(share, names))
    partners = Keyring(tmp_path / "epochs").paired_with(epoch)
    assert partners == sorted([*names, "all"])


def test_an_empty_keyring_has_no_keys(keyring: Keyring) -> None:
    assert keyring.latest == 0
    assert keyring.current(1) is None
    with pytest.raises(ProtocolError, match="does not have the keys"):
        keyring.find(keys(1).fingerprint)


def test_older_epochs_are_refused_and_the_same_keys_change_nothing(keyring: Keyring, tmp_path: Path) -> None:
    keyring.take(keys(2), 1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "epochs").iterdir()}
    keyring.take(keys(2), 1)
    for refused in (keys(1), keys(2, "other")):
        with pytest.raises(ProtocolError, match="are refused"):
            keyring.take(refused, 1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "epochs").iterdir()} == before
    assert keyring.current(1) is keys(2)


def test_a_restart_keeps_the_keys_of_all_epochs(keyring: Keyring, tmp_path: Path) -> None:
    for epoch in (1, 2, 10):
        keyring.take(keys(epoch), 1)
    again = Keyring(tmp_path / "epochs")
    assert again.latest == 10
    for epoch in (1, 2, 10):
        assert again.find(keys(epoch).fingerprint).to_bytes() == keys(epoch).to_bytes()
    current = again.current(1)
    assert current is not None
    assert current.fingerprint == keys(10).fingerprint
    with pytest.raises(ProtocolError, match="are refused"):
        again.take(keys(3), 1)
    again.take(keys(1), 1)  # one that it has already, in the same words


def test_keys_are_not_current_once_the_roster_is_another(keyring: Keyring, tmp_path: Path) -> None:
    keyring.take(keys(1), 1)
    for ring in (keyring, Keyring(tmp_path / "epochs")):
        assert ring.current(2) is None
        assert ring.latest == 1
        assert ring.find(keys(1).fingerprint).epoch == 1  # what it missed it can still open
    keyring.take(keys(2), 2)
    assert keyring.current(2) is keys(2)
    assert keyring.current(1) is None


def test_one_letter_cannot_use_up_the_numbers_of_key_epochs(keyring: Keyring) -> None:
    with pytest.raises(ProtocolError, match="too far from this site's key epoch 0"):
        keyring.take(keys(2**62), 1)
    keyring.take(keys(10_000), 1)


def test_keys_accepted_by_another_process_of_the_site_are_found(keyring: Keyring, tmp_path: Path) -> None:
    assert keyring.current(1) is None
    Keyring(tmp_path / "epochs").take(keys(1), 1)
    current = keyring.current(1)
    assert current is not None
    assert current.fingerprint == keys(1).fingerprint


def test_only_the_owner_may_read_the_files(keyring: Keyring, tmp_path: Path) -> None:
    keyring.take(keys(1), 1)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "epochs").iterdir()] == [0o600]


@pytest.mark.parametrize("damage", ["cut", "empty", "tag key", "decryption key", "renamed"])
def test_a_damaged_file_is_reported_by_name(keyring: Keyring, tmp_path: Path, damage: str) -> None:
    keyring.take(keys(1), 1)
    (file,) = (tmp_path / "epochs").iterdir()
    data = bytearray(file.read_bytes())
    if damage == "renamed":
        file = file.rename(file.with_name("000002-roster-1.key"))
    elif damage in {"cut", "empty"}:
        file.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
    else:
        data[20 if damage == "tag key" else 5000] ^= 1
        file.write_bytes(data)
    with pytest.raises(KeyFileError, match=file.name):
        Keyring(tmp_path / "epochs").current(1)


def test_other_files_in_the_folder_are_left_alone(keyring: Keyring, tmp_path: Path) -> None:
    keyring.take(keys(1), 1)
    (tmp_path / "epochs" / ".000002-roster-1.key.7.new").write_bytes(b"torn")
    (tmp_path / "epochs" / "copy-of-000002-roster-1.key").write_bytes(b"?")
    assert Keyring(tmp_path / "epochs").latest == 1


@pytest.fixture
def sites(make_federation: FederationMaker) -> dict[str, Site]:
    federation = make_federation()
    for path in federation.paths.values():
        rmtree(path / "keys" / "epochs", ignore_errors=True)
    return {site: restart(federation, site) for site in SITES}


def test_a_leaders_letters_give_every_other_site_its_keys(sites: dict[str, Site]) -> None:
    keys_, letters = lead_epoch(sites["north"], 1)
    assert set(letters) == set(SITES)
    for name, site in sites.items():
        assert accept_letter(site, "north", letters[name]).fingerprint == keys_.fingerprint  # the leader's own as well
        assert site.keyring.latest == 1


@pytest.mark.parametrize("epoch", [1, 0, -1])
def test_a_site_leads_only_newer_epochs(sites: dict[str, Site], epoch: int) -> None:
    lead_epoch(sites["north"], 1)
    with pytest.raises(ProtocolError, match="does not make keys"):
        lead_epoch(sites["north"], epoch)
    assert sites["north"].keyring.latest == 1


def test_a_site_accepts_no_older_epoch_and_no_second_one_of_the_same_number(sites: dict[str, Site]) -> None:
    _, old = lead_epoch(sites["north"], 1)
    _, other = lead_epoch(sites["south"], 2)
    _, rival = lead_epoch(sites["east"], 2)
    accept_letter(sites["west"], "south", other["west"])
    for leader, letters in (("north", old), ("east", rival)):
        with pytest.raises(ProtocolError, match="are refused"):
            accept_letter(sites["west"], leader, letters["west"])
    assert sites["west"].keyring.latest == 2


def test_a_refused_letter_leaves_nothing_at_the_site(sites: dict[str, Site]) -> None:
    _, letters = lead_epoch(sites["north"], 1)
    for leader, letter in (("north", letters["south"][:-1]), ("east", letters["south"]), ("me", letters["south"])):
        with pytest.raises((AuthenticityError, ProtocolError)):
            accept_letter(sites["south"], leader, letter)
    with pytest.raises(ProtocolError, match="recipient"):
        accept_letter(sites["south"], "north", letters["west"])
    assert sites["south"].keyring.latest == 0
    assert not list(sites["south"].place.folder.rglob("*-roster-*.key"))
