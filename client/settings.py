"""`site.toml`: everything about one site that only the site decides."""

from __future__ import annotations

from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from client.data.sources.options import SourceOptions
from client.data.sources.registry import Source
from client.task.installed import find_beside
from privacy.at_rest.held import RESTORED
from privacy.config import STRICT, File, explained, read_toml, settings_file
from privacy.errors import BackupError
from privacy.ledger.ledger import Budget as LedgerBudget
from privacy.ledger.ledger import Ledger
from privacy.run.optimizer import Optimizer, Sgd
from privacy.run.policy import Policy
from privacy.run.settings import RunKind, SiteName
from transport.address import Dialled, read_address
from transport.channel import TlsFiles, system_bundle
from transport.operations.settings import Operations
from transport.pki import read_roster, read_signing_key
from transport.proxies import check_setting, proxy_for
from transport.sign_in import Signer
from transport.tracking.settings import Report

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from privacy.run.roster import Roster
    from transport.proxies import Proxy


HELD_OUT = ".held-out"
"""Suffix of the lineage in the held-out records' ledger; no lineage may end in it."""

_LAMBDA = 0.1


def _own_name(lineage: str) -> str:
    if lineage.lower().endswith(HELD_OUT) or not lineage.strip("."):
        msg = (
            f"a lineage must not end in {HELD_OUT}, which names the ledger of the held-out records, and must not "
            "consist of dots only"
        )
        raise ValueError(msg)
    return lineage


Lineage = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$"), AfterValidator(_own_name)]


@dataclass(frozen=True, config=STRICT)
class Data:
    """`[data]`: the site's records, and the people they are about."""

    file: File
    lineage: Lineage  # the people, whatever the file is called; they share one budget
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.2  # fraction of the records that is never trained on
    source: SourceOptions | None = None  # for tasks that declare columns or images; None: the file's suffix decides
    records_per_person: Annotated[int, Field(ge=1, le=1000)] = 1  # at most; every ε holds for a person with this many
    loader_workers: Annotated[int, Field(ge=0, le=64)] = 0  # processes that read a task's Dataset ahead
    pinned_memory: bool = False  # whether to read a Dataset into memory from which a GPU copies faster
    cache: bool = False  # whether decoded images are kept on disk: see `client.data.decoded`
    cache_mb: Annotated[int, Field(ge=1)] = 10_000  # megabytes that they may take


@dataclass(frozen=True, config=STRICT)
class Budget:
    """`[budget]`: the limit for this lineage over all runs."""

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1e-2)]
    held_out_epsilon: Annotated[float, Field(gt=0)] | None = None  # for held-out records; by default `epsilon`


@dataclass(frozen=True, config=STRICT)
class Keys:
    """`[keys]`: the files of the site's keys and of the authority that it trusts."""

    authority: File = Path("keys/authority.pem")
    tls_certificate: File = Path("keys/tls.pem")
    tls_key: File = Path("keys/tls.key")
    signing_key: File = Path("keys/signing.key")
    sealing_key: File = Path("keys/sealing.key")
    epochs: File = Path("keys/epochs")  # the keys that sites share, one file per epoch
    roster: File = Path("keys/roster")


Gradients = Literal["auto", "bookkeeping", "vmap", "hooks", "functorch", "autograd"]
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, config=STRICT)
class Computing:
    """`[training]`: how this site computes what a run asks for. Privacy does not depend on it."""

    gradients: Gradients = "auto"  # mode of per-record gradients; see client/gradients
    physical_batch: Annotated[int, Field(ge=0)] = 0  # records computed at a time, to save memory; 0: automatic
    precision: Precision = "float32"  # of the model's passes; norms are always float32
    memory_mb: Annotated[int, Field(ge=0)] = 0  # if automatic: megabytes that a part may take, measured; 0: any
    checkpoint_steps: Annotated[int, Field(ge=0)] = 0  # after how many steps a round's are kept on disk; 0: never


def _as_tuple(given: object) -> object:
    return tuple(given) if isinstance(given, list) else given


