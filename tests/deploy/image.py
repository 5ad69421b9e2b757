"""Carry out the steps of a Containerfile without a container engine: in a copy-on-write view of this system's files.

The view is an overlay, in which `chroot` runs each step. It stands for the base images, which have the same Python on
the same Debian, and nothing else that the steps need.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3.11"


def why_not() -> str:
    """Why this machine cannot carry out steps; nothing if it can."""
    if os.geteuid() or not shutil.which("unshare"):
        return "needs root and unshare"
    return "" if Path(PYTHON).exists() else "needs Debian 12's Python"


@dataclass
class Stage:
    """What a Containerfile does to one image."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str:
        return next(text for word, text in reversed(self.steps) if word == keyword)

    @property
    def variables(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for word, text in self.steps if word == "ENV" for pair in shlex.split(text))

    @property
    def command(self) -> list[str]:
        return [*json.loads(self.last("ENTRYPOINT")), *json.loads(self.last("CMD"))]


def read(containerfile: Path) -> list[Stage]:
    """Return the stages of a Containerfile."""
    text = re.sub(r"^\s*#.*\n", "", containerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages = list[Stage]()
    for line in filter(None, re.sub(r"\\\n", " ", text).splitlines()):
        keyword, rest = line.split(" ", 1)
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].steps.append((keyword, rest.strip()))
    return stages


def script_of(stages: list[Stage], folder: Path, data: Path, command: list[str]) -> str:
    """Return a shell script that builds an image and runs a command in it as it would run there."""
    lines = ["set -eu", f"mount -t tmpfs none {folder}"]
    roots, root = dict[str, Path](), folder
    for stage in stages:
        roots[stage.name] = root = folder / (stage.name or "image") / "root"
        upper, work = root.parent / "upper", root.parent / "work"
        lines += [
            f"mkdir -p {root} {upper} {work}",
            f"mount -t overlay none -o lowerdir=/,upperdir={upper},workdir={work} {root}",
            f"mount -t proc none {root}/proc",
            f"mount --bind /dev {root}/dev",
        ]
        here = Path("/")
        for keyword, text in stage.steps:
            if keyword == "WORKDIR":
                here = Path(text)
                lines.append(f"mkdir -p {root}{here}")
            elif keyword == "COPY":
                *options, target = text.split()
                source = roots[options.pop(0).removeprefix("--from=")] if options[0].startswith("--") else ROOT
                names = [f"{source}/{name.lstrip('/')}" for name in options]
                whole = (len(names) == 1 and Path(names[0]).is_dir()) or source is not ROOT
                place = f"{root}{here / target}"
                lines += [f"mkdir -p {place}", *(f"cp -r {name}{'/.' if whole else ''} {place}" for name in names)]
            elif keyword == "RUN":
                lines.append(f"chroot {root} env -i {_words(_outside() | stage.variables)} sh -euc "
                             f"{shlex.quote(f'cd {here}; {text}')}")  # fmt: skip
    user, tmp = stages[-1].last("USER").split(":"), "/tmp"  # noqa: S108 - in the view
    confined = f"setpriv --reuid={user[0]} --regid={user[1]} --clear-groups --no-new-privs --inh-caps=-all"
    lines += [
        f"mount -o remount,ro {root}",
        f"mount -t tmpfs none {root}{tmp}",
        f"chmod 1777 {root}{tmp}",
        f"mount -t tmpfs none {root}/var/lib",  # no mount point can be made in the root any more
        f"mkdir -p {root}/var/lib/cloister/server",
        f"mount --bind {data} {root}/var/lib/cloister/server",
        (
            f"exec chroot {root} {confined} --bounding-set=-all env -i -C /var/lib/cloister "
            f"{_words(stages[-1].variables)} {shlex.join(command)}"
        ),
    ]
    return "\n".join(lines)


def _outside() -> dict[str, str]:
    """How pip reaches packages here."""
    return {"PATH": "/usr/bin:/bin"} | {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


def _words(variables: dict[str, str]) -> str:
    return shlex.join(f"{name}={value}" for name, value in variables.items())


@contextmanager
def running(script: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script in a mount namespace of its own, which ends with it."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["/usr/bin/unshare", "--mount", "--pid", "--fork", "sh", "-c", script],
            stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd="/", start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
