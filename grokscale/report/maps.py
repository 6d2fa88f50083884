"""What a [grid] found: for each multiplied arm a map of median grok steps over the axes, as text and as a figure.

A map is exploratory: its best cell was chosen on the seeds on which it is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscale import stats
from grokscale.answers import undetermined
from grokscale.report.view import NEVER, ArmView, SweepView, of_clock
from grokscale.report.words import WIDTH, factor, grid, number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTE = (
    "Median grok step over the seeds of a cell (seeds that grokked, where not all did). EXPLORATORY: the best cell was "
    "chosen on the seeds that show it; confirm it on fresh ones in an arm of its own."
)
WIDEST = 8  # columns of a map in text


@dataclass(frozen=True)
class Cell:
    """A point of the grid: what its seeds did by tau.

    median: Kaplan-Meier's median grok step, None where fewer than half grokked.  s: S over the baseline, in steps, as
    text: a bound says so.
    """

    arm: str
    values: tuple[Any, ...]
    grokked: int
    n: int
    median: float | None
    s: str

    @property
    def text(self) -> str:
        """ "1,170", "never" where the median was not reached; with the seeds that grokked where some did not."""
        middle = "never" if self.median is None else number(self.median)
        return middle if self.grokked == self.n else f"{middle} ({self.grokked}/{self.n})"


@dataclass(frozen=True)
class Map:
    """The cells of one arm.  axes: key -> its values in order; full: is every combination there (a product)?"""

    arm: str
    axes: Mapping[str, tuple[Any, ...]]
    cells: Sequence[Cell]
    full: bool

    def cell(self, values: tuple[Any, ...]) -> Cell | None:
        return next((cell for cell in self.cells if cell.values == values), None)

    @property
    def best(self) -> Cell | None:
        """The cell with the lowest median; None where no cell reached one."""
        reached = [cell for cell in self.cells if cell.median is not None]
        return min(reached, key=lambda cell: (cell.median, cell.arm)) if reached else None


def maps(view: SweepView) -> list[Map]:
    """The maps of a sweep whose experiment has a [grid], else []; cells without a replica are left out."""
    asked = view.experiment.get("grid")
    if not asked:
        return []
    keys = list(asked["axes"])
    speedups = {
        row["arm"]: factor(row["s"], row["bound"]) for row in of_clock(view, "steps") if not undetermined(row)
    }  # fmt: skip
    settings = {arm["name"]: arm["set"] for arm in view.experiment["arm"]}
    cells: dict[str, list[Cell]] = {}
    for arm in view.arms:
        origin, colon, _ = arm.name.partition(":")
        if colon and arm.rows and all(key in settings.get(arm.name, {}) for key in keys):
            values = tuple(settings[arm.name][key] for key in keys)
            cells.setdefault(origin, []).append(_cell(arm, values, view.tau, speedups.get(arm.name, "-")))
    return [
        Map(origin, {key: _ordered([c.values[i] for c in of]) for i, key in enumerate(keys)}, of, not asked["points"])
        for origin, of in cells.items()
    ]


def _cell(arm: ArmView, values: tuple[Any, ...], tau: float, s: str) -> Cell:
    times = arm.times("grok_step", tau)
    event = times < NEVER
    middle = stats.median(np.where(event, times, tau), event)
    return Cell(arm.name, values, int(event.sum()), len(times), middle, s)


def _ordered(values: Sequence[Any]) -> tuple[Any, ...]:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return tuple(sorted(set(values))) if numbers else tuple(dict.fromkeys(values))


def blocks(view: SweepView) -> list[str]:
    """The maps as text: a table per arm over the first two axes (one for each value of the others), or a list."""
    out = []
    for one in maps(view):
        keys = list(one.axes)
        columns = one.axes[keys[1]] if len(keys) > 1 else ()
        if not one.full or len(columns) > WIDEST:
            out.append(_listing(one))
            continue
        for rest in itertools.product(*(one.axes[key] for key in keys[2:])):
            out.append(_table(one, keys, columns, rest))
    if out:
        out.append("\n".join(wrap(NOTE, WIDTH)))
    return out


def _table(one: Map, keys: Sequence[str], columns: Sequence[Any], rest: tuple[Any, ...]) -> str:
    fixed = "".join(f", {key} {plain(value)}" for key, value in zip(keys[2:], rest, strict=True))
    title = f"{one.arm}{fixed}: median grok step"
    head = [keys[0]] + ([f"{keys[1]} {plain(value)}" for value in columns] if columns else ["grok step"])
    rows = []
    for row in one.axes[keys[0]]:
        cells = [one.cell((row, column, *rest)) for column in columns] if columns else [one.cell((row,))]
        rows.append([plain(row), *("" if cell is None else cell.text for cell in cells)])
    return f"{title}\n{grid(head, rows, '<' + '>' * (len(head) - 1))}"


def _listing(one: Map) -> str:
    ranked = sorted(one.cells, key=lambda cell: (cell.median is None, cell.median or 0.0, -cell.grokked, cell.arm))
    rows = [[*(plain(value) for value in cell.values), cell.text, cell.s] for cell in ranked]
    return f"{one.arm}: median grok step\n{grid([*one.axes, 'grok step', 'S'], rows, '<' * len(one.axes) + '>>')}"


def answer(view: SweepView) -> str:
    """The map in a sentence: the soonest cell of each arm, as what it is."""
    found = maps(view)
    if not found:
        return "No answer yet: no cell of the grid has a replica."
    said = []
    for one in found:
        best = one.best
        if best is None:
            said.append(f"no cell of {one.arm} has half of its seeds grok by {number(view.tau)} steps")
        else:
            where = ", ".join(f"{key} {plain(value)}" for key, value in zip(one.axes, best.values, strict=True))
            said.append(f"{one.arm} is soonest at {where}: {best.text} steps, of {len(one.cells)} cells")
    return "A map, not a contest: " + "; ".join(said) + "."


def draw(one: Map) -> Figure:
    """The map as a figure: colour is the median grok step on a log scale; hatched: fewer than half of the seeds grok.

    A product: the first axis runs down, the second across; of further axes the best value is shown. A Sobol grid:
    points over its first two axes, open where fewer than half grokked.
    """
    import matplotlib
    from matplotlib.colors import LogNorm

    from grokscale.report.figures import STYLE, canvas

    medians = [cell.median for cell in one.cells if cell.median is not None] or [1.0]
    norm = LogNorm(min(medians), max(*medians, min(medians) * 1.01))

    def colour(cell: Cell) -> Any:
        return matplotlib.colormaps["cividis"](0.0 if cell.median is None else float(norm(cell.median)))

    with matplotlib.rc_context(STYLE):
        down, *across = one.axes.values()
        size = (1.6 + 0.62 * len(across[0]) if across else 2.2, 1.1 + 0.42 * len(down)) if one.full else (4.8, 3.4)
        figure, axes = canvas(max(3.6, size[0]), max(2.2, size[1]))
        (_tiles if one.full else _points)(axes, one, colour)
        axes.set_title(f"{one.arm}: median grok step", fontsize=10, loc="left")
        return figure


def _tiles(axes: Axes, one: Map, colour: Callable[[Cell], Any]) -> None:
    from matplotlib.patches import Rectangle

    from grokscale.report.figures import PALETTE

    keys = [*one.axes]
    rows, columns = one.axes[keys[0]], one.axes[keys[1]] if len(keys) > 1 else (None,)
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        here = [c for c in one.cells if c.values[0] == row and (column is None or c.values[1] == column)]
        if not here:
            continue
        best = min(here, key=lambda cell: (cell.median is None, cell.median or 0.0))
        ink = face = PALETTE["ink"][0]
        if best.median is None:
            face = PALETTE["paper"][0]
        else:  # of the page's two modes neither: the tile is as dark as its number says
            face = colour(best)
            ink = "#ffffff" if sum(face[:3]) < 1.5 else "#000000"
        hatch = "////" if best.median is None else None
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=face, edgecolor=PALETTE["rule"][0], hatch=hatch))
        axes.text(j, i, best.text.replace(" ", "\n"), ha="center", va="center", fontsize=7, color=ink)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), ["" if c is None else plain(c) for c in columns], fontsize=8)
    axes.set_yticks(range(len(rows)), [plain(r) for r in rows], fontsize=8)
    axes.set_xlabel(keys[1] if len(keys) > 1 else "")
    axes.set_ylabel(keys[0])


def _points(axes: Axes, one: Map, colour: Callable[[Cell], Any]) -> None:
    from grokscale.report.figures import PALETTE

    keys = [*one.axes]
    for cell in one.cells:
        x, y = cell.values[0], cell.values[1] if len(keys) > 1 else (cell.median or np.nan)
        face = "none" if cell.median is None else colour(cell)
        axes.scatter([x], [y], s=36, c=[face], edgecolors=PALETTE["ink"][0], linewidths=0.6)
    axes.set_xlabel(keys[0])
    axes.set_ylabel(keys[1] if len(keys) > 1 else "median grok step")
    for i, axis in enumerate(("x", "y")[: len(keys)]):
        values = one.axes[keys[i]]
        numbers = all(isinstance(value, (int, float)) and value > 0 for value in values)
        if numbers and max(values) > 20 * min(values):
            getattr(axes, f"set_{axis}scale")("log")
