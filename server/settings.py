"""Read `consortium.toml`: the server's address, identity and files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from privacy.config import STRICT, File, read_toml, settings_file
from privacy.errors import ConfigError
from privacy.run.manifest import SignedRun, open_run
from privacy.run.people import PersonName
from privacy.run.roster import open_roster
from privacy.storage import read_document
from transport.address import ListenedOn
from transport.channel import TlsFiles
from transport.operations.settings import Operations
from transport.pki import read_authority_key
from transport.tracking.settings import Report

if TYPE_CHECKING:
    from privacy.run.roster import Roster


@dataclass(frozen=True, config=STRICT)
class Joining:
    """`[joining]`: where invited sites ask to join."""

    listen: ListenedOn
    authority: File | None = None  # the coordinator's folder, if it is on this machine: sites are answered at once


@dataclass(frozen=True, config=STRICT)
class Signature:
    """`[signature]`: where sites may sign in, and join, whose TLS is ended on the way."""

    listen: ListenedOn


@dataclass(frozen=True, config=STRICT)
class Accounts:
    """`[api.oidc]`: accounts of an organisation, with which people sign in to the API (OpenID Connect)."""

    issuer: Annotated[str, Field(pattern=r"^https://[^\s?#]+[^\s?#/]$")]
    client_id: Annotated[str, Field(min_length=1, max_length=200)]
    people: dict[str, PersonName]  # people of the roster, by the claim's value
    claim: Annotated[str, Field(min_length=1, max_length=100)] = "email"
    ca_bundle: File | None = None  # who issues the provider's certificate; None: whom this system trusts


@dataclass(frozen=True, config=STRICT)
class ApiSettings:
    """`[api]`: where people and programs submit runs and follow them."""

    listen: ListenedOn
    connections_per_address: Annotated[int, Field(ge=1, le=512)] = 64
    oidc: Accounts | None = None


@dataclass(frozen=True, config=STRICT)
class StoreSettings:
    """`[store]`: the database with the server's runs."""

    url: str = "sqlite:///store.sqlite"  # relative to the server's folder; or postgresql+psycopg://USER@HOST/DATABASE


@dataclass(frozen=True, config=STRICT)
class ServiceSettings:
    """`[service]`: how the server takes runs from its queue."""

    runs_at_once: Annotated[int, Field(ge=1, le=64)] = 1
    wait_hours: Annotated[float, Field(gt=0, le=8760)] = 24.0  # for enough sites to be online, once it is a run's turn


@dataclass(frozen=True, config=STRICT)
class ConsortiumSettings:
    """`consortium.toml`."""

    consortium: str
    listen: ListenedOn  # host:port; port 0 means any free port
    authority: File = Path("authority.pem")
    tls_certificate: File = Path("tls.pem")
    tls_key: File = Path("tls.key")
    roster: File = Path("roster")
    epochs: File = Path("epochs")  # letters with the keys of epochs, sealed to the sites
    ledger_heads: File = Path("ledger-heads.json")  # the last head that each site sent, kept on its behalf
    max_update_megabytes: Annotated[int, Field(ge=1)] = 1024
    connections_per_address: Annotated[int, Field(ge=1, le=4096)] = 1024  # at the ports for sites
    store: StoreSettings = StoreSettings()
    service: ServiceSettings = ServiceSettings()
    joining: Joining | None = None
    signature: Signature | None = None  # None: TLS alone shows who a site is
    operations: Operations | None = None  # None: no port for operators
    report: Report | None = None  # None: runs show in events and metrics alone
    api: ApiSettings | None = None  # None: no API


@dataclass(frozen=True, config=STRICT)
class ServerFolder:
    """The server's settings and their folder; every path in them is relative to it."""

    folder: Path
    settings: ConsortiumSettings

    @property
    def tls(self) -> TlsFiles:
        """The server's TLS identity."""
        settings = self.settings
        return TlsFiles(
            self.folder / settings.authority, self.folder / settings.tls_certificate, self.folder / settings.tls_key
        )

    def roster(self) -> Roster:
        """Read the roster and check the authority's signature.

        Raises:
            KeyFileError: if the roster is missing, or another authority's.
            ConfigError: if the roster is another consortium's.
        """
        return self.signed_roster()[0]

    def signed_roster(self) -> tuple[Roster, bytes]:
        """Return the roster and the signed document that holds it.

        Raises:
            CloisterError: as `roster` does.
        """
        key = read_authority_key(self.folder / self.settings.authority)
        roster, data = read_document(
            self.folder / self.settings.roster,
            lambda data: (open_roster(data, key), data),
            "check its path, or ask the coordinator for the roster",
        )
        if roster.consortium != self.settings.consortium:
            names = f"{self.settings.consortium}, the roster of {roster.consortium}"
            msg = f"{self.folder}: consortium.toml is of {names}; replace one of them so that they match"
            raise ConfigError(msg)
        return roster, data


def read_consortium(path: Path) -> ServerFolder:
    """Read the server's settings, given `consortium.toml` or the folder that holds it.

    Raises:
        ConfigError: if the file is missing or invalid, or the path to it leads through a link.
    """
    file = settings_file(path, "consortium.toml")
    return ServerFolder(file.parent, read_toml(file, ConsortiumSettings))


def read_run(path: Path, roster: Roster) -> SignedRun:
    """Read a signed manifest.

    Raises:
        KeyFileError: if there is no such file, or nobody in the roster signed it.
        RefusedError: if it has expired, or whoever signed it may not sign runs.
    """
    run = read_document(
        path, lambda document: open_run(document, roster), "name a signed run; `cloister sign RUN.toml` makes one"
    )
    run.manifest.check_valid(time.time())
    return run
