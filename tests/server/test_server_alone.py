"""`pip install .` is the server: it starts, and signs and serves, where torch, TenSEAL and Opacus are not installed."""

import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from simulations.engine.federation import Federation

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "tenseal", "opacus", "sklearn")


def dependencies() -> list[Distribution]:
    """Return the installed distributions that the server needs, and those that they need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    left, needed = [(Requirement(text), "") for text in project["dependencies"]], dict[str, Distribution]()
    seen = set[tuple[str, str]]()
    while left:
        requirement, extra = left.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        needed[name] = needed.get(name) or distribution(name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                left += [(Requirement(text), wanted) for text in needed[name].requires or ()]
    return list(needed.values())


def link(installed: Distribution, folder: Path) -> None:
    """Put links to a distribution's files into another environment's folder of packages."""
    for file in installed.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).symlink_to(Path(str(installed.locate_file(file))))


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)


def install_here(python: Path) -> None:
    """Install the server beside links to what this environment has of its dependencies."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    for installed in dependencies():
        link(installed, packages)
    folder = python.parents[2] / "wheels"
    pip("wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.iterdir()
    pip("--python", python, "install", "--quiet", "--no-deps", "--no-index", "--no-compile", wheel)
    pip("--python", python, "check")


def install_by_pip(python: Path) -> None:
    """Install the server as its documents say, in the versions of the lock."""
    constraints = python.parents[2] / "constraints.txt"
    locked = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split(" ")[0] for line in locked if "==" in line and not line.startswith((" ", "#"))]
    constraints.write_text("\n".join(pins), encoding="utf-8")
    pip("--python", python, "install", "--quiet", "--no-compile", "-c", constraints, ROOT)  # most is never loaded


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("install", [install_here, pytest.param(install_by_pip, marks=pytest.mark.soak)])
def test_the_server_runs_where_only_its_own_dependencies_are_installed(
    tmp_path: Path, install: Callable[[Path], None]
) -> None:
    federation = Federation.create(tmp_path / "federation", ("north", "south", "east"))
    run = tmp_path / "run.toml"
    text = (ROOT / "simulations" / "tasks" / "diagnosis.toml").read_text(encoding="utf-8")
    run.write_text(text.replace("rounds = ", "rounds = 1 # "), encoding="utf-8")

    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install(python)

    for name in HEAVY:
        missing = subprocess.run([python, "-c", f"import {name}"], capture_output=True, check=False, timeout=60)
        assert b"ModuleNotFoundError" in missing.stderr

    command = [str(python), "-m", "cloister"]
    signed = subprocess.run(
        [*command, "sign", str(run), "--as", str(federation.folder / "coordinator"), "--roster",
         str(federation.server / "roster"), "--out", "run.manifest"],
        check=True, capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert "1 round costs each site" in signed.stdout
    with subprocess.Popen(
        [*command, "server", federation.server, tmp_path / "run.manifest"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("agents may connect at port ")
        server.terminate()
        server.wait(timeout=30)


def test_the_modules_of_the_server_do_not_load_what_only_sites_have() -> None:
    code = f"""
import sys, server.process, cloister.cli, cloister.commands.sign
loaded = set({HEAVY!r}) & sys.modules.keys()
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