@explained
@dataclass(frozen=True, config=STRICT)
class Personal:
    """`[personal]`: a model for this site alone, trained on its records without noise. Nothing of it leaves the site.

    Raises:
        ValueError: if `proximal` does not suit the method or the learning rate.
    """

    method: Literal["ditto", "fine-tuning"]  # after every round, pulled to the shared model; or after the last round
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0  # over as many records as the site declares
    proximal: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None  # Ditto's λ
    layers: Annotated[tuple[str, ...], BeforeValidator(_as_tuple), Field(min_length=1)] = ("*",)  # patterns
    batch_size: Annotated[int, Field(ge=1, le=1 << 20)] = 32
    optimizer: Optimizer = field(default_factory=Sgd)  # it starts anew each time

    def __post_init__(self) -> None:
        """Check `proximal`."""
        if self.method == "fine-tuning" and self.proximal is not None:
            msg = 'proximal is for method = "ditto"; fine-tuning starts from the shared model and is not pulled to it'
            raise ValueError(msg)
        if isinstance(self.optimizer, Sgd) and self.pull * self.learning_rate >= 1:
            msg = f"proximal times learning_rate is {self.pull * self.learning_rate:g}; it must be below 1"
            raise ValueError(msg)

    @property
    def pull(self) -> float:
        """Ditto's λ: how strongly the personal model is pulled to the shared one; 0 in fine-tuning."""
        if self.method == "fine-tuning":
            return 0.0
        return _LAMBDA if self.proximal is None else self.proximal


_PART = ConfigDict(extra="ignore", strict=True, allow_inf_nan=True)  # of a site.toml, whatever else it has


@dataclass(frozen=True, config=_PART)
class RecordsAlone:
    """Of `[data]`: which records, and how to read them."""

    file: File
    source: SourceOptions | None = None


@dataclass(frozen=True, config=_PART)
class DataAlone:
    """`[data]` of a `site.toml`, or of a file that has nothing else."""

    data: RecordsAlone


@dataclass(frozen=True, config=_PART)
class PersonalAlone:
    """`[personal]` of a `site.toml`, or of a file that has nothing else."""

    personal: Personal


@dataclass(frozen=True, config=STRICT)
class Network:
    """`[network]`: the way to the server.

    Raises:
        ValueError: if `ca_bundle` is given where only the consortium's own authority counts.
    """

    proxy: Annotated[str, AfterValidator(check_setting)] | None = None  # host:port; None: as the environment says
    authentication: Literal["tls", "signature"] = (
        "tls"  # how this site proves who it is; signature: TLS is ended before
    )
    ca_bundle: File | None = None  # certificates of whoever issues that of what ends TLS; None: the system's

    def __post_init__(self) -> None:
        """Check `ca_bundle`."""
        if self.ca_bundle and self.authentication == "tls":
            msg = 'ca_bundle is for authentication = "signature"; with "tls", keys/authority.pem alone is trusted'
            raise ValueError(msg)


@dataclass(frozen=True, config=STRICT)
class SiteSettings:
    """`site.toml`."""

    site: SiteName
    server: Dialled  # host:port
    data: Data
    budget: Budget
    policy: Policy
    keys: Keys = field(default_factory=Keys)
    training: Computing = field(default_factory=Computing)
    personal: Personal | None = None  # None: no model of the site's own
    network: Network = field(default_factory=Network)
    operations: Operations | None = None  # None: no port for operators
    report: Report | None = None  # None: metrics stay in the folder
    device: Literal["auto", "cpu", "cuda"] = "auto"
    encryption_processes: Annotated[int, Field(ge=0, le=256)] = 0  # 0: one per core

    @property
    def limit(self) -> LedgerBudget:
        """The budget that limits every charge."""
        return LedgerBudget(self.budget.epsilon, self.budget.delta, self.policy.maximum_epsilon)

    @property
    def held_out_limit(self) -> LedgerBudget:
        """The budget that limits every charge on held-out records."""
        epsilon = self.budget.held_out_epsilon
        return LedgerBudget(
            self.budget.epsilon if epsilon is None else epsilon, self.budget.delta, self.policy.maximum_epsilon
        )


