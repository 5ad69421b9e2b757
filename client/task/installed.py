"""Where a task's code is, and its digest, by which refusals and a policy know it. Nothing is imported."""

from __future__ import annotations

import sys
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from privacy.errors import PolicyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from privacy.run.policy import Policy


def find_beside(folder: Path, tasks: Iterable[str]) -> None:
    """Let Python find tasks, `module:Class`, in files of a folder, such as `lungs.py` beside a site's `site.toml`.

    Installed packages of the same name come first. A folder with none of these tasks changes nothing.
    """
    for top in {task.partition(":")[0].partition(".")[0] for task in tasks}:
        beside = (folder / f"{top}.py", folder / top / "__init__.py")
        if top.isidentifier() and any(path.is_file() for path in beside) and not _roots(top):
            sys.path.append(str(folder))  # processes that read records ahead get it too
            sys.dont_write_bytecode = True  # Python would leave a folder in the site's
            return


def find_for_run(run: Path, task: str) -> None:
    """Let Python find the task of a run that is simulated here: beside the run's file, or in the current folder."""
    for folder in (run.absolute().parent, Path.cwd()):
        find_beside(folder, [task])


def package_digest(module: str, name: str) -> str | None:
    """Return the SHA-256, in hex, of a class's name and all Python files in the top package of its module.

    Other files of the package, and the packages that it imports, are not part of it.

    Args:
        module: the class's module.
        name: the class's qualified name.

    Returns:
        The digest, or None if the package is not installed.
    """
    if not (roots := _roots(module.partition(".")[0])):
        return None
    digest = sha256(name.encode())
    for root in roots:
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            if path.is_file():
                digest.update(f"{path.relative_to(root)}\n".encode() + sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def installed_digest(task: str) -> str | None:
    """Return the digest of the package that holds `module:Class`, or None if it is not installed."""
    module, _, name = task.partition(":")
    return package_digest(module, name)


def check_installed(policy: Policy, task: str, site: str) -> None:
    """Check a task's installed package against its digest in the policy, if that has one, before it is imported.

    Raises:
        PolicyError: if they differ, or the package is not installed.
    """
    listed = policy.task_digests.get(task)
    if listed is None or (digest := installed_digest(task)) == listed:
        return
    has = "it is not installed" if digest is None else f"the installed one has {digest[:16]}…"
    text = (
        f"{site} does not allow this version of {task}: its policy says task_digests = {listed[:16]}…, and {has}; "
        "install that version, or let the site review this one and change its policy"
    )
    raise PolicyError(text, rule="task_digests")


def _roots(top: str) -> list[Path]:
    """Return the folders of a top package, or its one file. A namespace package may have several folders."""
    if top in sys.modules:
        module = sys.modules[top]
        return [Path(path) for path in getattr(module, "__path__", [])] or [Path(str(getattr(module, "__file__", "")))]
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    return [Path(path) for path in spec.submodule_search_locations or ()] or [Path(str(spec.origin))]
