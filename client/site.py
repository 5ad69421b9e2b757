"""One site, opened from its folder: settings, keys, ledger, model store, and its records once they are needed."""

from __future__ import annotations

from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, TypeVar

from client.checkpoint import Checkpoint
from client.exam import Exam
from client.keyring import Keyring
from client.models import Models
from client.once import Once
from client.outbox import Outbox
from client.own import Own
from client.readiness import check_count, check_memory, check_metrics, check_records
from client.remainder import Remainders
from client.settings import read_site
from client.survey import Poll, Survey
from client.task import import_class
from client.workplace import Workplace
from privacy.epoch import SealingKey
from privacy.errors import KeyFileError
from privacy.manifest import open_manifest
from privacy.storage import read_file
from strategies.advance import State
from strategies.registry import algorithm_of
from transport.pki import read_roster, read_signing_key

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from client.settings import SiteFolder
    from client.study import Study
    from privacy.ledger import Budget, Ledger
    from privacy.manifest import Manifest, RunSettings
    from privacy.parallel import Apply
    from privacy.roster import Roster
    from strategies.algorithm import Algorithm

K = TypeVar("K")
_RUNS = 8  # of which a site keeps the manifest in memory


class Site(Workplace):
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
        self.own = Own(place.folder / "outbox")
        self.once = Once(place.folder / "outbox")
        self.apply: Apply = map  # how to encrypt and decrypt: an agent does it in several processes
        # Every message brings its run: one that is read already is known by its bytes, signature and all.
        self.open_manifest = lru_cache(_RUNS)(partial(open_manifest, key=self.roster.manifest_key))
        self.said: dict[str, str] = {}  # why it last refused each kind of message
        self._polls: dict[str, Poll] = {}
        self._checked: set[str] = set()  # tasks that can use every record
        self._tried: set[str] = set()  # tasks of which a step fits in memory
        listed, own = self.roster.member(self.name), self.signing_key.public_key().public_bytes_raw().hex()
        if (own, self.sealing_key.public) != (listed.signing_key, listed.sealing_key):
            msg = f"{place.path(keys.roster)} lists other keys for {self.name} than this site has; join again"
            raise KeyFileError(msg)

    def poll(self, survey: str) -> Poll:
        """Return a survey with this site's records, read once.

        Raises:
            TaskError: if the survey cannot be imported.
        """
        if survey not in self._polls:
            self._polls[survey] = Poll(survey, self)
        return self._polls[survey]

    def work(self, settings: RunSettings) -> Study | Poll | Exam:
        """Return what a run is about: a study that it trains, or that it evaluates, or a survey that it adds up."""
        if settings.evaluation:
            return Exam(self.study(settings.task), self)
        return self.poll(settings.task) if settings.statistics else self.study(settings.task)

    def algorithm(self, manifest: Manifest) -> Algorithm:
        """Return the federated algorithm of a run that the policy allows.

        Raises:
            RefusedError: if this site does not have it, or another version of it.
        """
        return algorithm_of(manifest, self.name)

    def account(self, settings: RunSettings) -> tuple[Ledger, Budget]:
        """Return the ledger to which a run is charged, and what it is held against."""
        if settings.evaluation:
            return self.held_out_ledger, self.settings.held_out_limit
        return self.ledger, self.settings.limit

    def check_records(self) -> dict[str, int]:
        """Read the records for every task that the policy allows, for the eyes of this site alone.

        Returns:
            How many records each task would use.

        Raises:
            DataError: if a record cannot be used; better said now than in the middle of a round.
        """
        return {task: self._count(task) for task in self.settings.policy.tasks}

    def _count(self, task: str) -> int:
        if issubclass(import_class(task), Survey):
            return len(self.poll(task).records[0])
        self._check_records(task)
        return len(self.study(task).training[0])

    def check_records_for(self, settings: RunSettings) -> None:
        """Check, once a process, that a run's task can use this site's records.

        Raises:
            DataError: if a record cannot be used, or none is left.
            TaskError: if the task is refused for good.
        """
        data, path = self.settings.data, self.place.path(self.settings.data.file)
        if settings.statistics:
            check_count(len(self.poll(settings.task).records[0]), data, path, "to add up")
            return
        study = self.study(settings.task)
        if settings.evaluation:
            check_count(len(study.held_out[0]), data, path, "to evaluate on")
            self._check_records(settings.task)
            check_metrics(study, settings.evaluation.metrics, path)
        else:
            study.check_not_refused()
            check_count(len(study.read[0][0]), data, path, "to train on")
            self._check_records(settings.task)
            _ = study.training  # on which the task is tried once more, when each record is known to fit

    def check_memory_for(self, manifest: Manifest) -> None:
        """Check, once a process, that a step of a run's task fits in this site's memory.

        Raises:
            RefusedError: if it does not.
            TaskError: if there is no way to compute the task's gradients.
        """
        if manifest.settings.training and manifest.settings.task not in self._tried:
            check_memory(self, manifest)
            self._tried.add(manifest.settings.task)

    def _check_records(self, task: str) -> None:
        if task not in self._checked:
            check_records(self.study(task), self.settings.data, self.place.path(self.settings.data.file))
            self._checked.add(task)

    def checkpoint(self, manifest: Manifest, run: str) -> Checkpoint:
        """Return the site's model in a run: its latest checkpoint, or the untrained model that all sites start from."""
        settings, state = manifest.settings, self.algorithm(manifest).state
        latest = self.models.load(settings, run, self.work(settings).layout(settings), state)
        return latest or self._beginning(manifest, run)

    def before(self, manifest: Manifest, run: str) -> Checkpoint:
        """Return the site's model in a run with votes before the last round that it opened."""
        settings, state = manifest.settings, self.algorithm(manifest).state
        kept = self.models.before(settings, run, self.work(settings).layout(settings), state)
        return kept or self._beginning(manifest, run)

    def _beginning(self, manifest: Manifest, run: str) -> Checkpoint:
        start = self.work(manifest.settings).start(manifest.settings)
        state = State.start(self.algorithm(manifest), start.layout.size)
        return Checkpoint(run, 0, start, manifest.packing.update_bound, state=state)


@cache
def open_site(path: Path) -> Site:
    """Open a site once a process: keys, records and device stay warm between rounds, of however many sites."""
    return Site(read_site(path))


def _read_key(path: Path, kind: Callable[[bytes], K]) -> K:
    try:
        return kind(read_file(path))
    except OSError as error:
        msg = f"{path}: {error.strerror}; restore this key from the site's backup"
        raise KeyFileError(msg) from error


def _read_roster(place: SiteFolder) -> Roster:
    return read_roster(place.path(place.settings.keys.roster), place.path(place.settings.keys.authority))
