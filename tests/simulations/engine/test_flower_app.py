"""What `flwr run` sends: an app without code, whose parts both ends have installed."""

import importlib
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any
from zipfile import ZipFile

import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

ROOT = Path(__file__).parents[3]
BUNDLE = ROOT / "deploy" / "flower"


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def flower_part(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = project(folder)["tool"]["flwr"]["app"]
    return table


@pytest.mark.parametrize(("folder", "limit"), [(BUNDLE, 13_000), (ROOT, 30_000)], ids=["bundle", "checkout"])
def test_the_bundle_contains_no_code(tmp_path: Path, folder: Path, limit: int) -> None:
    # Without the environment and caches, through all of whose files Flower would look for seconds.
    left_out = ignore_patterns(".venv", ".git", ".*_cache", ".hypothesis", "__pycache__")
    copy = copytree(folder, tmp_path / "app", ignore=left_out)
    (tmp_path / "built").mkdir()
    flwr = Path(sys.executable).with_name("flwr")
    subprocess.run([flwr, "build", "--app", copy], cwd=tmp_path / "built", check=True)
    (file,) = (tmp_path / "built").glob("*.fab")
    with ZipFile(file) as archive:
        assert set(archive.namelist()) == {"pyproject.toml", "LICENSE", ".info/CONTENT"}
    assert file.stat().st_size < limit


def test_the_bundle_agrees_with_the_repository() -> None:
    bundle, ours = project(BUNDLE)["project"], project(ROOT)["project"]
    assert flower_part(BUNDLE) == flower_part(ROOT)
    assert (bundle["version"], bundle["license"]) == (ours["version"], ours["license"])
    assert bundle["dependencies"] == [
        dependency for dependency in ours["dependencies"] if dependency.startswith("flwr")
    ]
    assert (BUNDLE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    lock = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8")
    assert f"\nflwr=={flower_part(ROOT)['flwr-version-target']} " in lock


def test_the_apps_that_the_bundle_names_are_installed() -> None:
    kinds = {"serverapp": ServerApp, "clientapp": ClientApp}
    for part, name in flower_part(BUNDLE)["components"].items():
        module, _, attribute = name.partition(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), kinds[part])


def test_the_app_can_be_sent_to_the_processes_of_flowers_engine() -> None:
    app: ClientApp = importlib.import_module("client.flower").app
    sent = pickle.dumps(app)
    assert len(sent) < 500  # it goes with every message
    assert isinstance(pickle.loads(sent), ClientApp)  # noqa: S301 - just pickled
