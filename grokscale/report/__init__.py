"""What people read: the tables, the figures, and one self-contained HTML page. From the store only.

`results_text` is what `grokscale sweep` prints at its end and `grokscale results` again, byte for byte.
Reading results needs neither torch nor Ray, and the text not even matplotlib.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grokscale.report.text import results_text
from grokscale.report.view import SweepView, collect

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from grokscale.store import Store

__all__ = ["SweepView", "collect", "curve_figure", "figure_files", "html", "results_text", "survival_figure"]


def survival_figure(store: Store, sweep: str | None = None) -> Figure:
    """Share of confirmed seeds that have not grokked yet against the step, one line an arm (Kaplan-Meier)."""
    from grokscale.report.figures import draw_survival

    return draw_survival(collect(store, sweep))


def curve_figure(store: Store, trial_id: str, title: str | None = None) -> Figure:
    """Train, validation and test accuracy against the step of every replica of a trial."""
    from grokscale.report.figures import draw_curves
    from grokscale.report.view import curves_of

    return draw_curves(curves_of(store, trial_id), title or f"trial {trial_id}")


def figure_files(store: Store, sweep: str | None = None) -> dict[str, bytes]:
    """Every figure of a sweep as files: <name>-survival.svg, .png, <name>-accuracy-<arm>.svg, .png; where they are
    there also <name>-map-<arm> of a grid and <name>-trajectories of measured ones."""
    from grokscale.report import figures, maps, paths
    from grokscale.report.text import without_cells
    from grokscale.report.view import curves_of

    view = collect(store, sweep)
    drawn = {"survival": (figures.draw_survival(view), "Share of seeds not yet grokked against the step")}
    for arm in without_cells(view).arms:
        curves = curves_of(store, arm.trial_id, [row["seed"] for row in arm.rows])
        drawing = figures.draw_curves(curves, arm.name, figures.look(view, arm)[0])
        drawn[f"accuracy-{arm.name}"] = (drawing, f"Accuracy of {arm.name} against the step")
    for one in maps.maps(view):
        drawn[f"map-{one.arm}"] = (maps.draw(one), f"Median grok step of {one.arm} over the grid")
    if (went := paths.paths(store, without_cells(view))) is not None:
        drawn["trajectories"] = (paths.draw(view, went), "Where training went, on the plane of the baseline")
    files = {}
    for what, (figure, label) in drawn.items():
        files[f"{view.name}-{what}.svg"] = figures.svg(figure, label, standalone=True).encode()
        files[f"{view.name}-{what}.png"] = figures.png(figure)
    return files


def html(store: Store, sweep: str | None = None) -> str:
    """The whole report as one HTML page that needs nothing beside itself."""
    from grokscale.report.page import render

    return render(store, collect(store, sweep))
