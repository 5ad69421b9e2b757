"""What tests of the API share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cloister.in_process import runner
from tests.server.api.consortia import Consortium, Server, serving, set_api

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cloister.in_process import Run


@pytest.fixture(scope="module")
def consortium(federation_keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Consortium:
    """A consortium that a file's tests share: they must leave its roster as it is."""
    made = Consortium.make(federation_keys, tmp_path_factory.mktemp("api") / "consortium")
    set_api(made)
    return made


@pytest.fixture(scope="module")
def shared_server(consortium: Consortium) -> Iterator[Server]:
    with serving(consortium) as server:
        yield server


@pytest.fixture
def cloister(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process, as its own process would."""
    return runner(monkeypatch, capsys)