@dataclass(frozen=True, config=STRICT)
class SiteFolder:
    """A site's settings and their folder; all paths in them are relative to it."""

    folder: Path
    settings: SiteSettings

    def path(self, relative: Path) -> Path:
        """Resolve a path from the settings."""
        return self.folder / relative

    @property
    def source(self) -> Source:
        """The site's records, and how to read them."""
        data = self.settings.data
        return Source(self.path(data.file), data.source, self.folder)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger of the people whom the site's data is about."""
        return self.ledger_of(self.settings.data.lineage)

    @cached_property
    def held_out_ledger(self) -> Ledger:
        """The ledger of the held-out records, which is separate because training never uses them."""
        return self.ledger_of(self.settings.data.lineage + HELD_OUT)

    def account(self, kind: RunKind) -> tuple[Ledger, LedgerBudget]:
        """Return the ledger to which runs of a kind are charged, and its budget."""
        if kind.held_out:
            return self.held_out_ledger, self.settings.held_out_limit
        return self.ledger, self.settings.limit

    def ledger_of(self, lineage: str) -> Ledger:
        """Return the ledger of a lineage, which may be an earlier one of the site."""
        return Ledger(
            self.folder / "ledger" / lineage,
            self.settings.site,
            lineage,
            self._ledger_key,
            records_per_person=self.settings.data.records_per_person,
            last=self.folder / "ledger-heads" / lineage,
        )

    def roster(self) -> Roster:
        """Read the site's roster and check the authority's signature.

        Raises:
            KeyFileError: if it is missing, or another authority's.
        """
        keys = self.settings.keys
        return read_roster(self.path(keys.roster), self.path(keys.authority))

    @cached_property
    def _ledger_key(self) -> Ed25519PrivateKey | Ed25519PublicKey:
        """Return the site's signing key; where it is absent, as for an auditor, the roster's public key."""
        private, roster = self.path(self.settings.keys.signing_key), self.path(self.settings.keys.roster)
        if private.exists() or not roster.exists():
            return read_signing_key(private)
        return self.roster().member(self.settings.site).verification_key

    @property
    def proxy(self) -> Proxy | None:
        """The proxy through which the server is reached; None if it is dialled directly.

        Raises:
            ConfigError: if the proxy that the environment names cannot be used.
        """
        return proxy_for(read_address(self.settings.server).host, self.settings.network.proxy)

    @property
    def signer(self) -> Signer | None:
        """With what this site signs in; None if TLS shows who it is.

        Raises:
            KeyFileError: if a key, the roster, or the system's certificates are missing.
        """
        settings = self.settings
        if settings.network.authentication == "tls":
            return None
        keys = settings.keys
        return Signer(
            settings.site,
            read_signing_key(self.path(keys.signing_key)),
            self.path(keys.authority),
            self.roster().version,
            self.ca_bundle,
        )

    @property
    def ca_bundle(self) -> Path:
        """The certificates of whoever issued that of what ends TLS before the server.

        Raises:
            KeyFileError: if the system's are not where they usually are.
        """
        bundle = self.settings.network.ca_bundle
        return self.path(bundle) if bundle else system_bundle()

    @property
    def tls(self) -> TlsFiles:
        """The site's TLS identity."""
        keys = self.settings.keys
        return TlsFiles(self.path(keys.authority), self.path(keys.tls_certificate), self.path(keys.tls_key))


def read_site(path: Path) -> SiteFolder:
    """Read a site's settings, given its `site.toml` or the folder that holds it.

    Tasks of its policy may be files in that folder: see `client.task.installed.find_beside`.

    Raises:
        ConfigError: if the file is missing or invalid, or its folder is reached through a link.
        BackupError: if a restore into the folder was interrupted.
    """
    file = settings_file(path, "site.toml")
    if (file.parent / RESTORED).exists():
        msg = f"{file.parent}: a restore was interrupted here; finish it with the same command: cloister restore"
        raise BackupError(msg)
    settings = read_toml(file, SiteSettings)
    find_beside(file.parent, settings.policy.tasks)
    return SiteFolder(file.parent, settings)
