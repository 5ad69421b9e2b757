"""What each role may do, and whose signature makes a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from privacy.errors import AuthenticityError, MalformedError, RefusedError
from privacy.run.manifest import open_run
from privacy.run.new_manifest import sign_manifest
from privacy.run.people import RIGHTS, ROLES, Person, Right, Role, may, read_role, with_right
from tests.privacy.consortium import PEOPLE, make_roster, public_hex, run_settings, signing_key

ALLOWED = {
    ("sign", "coordinator"), ("sign", "researcher"),
    ("administer", "coordinator"),
    ("operate", "operator"),
    ("stop", "coordinator"), ("stop", "operator"),
    ("audit", "auditor"),
    ("look", "coordinator"), ("look", "researcher"), ("look", "operator"), ("look", "auditor"),
}  # fmt: skip


def signed_by(who: str) -> bytes:
    return sign_manifest(run_settings(), signing_key(who), roster_version=3).to_bytes()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("right", RIGHTS)
def test_each_role_has_the_rights_that_the_document_lists(role: Role, right: Right) -> None:
    assert may(role, right) is ((right, role) in ALLOWED)


def test_a_sentence_names_who_has_a_right() -> None:
    assert with_right("sign") == "coordinators and researchers"
    assert with_right("administer") == "coordinators"


@pytest.mark.parametrize("name", [*ROLES, "Ana", "ana silva", "", "a" * 33, "1ana"])
def test_a_persons_name_is_short_plain_and_no_role(name: str) -> None:
    with pytest.raises(ValueError, match=r"name|pattern"):
        Person(name, "auditor", "00" * 32)


@pytest.mark.parametrize("text", ["", "director", "Auditor", "auditor "])
def test_other_text_is_no_role(text: str) -> None:
    with pytest.raises(ValueError, match="is not a role; roles are coordinator, researcher, operator, auditor"):
        read_role(text)


@pytest.mark.parametrize("role", ROLES)
def test_a_run_is_who_signed_it_if_their_role_allows_that(role: Role) -> None:
    roster = replace(make_roster(), people=(*PEOPLE, Person("tom", role, public_hex("tom"))))
    if may(role, "sign"):
        run = open_run(signed_by("tom"), roster)
        assert run.signer == roster.person("tom")
        assert run.manifest.settings == run_settings()
        return
    with pytest.raises(RefusedError) as refused:
        open_run(signed_by("tom"), roster)
    assert str(refused.value) == (
        f"tom signed this run as {role}, and only coordinators and researchers may sign runs (roster 3); ask one of "
        "them to sign it"
    )


@pytest.mark.parametrize("who", ["a stranger", "north"])
def test_nobody_else_signs_a_run_not_even_a_site(who: str) -> None:
    with pytest.raises(AuthenticityError, match="nobody in roster 3 of clinics signed this run"):
        open_run(signed_by(who), make_roster())


def test_who_has_left_the_roster_signed_nothing() -> None:
    assert open_run(signed_by("ines"), make_roster()).signer.name == "ines"
    without = replace(make_roster(), version=4, people=(PEOPLE[0], PEOPLE[2]))
    with pytest.raises(AuthenticityError, match=r"nobody in roster 4 .* is no longer listed"):
        open_run(signed_by("ines"), without)
    with pytest.raises(AuthenticityError, match="nobody in roster 3"):
        open_run(signed_by("ines"), replace(make_roster(), people=()))


def test_a_run_that_was_altered_is_nobodys() -> None:
    document = signed_by("ana")
    with pytest.raises(AuthenticityError, match="it was altered"):
        open_run(document.replace(b'"rounds": 10', b'"rounds": 11'), make_roster())
    with pytest.raises(MalformedError, match="not a signed Cloister manifest"):
        open_run(b"\xef\xbb\xbf" + document, make_roster())
    with pytest.raises((MalformedError, AuthenticityError)):
        open_run(document.replace(b"\n", b"\r\n"), make_roster())
