"""Open one site from its folder: settings, keys, ledger, model store, and records once they are needed."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeVar

from client.rosters import older_roster
from client.state.approvals import Approvals
from client.state.checkpoint import Checkpoint
from client.state.commitments import Commitments
from client.state.keyring import Keyring
from client.state.models import Models
from client.state.outbox import Outbox
from client.state.own_vectors import Own
from client.state.partial_rounds import FOLDER, PartialRounds
from client.state.residuals import Residuals
from client.watch import Watch
from client.work.works import Works
from privacy.crypto.key_epoch import SealingKey
from privacy.errors import KeyFileError
from privacy.failures import reason
from privacy.run.manifest import open_run
from privacy.run.roster import open_roster
from privacy.storage import read_file
from strategies.advance import State
from strategies.registry import algorithm_of
from transport.pki import read_authority_key, read_signing_key
from transport.tracking.tracking import Tracking

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from client.settings import SiteFolder
    from privacy.codec.update import Model
    from privacy.parallel import Apply
    from privacy.run.manifest import Manifest
    from privacy.run.roster import Roster
    from strategies.algorithm import Algorithm

K = TypeVar("K")
_RUNS = 8  # runs whose manifests stay in memory


class Site(Works):
    """Everything that an agent needs. Keys are read when the site is opened, records when a round needs them."""

    def __init__(self, place: SiteFolder) -> None:
        super().__init__(place)
        keys = self.settings.keys
        self.signing_key: Ed25519PrivateKey = read_signing_key(place.path(keys.signing_key))
        self.sealing_key = _read_key(place.path(keys.sealing_key), SealingKey)
        self.keyring = Keyring(place.path(keys.epochs))
        self.ledger, self.held_out_ledger = place.ledger, place.held_out_ledger
        self.models = Models(place.folder / "models", place.folder / "outbox")
        self.approvals = Approvals(place.folder, self.signing_key)
        self.outbox = Outbox(place.folder / "outbox")
        self.residuals = Residuals(place.folder / "outbox")
        self.partial = PartialRounds(place.folder / FOLDER, self.settings.training.checkpoint_steps)
        self.own = Own(place.folder / "outbox")
        self.commitments = Commitments(place.folder / "outbox")
        self.apply: Apply = map  # runs encryption and decryption: an agent uses several processes
        self.later: Callable[[Callable[[], None]], object] = _at_once  # an agent answers the server first
        self.watch = Watch()  # an agent has its own
        self.tracking = Tracking(self.settings.report, place.folder)
        self.last_errors: dict[str, str] = {}  # the last error for each kind of message
        self._older: dict[int, Roster] = {}
        self.use_roster(place.roster())
        listed, own = self.roster.member(self.name), self.signing_key.public_key().public_bytes_raw().hex()
        if (own, self.sealing_key.public) != (listed.signing_key, listed.sealing_key):
            msg = f"{place.path(keys.roster)} lists keys for {self.name} that are not this site's keys; join again"
            raise KeyFileError(msg)

    def use_roster(self, roster: Roster) -> None:
        """Take a roster for all that follows."""
        self.roster = roster
        # Every message carries its manifest. Known ones are recognised by their bytes, signature included.
        self.open_run = lru_cache(_RUNS)(partial(open_run, roster=roster))

    def forget_steps(self) -> None:
        """Delete the kept steps of rounds to which nobody returns."""
        self.partial.sweep({charge.head for charge in self.ledger.entries().open.values()})

    def roster_under(self, fingerprint: str) -> Roster:
        """Return the roster for which a key epoch was made: its members are those of the rounds under these keys."""
        version = self.keyring.roster_of(fingerprint)
        if version is None or version == self.roster.version:
            return self.roster
        if version not in self._older:
            keys = self.settings.keys
            path, authority = older_roster(self.place.path(keys.roster), version), self.place.path(keys.authority)
            if not path.exists():
                return self.roster
            self._older[version] = open_roster(read_file(path), read_authority_key(authority), expired=True)
        return self._older[version]

    def algorithm(self, manifest: Manifest) -> Algorithm:
        """Return the federated algorithm of a run that the policy allows.

        Raises:
            RefusedError: if this site lacks it, or has another version.
        """
        return algorithm_of(manifest, self.name)

    def checkpoint(self, manifest: Manifest, run: str, algorithm: Algorithm | None = None) -> Checkpoint:
        """Return the site's model in a run: its latest checkpoint, or the model from which all sites start.

        Args:
            manifest: the run.
            run: its digest.
            algorithm: its algorithm, if that has been made.
        """
        settings, algorithm = manifest.settings, algorithm or self.algorithm(manifest)
        latest = self.models.load(settings, run, self.work(settings).layout(settings), algorithm.state)
        return self._own(manifest, latest or self._initial_checkpoint(manifest, run, algorithm))

    def before(self, manifest: Manifest, run: str) -> Checkpoint:
        """Return the site's model before the last round that it opened, in a run with votes."""
        settings, algorithm = manifest.settings, self.algorithm(manifest)
        kept = self.models.before(settings, run, self.work(settings).layout(settings), algorithm.state)
        return self._own(manifest, kept or self._initial_checkpoint(manifest, run, algorithm))

    def _own(self, manifest: Manifest, checkpoint: Checkpoint) -> Checkpoint:
        """Return a checkpoint with the parameters that stay at this site."""
        model = self.personal(manifest, checkpoint.run, checkpoint.model)
        return checkpoint if model is checkpoint.model else replace(checkpoint, model=model)

    def personal(self, manifest: Manifest, run: str, model: Model) -> Model:
        """Return a run's model with this site's own parameters: the last ones, or those with which the run started."""
        if not model.layout.local:
            return model
        own = self.own_parameters.load(run, model.layout.local) or model.local
        return replace(model, local=own or self.work(manifest.settings).start(manifest.settings).local)

    def _initial_checkpoint(self, manifest: Manifest, run: str, algorithm: Algorithm) -> Checkpoint:
        start = self.work(manifest.settings).start(manifest.settings)
        state = State.start(algorithm, start.layout.size)
        return Checkpoint(run, 0, start, manifest.packing.update_bound, state=state)


def _at_once(work: Callable[[], None]) -> None:
    work()


def _read_key(path: Path, kind: Callable[[bytes], K]) -> K:
    try:
        return kind(read_file(path))
    except OSError as error:
        msg = f"{path}: {reason(error)}; restore this key from the site's backup"
        raise KeyFileError(msg) from error
