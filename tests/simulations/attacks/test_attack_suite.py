"""The attacks are real: with the check that it is aimed at switched off, an attack passes, and that is noticed."""

from __future__ import annotations

from dataclasses import dataclass
from shutil import copytree, rmtree
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from privacy.crypto.signing import SIGNATURE_BYTES
from simulations.attacks.attack_suite import ATTACKS, prepare_attacks, quiet_agents
from simulations.attacks.malicious_server import SITES, MaliciousServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

TRIES = 24  # of an attack, which chooses among its variants at random


@dataclass(frozen=True)
class AttackSuite:
    """A malicious server whose consortium can be put back to where it began."""

    server: MaliciousServer
    backup: Path
    keys: tuple[int, str]

    def renew(self) -> MaliciousServer:
        """Put all sites' folders back."""
        for site in SITES:
            rmtree(self.server.federation.paths[site])
            copytree(self.backup / site, self.server.federation.paths[site])
        self.server.restart(*SITES)
        self.server.epoch, self.server.keys = self.keys
        return self.server


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> AttackSuite:
    folder = tmp_path_factory.mktemp("attacks")
    server = prepare_attacks(folder / "consortium", np.random.default_rng(1))
    copytree(folder / "consortium", folder / "backup")
    return AttackSuite(server, folder / "backup", (server.epoch, server.keys))


@pytest.fixture
def server(suite: AttackSuite) -> Iterator[MaliciousServer]:
    with quiet_agents():
        yield suite.renew()


def nothing(*_: Any, **__: Any) -> None:  # noqa: ANN401 - in the place of any check
    """Check nothing."""


def anything(*_: Any, **__: Any) -> bool:  # noqa: ANN401
    return False


def unsigned(document: bytes, *_: Any) -> bytes:  # noqa: ANN401
    return document[SIGNATURE_BYTES:]


def one_pad(plan: Any, site: str, nonce: str) -> bytes:  # noqa: ANN401
    del nonce
    return f"pad {plan.digest} {site}".encode()


PADS = "privacy.crypto.tag.pad_label", "privacy.crypto.mac.pad_label"
OFF: list[tuple[str, object, tuple[str, ...]]] = [
    ("masks of two attempts", nothing, ("privacy.crypto.agreement.check_repeat",)),
    ("two sets of contributors", nothing, ("client.state.commitments.Commitments.note",)),
    ("two sums with one update", nothing, ("privacy.crypto.agreement.check_repeat",)),
    ("a set without the site's own", nothing, ("privacy.crypto.agreement.check_set",)),
    (
        "an honest site made a liar",
        unsigned,
        ("client.round.aggregate.verify_seed", "client.round.aggregate.verify_pairs"),
    ),
    ("two cohorts of one round", nothing, ("client.round.train_round.check_plan",)),
    ("with a site: a false dropout", nothing, ("privacy.crypto.agreement.check_agreed",)),
    ("with a site: sets told apart", nothing, ("privacy.crypto.agreement.check_agreed",)),
    ("with a site: a round asked again", nothing, ("privacy.crypto.agreement.check_repeat",)),
    ("with a site: others' signatures", nothing, ("privacy.codec.header.verify",)),
    ("two updates, one from a backup", one_pad, PADS),
    ("two masks, one from a backup", nothing, ("client.state.commitments.Commitments.note",)),
    ("a backup, the round being over", nothing, ("client.round.train_round.check_plan",)),
    ("a second sum after a restart", anything, ("client.round.aggregate.has_refused",)),
    ("a plan that ends in years", nothing, ("client.round.train_round.check_plan",)),
    ("keys that hide nothing", nothing, ("privacy.crypto.encryption.DecryptionKey.check_form",)),
    ("an epoch beyond all others", 1 << 63, ("client.state.keyring.LARGEST_STEP",)),
    ("a manifest that has expired", nothing, ("privacy.run.manifest.Manifest.check_valid",)),
    ("a ledger in another's place", ".elsewhere", ("client.settings.HELD_OUT",)),
]


@pytest.mark.parametrize(("attack", "instead", "checks"), OFF, ids=[attack for attack, *_ in OFF])
def test_an_attack_succeeds_if_its_check_is_removed(
    server: MaliciousServer, attack: str, instead: object, checks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for check in checks:
        monkeypatch.setattr(check, instead)
    assert any(not ATTACKS[attack](server) for _ in range(TRIES))
