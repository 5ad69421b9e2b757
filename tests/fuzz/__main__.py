"""Coverage-guided fuzzing of every parser: `make fuzz`, or `python -m tests.fuzz --help`.

Each parser runs in a process of its own, for its share of the time, under libFuzzer (by atheris): what new paths it
finds in our code it keeps, in `.fuzz/NAME/corpus`, and starts from the next time. What breaks a parser lies in
`.fuzz/NAME/`, as `crash-…`, `oom-…` or `timeout-…`.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(".fuzz")
WORDS = ROOT / "words"
ROOMS = ["privacy", "transport", "client"]  # whose paths are watched
MEBIBYTES = 1024  # that a parser's process may take in all; it starts with about 250
SECONDS = 10  # for one input
START = 3  # seconds until a parser's process fuzzes
LONGEST_WORD = 60  # bytes, in libFuzzer's dictionaries
LONGEST = 1 << 17  # bytes of an input
ENDED = {"crash": "an exception that is not ours", "oom": "too much memory", "timeout": "too slow", "leak": "a leak"}


def main() -> int:
    """Fuzz what was asked for and print a table; return how many parsers broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Look for bytes that break a parser.")
    parser.add_argument("--seconds", type=float, default=600, help="in all (600)")
    parser.add_argument("--only", default="", help="parsers whose names hold this")
    parser.add_argument("--replay", type=Path, help="a file that broke a parser: see how")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options, _ = parser.parse_known_args()  # the rest is libFuzzer's
    if options.one:
        return _fuzz(options.one)
    from tests.fuzz.parsers import TRICKY, parsers  # noqa: PLC0415 - where one is fuzzed, it is imported under atheris' eyes

    if options.replay:
        names = {_folder(name): name for name in parsers()}
        print(parsers()[names[options.replay.parent]].parse(options.replay.read_bytes()))  # noqa: T201
        return 0
    chosen = [name for name in parsers() if options.only in name]
    share = max(2, int(options.seconds / max(1, len(chosen))) - START)
    print(f"{'parser, ' + str(share) + ' s each':<30} {'inputs':>10}  result")  # noqa: T201
    ROOT.mkdir(exist_ok=True)
    words = ["".join(f"\\x{byte:02x}" for byte in word) for word in TRICKY if 0 < len(word) < LONGEST_WORD]
    WORDS.write_text("".join(f'"{word}"\n' for word in words))
    return min(1, sum([_run(name, parsers()[name].seeds, share) for name in chosen]))


def _folder(name: str) -> Path:
    return ROOT / re.sub(r"\W+", "-", name)


def _run(name: str, seeds: list[bytes], seconds: int) -> bool:
    """Fuzz one parser in a process of its own; say how it went, and return whether it broke."""
    folder = _folder(name)
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / "corpus" / f"seed-{number}").write_bytes(seed)
    before = set(folder.iterdir())
    command = [
        sys.executable, "-m", "tests.fuzz", "--one", name, f"-max_total_time={seconds}", f"-max_len={LONGEST}",
        f"-rss_limit_mb={MEBIBYTES}", f"-timeout={SECONDS}", f"-artifact_prefix={folder}/", "-print_final_stats=1",
        f"-dict={WORDS}", str(folder / "corpus"),
    ]  # fmt: skip
    with (folder / "log").open("w+b") as log:
        ended = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
        log.seek(0)
        output = log.read().decode(errors="replace")
    counts = re.findall(r"^#(\d+)\s|number_of_executed_units: (\d+)", output, re.MULTILINE)
    executions = max((int(first or second) for first, second in counts), default=0)
    crashes = [path for path in sorted(set(folder.iterdir()) - before) if path.name.partition("-")[0] in ENDED]
    result = "held" if ended == 0 and not crashes else f"broke: see {folder}/log"
    if crashes:
        result = f"{ENDED[crashes[0].name.partition('-')[0]]}: {crashes[0]}"
    print(f"{name:<30} {executions:>10,}  {result}", flush=True)  # noqa: T201
    return result != "held"


def _fuzz(name: str) -> int:
    """Fuzz one parser in this process, until libFuzzer ends it."""
    atheris: Any = importlib.import_module("atheris")  # has no types, and is there only where `make fuzz` ran
    with atheris.instrument_imports(include=ROOMS):
        from tests.fuzz.parsers import parsers  # noqa: PLC0415

        parser = parsers()[name]
    from privacy.errors import CloisterError  # noqa: PLC0415

    def parse(data: bytes) -> None:
        try:
            parser.parse(data)
        except CloisterError:
            return

    atheris.Setup([sys.argv[0], *(argument for argument in sys.argv[1:] if argument not in {"--one", name})], parse)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
