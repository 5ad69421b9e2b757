"""The key ceremony with real sites: who leads, who is passed over, and that the server learns and loses nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from hypothesis import example, given
from hypothesis import strategies as st

from client.flower import app as client_app
from client.flower import open_site
from client.state.keyring import Keyring
from privacy.crypto.key_epoch import EpochKeys
from privacy.run.plan import LARGEST_STEP
from privacy.storage import write_atomically
from server.app import app as server_app
from simulations.engine.inline import InlineGrid
from simulations.engine.inspection import find_secrets, site_secrets
from simulations.engine.results import read_events
from strategies.ceremony import next_epoch
from strategies.sealed_keys import SealedKeys
from tests.federations import SETTINGS, SITES, context_of, node_of, signed_run
from transport.flower import SERVER_NODE, quieten, reply
from transport.messages import ACCEPT, LEAD, PAIRS

if TYPE_CHECKING:
    from simulations.engine.federation import Federation
    from tests.federations import Answer, FederationMaker

FIRST, SECOND = sorted(SITES)[:2]  # who is asked to lead, in this order


@pytest.fixture
def federation(make_federation: FederationMaker) -> Federation:
    """Four sites that share no keys yet."""
    consortium = make_federation()
    for path in consortium.paths.values():
        rmtree(path / "keys" / "epochs", ignore_errors=True)
    return consortium


def run(
    federation: Federation,
    answer: Answer = client_app,
    name: str = "study",
    *,
    new_epoch: bool = False,
    masks: bool = False,
) -> list[dict[str, Any]]:
    """Run one round with every site restarted; return the run's events."""
    quieten()
    open_site.cache_clear()
    encryption = replace(SETTINGS.encryption, collusion_resistant=masks)
    federation.sign(replace(SETTINGS, name=name, encryption=encryption))
    run_id = int(signed_run(federation)[2][:15], 16)
    contexts = {node_of(federation, site): context_of(federation, site) for site in SITES}
    server_app(
        InlineGrid(run_id, contexts, answer),
        Context(run_id, SERVER_NODE, {}, RecordDict(), {
            "consortium": str(federation.server), "manifest": str(federation.manifest), "new-epoch": new_epoch,
        }),
    )  # fmt: skip
    return read_events(federation)


def instead(kind: str, site: str, answer: Answer) -> Answer:
    """What all sites do, but for one that answers messages of this kind otherwise."""

    def app(message: Message, context: Context) -> Message:
        wrong = message.metadata.message_type == kind and Path(str(context.node_config["site"])).name == site
        return answer(message, context) if wrong else client_app(message, context)

    return app


def fails(message: Message, context: Context) -> Message:
    del context
    return reply(Error(100, "not now"), message)


def crashes(message: Message, context: Context) -> Message:
    del message, context
    raise RuntimeError


def loses(message: Message, context: Context) -> Message:
    """Do the work, but say that it failed: a reply that never arrives."""
    client_app(message, context)
    return fails(message, context)


def says_nothing(message: Message, context: Context) -> Message:
    client_app(message, context)
    return reply(RecordDict(), message)


def with_letters(**other: bytes) -> Answer:
    """Lead, and hand in other letters."""

    def answer(message: Message, context: Context) -> Message:
        response = client_app(message, context)
        letters = response.content["letters"]
        assert isinstance(letters, ArrayRecord)
        for site, data in other.items():
            letters[site] = Array("uint8", (len(data),), "cloister.bytes.1", data)
        return response

    return answer


def epochs(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == "epoch"]


def contributors(events: list[dict[str, Any]]) -> set[str]:
    assert events[-1]["event"] == "finished"
    (event,) = (event for event in events if event["event"] == "round")
    return set(event["sites"])


def held(federation: Federation) -> dict[str, list[str]]:
    """The epochs' files at every site."""
    return {
        site: sorted(file.name for file in (path / "keys" / "epochs").glob("*.key"))
        for site, path in federation.paths.items()
    }


