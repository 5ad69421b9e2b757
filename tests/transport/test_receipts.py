"""A receipt is the server's word: nobody else can give it, and it is of one site, plan and reason."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from simulations.engine.federation import Federation
from tests.federations import authority_of, certify, tls_of
from transport.channel import TlsFiles
from transport.pki import certificate_pem
from transport.receipts import Receipt, find_receipt, is_signed, make_receipt, put_receipt

PLAN, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def server(federation_keys: Path) -> TlsFiles:
    """The server's own keys."""
    folder = federation_keys / "server"
    return TlsFiles(folder / "authority.pem", folder / "tls.pem", folder / "tls.key")


def test_a_servers_receipt_is_of_one_site_plan_and_reason(server: TlsFiles) -> None:
    receipt = make_receipt(server, PLAN, "north", "it came too late")
    assert is_signed(receipt, PLAN, "north", server.authority)
    for wrong, plan, site in (
        (receipt, OTHER, "north"),
        (receipt, PLAN, "south"),
        (replace(receipt, reason="it lied"), PLAN, "north"),
        (replace(receipt, signature=b""), PLAN, "north"),
        (replace(receipt, certificate=b"none"), PLAN, "north"),
        (Receipt("it came too late"), PLAN, "north"),
    ):
        assert not is_signed(wrong, plan, site, server.authority)


def test_a_receipt_does_not_verify_without_a_readable_authority(
    server: TlsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = make_receipt(server, PLAN, "north", "it came too late")
    assert not is_signed(receipt, PLAN, "north", tmp_path / "no authority.pem")
    for error in (UnsupportedAlgorithm("another curve"), x509.InvalidVersion("4", 4)):

        def load(_: bytes, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(x509, "load_pem_x509_certificate", load)
        assert not is_signed(receipt, PLAN, "north", server.authority)


@pytest.mark.parametrize("who", ["a member", "another authority's server", "a server of last year"])
def test_nobody_else_gives_receipts(server: TlsFiles, make_federation: object, tmp_path: Path, who: str) -> None:
    federation = make_federation()  # type: ignore[operator]
    assert isinstance(federation, Federation)
    authority = authority_of(federation)
    if who == "a member":
        tls = tls_of(federation, "north")
    elif who == "a server of last year":
        tls = certify(tmp_path / "old", authority, name="localhost", days=-1, server=True)
    else:
        stranger = type(authority).create("another")
        tls = certify(tmp_path / "other", stranger, name="localhost", days=9, server=True)
        assert certificate_pem(stranger.certificate) != server.authority.read_bytes()
    receipt = make_receipt(tls, PLAN, "north", "because")
    assert receipt.signature
    assert not is_signed(receipt, PLAN, "north", server.authority)


def test_a_server_without_a_key_sends_its_reason_unsigned(server: TlsFiles, tmp_path: Path) -> None:
    receipt = make_receipt(replace(server, key=tmp_path / "none"), PLAN, "north", "because")
    assert receipt == Receipt("because")


@pytest.mark.parametrize("record", [ArrayRecord(), ConfigRecord(), ConfigRecord({"reason": "r", "certificate": b""})])
def test_anything_but_a_receipt_is_ignored(record: ArrayRecord | ConfigRecord) -> None:
    content = RecordDict()
    assert find_receipt(content) is None
    content["receipt"] = record
    assert find_receipt(content) is None
    assert find_receipt(put_receipt(content, Receipt("because"))) == Receipt("because")
