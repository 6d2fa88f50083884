"""Accuracy against the step as an arm's seeds have it: median and quartiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import numpy as np

from grokscale.report.figures import LINES, PALETTE, STYLE, canvas, log_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTE = "Median over the confirmation seeds, with the band from the lower to the upper quartile."
POINTS = 240  # that a drawn curve has at most, evenly apart on the log axis

Curves = Mapping[int, Mapping[str, np.ndarray]]


class Spread(NamedTuple):
    """Per step (E,) the median and the quartiles of an accuracy over seeds."""

    steps: np.ndarray
    middle: np.ndarray
    lo: np.ndarray
    hi: np.ndarray


def spread(curves: Curves, column: str) -> Spread:
    """Median and quartiles over seeds at the steps at which any was looked at, POINTS of them at most.

    A replica that has ended keeps its last value: otherwise those that took longest would stand for all.
    curves: seed -> columns, the steps ascending.
    """
    found = [curve for curve in curves.values() if len(curve["step"])]
    if not found:
        return Spread(*(np.zeros(0),) * 4)
    steps = np.unique(np.concatenate([curve["step"] for curve in found]))
    if len(steps) > POINTS:
        wanted = np.geomspace(max(1, steps[0]), steps[-1], POINTS)
        steps = np.unique(steps[np.searchsorted(steps, wanted).clip(max=len(steps) - 1)])
    values = [
        curve[column][np.maximum(np.searchsorted(curve["step"], steps, side="right") - 1, 0)] for curve in found
    ]
    lo, middle, hi = np.quantile(np.array(values), (0.25, 0.5, 0.75), axis=0)
    return Spread(steps, middle, lo, hi)


def limits(curves: Curves) -> tuple[float, float]:
    """The first step after the start and the last at which any seed was looked at."""
    steps = [curve["step"] for curve in curves.values() if len(curve["step"])]
    after = [float(s[s > 0][0]) for s in steps if (s > 0).any()]
    return min(after, default=1.0), max((float(s[-1]) for s in steps), default=10.0)


def draw(curves: Curves, title: str, colour: str, span: tuple[float, float]) -> Figure:
    """Train accuracy in ink and dashed, test accuracy in the arm's colour, each with its quartiles.

    span: of the step axis, so that the arms of a sweep can be laid side by side.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.2, 2.6)
        for column, label, ink, line in (
            ("train_acc", "train", PALETTE["ink"][0], LINES[1]),
            ("test_acc", "test", colour, "-"),
        ):
            steps, middle, lo, hi = spread(curves, column)
            axes.fill_between(steps, lo, hi, color=ink, alpha=0.16, linewidth=0)
            axes.plot(steps, middle, color=ink, linestyle=line, linewidth=1.5, label=label)
        low, high = span
        log_steps(axes, low, max(high, 10 * low if high <= low else high))
        axes.legend(loc="lower right", frameon=False, fontsize=9)
        axes.set_ylim(-0.02, 1.04)
        axes.set_ylabel("accuracy")
        axes.set_title(f"{title}, median of {len(curves)} seeds", fontsize=10, loc="left")
        axes.grid(axis="y", linewidth=0.6)
        return figure
