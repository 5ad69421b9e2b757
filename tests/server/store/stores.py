"""A server's folder with a store, and runs for it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

import psycopg

from privacy.run.manifest import Manifest, SignedRun
from privacy.run.people import Person
from server.settings import ConsortiumSettings, ServerFolder, StoreSettings
from tests.client.data.sources.databases import PASSWORD
from tests.federations import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def place_in(folder: Path, url: str = "sqlite:///store.sqlite") -> ServerFolder:
    """Return a server's folder with a store at this URL."""
    return ServerFolder(folder, ConsortiumSettings("Test", "localhost:0", store=StoreSettings(url)))


def connected(url: str) -> psycopg.Connection:
    """Connect to a PostgreSQL that tests started."""
    return psycopg.connect(url.replace("+psycopg", ""), password=PASSWORD, autocommit=True)


@contextmanager
def away(url: str) -> Iterator[None]:
    """Have a PostgreSQL end all connections to its database, and take none, while this context lasts."""
    with connected(f"{url.rpartition('/')[0]}/template1") as aside:
        aside.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
        aside.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres'")
        try:
            yield
        finally:
            aside.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true")


def run_named(name: str = "lungs", signer: str = "ada") -> SignedRun:
    """Return a run whose signature the store does not look at."""
    manifest = Manifest(replace(SETTINGS, name=name), 1.0, 1, "0" * 16, "2026-01-01", 1e12)
    document = f"signed {name}".encode()
    return SignedRun(document, manifest, sha256(document).hexdigest(), Person(signer, "researcher", "1" * 64))
