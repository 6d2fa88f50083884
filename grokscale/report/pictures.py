"""Every figure of a sweep, once: the page shows them, `--figures` writes them, MLflow and notebooks take some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grokscale.report import bars, curves, figures, landscape, maps, paths, text
from grokscale.report.view import SweepView, curves_of
from grokscale.report.words import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from grokscale.store import Store

SURVIVAL = (
    "Share of confirmation seeds that have not grokked yet: Kaplan-Meier with 95 % bands. "
    "A tick at the right end: seeds that did not, or diverged."
)


@dataclass(frozen=True)
class Picture:
    """A figure with its words.

    section: of the page.  name: stem of its file.  label: what it shows, for those who cannot see it.
    exploratory: chosen on the seeds that it shows; the figure says so itself.
    """

    section: str
    name: str
    figure: Figure
    label: str
    caption: str
    exploratory: bool = False


def pictures(store: Store, view: SweepView) -> list[Picture]:
    """The figures that the store has the rows for, in the order of the page."""
    rest = text.without_cells(view)
    return [*_maps(view), *_answers(view, rest), *_accuracy(store, rest), *_search(store, rest), *_paths(store, rest)]


def _maps(view: SweepView) -> Iterator[Picture]:
    for one in maps.maps(view):
        label = f"Median grok step of {one.arm} over the grid"
        caption = f"{one.arm}. {maps.NOTE}"
        yield Picture("map", f"map-{one.arm}", figures.mark(maps.draw(one)), label, caption, True)


def _answers(view: SweepView, rest: SweepView) -> Iterator[Picture]:
    if (drawn := bars.draw(rest)) is not None:
        label = f"Speed-up of every arm over {view.baseline} with its interval"
        yield Picture("speedups", "speedups", drawn, label, bars.NOTE)
    if any(arm.rows for arm in rest.arms):
        label = "Share of seeds not yet grokked against the step"
        yield Picture("survival", "survival", figures.draw_survival(rest), label, SURVIVAL)


def _accuracy(store: Store, view: SweepView) -> Iterator[Picture]:
    arms = [arm for arm in view.arms if arm.rows]
    found = {arm.name: curves_of(store, arm.trial_id, [row["seed"] for row in arm.rows]) for arm in arms}
    spans = [curves.limits(of) for of in found.values() if of]
    for arm in arms:
        if of := found[arm.name]:
            span = min(low for low, _ in spans), max(high for _, high in spans)
            drawn = curves.draw(of, arm.name, figures.look(view, arm)[0], span)
            label = f"Train and test accuracy of {arm.name} against the step"
            yield Picture("accuracy", f"accuracy-{arm.name}", drawn, label, f"{arm.name}. {curves.NOTE}")


def _search(store: Store, view: SweepView) -> Iterator[Picture]:
    colours = {arm.name: figures.look(view, arm)[0] for arm in view.arms}
    for one in landscape.landscapes(store, view):
        drawn = landscape.draw_knobs(one, colours.get(one.arm, figures.PALETTE["a0"][0]))
        about = f"search of {short(one.arm)}"
        label = f"Grok step of the search's trials of {one.arm} against every knob"
        yield Picture("search", f"search-{one.arm}", figures.mark(drawn, about), label, landscape.caption(one), True)
        if (drawn := landscape.draw_pairs(one)) is not None:
            label = f"Grok step of the search's trials of {one.arm} over pairs of knobs"
            caption = f"{one.arm} over pairs of knobs; hollow: capped."
            yield Picture("search", f"search-{one.arm}-pairs", figures.mark(drawn, about), label, caption, True)


def _paths(store: Store, view: SweepView) -> Iterator[Picture]:
    if (went := paths.paths(store, view)) is not None:
        label = "Where training went, on the plane of the baseline"
        drawn = figures.mark(paths.draw(view, went))
        yield Picture("trajectories", "trajectories", drawn, label, paths.NOTE, True)
