"""`cloister check` names what stands in the way, for causes that are made for real."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from client.joining import begin
from cloister.cli import app
from server.founding import create_consortium
from server.hub.hub import Hub
from server.hub.mailboxes import Mailboxes
from server.settings import read_consortium
from simulations.engine.federation import Federation, SiteTerms
from simulations.tasks.hospitals import write_hospital_records
from transport import pki

TASK = "simulations.tasks.diagnosis:Diagnosis"
SITES = ("north", "south", "east")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A consortium with records, whose settings have no server's port yet."""
    federation = Federation.create(tmp_path_factory.mktemp("check") / "lungs", SITES)
    write_hospital_records(federation.paths)
    return federation


@pytest.fixture
def lungs(template: Federation, tmp_path: Path) -> Federation:
    """A copy of it."""
    shutil.copytree(template.folder, tmp_path / "lungs")
    return Federation(tmp_path / "lungs", SITES)


@contextmanager
def serving(federation: Federation) -> Iterator[str]:
    """Run the consortium's hub, and give its address."""
    place = read_consortium(federation.server)
    roster = place.roster()
    nodes = {member.node_id for member in roster.members}
    hub = Hub(roster, Mailboxes(nodes), 1 << 20, place.signed_roster()[1])
    try:
        yield f"localhost:{hub.start('localhost:0', place.tls)}"
    finally:
        hub.stop()


def check(*arguments: str | Path) -> dict[str, dict[str, str]]:
    """Check, and return what was found by name; every cause is named within seconds."""
    start = time.monotonic()
    done = CliRunner().invoke(app, ["check", *map(str, arguments), "--json"], catch_exceptions=False)
    assert time.monotonic() - start < 60  # loaded machines; what waits has four seconds
    report: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    assert done.exit_code == (0 if report["ok"] else 1)
    return {finding["check"]: finding for finding in report["checks"]}


def settle(federation: Federation, server: str, tasks: tuple[str, ...] = (TASK,), file: str = "patients.csv") -> Path:
    federation.write_settings("north", server, SiteTerms(tasks=tasks, file=file))
    return federation.paths["north"]


def text_of(findings: dict[str, dict[str, str]], name: str, state: str) -> str:
    assert findings[name]["state"] == state, findings
    return findings[name]["text"]


def test_a_site_that_is_ready_passes_every_check(lungs: Federation) -> None:
    with serving(lungs) as server:
        findings = check(settle(lungs, server))
    assert {finding["state"] for finding in findings.values()} == {"ok"}, findings
    assert list(findings) == [
        "keys", "validity", "name", "port", "TLS", "line", "clock", "roster", "disk", "budget", "records", "loader",
        "memory",
    ]  # fmt: skip
    assert "north is in roster 1 of demo (sites: 3)" in findings["keys"]["text"]
    assert f"for {TASK}" in findings["records"]["text"]
    assert "MB/s to the server" in findings["line"]["text"]
    assert "the server's" in findings["clock"]["text"]
    assert findings["loader"]["text"] == "all records are in memory"
    assert f"{TASK} needs" in findings["memory"]["text"]


def test_a_server_that_is_ready_passes_every_check(lungs: Federation) -> None:
    findings = check("--server", lungs.server)
    clock = findings.pop("clock")  # this machine may have no time server
    assert clock["state"] == ("warning" if "no time server sets this clock" in clock["text"] else "ok")
    assert {finding["state"] for finding in findings.values()} == {"ok"}, findings
    assert "localhost is 127.0.0.1, this machine" in findings["name"]["text"]
    assert "GB free" in findings["disk"]["text"]


def test_the_ports_of_the_server_that_runs_are_its_own(lungs: Federation) -> None:
    with serving(lungs) as server:
        settings = lungs.server / "consortium.toml"
        settings.write_text(settings.read_text().replace("localhost:0", server))
        text = text_of(check("--server", lungs.server), "port", "ok")
    assert text == f"{server} is in use by this server, which is running"


def test_a_server_whose_name_leads_elsewhere_or_nowhere_is_a_warning(tmp_path: Path) -> None:
    for host, said in (("no-such-host.invalid", "cannot be resolved here"), ("203.0.113.9", "not this machine")):
        federation = Federation.create(tmp_path / host, SITES, host=host)
        assert said in text_of(check("--server", federation.server), "name", "warning")


