"""A consortium whose server runs, and one site of it in a folder of its own, for tests of what can go wrong there."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from client.joining import begin, finish
from privacy.run.invitation import Invitation
from server.coordinator import Coordinator
from server.founding import create_consortium
from server.process import open_joining_port
from server.service.agents import Agents
from server.settings import ServerFolder, read_consortium
from simulations.engine.federation import Federation, SiteTerms
from tests.federations import TERMS
from tests.ports import unused_port
from transport.address import Address

SITES = ("north", "south", "east")
SITE, GUEST = "north", "west"  # a member, and who is invited


@dataclass(frozen=True)
class Consortium:
    """A consortium with three sites."""

    folder: Path
    port: int
    joining_port: int

    @classmethod
    def found(cls, folder: Path) -> "Consortium":
        """Found one, and let its sites join."""
        port, joining_port = unused_port(), unused_port()
        coordinator = create_consortium(
            folder, folder.name, "localhost", port, Address("localhost", port), joining_port=joining_port, online=True
        )
        requests = [begin(folder / site, coordinator.invite(site)) for site in SITES]
        for approval in coordinator.approve(requests)[1]:
            finish(folder / approval.name, approval.welcome)
        (folder / SITE / "records.csv").write_text("a,b,y\n" + "1,2,0\n2,1,1\n3,4,2\n" * 8, encoding="utf-8")
        (folder / SITE / "outbox").mkdir()
        (folder / SITE / ".agent").touch()  # as where an agent has run before
        return cls(folder, port, joining_port)

    @property
    def place(self) -> ServerFolder:
        return read_consortium(self.folder / "server")

    @property
    def coordinator(self) -> Coordinator:
        return Coordinator(self.folder / "coordinator")

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Open both ports, as `cloister server` without a run does."""
        with ExitStack() as stack:
            open_joining_port(self.place, stack)
            agents = Agents(self.place, None, lambda _: None)
            stack.callback(agents.stop)
            agents.take(*self.place.signed_roster())
            yield


@dataclass
class Case:
    """One site, and what it is told about the way to the server; a test changes both to make its trouble."""

    lungs: Consortium
    hearts: Consortium  # another one
    folder: Path  # what the test may change: the site, and what it needs beside it
    monkeypatch: pytest.MonkeyPatch
    host: str = "localhost"
    port: int = 0  # where agents dial; 0: where the server is
    joining_port: int = 0
    proxy: str | None = None
    terms: SiteTerms = field(default_factory=lambda: TERMS)
    document: str | None = None  # what `cloister join` is given, if not an invitation

    def __post_init__(self) -> None:
        shutil.copytree(self.lungs.folder / SITE, self.site)
        self.port, self.joining_port = self.lungs.port, self.lungs.joining_port

    @property
    def site(self) -> Path:
        return self.folder / SITE

    @property
    def new_site(self) -> Path:
        """Where the guest joins."""
        return self.folder / GUEST

    def everything_at(self, port: int) -> None:
        """Let whatever listens at this port be taken for both of the server's."""
        self.port = self.joining_port = port

    def invitation(self, consortium: Consortium | None = None, guest: str = GUEST) -> Invitation:
        invitation = (consortium or self.lungs).coordinator.invite(guest)
        return replace(invitation, server=str(Address(self.host, self.port)), joining_port=self.joining_port)

    def write_settings(self) -> None:
        federation = Federation(self.folder, (SITE,))
        federation.write_settings(SITE, str(Address(self.host, self.port)), self.terms)
        if self.proxy:
            with (self.site / "site.toml").open("a", encoding="utf-8") as file:
                file.write(f'\n[network]\nproxy = "{self.proxy}"\n')

    def command(self, name: str) -> list[str]:
        """The command line of `check`, `join` or `agent`."""
        if name != "join":
            return [name, str(self.site)]
        proxy = ["--proxy", self.proxy] if self.proxy else []
        return ["join", self.document or self.invitation().to_text(), "--folder", str(self.new_site), *proxy]

    def files(self) -> dict[str, bytes]:
        """What is on disk."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in paths}
