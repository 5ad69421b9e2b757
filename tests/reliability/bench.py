"""Run the bench's cases and the tests that hold the promises, and write what they found as a page."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any
from xml.etree import ElementTree as ET

from tests.reliability.outcomes import NotRunError, Outcome
from tests.reliability.places import ROOT, failpoints
from tests.reliability.promises import CASES, PROMISES, Promise

HELD, BROKEN, NOT_RUN = "held", "broken", "not run"
_MEMORY = Path("/dev/shm")  # noqa: S108 - a new folder in it, private to this user

Found = dict[str, Any]


def run_case(name: str, seeds: Sequence[int] | None = None) -> Found:
    """Run a case with each of these seeds, or as often as a whole run of the bench does; return what it found."""
    case, outcome, why, start = CASES[name], Outcome(), "", time.monotonic()
    seeds = range(case.seeds) if seeds is None else seeds
    for seed in seeds:
        try:
            # In memory: whatever a process has written is there after it was killed, as on a disk.
            with TemporaryDirectory(prefix="cloister-faults-", dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
                (Path(folder) / name).mkdir()
                outcome.add(case.run(seed, Path(folder) / name))
        except NotRunError as error:
            return {"state": NOT_RUN, "why": str(error), "seconds": 0.0} | _figures(Outcome())
        except Exception as error:  # noqa: BLE001 - whatever breaks is what the bench looks for
            why = f"seed {seed}: {type(error).__name__}: {error}\nreplay: {replay(name, seed)}"
            break
    state = BROKEN if why else HELD
    return {"state": state, "why": why, "seconds": round(time.monotonic() - start, 1)} | _figures(outcome)


def replay(name: str, seed: int) -> str:
    """The command that runs a case exactly so again."""
    return f"make reliability ARGS='--case {name} --seed {seed}'"


def _figures(outcome: Outcome) -> Found:
    return asdict(outcome) | {"reached": sorted(outcome.reached)}


def run_tests(names: Iterable[str], workers: int = 2) -> dict[str, Found]:
    """Run tests, named as in promises; return how many passed and failed, by file and function."""
    command = [
        sys.executable, "-m", "pytest", f"--numprocesses={workers}", "-q", "-p", "no:cacheprovider",
        *sorted({f"tests/{name.partition('::')[0]}" for name in names}),
    ]  # fmt: skip
    with TemporaryDirectory(dir=gettempdir()) as folder:
        report = Path(folder) / "report.xml"
        subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, check=False, stdout=sys.stderr)
        counts: dict[str, Counter[str]] = {}
        seconds = Counter[str]()
        for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - we have just written it
            function = case.attrib["name"].partition("[")[0].partition("@")[0]
            name = case.attrib["classname"].removeprefix("tests.").replace(".", "/") + f".py::{function}"
            failed = case.find("failure") is not None or case.find("error") is not None
            kind = "failed" if failed else "skipped" if case.find("skipped") is not None else "passed"
            counts.setdefault(name, Counter())[kind] += 1
            seconds[name] += float(case.attrib.get("time", 0))  # type: ignore[assignment]
    return {name: {**count, "seconds": round(float(seconds[name]), 2)} for name, count in sorted(counts.items())}


def wanted_tests(promises: Iterable[Promise] = PROMISES) -> list[str]:
    """The tests that hold these promises."""
    return sorted({test for promise in promises for test in promise.tests})


def of_promise(tests: Mapping[str, Found], promise: Promise) -> Counter[str]:
    """How many of a promise's tests passed and failed."""
    found = Counter[str]()
    for name, counts in tests.items():
        if any(name == test or name.partition("::")[0] == test for test in promise.tests):
            found.update({kind: counts.get(kind, 0) for kind in ("passed", "failed", "skipped")})
    return found


def state(report: Found, promise: Promise) -> str:
    """Whether a promise was held, broken, or not tried in full."""
    cases = [report["cases"].get(name, {"state": NOT_RUN})["state"] for name in promise.cases]
    tests = of_promise(report["tests"], promise)
    if BROKEN in cases or tests["failed"]:
        return BROKEN
    return NOT_RUN if NOT_RUN in cases or (promise.tests and not tests["passed"]) else HELD


def line(name: str, found: Found) -> str:
    """What a case found, as a line."""
    return f"{name:<26}{found['tries']:>5}  {found['state']:<8}{found['seconds']:>7.0f} s  {figures([found])}"


