"""Speed-ups as bars with their intervals, and what was published beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.ticker import FuncFormatter

from grokscale.answers import undetermined
from grokscale.report import text
from grokscale.report.figures import PALETTE, STYLE, canvas, log_axis, look
from grokscale.report.view import Row, SweepView
from grokscale.report.words import ratio, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTE = (
    "S with its 95 % interval, right of 1 is sooner than the baseline; pale: without an interval; "
    "an arrow: a bound, S may lie beyond it. Diamond: as published."
)
CLOCKS = ("steps", "seconds")
FAINT = 0.35
NEAR = 1.8  # times what lies outermost: as far as the number beside it reaches
ROOM = 0.14  # of the decades of the axis, beside what lies outermost: a number there stays inside


@dataclass(frozen=True)
class Claim:
    """A published speed-up of an arm over the baseline, on a clock of `speedups`."""

    id: str
    arm: str
    clock: str
    s: float
    source: str


def claims(view: SweepView) -> list[Claim]:
    """The experiment's [[paper]] tables that say how many times sooner an arm is than the view's baseline.

    A ratio of epochs is one of steps. Two published times are a ratio too; one time alone is none.
    """
    found = []
    for paper in view.experiment.get("paper", ()):
        against = paper.get("against") or (view.baseline if paper["claim"] == "speedup" else None)
        s = paper["value"] if paper["claim"] == "speedup" else _of_times(paper)
        if s is not None and against == view.baseline:
            clock = "steps" if paper.get("clock", "steps") == "epochs" else paper.get("clock", "steps")
            found.append(Claim(paper["id"], paper["arm"], clock, float(s), paper["source"]))
    return found


def _of_times(paper: Mapping[str, Any]) -> float | None:
    theirs = paper.get("against_value")
    return None if theirs is None else theirs / paper["value"]


def draw(view: SweepView) -> Figure | None:
    """A bar per arm and clock on a log axis, the arms as in the table; None without speed-ups."""
    published = claims(view)
    lines: list[tuple[Row, str]] = []
    for first in text.of_clock(view, "steps"):
        shown = [clock for clock in CLOCKS if clock == "steps" or _known(view, first["arm"], clock)]
        lines += [(_row(view, first["arm"], clock), clock) for clock in shown]
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.2, 1.0 + 0.34 * len(lines))
        for i, (row, clock) in enumerate(lines):
            colour = look(view, view.arm(row["arm"]))[0]
            claimed = [claim.s for claim in published if (claim.arm, claim.clock) == (row["arm"], clock)]
            _bar(axes, i, row, colour, claimed)
            axes.plot(
                claimed, [i] * len(claimed), marker="D", markersize=6, linestyle="none", markeredgewidth=1.3,
                markerfacecolor=PALETTE["paper"][0], markeredgecolor=PALETTE["ink"][0], zorder=4,
            )  # fmt: skip
        axes.axvline(1, color=PALETTE["ink"][0], linewidth=1)
        low, high = _span([row for row, _ in lines], published)
        log_axis(axes, "x", low, high)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.set_ylim(len(lines) - 0.4, -0.6)
        names = [short(row["arm"]) if clock == "steps" else "in seconds" for row, clock in lines]
        axes.set_yticks(range(len(lines)), names, fontsize=9)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"times sooner than {short(view.baseline)}")
        axes.grid(axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        return figure


def _bar(axes: Axes, i: int, row: Row, colour: str, claimed: Sequence[float]) -> None:
    """From 1 to S, with the interval as a whisker; the arrow of a bound points to where S may lie.

    claimed: diamonds of this line, which the number gets out of the way of.
    """
    s, sound = 1.0 if undetermined(row) else row["s"], text.sound(row)
    height = 0.56 if row["clock"] == "steps" else 0.36
    axes.barh(i, s - 1, left=1, height=height, color=colour, alpha=0.75 if sound else FAINT, linewidth=0)
    ink = PALETTE["ink"][0]
    if sound:
        axes.plot([row["lo"], row["hi"]], [i, i], color=ink, linewidth=1.6, zorder=3)
        axes.plot([row["lo"], row["hi"]], [i, i], color=ink, marker="|", markersize=7, linestyle="none", zorder=3)
    if row["bound"] != "=":
        end, marker = ("hi", ">") if row["bound"] == ">=" else ("lo", "<")
        axes.plot([row[end] if sound else s], [i], color=ink, marker=marker, markersize=6, linestyle="none", zorder=3)
    side, room = ("left", 5) if s >= 1 else ("right", -5)
    if row["bound"] == (">=" if s >= 1 else "<="):  # the arrow is on the number's side
        room += 3 if s >= 1 else -3
    at = (row["hi"] if s >= 1 else row["lo"]) if sound else s
    at = (max if s >= 1 else min)([at, *(c for c in claimed if at / NEAR < c < at * NEAR)])
    said = "neither groks" if undetermined(row) else ratio(s, 2)
    axes.annotate(
        said, (at, i), (room, 0), textcoords="offset points", va="center", ha=side, fontsize=8,
    )  # fmt: skip


def _known(view: SweepView, arm: str, clock: str) -> bool:
    return any(row["arm"] == arm for row in text.of_clock(view, clock))


def _row(view: SweepView, arm: str, clock: str) -> Row:
    return next(row for row in text.of_clock(view, clock) if row["arm"] == arm)


def _span(rows: Sequence[Row], published: Sequence[Claim]) -> tuple[float, float]:
    """Of the axis: all intervals, points and claims, and 1, with room for the numbers beside them."""
    ends = [1.0, *(claim.s for claim in published), *(row["s"] for row in rows if not undetermined(row))]
    ends += [row[end] for row in rows if text.sound(row) for end in ("lo", "hi")]
    known = [end for end in ends if end > 0 and math.isfinite(end)]
    room = max(1.35, (max(known) / min(known)) ** ROOM)
    return min(known) / room, max(known) * room
