"""The fault bench: `make reliability`, or `python -m tests.reliability --help`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from tests.reliability import bench
from tests.reliability.promises import CASES


def main() -> int:
    """Run what was asked for, and print what was found; return how many cases and tests broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description="Break things, and look.")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; may be repeated")
    parser.add_argument("--seed", type=int, help="with this seed alone")
    parser.add_argument("--only", choices=["cases", "tests"], help="leave out the other")
    parser.add_argument("--write", type=Path, help="also write this page, and figures beside it; other cases' stay")
    options = parser.parse_args()
    report: dict[str, Any] = {"cases": {}, "tests": {}, "seconds": 0.0}
    if options.write:
        report = bench.read_report(options.write)
    broken = 0
    print(f"{'case':<26}tries  outcome")  # noqa: T201
    for name in options.case or ([] if options.only == "tests" else CASES):
        seeds = None if options.seed is None else [options.seed]
        found = bench.run_case(name, seeds)
        report["cases"][name] = found | {"seeds": len(seeds) if seeds else CASES[name].seeds}
        print(bench.line(name, found), flush=True)  # noqa: T201
        if found["why"]:
            print(found["why"], flush=True)  # noqa: T201
        broken += found["state"] == bench.BROKEN
        if options.write:
            bench.write_report(report, options.write)
    if not options.case and options.only != "cases":
        start = time.monotonic()
        report["tests"] = bench.run_tests(bench.wanted_tests())
        report["seconds"] = round(time.monotonic() - start, 1)
        failed = {name: found["failed"] for name, found in report["tests"].items() if found.get("failed")}
        passed = sum(found.get("passed", 0) for found in report["tests"].values())
        print(f"{'tests':<26}{passed:>5}  {'broken' if failed else 'held':<8}{report['seconds']:>7.0f} s")  # noqa: T201
        for name in failed:
            print(f"replay: make test ARGS='tests/{name}'")  # noqa: T201
        broken += len(failed)
    if options.write:
        bench.write_report(report, options.write)
    return min(1, broken)


if __name__ == "__main__":
    sys.exit(main())
