"""The command line: help with an example, errors of one sentence, no tracebacks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simulations.engine.federation import Federation
from tests.cloister.in_process import Run

ROOT = Path(__file__).parent.parent.parent
COMMANDS = (
    ["demo"],
    ["init"],
    ["invite"],
    ["join"],
    ["person", "join"],
    ["revoke"],
    ["renew"],
    ["roster", "approve"],
    ["check"],
    ["approve"],
    ["run", "events"],
    ["run", "show"],
    ["protect"],
    ["export"],
    ["backup"],
    ["restore"],
    ["sign"],
    ["login"],
    ["submit"],
    ["runs"],
    ["watch"],
    ["stop"],
    ["retry"],
    ["server"],
    ["agent"],
    ["simulate"],
    ["tune"],
    ["plan"],
    ["stats"],
    ["audit", "privacy"],
    ["audit", "inversion"],
    ["audit", "statement"],
    ["bench", "round"],
    ["bench", "scale"],
    ["bench", "plan"],
    ["bench", "encryption"],
    ["bench", "records"],
    ["bench", "adversary"],
    ["data", "check"],
    ["ledger", "show"],
    ["ledger", "verify"],
    ["ledger", "plan"],
    ["ledger", "recover"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example(command: list[str], cloister: Run) -> None:
    output = cloister(*command, "--help")
    assert output.returncode == 0
    assert f"cloister {' '.join(command)}" in output.stdout.split("Example:")[1]


def test_a_misspelt_command_gets_a_suggestion_also_in_a_process_of_its_own(cloister: Run) -> None:
    shown = cloister("simulat")
    assert "simulate" in shown.stderr
    command = [sys.executable, "-m", "cloister", "simulat"]
    alone = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (alone.returncode, alone.stdout, alone.stderr) == (shown.returncode, shown.stdout, shown.stderr)


def test_signing_states_the_cost_of_the_run(tmp_path: Path, cloister: Run) -> None:
    federation = Federation.create(tmp_path, ("north", "south", "east"))
    out = tmp_path / "run.manifest"
    arguments = ("--as", tmp_path / "coordinator", "--roster", federation.server / "roster", "--out", out)
    signed = cloister("sign", ROOT / "simulations" / "tasks" / "diagnosis.toml", *arguments, "--json")

    report = json.loads(signed.stdout.splitlines()[-1])
    assert out.exists()
    assert 0 < report["epsilon"] <= 3
    assert report["epsilon_of_two_records"] > 2 * report["epsilon"]
    assert report["noise_multiplier"] > 0
    output = cloister("sign", ROOT / "simulations" / "tasks" / "diagnosis.toml", *arguments).stdout
    assert f"with two, at a site with records_per_person = 2: ε {report['epsilon_of_two_records']:.2f}" in output


def test_a_misspelt_key_is_shown_with_its_line_and_a_caret_and_nothing_is_signed(tmp_path: Path, cloister: Run) -> None:
    federation = Federation.create(tmp_path, ("north", "south", "east"))
    run = tmp_path / "study.toml"
    run.write_text(
        (ROOT / "simulations" / "tasks" / "diagnosis.toml").read_text(encoding="utf-8").replace("rounds", "rouns", 1)
    )
    refused = cloister(
        "sign", run, "--as", tmp_path / "coordinator", "--roster", federation.server / "roster", cwd=tmp_path
    )

    assert refused.returncode == 1
    assert "^^^^^ unknown key; did you mean `rounds`?" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "run.manifest").exists()


def test_a_site_without_statistics_gets_a_message_and_no_traceback(tmp_path: Path, cloister: Run) -> None:
    refused = cloister("stats", "--site", tmp_path)
    assert refused.returncode == 1
    assert "contains no figures; a run with [statistics] adds them" in refused.stderr


def test_debug_shows_where_an_error_came_from(tmp_path: Path, cloister: Run) -> None:
    assert "Traceback" in cloister("--debug", "agent", tmp_path).stderr
    assert "Traceback" not in cloister("agent", tmp_path).stderr


def test_signing_a_run_with_shared_noise_states_against_whom_it_protects(tmp_path: Path, cloister: Run) -> None:
    federation = Federation.create(tmp_path, ("north", "south", "east"))
    run, text = tmp_path / "study.toml", (ROOT / "simulations" / "tasks" / "diagnosis.toml").read_text(encoding="utf-8")
    for old, new in (
        ("steps_per_round = 4", "steps_per_round = 1"),
        ("[encryption]", "[encryption]\ncollusion_resistant = true"),
        ('"compact"', '"precise"'),
        ("[privacy]", '[privacy]\nnoise = "shared"'),
    ):
        text = text.replace(old, new, 1)
    run.write_text(text, encoding="utf-8")
    arguments = ("--as", tmp_path / "coordinator", "--roster", federation.server / "roster", "--out",
                 tmp_path / "run.manifest")  # fmt: skip
    report = json.loads(cloister("sign", run, *arguments, "--json").stdout.splitlines()[-1])
    assert [observer["colluding_sites"] for observer in report["observers"]] == [0, 1, 2]
    assert [observer["declared"] for observer in report["observers"]] == [False, True, False]
    alone, declared, others = (observer["epsilon"] for observer in report["observers"])
    assert alone < declared == report["epsilon"] < others
    assert report["most_parameters"] > 1_000
    output = cloister("sign", run, *arguments).stdout
    assert f"{declared:8.2f}  (σ {report['noise_multiplier']:.3g})  ← declared, charged" in output
    assert "and all other sites: one site's own update" in output
