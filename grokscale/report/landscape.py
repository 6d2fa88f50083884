"""What a search found: its objective against every knob, and over pairs of knobs. Exploratory by nature."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator

from grokscale.report.figures import PALETTE, STYLE, blank, log_axis
from grokscale.report.view import Row, SweepView
from grokscale.report.words import knobs as in_order
from grokscale.report.words import number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from grokscale.store import Store

NOTE = (
    "Each point is a trial of the search: geometric mean of its seeds' grok steps on validation, at most the horizon. "
    "Ring: the best. Hollow: capped, stopped once it could no longer come near the best, so only known to be later."
)
PAIRS = 4  # maps of two knobs, at most
WIDE = 10.0  # a range that spans more than this is read on a log axis


@dataclass(frozen=True)
class Point:
    """A trial that ended. steps: exp of the objective.  capped: only known to be later than its cap."""

    number: int
    params: Mapping[str, Any]
    steps: float
    capped: bool


@dataclass(frozen=True)
class Landscape:
    """The search of one arm.  knobs: those that varied, the most important first where that is known.

    shares: knob -> share of the objective's variance; {} where the store has none.  failed: trials without a value.
    """

    arm: str
    knobs: tuple[str, ...]
    points: Sequence[Point]
    shares: Mapping[str, float]
    failed: int

    @property
    def best(self) -> Point | None:
        told = [point for point in self.points if not point.capped]
        return min(told, key=lambda point: (point.steps, point.number)) if told else None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(itertools.combinations(self.knobs, 2))[:PAIRS]


def landscapes(store: Store, view: SweepView) -> list[Landscape]:
    """The arms whose search varied a knob over two trials or more, in the order of the experiment."""
    trials = [trial for trial in view.trials if trial["phase"] == "search" and trial["state"] in ("ended", "failed")]
    capped = _capped(store, view, trials)
    shares: dict[str, dict[str, float]] = {}
    for row in store.rows("importances", sweep_id=view.sweep_id):
        shares.setdefault(row["arm"], {})[row["knob"]] = row["share"]
    found = []
    for arm in view.order():
        mine = [trial for trial in trials if trial["arm"] == arm]
        points = [
            Point(t["number"], json.loads(t["params_json"]), math.exp(t["value"]), (arm, t["number"]) in capped)
            for t in mine if t["value"] is not None
        ]  # fmt: skip
        varied = _varied(points, shares.get(arm, {}))
        if len(points) > 1 and varied:
            found.append(Landscape(arm, varied, points, shares.get(arm, {}), len(mine) - len(points)))
    return found


def _capped(store: Store, view: SweepView, trials: Sequence[Row]) -> set[tuple[str, int]]:
    """Trials that a cap ended: told log(horizon) by rule, with a seed that had neither grokked nor diverged by it."""
    top = math.log(view.horizon)
    asked = [t for t in trials if t["value"] is not None and t["cap"] < view.horizon and t["value"] >= top - 1e-9]
    known = store.answered({trial["trial_id"] for trial in asked}) if asked else {}

    def open_(row: Row | None, cap: int) -> bool:
        return row is None or not any(
            row[event] is not None and row[event] <= cap for event in ("val_grok_step", "diverged_step")
        )

    return {
        (t["arm"], t["number"]) for t in asked
        if any(open_(known.get((t["trial_id"], seed)), t["cap"]) for seed in t["seeds"])
    }  # fmt: skip


def _varied(points: Sequence[Point], shares: Mapping[str, float]) -> tuple[str, ...]:
    """Knobs with several values: by their shares, then shared settings before a method's own."""
    keys = {key for point in points for key in point.params}
    several = [key for key in keys if len({point.params[key] for point in points if key in point.params}) > 1]
    shared = ("lr", "wd")
    return tuple(sorted(several, key=lambda key: (-shares.get(key, 0.0), key not in shared, key)))


# ---------------------------------------------------------------------------------------------- the figures


