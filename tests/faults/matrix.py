"""The rows of the fault matrix, read from README.md beside this file: the one list of them that there is.

A row of its tables is

    | S8 | the fault | how it is made | what must hold | `spool/test_x.py::test_y`<br>`faults/test_z.py` |

with paths relative to tests/; a test class or a file stands for all tests in it, a test for all its cases, and
``test_y[case]`` for one. Instead of tests the last cell may say ``not here: `` and why.
"""

import re
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("README.md")
_ROW = re.compile(r"^\| ([SPBCO]\d+) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """``tests``: node ids of pytest from the repository's root; empty when ``reason`` says why there are none."""

    name: str
    fault: str
    made_by: str
    must_hold: str
    tests: tuple[str, ...]
    reason: str


def rows() -> dict[str, Row]:
    """Every row by its name, in the order of the tables."""
    found = {}
    for name, fault, made_by, must_hold, held_by in _ROW.findall(TABLE.read_text()):
        assert name not in found, f"{name} stands in the table twice"
        tests = tuple(f"tests/{each}" for each in re.findall(r"`([^`]+\.py[^`]*)`", held_by))
        reason = held_by.removeprefix("not here: ") if held_by.startswith("not here: ") else ""
        found[name] = Row(name, fault, made_by, must_hold, tests, reason)
    return found


def holds(row: Row, test: str) -> bool:
    """Whether a test that pytest has run, by its node id, is one of the row's."""
    plain = test.partition("[")[0]
    return any(each in (test, plain) or plain.startswith(f"{each}::") for each in row.tests)
