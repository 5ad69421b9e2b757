"""`pip install .` is the server: it starts, and signs and serves, where torch, TenSEAL and Opacus are not installed."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from simulations.engine.federation import Federation

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("torch", "tenseal", "opacus", "sklearn")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_server_runs_where_only_its_own_dependencies_are_installed(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path / "federation", ("north", "south", "east"))
    run = tmp_path / "run.toml"
    text = (ROOT / "simulations" / "tasks" / "diagnosis.toml").read_text(encoding="utf-8")
    run.write_text(text.replace("rounds = ", "rounds = 1 # "), encoding="utf-8")

    venv.create(tmp_path / "venv")
    python = str(tmp_path / "venv" / "bin" / "python")
    constraints = tmp_path / "constraints.txt"
    locked = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split(" ")[0] for line in locked if "==" in line and not line.startswith((" ", "#"))]
    constraints.write_text("\n".join(pins), encoding="utf-8")
    install = [
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--disable-pip-version-check"),
        *("--no-compile", "-c", str(constraints), str(ROOT)),  # most modules are never loaded
    ]
    subprocess.run(install, check=True, timeout=300)

    for name in HEAVY:
        missing = subprocess.run([python, "-c", f"import {name}"], capture_output=True, check=False, timeout=60)
        assert b"ModuleNotFoundError" in missing.stderr

    command = [python, "-m", "cloister"]
    signed = subprocess.run(
        [*command, "sign", str(run), "--coordinator", str(federation.folder / "coordinator"), "--roster",
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
        assert server.stdout.readline().startswith("listening on port ")
        server.terminate()
        server.wait(timeout=30)


def test_the_modules_of_the_server_do_not_load_what_only_sites_have() -> None:
    code = f"""
import sys, server.process, cloister.cli, cloister.commands.sign
loaded = set({HEAVY!r}) & sys.modules.keys()
sys.exit(f"loaded {{loaded}}" if loaded else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
