"""The rows of the fault matrix, read from README.md beside this file: the one list of them that there is.

A row of its tables is

    | S8 | the fault | how it is made | what must hold | `spool/test_x.py::test_y`<br>`faults/test_z.py` |

with paths relative to tests/; a test class or a file stands for all tests in it, a test for all its cases, and
``test_y[case]`` for one. ``in full`` behind a test: it belongs to the row's full form only. Instead of tests the last
cell may say ``not here: `` and why.
"""

import re
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("README.md")
_ROW = re.compile(r"^\| ([SPBCO]\d+) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Row:
    """``tests``: node ids of pytest from the repository's root; empty when ``reason`` says why there are none.

    ``in_full``: those that the full form has beside them.
    """

    name: str
    fault: str
    made_by: str
    must_hold: str
    tests: tuple[str, ...]
    in_full: tuple[str, ...]
    reason: str

    def form(self, *, full: bool) -> tuple[str, ...]:
        """The tests of this form."""
        return self.tests + self.in_full * full


def rows() -> dict[str, Row]:
    """Every row by its name, in the order of the tables."""
    found = {}
    for name, fault, made_by, must_hold, held_by in _ROW.findall(TABLE.read_text()):
        assert name not in found, f"{name} stands in the table twice"
        cells = re.findall(r"`([^`]+\.py[^`]*)`( in full)?", held_by)
        short, long = (tuple(f"tests/{test}" for test, full in cells if bool(full) is each) for each in (False, True))
        reason = held_by.removeprefix("not here: ") if held_by.startswith("not here: ") else ""
        found[name] = Row(name, fault, made_by, must_hold, short, long, reason)
    return found


def holds(row: Row, test: str, *, full: bool = False) -> bool:
    """Whether a test that pytest has run, by its node id, is one of the row's in this form."""
    plain = test.partition("[")[0]
    return any(each in (test, plain) or plain.startswith(f"{each}::") for each in row.form(full=full))
