"""What people read: the tables, the figures, and one self-contained HTML page. From the store only.

`results_text` is what `grokscale sweep` prints at its end and `grokscale results` again, byte for byte.
Reading results needs neither torch nor Ray, and the text not even matplotlib.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from grokscale.errors import InputError
from grokscale.report.text import results_text
from grokscale.report.view import SweepView, collect

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from grokscale.store import Store

__all__ = [
    "SweepView",
    "collect",
    "curve_figure",
    "drawings",
    "figure_files",
    "html",
    "profile_files",
    "profile_page",
    "results_text",
    "scoreboard_files",
    "speedup_figure",
    "survival_figure",
]


def survival_figure(store: Store, sweep: str | None = None) -> Figure:
    """Share of confirmed seeds that have not grokked yet against the step, one line an arm (Kaplan-Meier)."""
    from grokscale.report.figures import draw_survival

    return draw_survival(collect(store, sweep))


def curve_figure(store: Store, trial_id: str, title: str | None = None) -> Figure:
    """Train, validation and test accuracy against the step of every replica of a trial."""
    from grokscale.report.figures import draw_curves
    from grokscale.report.view import curves_of

    return draw_curves(curves_of(store, trial_id), title or f"trial {trial_id}")


def speedup_figure(store: Store, sweep: str | None = None) -> Figure:
    """S of every arm with its interval, on a log axis, and what was published beside it.

    Raises InputError where nothing is compared yet.
    """
    from grokscale.report.bars import draw

    view = collect(store, sweep)
    drawn = draw(view)
    if drawn is None:
        raise InputError(f"{view.sweep_id}: no speed-up yet; the same `grokscale sweep` completes the confirmation")
    return drawn


def drawings(store: Store, sweep: str | None = None) -> dict[str, Figure]:
    """Every figure of a sweep by name, as the page has them: survival, speedups, accuracy-<arm>, search-<arm>, ...

    Nothing is shown or written: a notebook shows one that a cell returns.
    """
    from grokscale.report.pictures import pictures

    return {one.name: one.figure for one in pictures(store, collect(store, sweep))}


def figure_files(store: Store, sweep: str | None = None) -> dict[str, bytes]:
    """Every figure of a sweep as files fit for a paper: <name>-<figure>.svg, and .png at 300 dots an inch."""
    from grokscale.report.figures import png, svg
    from grokscale.report.pictures import pictures

    view, files = collect(store, sweep), {}
    for one in pictures(store, view):
        stem = re.sub(r"[^\w+,:=.-]", "_", f"{view.name}-{one.name}")  # a name is no path
        files[f"{stem}.svg"] = svg(one.figure, one.label, standalone=True).encode()
        files[f"{stem}.png"] = png(one.figure)
    return files


def profile_page(store: Store, sweeps: Sequence[str]) -> str:
    """Several sweeps, a task each, as one HTML page: the performance profile, S over the tasks and by task.

    Raises GrokscaleError where they cannot be joined, with the difference named (`answers.across`).
    """
    from grokscale.report.profiles import html as page

    return page(store, sweeps)


def profile_files(store: Store, sweeps: Sequence[str]) -> dict[str, bytes]:
    """The performance profile of several sweeps as files fit for a paper: profile-steps.svg and .png."""
    from grokscale.report.profiles import files

    return files(store, sweeps)


def scoreboard_files(store: Store, folder: Path) -> dict[Path, bytes]:
    """SCOREBOARD.md and scoreboard.parquet: the published values of a folder's experiments against the store."""
    from grokscale.report import scoreboard
    from grokscale.store.export import export, typed

    rows = scoreboard.rows(store, folder)
    return {
        folder / "SCOREBOARD.md": scoreboard.markdown(rows).encode(),
        folder / "scoreboard.parquet": export(typed(rows, scoreboard.COLUMNS), "parquet"),
    }


def html(store: Store, sweep: str | None = None) -> str:
    """The whole report as one HTML page that needs nothing beside itself."""
    from grokscale.report.page import render

    return render(store, collect(store, sweep))
