"""Flower's deployment: a SuperLink and two SuperNodes over TLS run what is installed; no code travels."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from privacy.config import read_toml
from privacy.run.settings import Cohort, RunSettings
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.results import read_results
from simulations.tasks.diagnosis import Diagnosis
from simulations.tasks.hospitals import write_hospital_records
from tests.federations import await_condition, share_keys
from tests.ports import unused_port

ROOT = Path(__file__).parents[3]
BUNDLE = ROOT / "deploy" / "flower"
SITES = ("north", "south")
SECONDS = 240.0  # a round's deadline: every message starts a process, which loads torch


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


@dataclass(frozen=True)
class Flower:
    """Flower's programs, in one home."""

    home: Path

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # a second each, unless told
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def command(self, *arguments: object) -> str:
        """Run `flwr` to its end; return what it printed."""
        finished = subprocess.run(
            [Path(sys.executable).with_name("flwr"), *map(str, arguments)], env=self.environment(), cwd=self.home,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert finished.returncode == 0, finished.stdout[-3000:]
        return finished.stdout

    @contextmanager
    def running(self, *arguments: object) -> Iterator[Path]:
        """Start a program that stays, in a group of its own; name its log; end it and all that it started."""
        log = self.home / f"{Path(str(arguments[0])).name}-{len(list(self.home.glob('*.log')))}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                list(map(str, arguments)), env=self.environment(), cwd=self.home, stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                yield log
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def supernode_key(path: Path) -> Path:
    """Make a SuperNode's key; return where its public half lies."""
    key, public = ec.generate_private_key(ec.SECP384R1()), path.with_suffix(".pub")
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return public


@pytest.mark.soak  # every message starts a process; test_flower_engine.py runs the apps, test_flower_app.py the bundle
@pytest.mark.timeout(600)
@pytest.mark.parametrize("masks", [False, True], ids=["without masks", "with masks"])
def test_a_superlink_and_two_supernodes_over_tls_end_in_one_model(tmp_path: Path, *, masks: bool) -> None:
    federation = Federation.create(tmp_path / "federation", SITES)
    if not masks:  # sites make their keys in the run with masks; each message of theirs takes five seconds
        share_keys(federation)
    write_hospital_records(federation.paths)
    task = f"{Diagnosis.__module__}:{Diagnosis.__name__}"
    terms = SiteTerms(tasks=(task,), minimum_noise_multiplier=0.1, minimum_cohort=2, colluding_sites=0,
                      collusion_resistant=masks)  # fmt: skip
    for site in SITES:
        federation.write_settings(site, "localhost:1", terms)
    settings = read_toml(ROOT / "simulations" / "tasks" / "diagnosis.toml", RunSettings)
    sizes = {site: settings.cohort.sizes[site] for site in SITES}
    cohort = Cohort(sizes=sizes, minimum=2, round_deadline_seconds=SECONDS)
    privacy = replace(settings.privacy, colluding_sites=0) if masks else settings.privacy  # two that trust each other
    encryption = replace(settings.encryption, collusion_resistant=masks)
    federation.sign(replace(settings, rounds=1, cohort=cohort, privacy=privacy, encryption=encryption))

    flower = Flower(tmp_path / "flower")
    flower.home.mkdir()
    authority, port = federation.server / "authority.pem", unused_port()
    (flower.home / "config.toml").write_text(
        f'[superlink.hub]\naddress = "localhost:{port}"\nroot-certificates = "{authority}"\n', encoding="utf-8"
    )
    with ExitStack() as stack:
        logs = [
            stack.enter_context(
                flower.running(
                    "flower-superlink", "--host", "localhost", "--port", port, "--enable-supernode-auth",
                    "--ssl-certfile", federation.server / "tls.pem", "--ssl-keyfile", federation.server / "tls.key",
                    "--ssl-ca-certfile", authority, "--database", flower.home / "link.db",
                    "--disable-runtime-dependency-installation",
                )
            )
        ]  # fmt: skip
        await_condition(lambda: listens(port), SECONDS)
        for site in SITES:
            key = flower.home / f"{site}.key"
            flower.command("supernode", "register", supernode_key(key), "hub", "--name", site)
            logs.append(
                stack.enter_context(
                    flower.running(
                        "flower-supernode", "--superlink", f"localhost:{port}", "--root-certificates", authority,
                        "--auth-supernode-private-key", key, "--port", unused_port(),
                        "--node-config", f'site="{federation.paths[site]}"',
                    )
                )
            )  # fmt: skip
        named = f'consortium="{federation.server}" manifest="{federation.manifest}"'
        printed = flower.command("run", BUNDLE, "hub", "--stream", "--run-config", named)
        output = printed + "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs)
    results = read_results(federation)
    assert results.rounds == 1, output[-5000:]
    assert len(set(results.digests.values())) == 1
    assert set(results.digests) == set(SITES)