def figures(cases: Sequence[Found]) -> str:
    """The figures of some cases, together."""
    counts, most = Counter[str](), dict[str, float]()
    for found in cases:
        counts.update(found["counts"])
        for name, value in found["most"].items():
            most[name] = max(value, most.get(name, value))
    texts = [f"{value:,.0f} {name}" for name, value in counts.items()]
    return "; ".join(texts + [f"at most {value:.3g} {name}" for name, value in most.items()])


def missed(report: Found) -> list[str]:
    """The failpoints in the source that no case has killed a process at."""
    reached = {name for found in report["cases"].values() for name in found["reached"]}
    return sorted(failpoints().keys() - reached)


def page(report: Found) -> str:
    """Format a report as a page in Markdown."""
    rows = ["| | promise | tries | outcome | figures | tests |", "|" + "---|" * 6]
    cases: Mapping[str, Found] = report["cases"]
    for promise in PROMISES:
        found = [cases[name] for name in promise.cases if name in cases]
        tests = of_promise(report["tests"], promise)
        files = dict.fromkeys(test.partition("::")[0] for test in promise.tests)
        tries = f"{sum(case['tries'] for case in found):,}" if promise.cases else "–"
        held = f"{tests['passed']} in " + ", ".join(f"`{file}`" for file in files)
        texts = (str(promise.number), promise.says, tries, state(report, promise), figures(found) or "–", held)
        rows.append("| " + " | ".join(texts) + " |")
    runs = [f"| `{name}` | {found['seeds']} | {found['tries']} | {found['state']} | {found['seconds']:,.0f} |"
            for name, found in cases.items()]  # fmt: skip
    seconds = sum(found["seconds"] for found in cases.values()) + report["seconds"]
    reasons = [f"- `{name}`: {found['why'].replace(chr(10), '; ')}" for name, found in cases.items() if found["why"]]
    lacking = missed(report)
    at = f"all {len(failpoints())}" if not lacking else f"{len(failpoints()) - len(lacking)} of {len(failpoints())}"
    return f"""# Reliability

What Cloister promises when processes, disks, lines and people fail, and what holds each promise. `make reliability`
runs all of it, in {seconds / 60:.0f} minutes on the machine that wrote this page; `make reliability ARGS='--write
docs/reliability.md'` writes the page, and a JSON file beside it. `make test` runs the tests in the last column, which
is where each promise is held from day to day.

The bench's cases are real processes: a server and four agents on one machine, whose lines, disks, clocks and memory it
disturbs. A case's seed decides when and where. A case that breaks prints the command that runs it so again, for example
`{replay("server-random", 3)}`.

{chr(10).join(rows)}

A try is one fault: a kill, a cut, a full disk. `tests` counts those that passed, of the files or of some tests in
them, below `tests/`. Rounds are of a model with three parameters at four sites, so that faults take most of the time.

## Cases

| case | seeds | tries | outcome | seconds |
|---|---|---|---|---|
{chr(10).join(runs)}

Processes were killed at {at} failpoints (`privacy/failpoints.py`){": not at " + ", ".join(lacking) if lacking else ""}.
{chr(10) + "What was not held or not run:" + chr(10) * 2 + chr(10).join(reasons) + chr(10) if reasons else ""}"""


def read_report(path: Path) -> Found:
    """What was written beside a page before; nothing if there is none."""
    beside = path.with_suffix(".json")
    empty: Found = {"cases": {}, "tests": {}, "seconds": 0.0}
    return json.loads(beside.read_bytes()) if beside.exists() else empty


def write_report(report: Found, path: Path) -> None:
    """Write a report as a page, and beside it as JSON."""
    cases = {name: report["cases"][name] for name in CASES if name in report["cases"]}
    tests = {name: report["tests"][name] for name in sorted(report["tests"])}
    rows = [f"  {json.dumps(name)}: {json.dumps(found, ensure_ascii=False)}" for name, found in cases.items()]
    lines = [f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in tests.items()]
    beside = '{"seconds": %s, "cases": {\n%s\n}, "tests": {\n%s\n}}\n' % (  # noqa: UP031 - braces
        json.dumps(report["seconds"]), ",\n".join(rows), ",\n".join(lines),
    )  # fmt: skip
    path.with_suffix(".json").write_text(beside, encoding="utf-8")
    path.write_text(page({**report, "cases": cases, "tests": tests}), encoding="utf-8")
