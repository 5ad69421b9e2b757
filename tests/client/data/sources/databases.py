"""A real PostgreSQL server for tests, on this machine, with a password."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = "not-a-secret"  # noqa: S105 - of a server that lives as long as the tests
_SECONDS = 30.0  # to start


def _program(name: str) -> str:
    path = shutil.which(name) or next(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), None)
    if path is None:
        pytest.skip(f"no {name} here: install PostgreSQL, on Debian and Ubuntu with `apt install postgresql`")
    return path


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server; yield the URL of an empty database without the password, for SQLAlchemy."""
    programs = {name: _program(name) for name in ("initdb", "postgres")}
    user = "postgres" if os.getuid() == 0 else None  # PostgreSQL refuses to run as root
    folder = Path(mkdtemp(prefix="cloister-postgres-", dir="/tmp"))
    (folder / "password").write_text(PASSWORD)
    if user:
        shutil.chown(folder, user)
        shutil.chown(folder / "password", user)
    data = folder / "data"
    subprocess.run(
        [programs["initdb"], "-D", str(data), "-U", "owner", "-A", "scram-sha-256", "--no-sync", "-E", "UTF8",
         f"--pwfile={folder / 'password'}"],
        check=True, capture_output=True, user=user, cwd=folder,
    )  # fmt: skip
    port = unused_port()
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [programs["postgres"], "-D", str(data), "-k", str(folder), "-p", str(port),
             "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=10"],
            stdout=log, stderr=log, user=user, cwd=folder,
        )  # fmt: skip
    try:
        _await(port, folder)
        yield f"postgresql+psycopg://owner@127.0.0.1:{port}/postgres"
    finally:
        server.terminate()
        server.wait(_SECONDS)
        shutil.rmtree(folder)


def _await(port: int, folder: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            with psycopg.connect(host="127.0.0.1", port=port, user="owner", password=PASSWORD, dbname="postgres"):
                return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                pytest.fail((folder / "log").read_text())