def draw_knobs(one: Landscape, colour: str) -> Figure:
    """The objective against each knob, a panel a knob, two panels to a row."""
    rows = math.ceil(len(one.knobs) / 2)
    with matplotlib.rc_context(STYLE):
        figure = blank(5.2, 0.5 + 1.9 * rows)
        steps = [point.steps for point in one.points]
        for i, knob in enumerate(one.knobs):
            axes = figure.add_subplot(rows, 2, i + 1)
            across = _axis(axes, "x", knob, one.points)
            for point in one.points:
                face = "none" if point.capped else colour
                axes.scatter(
                    [across(point)], [point.steps], s=22, facecolors=face, edgecolors=colour, linewidths=1, zorder=2
                )
            if one.best is not None:
                axes.scatter([across(one.best)], [one.best.steps], s=90, facecolors="none",
                             edgecolors=PALETTE["ink"][0], linewidths=1.2, zorder=3)  # fmt: skip
            log_axis(axes, "y", min(steps) / 1.3, max(steps) * 1.3)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axes.set_ylabel("grok step" if i % 2 == 0 else "", fontsize=9)
            axes.tick_params(labelsize=8)
            share = f", {100 * one.shares[knob]:.0f} % of the variance" if knob in one.shares else ""
            axes.set_xlabel(f"{knob}{share}", fontsize=9)
        return figure


def draw_pairs(one: Landscape) -> Figure | None:
    """The objective as colour over pairs of knobs, the more important ones first; None with one knob."""
    if not one.pairs:
        return None
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    told = [point.steps for point in one.points if not point.capped] or [1.0]
    norm = LogNorm(min(told), max(*told, 1.01 * min(told)))
    columns = min(2, len(one.pairs))
    rows = math.ceil(len(one.pairs) / columns)
    with matplotlib.rc_context(STYLE):
        figure = blank(5.2, 0.9 + (2.1 if columns > 1 else 2.5) * rows)
        panels = []
        for i, (first, second) in enumerate(one.pairs):
            axes = figure.add_subplot(rows, columns, i + 1)
            panels.append(axes)
            x, y = _axis(axes, "x", first, one.points), _axis(axes, "y", second, one.points)
            for point in one.points:
                face = "none" if point.capped else matplotlib.colormaps["cividis"](float(norm(point.steps)))
                axes.scatter(
                    [x(point)], [y(point)], s=30, facecolors=face, edgecolors=PALETTE["ink"][0], linewidths=0.6
                )
            if one.best is not None:
                axes.scatter([x(one.best)], [y(one.best)], s=110, facecolors="none",
                             edgecolors=PALETTE["ink"][0], linewidths=1.2)  # fmt: skip
            axes.set_xlabel(first, fontsize=9)
            axes.set_ylabel(second, fontsize=9)
            axes.tick_params(labelsize=8)
        bar = figure.colorbar(
            ScalarMappable(norm, "cividis"), ax=panels, location="bottom", shrink=0.8, aspect=40, pad=0.02
        )
        bar.ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        bar.ax.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        bar.set_label("grok step", fontsize=9)
        bar.ax.tick_params(labelsize=8)
        return figure


def _axis(axes: Axes, axis: str, knob: str, points: Sequence[Point]) -> Any:
    """Sets the scale of a knob's axis; the function from a point to its place on it.

    Numbers over a wide range go on a log scale, which a knob's zero joins at the low end; words are places in a row.
    """
    values = [point.params[knob] for point in points if knob in point.params]
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if not numbers:
        names = list(dict.fromkeys(plain(value) for value in values))
        getattr(axes, f"set_{axis}ticks")(range(len(names)), names)
        getattr(axes, f"set_{axis}lim")(-0.5, len(names) - 0.5)
        return lambda point: names.index(plain(point.params[knob])) if knob in point.params else np.nan
    positive = [float(value) for value in values if value > 0]
    if positive and min(values) >= 0 and max(positive) >= WIDE * min(positive):
        if min(values) > 0:
            log_axis(axes, axis, min(positive) / 1.5, max(positive) * 1.5)
        else:
            getattr(axes, f"set_{axis}scale")("symlog", linthresh=min(positive))
        getattr(axes, f"{axis}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return lambda point: float(point.params.get(knob, np.nan))


def caption(one: Landscape) -> str:
    """What a landscape shows, with what was capped and what failed."""
    best = one.best
    said = [f"{one.arm}: {len(one.points)} trials"]
    capped = sum(point.capped for point in one.points)
    said += [f"{capped} capped"] if capped else []
    said += [f"{one.failed} failed and not shown"] if one.failed else []
    where = f" The best: {in_order(best.params)}." if best is not None else ""
    return f"{', '.join(said)}.{where}"
