"""A site that joined encrypted trains as any other, and copies of its folder and the server's give nothing away."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from shutil import copytree

import pytest

from client.flower import open_site
from client.joining import begin, finish
from client.protection import protect, ready, unprotect
from client.settings import read_site
from client.turn import TURN
from privacy.at_rest.held import is_log
from privacy.at_rest.sealed import MAGIC
from privacy.at_rest.vault import FILE, Secret
from privacy.at_rest.vaults import forget, header_of
from privacy.errors import VaultError
from privacy.locks import locked
from privacy.log_file import read_log
from privacy.run.settings import Encryption
from privacy.storage import read_file
from server.founding import create_consortium
from simulations.engine.federation import Federation
from simulations.engine.results import opened_store
from tests import studies
from tests.federations import NOISY, SITES, TERMS, FederationMaker, rounds_of, run_with, share_keys, task_name

SITE, PHRASE = "north", "correct horse battery staple"
CANARIES, BYTES = 1000, 12
OPEN = {"site.toml", "records.csv", FILE, TURN}
STORE = {"store.sqlite"}  # its values are encrypted one by one
SERVERS_OPEN = {"consortium.toml", "authority.pem", "tls.pem", "roster", "run.manifest", FILE} | STORE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A federation after a run with masks and a mean of models. One site joined with encryption, as the server has."""
    assert NOISY.training
    settings = replace(
        NOISY,
        task=task_name(studies.Wide),
        rounds=3,
        training=replace(NOISY.training, averaging=0.5),
        encryption=Encryption(update_bound=1.0, collusion_resistant=True),
    )
    secret, keys = Secret.of_passphrase(PHRASE), tmp_path_factory.mktemp("keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOISTER_PASSPHRASE", PHRASE)
        coordinator = create_consortium(keys, "lungs", "localhost", secret=secret)
        requests = [begin(keys / site, coordinator.invite(site), secret if site == SITE else None) for site in SITES]
        for approval in coordinator.approve(requests)[1]:
            finish(keys / approval.name, approval.welcome)
        share_keys(Federation(keys, SITES))
        federation = FederationMaker(keys, tmp_path_factory.mktemp("protected"))(
            settings, {SITE: replace(TERMS, tasks=(settings.task,), collusion_resistant=True)}
        )
        open_site.cache_clear()
        run_with(federation)
        yield federation
    for folder in (keys, federation.folder):
        for name in (SITE, "server", "coordinator"):
            forget(folder / name)


