"""`cloister simulate`: a task in a file beside the run's, and models that hospitals train for themselves."""

import json
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from client.settings import Personal, read_site
from client.task.probe import make_model
from simulations.tasks.diagnosis import Diagnosis
from simulations.tasks.hospitals import write_patients
from tests.cloister.in_process import Run
from tests.ports import unused_port

RUN = Path(__file__).parent.parent.parent.parent / "simulations" / "tasks" / "diagnosis.toml"
TASK = "from simulations.tasks.diagnosis import Diagnosis\n\n\nclass Mine(Diagnosis):\n    metrics = ['accuracy']\n"
PERSONAL = '[personal]\nmethod = "ditto"\nlearning_rate = 0.05\nlayers = ["*weight"]\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a run of two rounds, its task, and `[personal]`; nothing of it stays importable."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    text = RUN.read_text("utf-8").replace("simulations.tasks.diagnosis:Diagnosis", "task_beside_a_run:Mine")
    (tmp_path / "study.toml").write_text(text.replace("rounds = 12", "rounds = 2"), "utf-8")
    (tmp_path / "task_beside_a_run.py").write_text(TASK)
    (tmp_path / "own.toml").write_text(PERSONAL)
    yield tmp_path
    sys.modules.pop("task_beside_a_run", None)


def test_hospitals_train_a_model_for_themselves_by_a_task_beside_the_run(folder: Path, cloister: Run) -> None:
    done = cloister("simulate", "study.toml", "--personal", "own.toml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["rounds"] == 2
    assert set(report["personal"]) == {"north", "south", "east"}
    for site, entry in report["personal"].items():
        assert (entry["round"], entry["method"]) == (2, "ditto")
        assert {"loss", "accuracy"} <= set(entry["shared"]) & set(entry["personal"])
        place = read_site(folder / "simulation" / site)
        assert place.settings.personal == Personal("ditto", learning_rate=0.05, layers=("*weight",))
        assert list((place.folder / "personal").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('site = "north"\n', "the key `personal` is missing; add it"),
        (PERSONAL.replace("method", "methot"), "did you mean `method`?"),
    ],
)
def test_a_file_without_such_a_model_is_refused_before_anything_is_made(
    folder: Path, cloister: Run, text: str, message: str
) -> None:
    (folder / "own.toml").write_text(text)
    done = cloister("simulate", "study.toml", "--personal", "own.toml", cwd=folder)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (folder / "simulation").exists()


def test_hospitals_start_from_the_file_that_the_run_names(folder: Path, cloister: Run) -> None:
    (folder / "models" / "public").mkdir(parents=True)
    file, model = folder / "models" / "public" / "model.safetensors", make_model(Diagnosis(), 5)
    save_file(model.state_dict(), file)
    start = '\n[start]\nmodel = "{}"\n'
    text = (folder / "study.toml").read_text("utf-8").replace("rounds = 2", "rounds = 1")
    (folder / "lost.toml").write_text(text + start.format("0" * 64), "utf-8")
    lost = cloister("simulate", "lost.toml", cwd=folder)
    assert (lost.returncode, "[start] names the safetensors file" in lost.stderr) == (1, True), lost.stderr
    assert not (folder / "simulation").exists()
    tiny = text.replace("learning_rate = 1.6", "learning_rate = 1e-9")
    tiny = tiny.replace("epsilon = 2.9", "noise_multiplier = 0.0").replace("delta = 1e-5", "")
    (folder / "study.toml").write_text(tiny + start.format(sha256(file.read_bytes()).hexdigest()), "utf-8")
    done = cloister("simulate", "study.toml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    trained = load_file(folder / report["model"]["north"])
    assert all(torch.allclose(trained[name], value, atol=1e-3) for name, value in model.state_dict().items())


def test_records_of_ones_own_are_divided_among_any_number_of_sites(folder: Path, cloister: Run) -> None:
    write_patients(folder / "patients.csv", np.arange(400))
    command = ("simulate", "study.toml", "--records", "patients.csv", "--sites", "20", "--partition", "dirichlet:0.5")
    done = cloister(*command, "--save", "kept", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "20 sites, 2 rounds · engine vectorised" in done.stdout
    assert "✓ 2 rounds" in done.stdout
    assert (folder / "kept" / "report.html").exists()
    own = cloister(*command, "--personal", "own.toml", cwd=folder)
    assert "sites (trained by ditto without noise, not private), each on its site" in own.stdout, own.stderr
    options = "--dropout", "0.1", "--site-seconds", "exponential:30", "--deadline", "90", "--checkpoint", "checkpoint"
    private = "--participation", "poisson:0.5", "--site-epsilon", "8", "--max-update-norm", "0.5"
    whose = cloister(*command, *options, *private, cwd=folder)
    assert "of a site, to who sees only models: ε" in whose.stdout, whose.stderr
    assert cloister(*command, *options, *private, cwd=folder).stdout.splitlines()[-2] == whose.stdout.splitlines()[-2]
    assert "another simulation" in cloister(*command, *options, cwd=folder).stderr
    told = cloister(*command, "--json", cwd=folder)
    report = json.loads(told.stdout.splitlines()[-1])
    assert (report["rounds"], report["engine"]) == (2, "vectorised")
    assert report["rows"][0]["sites"] == 20
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "study.toml").write_bytes((folder / "study.toml").read_bytes())
    late = "--site-seconds", "lognormal:500:0.1", "--deadline", "1"
    untrained = cloister("simulate", "elsewhere/study.toml", *command[2:], *late, cwd=folder)  # its task is here
    assert untrained.returncode == 1
    assert "✗ at most 0 of 20 sites would deliver an update in any of the 2 rounds, and " in untrained.stderr
    assert "✓" not in untrained.stdout
    wrong = cloister("simulate", "--records", "patients.csv", cwd=folder)
    assert (wrong.returncode, "which names the task" in wrong.stderr) == (1, True)


def test_a_cluster_is_for_the_engine_that_needs_one_and_must_answer(folder: Path, cloister: Run) -> None:
    write_patients(folder / "patients.csv", np.arange(400))
    records, cluster = ("--records", "patients.csv"), ("--ray-address", f"127.0.0.1:{unused_port()}")
    for options, message in (
        ((*records, *cluster), "--engine flower"),
        ((*records, "--cpus-per-site", "2"), "--engine flower"),
        ((*cluster, "--engine", "flower"), "take no --engine, --ray-address; add --records"),
        ((*records, *cluster, "--engine", "flower"), "no Ray cluster answers at 127.0.0.1"),
    ):
        done = cloister("simulate", "study.toml", *options, cwd=folder)
        assert (done.returncode, message in done.stderr) == (1, True), done.stderr
