"""What can go wrong in a site's own folder, each made for real."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from privacy.run.roster import Roster, sign_roster
from tests.cloister.commands.consortium_at_work import SITE, Case
from tests.federations import certify
from transport.pki import public_key_digest, read_authority, read_certificate

# --- Keys, certificate and roster -----------------------------------------------------------------------------------


def without(name: str) -> Callable[[Case], None]:
    def lost(case: Case) -> None:
        (case.site / "keys" / name).unlink()

    return lost


def of_another_site(name: str) -> Callable[[Case], None]:
    def mixed_up(case: Case) -> None:
        (case.site / "keys" / name).write_bytes((case.lungs.folder / "south" / "keys" / name).read_bytes())

    return mixed_up


def readable_by_others(case: Case) -> None:
    (case.site / "keys" / "signing.key").chmod(0o644)


def cut(name: str) -> Callable[[Case], None]:
    def shorter(case: Case) -> None:
        path = case.site / "keys" / name
        path.write_bytes(path.read_bytes()[:-40])

    return shorter


def certificate_expired(case: Case) -> None:
    folder = case.lungs.folder / "coordinator"
    authority = read_authority(folder / "authority.key", folder / "authority.pem")
    certify(case.folder / "old", authority, name=SITE, days=-1, server=False)
    for name in ("tls.pem", "tls.key"):
        (case.site / "keys" / name).write_bytes((case.folder / "old" / name).read_bytes())
    key = public_key_digest(read_certificate(case.site / "keys" / "tls.pem"))
    _sign(case, lambda roster: replace(roster, members=tuple(
        replace(member, tls_key=key) if member.site == SITE else member for member in roster.members
    )))  # fmt: skip


def roster_expired(case: Case) -> None:
    _sign(case, lambda roster: replace(roster, expires=1_700_000_000.0))


def newer_than_the_servers(case: Case) -> None:
    _sign(case, lambda roster: replace(roster, version=roster.version + 5))


# --- site.toml, records and task ------------------------------------------------------------------------------------


def settings(change: Callable[[str], bytes]) -> Callable[[Case], None]:
    """Change `site.toml`, as an editor does."""

    def changed(case: Case) -> None:
        case.write_settings()
        path = case.site / "site.toml"
        path.write_bytes(change(path.read_text(encoding="utf-8")))
        case.monkeypatch.setattr(Case, "write_settings", lambda _: None)

    return changed


latin_1 = settings(lambda text: f"# größe\n{text}".encode("latin-1", "replace"))
utf_16 = settings(lambda text: text.encode("utf-16"))
misspelt = settings(lambda text: text.replace("held_out", "heldout").encode())
windows = settings(lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())


def no_records(case: Case) -> None:
    case.terms = replace(case.terms, file="absent.csv")


def no_task(case: Case) -> None:
    case.terms = replace(case.terms, tasks=("nobody.wrote:This",))


# --- Its disk -------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk(case: Case) -> Iterator[None]:
    with _own_disk(case):
        with suppress(OSError), (case.folder / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        yield


@contextmanager
def read_only_disk(case: Case) -> Iterator[None]:
    with _own_disk(case) as disk:
        _system("mount", "-o", "remount,ro", disk)
        yield


@contextmanager
def _own_disk(case: Case) -> Iterator[str]:
    """Move the site to a small disk of its own."""
    disk = case.folder.parent / "disk"
    disk.mkdir()
    if os.geteuid() or not _system("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)):
        pytest.skip("this user cannot mount a disk")
    try:
        case.site.rename(case.folder / "away")
        case.folder, before = disk, case.folder
        shutil.copytree(before / "away", case.site)
        case.write_settings()
        case.monkeypatch.setattr(Case, "write_settings", lambda _: None)
        yield str(disk)
    finally:
        assert _system("umount", str(disk))


def _system(name: str, *arguments: str) -> bool:
    """Run one of the system's commands; return whether it is there and does what it should."""
    command = shutil.which(name)
    return (
        command is not None and not subprocess.run([command, *arguments], check=False, capture_output=True).returncode
    )


def _sign(case: Case, change: Callable[[Roster], Roster]) -> None:
    """Give the site another roster that the authority signed."""
    folder = case.lungs.folder / "coordinator"
    authority = read_authority(folder / "authority.key", folder / "authority.pem")
    roster = change(case.lungs.place.roster())
    (case.site / "keys" / "roster").write_bytes(sign_roster(roster, authority.key).to_bytes())
