"""A report as a picture: PNG, or an HTML page with the picture (SVG) and the table, by the file's suffix.

What events hold is text in both, never markup: no mathematics of matplotlib's, no elements of HTML's.
"""

import html
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from collector.reports import Report
from forwarders.archive_query import Answer

SUFFIXES: Final = (".png", ".html")
_TEXT_MAX: Final = 40
_LINES_MAX: Final = 12
_PAGE: Final = """\
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body {{ font-family: sans-serif }} td, th {{ padding: 0 1em; text-align: left }}
  svg {{ max-width: 100% }}</style>
<h1>{title}</h1>
{picture}
<table><tr>{head}</tr>
{rows}
</table>
</html>
"""


def plot(report: Report, answer: Answer, path: Path) -> None:
    """Write the picture. Errors: OSError."""
    with mpl.rc_context({"text.parse_math": False, "svg.fonttype": "path"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box: no font has them all
        figure = _figure(report, answer)
        if path.suffix == ".png":
            data = io.BytesIO()
            figure.savefig(data, format="png", dpi=120)
            path.write_bytes(data.getvalue())
            return
        svg = io.StringIO()
        figure.savefig(svg, format="svg")
    path.write_text(
        _PAGE.format(
            title=html.escape(report.title),
            picture=svg.getvalue()[svg.getvalue().index("<svg") :],  # without XML's own head
            head=_cells("th", answer.columns),
            rows="\n".join(f"<tr>{_cells('td', row)}</tr>" for row in answer.rows),
        ),
        encoding="utf-8",
    )


def _figure(report: Report, answer: Answer) -> Figure:
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_text(report.title))
    x, y = answer.columns.index(report.x), answer.columns.index(report.y)
    if report.kind == "bars":
        places = range(len(answer.rows))
        axes.barh(places, [row[y] for row in answer.rows])
        axes.set_yticks(places, [_text(row[x]) for row in answer.rows])
        axes.invert_yaxis()
        axes.set_xlabel(report.y)
        return figure
    axes.set_xlabel(report.x)
    axes.set_ylabel(report.y)
    lines = _lines(report, answer)
    for name, rows in lines.items():
        axes.plot([row[x] for row in rows], [row[y] for row in rows], marker="o", label=_text(name))
    axes.set_ylim(bottom=min([0, *[row[y] for row in answer.rows]]))
    if lines and isinstance(answer.rows[0][x], float | int):
        axes.set_xticks(sorted({row[x] for row in answer.rows}))
    elif lines:
        figure.autofmt_xdate()
    if report.by is not None and lines:
        axes.legend()
    return figure


def _lines(report: Report, answer: Answer) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of each line; of many lines those with the largest sums."""
    if report.by is None:
        return {report.y: answer.rows} if answer.rows else {}
    by, y = answer.columns.index(report.by), answer.columns.index(report.y)
    found: dict[str, list[tuple[Any, ...]]] = {}
    for row in answer.rows:
        found.setdefault(row[by], []).append(row)
    largest = sorted(found, key=lambda name: -sum(row[y] for row in found[name]))[:_LINES_MAX]
    return {name: found[name] for name in sorted(largest)}


def _text(value: object) -> str:
    """A value as a label: no control characters, which SVG cannot hold; a beginning with _ hides it from a legend."""
    text = re.sub(r"^_", "\u200b_", "".join(each if each.isprintable() else "\ufffd" for each in str(value)))
    return text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…"


def _cells(element: str, values: Sequence[object] | Iterable[object]) -> str:
    return "".join(f"<{element}>{html.escape(str(value))}</{element}>" for value in values)
