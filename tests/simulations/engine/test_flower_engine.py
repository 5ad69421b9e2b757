"""The repository is a valid Flower app: `flwr run` simulates the unchanged apps, encrypted, on Flower's Ray engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from privacy.config import read_toml
from privacy.run.settings import RunSettings
from simulations.engine.federation import Federation, SiteTerms
from simulations.engine.results import read_results
from simulations.tasks.diagnosis import Diagnosis
from simulations.tasks.hospitals import write_hospital_records
from tests.federations import with_deadline
from tests.leftovers import end_those_that_name

ROOT = Path(__file__).parents[3]
SITES = ("north", "south", "east")


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_flwr_run_simulates_two_encrypted_rounds(tmp_path: Path) -> None:
    federation = Federation.create(tmp_path / "federation", SITES)
    write_hospital_records(federation.paths)
    task = f"{Diagnosis.__module__}:{Diagnosis.__name__}"
    for site in SITES:
        federation.write_settings(site, "localhost:1", SiteTerms(tasks=(task,), minimum_noise_multiplier=0.1))
    run = tmp_path / "run.toml"
    text = (ROOT / "simulations" / "tasks" / "diagnosis.toml").read_text(encoding="utf-8")
    run.write_text(text.replace("rounds = ", "rounds = 2 # ", 1), encoding="utf-8")
    federation.sign(with_deadline(read_toml(run, RunSettings), 120.0))  # Ray starts slowly on a busy machine

    home = tmp_path / "flower"
    home.mkdir()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "sim"\n\n[superlink.sim]\naddress = ":local:"\n'
        "options.num-supernodes = 3\noptions.backend.client-resources.num-cpus = 1\n"
        "options.backend.client-resources.num-gpus = 0.0\n",
        encoding="utf-8",
    )
    settings = {"consortium": federation.server, "manifest": federation.manifest, "sites": federation.folder}
    try:
        finished = subprocess.run(
            [sys.executable, "-m", "flwr.cli.app", "run", ROOT, "sim", "--stream",
             "--run-config", " ".join(f'{key}="{path}"' for key, path in settings.items())],
            env={**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1",
                 "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "PYTHONPATH": str(ROOT),
                 "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True, text=True, timeout=280, check=False, cwd=tmp_path,
        )  # fmt: skip
    finally:
        end_those_that_name(home)
    print(finished.stdout[-6000:])  # noqa: T201 - what Flower said, if this fails
    results = read_results(federation)
    assert results.rounds == 2, finished.stdout[-3000:]
    assert len(set(results.digests.values())) == 1
    assert set(results.digests) == set(SITES)