def fingerprints(federation: Federation) -> set[str]:
    """Of the keys that the sites have now."""
    current = {site: Keyring(path / "keys" / "epochs").current(1) for site, path in federation.paths.items()}
    return {keys.fingerprint if keys else f"{site} has none" for site, keys in current.items()}


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_keys_are_made_once_and_anew_only_on_command(
    federation: Federation,
) -> None:
    events = run(federation)
    (event,) = epochs(events)
    assert (event["epoch"], event["leader"], event["sites"]) == (1, FIRST, sorted(SITES))
    assert contributors(events) == set(SITES)
    assert fingerprints(federation) == {event["keys"]}

    events = run(federation, name="second")
    assert epochs(events) == []
    assert contributors(events) == set(SITES)
    assert held(federation) == {site: ["000001-roster-1.key"] for site in SITES}

    events = run(federation, name="third", new_epoch=True)
    (newer,) = epochs(events)
    assert newer["epoch"] == 2
    assert newer["keys"] != event["keys"]
    assert contributors(events) == set(SITES)
    assert fingerprints(federation) == {newer["keys"]}

    secrets = site_secrets(federation)
    assert sum("-roster-" in name for name in secrets) == 2 * len(SITES)
    assert find_secrets(federation.server, secrets) == []
    assert len(list((federation.server / "epochs").glob("*.letter"))) == 2 * len(SITES)


@pytest.mark.parametrize("answer", [fails, crashes, says_nothing], ids=["refuses", "crashes", "says nothing"])
def test_another_site_leads_if_the_leader_fails(federation: Federation, answer: Answer) -> None:
    events = run(federation, instead(LEAD.name, FIRST, answer))
    (event,) = epochs(events)
    assert event["leader"] == SECOND
    assert len(contributors(events)) >= SETTINGS.cohort.minimum


def test_a_leader_whose_reply_was_lost_accepts_the_keys_of_the_next(federation: Federation) -> None:
    events = run(federation, instead(LEAD.name, FIRST, loses))
    (event,) = epochs(events)
    assert event["epoch"] == 2  # it has keys of its own under the number 1, which is not used again
    assert event["sites"] == sorted(SITES)
    assert contributors(events) == set(SITES)


@pytest.mark.parametrize("site", sorted(SITES)[:2])
def test_a_site_that_missed_an_epoch_gets_its_letter_from_the_server(federation: Federation, site: str) -> None:
    run(federation)
    run(federation, name="second", new_epoch=True)
    before = held(federation)
    for file in (federation.paths[site] / "keys" / "epochs").iterdir():
        file.unlink()
    events = run(federation, name="third")
    assert epochs(events) == []
    assert contributors(events) == set(SITES)
    assert held(federation) == before
    assert len(fingerprints(federation)) == 1


@pytest.mark.parametrize("name", ["../x", "../../x", "/tmp/cloister-x", "mallory", "", "a/b", "x\0y"])  # noqa: S108
def test_letters_to_anyone_but_members_are_refused_and_written_nowhere(federation: Federation, name: str) -> None:
    (event,) = epochs(run(federation, instead(LEAD.name, FIRST, with_letters(**{name: b"x"}))))
    assert event["leader"] == SECOND
    letters = {path for path in everything(federation.folder.parent) if path.suffix == ".letter"}
    assert {path.parent for path in letters} == {federation.server / "epochs"}
    assert len(letters) == len(SITES)
    assert not Path("/tmp/cloister-x").exists()  # noqa: S108
    written = {path for path in everything(federation.server) if path.parent != federation.server}
    assert {path.relative_to(federation.server).parts[0] for path in written} == {"epochs", "invitations"}


