"""Create a whole consortium in one folder: the keys, certificates, roster and settings that real parties would have.

    folder/coordinator/   the authority's key, the key that signs runs
    folder/server/        consortium.toml, the server's certificate, the roster
    folder/SITE/          site.toml, the site's keys and records

All files have the same form as in a real deployment, so that the demo, the simulations and the tests run the production
code: the functions of `cloister init`, `invite`, `join` and `roster`. The only difference: one program acts for all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from client.joining import begin, finish
from client.settings import Personal
from privacy.run.new_manifest import sign_manifest
from privacy.storage import write_atomically
from server.founding import create_consortium
from strategies.registry import completed
from transport.address import Address, read_address, read_host
from transport.pki import read_signing_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from privacy.run.settings import RunSettings


@dataclass(frozen=True)
class SiteTerms:
    """The `site.toml` settings of a simulated site."""

    tasks: tuple[str, ...]
    epsilon: float = 3.0
    delta: float = 1e-5
    maximum_epsilon: float = 3.0
    minimum_noise_multiplier: float = 0.5
    minimum_cohort: int = 3
    held_out: float = 0.2
    collusion_resistant: bool = True
    shared_noise: bool = False
    colluding_sites: int = 1
    vote_epsilon: float = 0.0
    disclose: tuple[str, ...] = ("epsilon",)
    strategies: tuple[str, ...] | None = None
    file: str = "patients.csv"
    device: str = "auto"
    source: str | None = None
    records_per_person: int = 1
    further_policy: str = ""  # further lines of `[policy]`
    personal: Personal | None = None  # a model of the site's own


@dataclass(frozen=True)
class Federation:
    """The folders of a simulated consortium."""

    folder: Path
    sites: tuple[str, ...]
    paths: Mapping[str, Path] = field(init=False)

    def __post_init__(self) -> None:
        """Set each site's folder."""
        object.__setattr__(self, "paths", {site: self.folder / site for site in self.sites})

    @property
    def server(self) -> Path:
        """The server's folder."""
        return self.folder / "server"

    @property
    def manifest(self) -> Path:
        """The file to which `sign` writes the signed run."""
        return self.server / "run.manifest"

    @classmethod
    def create(
        cls, folder: Path, sites: Sequence[str], consortium: str = "demo", host: str = "localhost"
    ) -> Federation:
        """Make the authority, roster, server and every site's keys. Settings and records are written separately.

        Args:
            folder: where to make the consortium.
            sites: names of the sites.
            consortium: name of the consortium, for people.
            host: the name or address that agents dial.

        Raises:
            MalformedError: if the host is malformed.
        """
        federation = cls(folder, tuple(sites))
        coordinator = create_consortium(folder, consortium, host, listen=Address(read_host(host), 0))
        requests = [begin(path, coordinator.invite(site)) for site, path in federation.paths.items()]
        for approval in coordinator.approve(requests)[1]:
            finish(federation.paths[approval.name], approval.welcome)
        return federation

    def write_settings(self, site: str, server: str, terms: SiteTerms) -> None:
        """Write a site's `site.toml`, with the server's address, `host:port`.

        Raises:
            MalformedError: if the address is malformed.
        """
        server = str(read_address(server))
        strategies = "" if terms.strategies is None else f"strategies = {json.dumps(list(terms.strategies))}\n"
        data = "" if terms.source is None else f"source = {json.dumps(terms.source)}\n"
        if terms.records_per_person > 1:
            data += f"records_per_person = {terms.records_per_person}\n"
        text = f"""\
site = {json.dumps(site)}
server = {json.dumps(server)}
device = {json.dumps(terms.device)}

[data]
file = {json.dumps(terms.file)}
lineage = "{site}-patients"   # the people that the records are about; their budget is one, whatever the file is called
held_out = {terms.held_out}
{data}
[budget]                      # the most that may ever be spent on these people
epsilon = {terms.epsilon}
delta = {terms.delta}

[policy]                      # what this site takes part in, whatever a run asks for
tasks = {json.dumps(list(terms.tasks))}
maximum_epsilon = {terms.maximum_epsilon}
minimum_noise_multiplier = {terms.minimum_noise_multiplier}
minimum_cohort = {terms.minimum_cohort}
collusion_resistant = {json.dumps(terms.collusion_resistant)}   # true: only runs with masks
shared_noise = {json.dumps(terms.shared_noise)}   # true: also runs in which a site adds only a share of the noise
colluding_sites = {terms.colluding_sites}   # a run must bear at least this many sites that join forces with the server
vote_epsilon = {terms.vote_epsilon}   # the most that a vote on a model may cost the records held out; 0: no votes
disclose = {json.dumps(list(terms.disclose))}   # what else leaves; metrics, if listed here, without noise and in no ε
{strategies}{terms.further_policy}
{personal_tables(terms.personal)}"""
        write_atomically(self.paths[site] / "site.toml", text.encode())

    def share(self, files: Iterable[Path]) -> None:
        """Copy files into this folder once, and link them in `models/public` of every site."""
        for number, file in enumerate(files):
            shared = self.folder / "public" / f"{number}-{file.name}"
            shared.parent.mkdir(exist_ok=True)
            copyfile(file, shared)
            for path in self.paths.values():
                link = path / "models" / "public" / shared.name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path("../../..", "public", shared.name))

    def sign(self, settings: RunSettings) -> Path:
        """Sign a run as the coordinator and write it to the server's folder; return its path."""
        key = read_signing_key(self.folder / "coordinator" / "signing.key")
        signed = sign_manifest(completed(settings), key, roster_version=1)
        write_atomically(self.manifest, signed.to_bytes())
        return self.manifest


def personal_tables(personal: Personal | None) -> str:
    """Return `[personal]` as TOML, of which JSON's texts, numbers and lists are a part; empty if there is none."""
    if personal is None:
        return ""
    values = TypeAdapter(Personal).dump_python(personal, mode="json", exclude_none=True)
    tables = {"personal.optimizer": values.pop("optimizer"), "personal": values}
    return "".join(
        f"\n[{name}]\n" + "".join(f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in table.items())
        for name, table in tables.items()
    )
