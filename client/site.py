"""One site, opened from its folder: settings, keys, ledger, model store, and its records once they are needed."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeVar

from client.checkpoint import Checkpoint
from client.keyring import Keyring
from client.models import Models
from client.once import Once
from client.outbox import Outbox
from client.remainder import Remainders
from client.works import Works
from privacy.epoch import SealingKey
from privacy.errors import KeyFileError
from privacy.failures import reason
from privacy.manifest import open_manifest
from privacy.storage import read_file
from transport.pki import read_roster, read_signing_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from client.settings import SiteFolder
    from privacy.manifest import Manifest
    from privacy.parallel import Apply
    from privacy.roster import Roster

K = TypeVar("K")
_RUNS = 8  # of which a site keeps the manifest in memory


class Site(Works):
    """What an agent works with. Keys are read when the site is opened; records when a round needs them."""

    def __init__(self, place: SiteFolder) -> None:
        super().__init__(place)
        keys = self.settings.keys
        self.signing_key: Ed25519PrivateKey = read_signing_key(place.path(keys.signing_key))
        self.sealing_key = _read_key(place.path(keys.sealing_key), SealingKey)
        self.keyring = Keyring(place.path(keys.epochs))
        self.roster: Roster = _read_roster(place)
        self.ledger, self.held_out_ledger = place.ledger, place.held_out_ledger
        self.models = Models(place.folder / "models", place.folder / "outbox")
        self.outbox = Outbox(place.folder / "outbox")
        self.remainders = Remainders(place.folder / "outbox")
        self.once = Once(place.folder / "outbox")
        self.apply: Apply = map  # how to encrypt and decrypt: an agent does it in several processes
        # Every message brings its run: one that is read already is known by its bytes, signature and all.
        self.open_manifest = lru_cache(_RUNS)(partial(open_manifest, key=self.roster.manifest_key))
        self.said: dict[str, str] = {}  # why it last refused each kind of message
        listed, own = self.roster.member(self.name), self.signing_key.public_key().public_bytes_raw().hex()
        if (own, self.sealing_key.public) != (listed.signing_key, listed.sealing_key):
            msg = f"{place.path(keys.roster)} lists other keys for {self.name} than this site has; join again"
            raise KeyFileError(msg)

    def checkpoint(self, manifest: Manifest, run: str) -> Checkpoint:
        """Return the site's model in a run: its latest checkpoint, or the untrained model that all sites start from."""
        settings = manifest.settings
        latest = self.models.load(settings, run, self.work(settings).layout(settings))
        return latest or self._beginning(manifest, run)

    def before(self, manifest: Manifest, run: str) -> Checkpoint:
        """Return the site's model in a run with votes before the last round that it opened."""
        settings = manifest.settings
        kept = self.models.before(settings, run, self.work(settings).layout(settings))
        return kept or self._beginning(manifest, run)

    def _beginning(self, manifest: Manifest, run: str) -> Checkpoint:
        start = self.work(manifest.settings).start(manifest.settings)
        return Checkpoint(run, 0, start, manifest.packing.update_bound)


def _read_key(path: Path, kind: Callable[[bytes], K]) -> K:
    try:
        return kind(read_file(path))
    except OSError as error:
        msg = f"{path}: {reason(error)}; restore this key from the site's backup"
        raise KeyFileError(msg) from error


def _read_roster(place: SiteFolder) -> Roster:
    return read_roster(place.path(place.settings.keys.roster), place.path(place.settings.keys.authority))
