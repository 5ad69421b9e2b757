"""Fixtures that several rooms' tests share."""

from pathlib import Path

import pytest

from tests.federations import SITES, FederationMaker, share_keys


@pytest.fixture(scope="session")
def federation_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation that has only its keys, to be copied."""
    from simulations.federation import Federation  # noqa: PLC0415

    federation = Federation.create(tmp_path_factory.mktemp("keys") / "federation", SITES)
    share_keys(federation)
    return federation.folder


@pytest.fixture
def make_federation(federation_keys: Path, tmp_path: Path) -> FederationMaker:
    """Makes federations in the test's own folder."""
    return FederationMaker(federation_keys, tmp_path)