def test_a_site_whose_letter_does_not_open_leads_itself(federation: Federation) -> None:
    """Nobody can tell whether the leader lied or the site does: a leader leaves no honest one out."""
    events = run(federation, instead(LEAD.name, FIRST, with_letters(west=b"nothing")))
    first, second = epochs(events)
    assert (first["leader"], first["sites"]) == (FIRST, sorted(set(SITES) - {"west"}))
    assert (second["leader"], second["sites"]) == ("west", sorted(SITES))
    assert contributors(events) == set(SITES)


def test_a_site_that_refuses_keys_and_makes_its_own_is_left_out_alone(federation: Federation) -> None:
    apart = instead(LEAD.name, "west", with_letters(north=b"nothing", south=b"nothing"))
    refusing = instead(ACCEPT.name, "west", fails)
    west = node_of(federation, "west")

    def app(message: Message, context: Context) -> Message:
        leads = (message.metadata.dst_node_id, message.metadata.message_type) == (west, LEAD.name)
        return (apart if leads else refusing)(message, context)

    assert contributors(run(federation, app)) == set(SITES) - {"west"}


def test_a_leader_whose_letters_no_site_can_open_is_skipped(federation: Federation) -> None:
    bad = dict.fromkeys(SITES, b"nothing")
    events = run(federation, instead(LEAD.name, FIRST, with_letters(**bad)))
    (event,) = epochs(events)
    assert (event["epoch"], event["leader"], event["sites"]) == (2, SECOND, sorted(SITES))


@pytest.mark.parametrize("answer", [fails, crashes, says_nothing], ids=["refuses", "crashes", "says nothing"])
def test_a_site_that_refuses_keys_does_not_stop_the_others(federation: Federation, answer: Answer) -> None:
    app = instead(ACCEPT.name, "west", answer)
    for name in ("study", "second"):  # it is new to every run
        events = run(federation, app, name)
        assert contributors(events) >= set(SITES) - {"west"}
        (federation.paths["west"] / "keys" / "epochs" / "000001-roster-1.key").unlink(missing_ok=True)
    assert len({len(names) for site, names in held(federation).items() if site != "west"}) == 1


def test_a_site_that_claims_the_last_possible_epoch_does_not_stop_the_others(federation: Federation) -> None:
    last = 2**63 - 1
    file = federation.paths["west"] / "keys" / "epochs" / f"{last}-roster-9.key"
    write_atomically(file, EpochKeys.generate(last).to_bytes())
    assert contributors(run(federation)) == set(SITES) - {"west"}


@pytest.mark.parametrize("claimed", [LARGEST_STEP + 6, 1 << 39, 2**63 - 1])
def test_a_site_that_claims_an_absurd_epoch_does_not_block_new_keys(federation: Federation, claimed: int) -> None:
    run(federation)
    file = federation.paths["west"] / "keys" / "epochs" / f"{claimed:06d}-roster-9.key"
    write_atomically(file, EpochKeys.generate(claimed).to_bytes())
    events = run(federation, name="second", new_epoch=True)
    assert [event["epoch"] for event in epochs(events)] == [2]
    assert contributors(events) == set(SITES) - {"west"}


@example(seen=[0, 1, 1], claims=[LARGEST_STEP], own=0)  # as many would take the number above the claim
@given(
    seen=st.lists(st.integers(0, 1 << 20), min_size=3, max_size=9),
    claims=st.lists(st.integers(0, 1 << 63), max_size=2),
    own=st.integers(0, 1 << 20),
)
def test_the_next_epoch_is_accepted_by_most_sites(seen: list[int], claims: list[int], own: int) -> None:
    near = [latest % 100 for latest in seen]
    epoch = next_epoch(near + claims, own % 100)
    assert all(latest < epoch <= latest + LARGEST_STEP for latest in near)


# --- Secrets for masks ----------------------------------------------------------------------------------------------


def secrets_of(federation: Federation) -> dict[str, dict[str, str]]:
    """What each site shares with each other under the newest keys."""
    newest = {site: max((path / "keys" / "epochs").glob("*.pairs")) for site, path in federation.paths.items()}
    return {site: json.loads(path.read_bytes())["secrets"] for site, path in newest.items()}


