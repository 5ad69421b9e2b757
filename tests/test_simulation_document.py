"""What docs/simulation.md shows works as printed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parent.parent / "docs" / "simulation.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def test_the_examples_run_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shown_simulation.py").write_text("\n\n".join(EXAMPLES), encoding="utf-8")
    shown = runpy.run_module("shown_simulation", alter_sys=False, run_name="shown_simulation")
    assert shown["result"].engine == "vectorised"
    assert shown["result"].rows[-1]["sites"] == 10
    assert shown["result"].metrics["accuracy"] > 0.5
    assert shown["result"].epsilon == pytest.approx(3.0, rel=0.02)
    assert {file.name for file in (tmp_path / "digits").iterdir()} >= {"report.html", "run.toml", "model.safetensors"}
    assert shown["prox"].rows[-1]["sites"] == 20
    assert len((tmp_path / "rounds.jsonl").read_text(encoding="utf-8").splitlines()) >= 3
    assert len(shown["tuned"].trials) == 4
    assert (tmp_path / "best" / "run.toml").exists()
    assert shown["stopped"].stopped or len(shown["stopped"].rows) == 40
