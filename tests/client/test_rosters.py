"""A roster takes another's place only if it is newer, of the same consortium, and the only one of its version."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from client.rosters import checked_roster, older_roster, replace_roster
from privacy.errors import AuthenticityError
from privacy.run.roster import roster_digest, sign_roster
from tests.privacy.consortium import PEOPLE, authority_key, make_roster

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.run.roster import Roster

KEY = authority_key()
NOW = make_roster()


def signed(roster: Roster) -> bytes:
    return sign_roster(roster, KEY).to_bytes()


def check(path: Path, data: bytes) -> Roster:
    return checked_roster(path, data, KEY.public_key(), lambda _: None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a site has roster 3."""
    (tmp_path / "roster").write_bytes(signed(NOW))
    return tmp_path / "roster"


def test_the_first_roster_is_taken_whatever_its_version(tmp_path: Path) -> None:
    assert check(tmp_path / "roster", signed(NOW)) == NOW


def test_a_newer_roster_is_taken_and_the_older_kept(path: Path) -> None:
    before, newer = path.read_bytes(), replace(NOW, version=4)
    assert check(path, signed(newer)) == newer
    replace_roster(path, signed(newer), KEY.public_key())
    assert check(path, path.read_bytes()) == newer
    assert older_roster(path, 3).read_bytes() == before


@pytest.mark.parametrize(
    "changes",
    [{"people": PEOPLE[:1]}, {"members": NOW.members[:2]}, {"expires": time.time() + 600}, {"people": ()}],
    ids=["a person less", "a member less", "another end", "nobody"],
)
def test_a_second_roster_of_one_version_is_refused_and_both_digests_are_told(
    path: Path, changes: dict[str, object]
) -> None:
    before, other = path.read_bytes(), signed(replace(NOW, **changes))  # type: ignore[arg-type]
    with pytest.raises(AuthenticityError) as refused:
        check(path, other)
    text = str(refused.value)
    assert "the authority signed two rosters 3" in text
    assert roster_digest(before) in text
    assert roster_digest(other) in text
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_same_roster_signed_twice_is_one(path: Path) -> None:
    again = signed(NOW)
    assert again != path.read_bytes()
    assert check(path, again) == NOW


def test_an_older_roster_and_another_consortiums_are_refused(path: Path) -> None:
    with pytest.raises(AuthenticityError, match="roster 2 is older than the one here, 3"):
        check(path, signed(replace(NOW, version=2)))
    with pytest.raises(AuthenticityError, match="this roster is of 'hearts', and the one here of 'clinics'"):
        check(path, signed(replace(NOW, version=4, consortium="hearts")))


def test_a_roster_that_does_not_list_its_reader_is_refused(path: Path) -> None:
    def refuse(roster: Roster) -> None:
        raise AuthenticityError(str(roster.version))

    with pytest.raises(AuthenticityError, match="4"):
        checked_roster(path, signed(replace(NOW, version=4)), KEY.public_key(), refuse)