def test_every_two_sites_share_a_secret_of_their_own_fresh_in_each_epoch(federation: Federation) -> None:
    seen = set[str]()
    for name, new_epoch in (("study", False), ("second", True)):
        assert contributors(run(federation, name=name, new_epoch=new_epoch, masks=True)) == set(SITES)
        shared = secrets_of(federation)
        assert all(shared[one][other] == shared[other][one] for one in SITES for other in SITES if one != other)
        fresh = {secret for secrets in shared.values() for secret in secrets.values()}
        assert len(fresh) == len(SITES) * (len(SITES) - 1) // 2
        assert not fresh & seen
        seen |= fresh
    assert find_secrets(federation.server, site_secrets(federation)) == []


def test_the_server_asks_again_for_letters_that_it_lost(federation: Federation) -> None:
    run(federation, name="first")  # no masks, no secrets relayed
    for file in (federation.server / "epochs").glob("*.pairs"):
        file.unlink()
    assert contributors(run(federation, name="second", masks=True)) == set(SITES)
    before = secrets_of(federation)
    assert contributors(run(federation, name="third", masks=True)) == set(SITES)
    assert secrets_of(federation) == before


@pytest.mark.parametrize("answer", [fails, crashes, says_nothing], ids=["refuses", "crashes", "says nothing"])
def test_a_site_that_takes_no_secrets_is_left_out_of_masked_rounds(federation: Federation, answer: Answer) -> None:
    events = run(federation, instead(PAIRS.name, "west", answer), masks=True)
    assert contributors(events) == set(SITES) - {"west"}


def test_a_site_with_invalid_letters_is_left_out_of_masked_rounds(federation: Federation) -> None:
    def lies(message: Message, context: Context) -> Message:
        answer = client_app(message, context)
        false = {site: Array("uint8", (5,), "cloister.bytes.1", b"false") for site in ("south", "west")}
        answer.content["pairs"] = ArrayRecord(false)
        return answer

    inner = instead(ACCEPT.name, "north", lies)

    def app(message: Message, context: Context) -> Message:
        again = message.metadata.message_type == PAIRS.name and Path(str(context.node_config["site"])).name == "north"
        return lies(message, context) if again else inner(message, context)

    assert contributors(run(federation, app, masks=True)) == set(SITES) - {"north"}


@pytest.mark.parametrize(
    ("lost", "newer", "there"), [(("south",), [], {"east", "north", "south"}), (SITES, [2], set(SITES))]
)
def test_sites_that_lost_their_secrets_get_them_again_or_new_keys_if_too_few_are_left(
    federation: Federation, lost: tuple[str, ...], newer: list[int], there: set[str]
) -> None:
    run(federation, name="first", masks=True)
    for site in lost:
        for file in (federation.paths[site] / "keys" / "epochs").glob("*.pairs"):
            file.unlink()
    events = run(federation, name="second", masks=True)
    assert [event["epoch"] for event in epochs(events)] == newer
    assert contributors(events) == there  # what south itself made for west cannot be delivered to it


def test_letters_are_found_by_number_and_name_of_any_site(tmp_path: Path) -> None:
    letters = SealedKeys(tmp_path)
    letters.keep(999_999, 1, "a", {"b-to-c": b"1", "c": b"2"})
    letters.keep(1_000_000, 1, "a-to-b", {"b-to-c": b"3", "c": b"4"})
    assert letters.after(0, 1, "b-to-c") == [("a", b"1"), ("a-to-b", b"3")]
    assert letters.after(0, 1, "c") == [("a", b"2"), ("a-to-b", b"4")]
    assert letters.after(999_999, 1, "c") == [("a-to-b", b"4")]
    assert letters.after(0, 2, "c") == []
    assert letters.latest == 1_000_000
