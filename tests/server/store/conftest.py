"""Stores in SQLite and in a real PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from server.store.database import PASSWORD_VARIABLE
from tests.client.data.sources.databases import PASSWORD, postgres
from tests.server.store.stores import connected, place_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.settings import ServerFolder


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL's database."""
    with postgres() as url:
        yield url


@pytest.fixture
def database(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty database, whose password the environment has."""
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    with connected(server) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return server


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> ServerFolder:
    """A server's folder without a store."""
    return place_in(tmp_path) if request.param == "sqlite" else place_in(tmp_path, request.getfixturevalue("database"))
