"""A site's policy knows a task's code by a digest of its installed package, which is computed without importing it."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import pytest

from client.task.installed import check_installed, installed_digest, package_digest
from privacy.errors import PolicyError
from privacy.run.policy import Policy

if TYPE_CHECKING:
    from pathlib import Path

TASK = "consentable.inner:Study"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with one task."""
    folder = tmp_path / "consentable"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "inner.py").write_text("class Study: ...\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("consentable", "consentable.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def test_the_digest_is_the_same_before_and_after_the_import(package: Path) -> None:
    digest = installed_digest(TASK)
    assert digest is not None
    assert "consentable" not in sys.modules
    importlib.import_module("consentable.inner")
    assert package_digest("consentable.inner", "Study") == installed_digest(TASK) == digest
    (package / "other.py").touch()
    assert installed_digest(TASK) != digest


def test_only_the_package_that_the_policy_names_is_allowed(package: Path) -> None:
    policy = Policy(tasks=(TASK,), maximum_epsilon=1.0, task_digests={TASK: str(installed_digest(TASK))})
    check_installed(policy, TASK, "north")
    (package / "inner.py").write_text("class Study: pass\n", encoding="utf-8")
    with pytest.raises(PolicyError, match=r"north does not allow this version of .*\(policy: task_digests\)"):
        check_installed(policy, TASK, "north")
    assert "consentable" not in sys.modules
    check_installed(Policy(tasks=(TASK,), maximum_epsilon=1.0), TASK, "north")


def test_a_package_that_is_not_installed_has_no_digest() -> None:
    assert installed_digest("nothing_of_this_name.inner:Study") is None
    policy = Policy(tasks=("nothing_here:A",), maximum_epsilon=1.0, task_digests={"nothing_here:A": "0" * 64})
    with pytest.raises(PolicyError, match="it is not installed"):
        check_installed(policy, "nothing_here:A", "north")
