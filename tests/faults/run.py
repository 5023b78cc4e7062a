"""``scripts/faults``: run the tests of the fault matrix row by row, and say what was done and what was seen.

Exit code: 0 every row held or was skipped for want of something; 1 one did not; 2 there is no such row.
"""

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from tests.faults.matrix import Row, holds, rows

TIMEOUT_S = 3600


@dataclass
class Result:
    """What became of one test."""

    outcome: str = "passed"
    seconds: float = 0.0
    seen: dict[str, object] = field(default_factory=dict)
    said: str = ""


class Unhurried:
    """A plugin of pytest that gives each test an hour; a limit that stands at a test is for its short form."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Called when all tests are known."""
        for item in items:
            item.add_marker(pytest.mark.timeout(TIMEOUT_S), append=False)


class Watcher:
    """A plugin of pytest that keeps results by node id, and says each as it comes."""

    def __init__(self) -> None:
        self.results: dict[str, Result] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Say which file cannot be read; its rows fail, for their tests do not run."""
        if report.failed:
            print(f"{report.nodeid}: {report.longrepr}", flush=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called after set-up, call and teardown of each test."""
        result = self.results.setdefault(report.nodeid, Result())
        result.seconds += report.duration
        result.seen |= dict(report.user_properties)
        if report.failed or report.skipped:
            result.outcome = report.outcome
            result.said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if report.when == "teardown":
            print(f"{result.outcome:8}{result.seconds:7.1f} s  {report.nodeid}", flush=True)


def main() -> int:
    """Parse the command line and run."""
    table = rows()
    parser = argparse.ArgumentParser(prog="scripts/faults", description="Try the faults of tests/faults/README.md.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="such as S8; all when none is given")
    parser.add_argument("--short", action="store_true", help="the short form, as scripts/test runs it")
    parser.add_argument("--list", action="store_true", help="the rows and their tests; nothing is run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON, too")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.rows if name not in table]:
        parser.error(f"no such row: {' '.join(unknown)}")
    chosen = [row for row in table.values() if row.name in arguments.rows or not arguments.rows]
    if arguments.list:
        for row in chosen:
            in_full = [f"{test} in full" for test in row.in_full]
            print(f"{row.name:4} {row.fault}", *(row.tests or (f"not here: {row.reason}",)), *in_full, sep="\n     ")
        return 0
    full = not arguments.short
    results = _run(chosen, full=full)
    report = [_report(row, results, full=full) for row in chosen]
    for row, each in zip(chosen, report, strict=True):
        _say(row, each)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1, default=str) + "\n")
    failed = [each["row"] for each in report if each["outcome"] == "failed"]
    print(f"\n{len(report)} rows, {len(failed)} failed{': ' if failed else ''}{' '.join(map(str, failed))}")
    return 1 if failed else 0


def _run(chosen: list[Row], *, full: bool) -> dict[str, Result]:
    watcher = Watcher()
    tests = sorted({test for row in chosen for test in row.form(full=full)})  # a file's tests share its servers
    if tests:
        plugins: list[object] = [watcher]
        if full:
            os.environ["FAULTS"] = "full"
            plugins.append(Unhurried())
        pytest.main(["-p", "no:terminal", "-p", "no:cacheprovider", *tests], plugins=plugins)
    return watcher.results


def _report(row: Row, results: dict[str, Result], *, full: bool) -> dict[str, object]:
    own = {test: result for test, result in results.items() if holds(row, test, full=full)}
    outcomes = {result.outcome for result in own.values()}
    unrun = [test for test in row.form(full=full) if not any(each.startswith(test) for each in own)]
    if "failed" in outcomes or unrun:
        outcome = "failed"
    elif not row.tests:
        outcome = "not here"
    else:
        outcome = "skipped" if "skipped" in outcomes else "held"
    return {
        "row": row.name, "outcome": outcome, "seconds": round(sum(result.seconds for result in own.values()), 1),
        "tests": {test: asdict(result) for test, result in own.items()}, "not_run": unrun,
    }  # fmt: skip


def _say(row: Row, report: dict[str, object]) -> None:
    print(f"\n{row.name}  {row.fault}: {report['outcome']}, {report['seconds']} s")
    print(f"    made by    {row.made_by}\n    must hold  {row.must_hold}")
    if row.reason:
        print(f"    not here   {row.reason}")
    tests = report["tests"]
    assert isinstance(tests, dict)
    silent: Counter[str] = Counter()
    for test, result in tests.items():
        name = test.partition("::")[2]
        figures = ", ".join(f"{figure} {value}" for figure, value in result["seen"].items())
        if result["outcome"] == "passed" and not figures:
            silent[name.partition("[")[0]] += 1
            continue
        print(f"    seen       {name}: {result['outcome']}{f': {figures}' * bool(figures)}")
        if result["said"]:
            print("               " + result["said"].replace("\n", "\n               "))
    for name, cases in silent.items():
        print(f"    seen       {name}: passed{f', {cases} cases' * (cases > 1)}")
    for test in report["not_run"] if isinstance(report["not_run"], list) else []:
        print(f"    not run    {test}")


if __name__ == "__main__":
    sys.exit(main())
