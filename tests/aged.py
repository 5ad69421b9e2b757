"""Certificates that were issued some time ago."""

from datetime import timedelta
from pathlib import Path

import pytest

from simulations.engine.federation import Federation
from tests.federations import authority_of
from transport import pki
from transport.pki import certificate_pem, read_tls_key


def age(federation: Federation, files: Path, *, days: int, site: str | None = None) -> None:
    """Give the owner of `files`/tls.key, the server if no site, a certificate of 90 days issued so many days ago."""
    key = read_tls_key(files / "tls.key").public_key()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pki, "_SKEW", timedelta(days=days))
        patch.setattr(pki, "_LEAF_DAYS", 90 - days)
        authority = authority_of(federation)
        certificate = authority.issue_site(site, key) if site else authority.issue_server("localhost", key)
    (files / "tls.pem").write_bytes(certificate_pem(certificate))
