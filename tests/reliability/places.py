"""The failpoints in the source."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER, AGENT, BOTH = ("server", "strategies"), ("client", "privacy/ledger"), ("privacy/files.py", "privacy/storage.py")
MASKED = {"set-agreed", "seeds-shown", "set-signed", "seed-revealed"}
"""Those that only a run with masks passes."""


@cache
def failpoints() -> dict[str, str]:
    """Each failpoint, and the file that it is in."""
    found = dict[str, str]()
    for room in ("client", "cloister", "privacy", "server", "strategies", "transport"):
        for path in sorted((ROOT / room).rglob("*.py")):
            source = path.read_bytes()
            for node in ast.walk(ast.parse(source)) if b"failpoint(" in source else ():
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                    name = node.args[0]
                    assert isinstance(name, ast.Constant), path
                    assert name.value not in found, name.value
                    found[str(name.value)] = path.relative_to(ROOT).as_posix()
    return found


def of(*places: str, masks: bool) -> list[str]:
    """The failpoints in some rooms and files that a run passes."""
    return [name for name, file in failpoints().items()
            if file.startswith(places) and (masks or name not in MASKED)]  # fmt: skip