def contents(folder: Path, clear: set[str] = OPEN) -> dict[str, bytes]:
    """What is in the encrypted files of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    names = {path.relative_to(folder).as_posix() for path in files} - clear
    return {name: read_log(folder / name) if is_log(name) else read_file(folder / name) for name in sorted(names)}


WORDS = re.compile(rb"[\sa-z_{}\[\]\":,.-]+")  # of JSON, which are nobody's


def canaries_in(kept: dict[str, bytes]) -> set[bytes]:
    """Pieces of what is in files, many of each kind; bytes that repeat (zeros, JSON's words) are none."""
    random, canaries = Random(7), set[bytes]()  # noqa: S311 - chooses what to look for
    for kind in {name.partition("/")[0] for name in kept}:
        own = b"\0".join(content for name, content in kept.items() if name.startswith(kind))
        for _ in range(CANARIES // 2):
            start = random.randrange(max(1, len(own) - BYTES))
            canaries.add(own[start : start + BYTES])
    canaries = {each for each in canaries if len(set(each)) >= BYTES - 4 and not WORDS.fullmatch(each)}
    assert len(canaries) >= CANARIES
    return canaries


def test_every_round_has_the_site_s_update_and_all_sites_have_one_model(run: Federation) -> None:
    assert [event["released"] for event in rounds_of(run)] == [True] * 3
    assert {len(event["sites"]) for event in rounds_of(run)} == {4}
    models = {read_file(file) for path in run.paths.values() for file in path.glob("models/*")}
    assert len(models) == 1


def test_none_of_a_thousand_canaries_is_in_a_copy_of_the_folder(run: Federation, tmp_path: Path) -> None:
    folder = run.paths[SITE]
    kept = contents(folder)
    assert {name.partition("/")[0] for name in kept} >= {
        "keys",
        "ledger",
        "ledger-heads",
        "models",
        "outbox",
        "metrics",
    }
    canaries = canaries_in(kept)  # weights, keys, charges, and what was written in hexadecimal
    copy = Path(copytree(folder, tmp_path / "copy"))
    for path in copy.rglob("*"):
        if path.is_file() and path.name not in {"site.toml", "records.csv"}:  # which people wrote
            data = path.read_bytes()
            assert not [each for each in canaries if each in data], path.name
            assert path.name in OPEN or data.startswith(MAGIC)


def test_none_of_a_thousand_canaries_is_in_a_copy_of_the_servers_folder(run: Federation, tmp_path: Path) -> None:
    kept = contents(run.server, SERVERS_OPEN)
    assert {name.partition("/")[0] for name in kept} >= {"tls.key", "invitations", "ledger-heads.json"}
    with opened_store(run) as (store, digest):
        record = store.record(digest)
        kept["events"] = json.dumps(store.events(digest)).encode()
        kept["state"] = record.state() or b""
        kept["sums"] = b"".join(record.read_sum(number) for number in (1, 2, 3))
    public = run.manifest.read_bytes() + digest.encode()
    canaries = {each for each in canaries_in(kept) if each not in public}
    copy = Path(copytree(run.server, tmp_path / "copy"))
    for path in copy.rglob("*"):
        if path.is_file() and path.relative_to(copy).as_posix() not in SERVERS_OPEN - STORE:
            data = path.read_bytes()
            assert data.startswith(MAGIC) or not data or path.name in STORE, path
            assert not [each for each in canaries if each in data], path
    for path in run.folder.joinpath("coordinator").rglob("*"):
        assert not path.is_file() or b"PRIVATE KEY" not in path.read_bytes()


def test_names_of_files_are_all_that_a_copy_shows(run: Federation) -> None:
    names = {path.name for path in run.paths[SITE].rglob("*") if path.is_file()} - OPEN
    assert {re.sub(r"[0-9a-f]{8,}", "RUN", name) for name in names} >= {"signing.key", "study-RUN.safetensors"}


def test_without_its_secret_the_folder_does_not_open(
    run: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(copytree(run.paths[SITE], tmp_path / "copy"))
    monkeypatch.delenv("CLOISTER_PASSPHRASE")
    with pytest.raises(VaultError, match=r"copy is encrypted; run this at a terminal, or set CLOISTER_PASSPHRASE"):
        ready_and_open(copy)
    monkeypatch.setenv("CLOISTER_PASSPHRASE", "wrong horse battery")
    with pytest.raises(VaultError, match="this passphrase does not open the encrypted folder; check it and try"):
        ready_and_open(copy)


def ready_and_open(folder: Path) -> bytes:
    place = read_site(folder)
    ready(place)
    return read_file(folder / "keys" / "signing.key")


def test_decrypted_it_is_as_it_was(run: Federation, tmp_path: Path) -> None:
    folder = Path(copytree(run.paths[SITE], tmp_path / "copy"))
    before = contents(folder)
    place = read_site(folder)
    unprotect(place)
    assert {name: (folder / name).read_bytes() for name in before} == before
    place.ledger.check_writable()


def test_while_an_agent_runs_nothing_is_encrypted(make_federation: FederationMaker) -> None:
    place = read_site(make_federation().paths[SITE])
    with (place.folder / TURN).open("ab") as file:
        assert locked(file)
        with pytest.raises(VaultError, match="an agent of this site is running; stop it"):
            protect(place, Secret.of_passphrase(PHRASE))
    assert not (place.folder / FILE).exists()


def test_keys_elsewhere_in_the_folder_are_encrypted_too(
    make_federation: FederationMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_federation().paths[SITE]
    monkeypatch.setenv("CLOISTER_PASSPHRASE", PHRASE)
    protect(read_site(folder), Secret.of_passphrase(PHRASE))
    settings = folder / "site.toml"
    settings.write_text(settings.read_text() + '\n[keys]\ntls_key = "own/tls.key"\n')
    (folder / "own").mkdir()
    (folder / "own" / "tls.key").write_bytes(read_file(folder / "keys" / "tls.key"))
    with pytest.raises(VaultError, match=r"own/tls.key: .*; run cloister protect"):
        ready(read_site(folder))
    assert protect(read_site(folder), None) == 1
    assert (folder / "own" / "tls.key").read_bytes().startswith(MAGIC)
    assert header_of(folder).files == ("own/tls.key",)
    ready(read_site(folder))
