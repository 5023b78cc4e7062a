"""The table of faults, the tests and the script agree."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.matrix import holds, rows
from tests.faults.run import TIMEOUT_S, Unhurried

ROOT = Path(__file__).parents[2]
LAST = {"S": 37, "P": 8, "B": 20, "C": 11, "O": 4}


def test_every_row_is_there_and_is_held_by_a_test_or_says_why_not() -> None:
    table = rows()

    assert list(table) == [f"{group}{number}" for group, last in LAST.items() for number in range(1, last + 1)]
    assert [row.name for row in table.values() if bool(row.tests) is bool(row.reason)] == []


def test_what_the_full_form_has_beside_the_short_one_does_not_count_in_short() -> None:
    row = rows()["B20"]
    (chaos,) = row.in_full

    assert row.tests
    assert chaos not in row.form(full=False)
    assert row.form(full=True) == (*row.tests, chaos)
    assert (holds(row, f"{chaos}::test_x"), holds(row, f"{chaos}::test_x", full=True)) == (False, True)


def test_every_test_that_the_table_names_exists_and_every_one_beside_it_is_named() -> None:
    named = {test.partition("[")[0] for row in rows().values() for test in row.form(full=True)}

    missing = [test for test in named if not _is_there(test)]
    ours = {
        f"{path.relative_to(ROOT)}::{name}"
        for path in Path(__file__).parent.glob("test_*.py")
        if path.name != Path(__file__).name
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }

    assert missing == []
    assert ours - named == set()


@pytest.mark.slow
def test_every_case_that_the_table_names_is_collected() -> None:
    cases = sorted({test for row in rows().values() for test in row.form(full=True) if test.endswith("]")})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert cases
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(60)
def test_a_limit_that_stands_at_a_test_does_not_end_its_full_form(request: pytest.FixtureRequest) -> None:
    Unhurried().pytest_collection_modifyitems([request.node])

    assert request.node.get_closest_marker("timeout").args == (TIMEOUT_S,)


def _is_there(test: str) -> bool:
    path, *names = test.split("::")
    if not (ROOT / path).is_file():
        return False
    text = (ROOT / path).read_text()
    if len(names) == 2:  # the method of a class may be inherited from the suite beside it
        text += "".join(each.read_text() for each in (ROOT / path).parent.glob("*_suite.py"))
    return all(re.search(rf"^\s*(?:def|class) {name}\b", text, re.MULTILINE) for name in names)


@pytest.mark.slow
def test_the_script_tries_a_row_and_says_what_was_seen(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.run", "--short", "S26", "--json", str(tmp_path / "report")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (report,) = json.loads((tmp_path / "report").read_text())

    assert done.returncode == 0, done.stdout + done.stderr
    assert "must hold" in done.stdout
    assert (report["row"], report["outcome"]) == ("S26", "held")
    assert len(report["tests"]) >= 1
