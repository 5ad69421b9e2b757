"""What docs/own-study.md tells a hospital to type works as printed, from the first command to predictions."""

from __future__ import annotations

import ast
import random
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from shutil import copy
from typing import TYPE_CHECKING

import pytest

from server.process import open_joining_port
from server.settings import read_consortium
from tests.forked import ForkedAgents
from tests.ports import unused_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cloister.in_process import Run

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "own-study.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCUMENT, re.DOTALL)
SITES = ("north", "south", "east")
PATIENTS, LONG = 400, 60.0


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which somebody types it all."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    sys.modules.pop("readmission", None)


def write_patients(path: Path, seed: int) -> None:
    """Older patients with more glucose come back more often; the columns are those of the document."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    lines = [blocks("csv")[0].splitlines()[0]]
    for _ in range(PATIENTS):
        age, glucose = draw.randint(20, 95), draw.uniform(3, 18)
        back = draw.random() < 1 / (1 + 2.718 ** -((age - 58) / 10 + (glucose - 9) / 3))
        lines.append(f"{age},{f'{glucose:.1f}' * (draw.random() > 0.1)},{draw.choice(['surgery', 'eye'])},{back:d}")
    path.write_text("\n".join(lines), encoding="utf-8")


def unused_ports() -> list[str]:
    return [str(unused_port()), str(unused_port())]


def fill_in(site: str, seed: int) -> None:
    """Do what step 3 says."""
    write_patients(Path(site, "patients.csv"), seed)
    copy("readmission.py", site)
    path = Path(site, "site.toml")
    text = path.read_text(encoding="utf-8")
    for line in blocks("toml")[0].splitlines():
        text, count = re.subn(rf"^{line.split()[0]} = \S+", line, text, flags=re.MULTILINE)
        assert count == 1
    path.write_text(text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_a_hospital_gets_from_the_first_command_to_predictions(
    folder: Path, cloister: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [line.removeprefix("$ cloister ").split() for text in blocks("console") for line in text.splitlines()]
    task, use = blocks("python")
    (folder / "readmission.py").write_text(task, encoding="utf-8")
    (folder / "study.toml").write_text(blocks("toml")[1], encoding="utf-8")
    joined, shown = 0, dict[str, str]()
    with ExitStack() as joining, ForkedAgents() as processes:
        for command in commands:
            if command == ["server", "server"]:
                open_joining_port(read_consortium(folder / "server"), joining)
            elif command[0] == "server":
                joining.close()
                processes.start("server", folder / "server.log", *command)
            elif command[0] == "agent":
                processes.start(command[1], folder / f"{command[1]}.log", *command)
            else:
                if command[0] == "ledger" and command[1] == "show":  # once the run has ended
                    processes.wait("server", LONG)
                ports = unused_ports()
                other = ["--port", ports[0], "--joining-port", ports[1]] if command[0] == "init" else []
                done = cloister(*command, *other)
                assert done.returncode == 0, done.stderr
                shown[" ".join(command[:2])] = done.stdout
            if command[0] == "join":
                fill_in(SITES[joined], joined)
                joined += 1
    assert "✓ 400 records: 320 to train on, 80 held out" in shown["data check"]
    assert "✓ north would take part" in shown["ledger plan"]
    assert "✓ this site's policy and budget allow it" in shown["run show"]
    assert "3.00" in shown["ledger show"]
    (folder / "new.csv").write_text("age,glucose,ward\n90,15,eye\n25,4,surgery\n", encoding="utf-8")
    capsys.readouterr()
    exec(compile(use, "docs/own-study.md", "exec"), {})  # noqa: S102 - what the document says
    old, young = ast.literal_eval(capsys.readouterr().out)
    assert old > 0.7
    assert young < 0.3
    assert len({next(Path(site, "models").glob("*.safetensors")).read_bytes() for site in SITES}) == 1