def test_a_servers_disk_that_is_full_is_reported(lungs: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.checks._ROOM", 1 << 60)
    assert "MB are free on its disk" in text_of(check("--server", lungs.server), "disk", "failed")


def test_keys_that_others_may_read_are_reported(lungs: Federation) -> None:
    key = lungs.paths["north"] / "keys" / "signing.key"
    key.chmod(0o640)
    assert f"chmod 600 {key}" in text_of(check(settle(lungs, "localhost:1")), "keys", "failed")
    tls = lungs.server / "tls.key"
    tls.chmod(0o604)
    assert f"chmod 600 {tls}" in text_of(check("--server", lungs.server), "keys", "failed")


@pytest.mark.parametrize("name", ["tls.key", "signing.key", "sealing.key", "roster", "authority.pem", "tls.pem"])
def test_a_missing_file_is_named(lungs: Federation, name: str) -> None:
    (lungs.paths["north"] / "keys" / name).unlink()
    text = text_of(check(settle(lungs, "localhost:1")), "keys", "failed")
    assert f"keys/{name}: no such file" in text


@pytest.mark.parametrize("name", ["tls.key", "signing.key", "sealing.key"])
def test_keys_of_another_site_are_reported(lungs: Federation, name: str) -> None:
    north, south = (lungs.paths[site] / "keys" / name for site in ("north", "south"))
    north.write_bytes(south.read_bytes())
    assert "cloister" in text_of(check(settle(lungs, "localhost:1")), "keys", "failed")


def test_a_certificate_that_expires_soon_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pki, "_LEAF_DAYS", 5)
    federation = Federation.create(tmp_path / "soon", SITES)
    findings = check(settle(federation, "localhost:1"))
    assert "the certificate is valid until" in text_of(findings, "validity", "warning")
    monkeypatch.setattr(pki, "_LEAF_DAYS", 0)
    federation = Federation.create(tmp_path / "over", SITES)
    assert "expired on" in text_of(check(settle(federation, "localhost:1")), "validity", "failed")


def test_unusable_tasks_and_records_are_reported(lungs: Federation) -> None:
    place = settle(lungs, "localhost:1", tasks=())
    assert "lists no tasks" in text_of(check(place), "records", "failed")
    place = settle(lungs, "localhost:1", tasks=("nobody.wrote:This",))
    assert "there is no module 'nobody'" in text_of(check(place), "records", "failed")
    place = settle(lungs, "localhost:1", file="absent.csv")
    assert "absent.csv" in text_of(check(place), "records", "failed")


def test_a_folder_that_cannot_be_written_is_reported(lungs: Federation) -> None:
    place = settle(lungs, "localhost:1")
    (place / "outbox").write_text("in the way")
    assert "outbox" in text_of(check(place), "disk", "failed")


def test_a_port_that_is_in_use_is_reported(lungs: Federation) -> None:
    with socket.create_server(("localhost", 0)) as listener:
        settings = lungs.server / "consortium.toml"
        settings.write_text(settings.read_text().replace("localhost:0", f"localhost:{listener.getsockname()[1]}"))
        assert "another program uses the port" in text_of(check("--server", lungs.server), "port", "failed")


def test_the_report_has_one_line_per_check(lungs: Federation) -> None:
    output = subprocess.run(
        [sys.executable, "-m", "cloister", "check", "--server", str(lungs.server)],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    assert [line.split()[1] for line in output.splitlines()] == [
        "keys", "roster", "validity", "name", "port", "disk", "store", "clock",
    ]  # fmt: skip


def test_a_joining_port_is_checked_with_the_coordinators_folder(tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        coordinator = create_consortium(tmp_path, "lungs", "localhost", joining_port=port, online=True)
        coordinator.approve([begin(tmp_path / "north", coordinator.invite("north"))])
        assert "another program uses the port" in text_of(check("--server", tmp_path / "server"), "joining", "failed")
    assert "sites are answered at once" in text_of(check("--server", tmp_path / "server"), "joining", "ok")
    (tmp_path / "coordinator").rename(tmp_path / "away")
    assert "coordinator: No such file" in text_of(check("--server", tmp_path / "server"), "joining", "failed")
