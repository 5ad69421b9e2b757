"""The container files: linted, hardened, and their steps carried out, if not by a container engine."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import httpx
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cloister import cli
from tests.deploy.image import ROOT, read, running, script_of, why_not
from tests.federations import FederationMaker, await_condition
from tests.ports import unused_port

FOLDER = ROOT / "deploy" / "container"
NAMES = {"server": ("sql", "oidc", "tracking"), "agent": ("client", "imaging", "sql", "tracking")}
LOCK = ROOT / "requirements" / "lock.txt"
LONG = 900.0  # seconds


@pytest.mark.parametrize("name", NAMES)
def test_hadolint_finds_nothing(name: str) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed")
    ended = subprocess.run([hadolint, FOLDER / f"{name}.Containerfile"], capture_output=True, text=True, timeout=60,
                           check=False)  # fmt: skip
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("name", NAMES)
def test_an_image_runs_the_command_as_nobody_without_a_shell(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build, image = read(FOLDER / f"{name}.Containerfile")
    assert (build.base, image.base) == ("${BUILD}", "${RUNTIME}")
    assert "distroless" in (FOLDER / f"{name}.Containerfile").read_text(encoding="utf-8")
    assert image.last("USER") == "65532:65532"
    assert not [text for keyword, text in image.steps if keyword == "RUN"]  # there is no shell that could
    assert image.variables["PYTHONSAFEPATH"] == "1"  # nothing is imported from the folder with the data
    python, dash, module, command, folder, *options = image.command
    assert (python, dash, module, command) == ("/usr/bin/python3.11", "-m", "cloister", name)
    monkeypatch.setattr(sys, "argv", ["cloister", command, "/nowhere", *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1, capsys.readouterr().err  # it is 2 for arguments that it does not know
    assert folder.startswith("/var/lib/cloister/")


def needed(roots: Iterator[Requirement]) -> set[str]:
    """The installed packages that these need."""
    left, seen, names = list(roots), set[tuple[str, str]](), set[str]()
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        names.add(name)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                further = map(Requirement, distribution(name).requires or ())
                left += [one for one in further if one.marker is None or one.marker.evaluate({"extra": extra})]
    return names


@pytest.mark.parametrize("name", NAMES)
def test_an_image_has_what_it_needs_of_the_lock(name: str) -> None:
    listed = set((FOLDER / f"{name}.names").read_text(encoding="utf-8").split())
    wanted = needed(iter([Requirement(f"cloister[{','.join(NAMES[name])}]")])) - {"cloister", "torch"}
    assert wanted <= listed
    assert name != "server" or not listed & {"tenseal", "opacus", "scikit-learn", "tensorflow"}


@pytest.mark.parametrize("name", ["build", *NAMES])
def test_every_package_of_an_image_has_a_hash(name: str) -> None:
    command: list[str | Path] = [sys.executable, FOLDER / "locked.py", FOLDER / f"{name}.names", LOCK]
    part = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
    entries = re.split(r"\n(?=\S)", part.strip())
    assert len(entries) == len((FOLDER / f"{name}.names").read_text(encoding="utf-8").split())
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}$", entry) for entry in entries)


def test_a_package_that_the_lock_lacks_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("numpy\nno-such-package\n", encoding="utf-8")
    command: list[str | Path] = [sys.executable, FOLDER / "locked.py", tmp_path / "names", LOCK]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, "lacks no-such-package" in ended.stderr) == (1, True)


def test_every_service_of_compose_is_confined() -> None:
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
    assert compose["services"].keys() == {"server", "store"}
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
        assert not service.keys() & {"privileged", "cap_add", "network_mode", "pid", "devices"}
        assert ":" in service["image"]
        assert "latest" not in service["image"]
        assert service.keys() >= {"healthcheck", "mem_limit", "pids_limit", "restart"}
    assert "ports" not in compose["services"]["store"]
    assert compose["networks"]["store"]["internal"] is True
    (operations,) = (port for port in compose["services"]["server"]["ports"] if "9464" in port)
    assert operations.startswith("127.0.0.1:")


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(why_not()), reason=why_not())
@pytest.mark.parametrize("name", NAMES)
def test_the_steps_of_an_image_make_what_runs(name: str, make_federation: FederationMaker, tmp_path: Path) -> None:
    federation, port = make_federation(), unused_port()
    data = federation.server if name == "server" else tmp_path / "data"
    data.mkdir(exist_ok=True)
    stages, log, view = read(FOLDER / f"{name}.Containerfile"), tmp_path / "log", tmp_path / "view"
    view.mkdir()
    command = stages[-1].command
    if name == "server":
        (data / "consortium.toml").write_text(
            f'consortium = "demo"\nlisten = "127.0.0.1:0"\n[operations]\nlisten = "127.0.0.1:{port}"\n',
            encoding="utf-8",
        )
        for path in (data, *data.rglob("*")):
            os.chown(path, 65532, 65532)
        for folder in data.parents:
            if folder.is_relative_to(tmp_path.parent):
                folder.chmod(0o755)
    else:
        command = [*command[:1], "-c", AGENT]
    with running(script_of(stages, view, data, command), log) as process:
        if name == "server":
            await_condition(lambda: process.poll() is not None or answers(port), LONG)
            assert process.poll() is None, log.read_text(encoding="utf-8")
        else:
            assert process.wait(LONG) == 0, log.read_text(encoding="utf-8")


AGENT = """
import os, torch, tenseal, opacus, cloister.cli, client.agent
assert os.getuid() == 65532
assert cloister.cli.__file__.startswith("/app/"), cloister.cli.__file__
torch.nn.Conv2d(1, 2, 3)(torch.ones(1, 1, 8, 8)).sum().backward()
try:
    open("/app/written", "w")
except OSError:
    pass
else:
    raise SystemExit("the root can be written")
"""


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/livez", timeout=5, trust_env=False).text == "ok\n"
    except httpx.HTTPError:
        return False
