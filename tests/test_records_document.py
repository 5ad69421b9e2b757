"""What docs/records.md shows works as printed: scans read when needed, with persons; texts with a mask."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from client.flower import open_site
from privacy.noise.randomness import Randomness
from privacy.run.settings import Encryption
from simulations.engine.federation import SiteTerms
from tests.federations import SETTINGS, signed_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from client.work.training import Study
    from privacy.run.manifest import Manifest
    from tests.federations import FederationMaker

DOCUMENT = Path(__file__).parent.parent / "docs" / "records.md"
EXAMPLES = re.findall(
    r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8").partition("\n## Sources\n")[0], re.DOTALL
)
SITE = "north"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules `scans` and `intents` with the two examples."""
    for name, code in zip(("scans", "intents"), EXAMPLES, strict=True):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("scans", "intents"):
        sys.modules.pop(name, None)


def study_of(make_federation: FederationMaker, task: str, file: str) -> tuple[Path, Study, Manifest]:
    """A site's folder, its study of a task, and the run."""
    settings = replace(SETTINGS, task=task, encryption=Encryption(update_bound=1.0, collusion_resistant=False))
    federation = make_federation(settings, {SITE: SiteTerms(tasks=(task,), file=file, device="cpu")})
    folder = federation.paths[SITE]
    return folder, open_site(folder).study(task), signed_run(federation)[1]


@pytest.mark.usefixtures("package")
def test_scans_are_read_when_needed_and_a_patient_counts_once(make_federation: FederationMaker) -> None:
    folder, study, manifest = study_of(make_federation, "scans:Findings", "scans.csv")
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir()
    rows = ["scan,finding,patient"]
    for number in range(30):
        rng.integers(0, 256, 784, np.uint8).tofile(folder / "scans" / f"{number}.raw")
        rows.append(f"{number}.raw,{number % 2},{number // 2}")
    (folder / "scans.csv").write_text("\n".join(rows), encoding="utf-8")
    assert study.count() == 12  # of fifteen patients, each with one of their two scans, three are held out
    start = study.start(manifest.settings)
    assert np.abs(study.release(manifest, 1, start, Randomness.fresh()).vector).max() > 0
    count, measured = study.measure(manifest.settings, start)
    assert count == 3
    assert set(measured) == {"loss", "accuracy"}


@pytest.mark.usefixtures("package")
def test_texts_are_a_dict_of_tensors(make_federation: FederationMaker) -> None:
    folder, study, manifest = study_of(make_federation, "intents:Intents", "texts.tsv")
    lines = [f"{number % 3}\tplease block card {number} at once" for number in range(20)]
    (folder / "texts.tsv").write_text("\n".join(lines), encoding="utf-8")
    assert study.count() == 16
    start = study.start(manifest.settings)
    assert np.abs(study.release(manifest, 1, start, Randomness.fresh()).vector).max() > 0
