"""Curves as PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = 3


@dataclass(frozen=True)
class Curve:
    """One line. ``label``: empty where there is only one."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Lines over one axis, from 0 upwards. ``log``: of x."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log: bool = True
    log_y: bool = False


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write the panels as one picture."""
    import matplotlib as mpl  # a second, and most benchmarks draw nothing

    mpl.use("Agg")
    from matplotlib import pyplot

    lines = -(-len(panels) // COLUMNS)
    figure, axes = pyplot.subplots(lines, COLUMNS, figsize=(4 * COLUMNS, 3 * lines), squeeze=False, dpi=80)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        for curve in panel.curves:
            axis.plot(curve.x, curve.y, marker="o" if len(curve.x) < 20 else "", markersize=4, label=curve.label)
        axis.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
        if panel.log:
            axis.set_xscale("symlog" if any(0 in curve.x for curve in panel.curves) else "log")
        if panel.log_y:
            axis.set_yscale("log")
        else:
            axis.set_ylim(0, 1.1 * max((max(curve.y) for curve in panel.curves), default=0) or 1)
        if any(curve.label for curve in panel.curves):
            axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
