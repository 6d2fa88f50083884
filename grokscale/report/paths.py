"""Where training went: the confirmed replicas' parameters on the plane of the baseline's (methods.md 2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

from grokscale.explain import measured, plane
from grokscale.report.figures import PALETTE, STYLE, canvas, look
from grokscale.report.view import SweepView
from grokscale.report.words import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from grokscale.store import Store

NOTE = (
    "A line per confirmation seed, on the two principal components of the baseline's parameters (a sketch of 256 "
    "numbers). Ring: initialisation; cross: fitted; dot: the end."
)


@dataclass(frozen=True)
class Paths:
    """arm -> a path (E, 2) per seed, with the number of its look at which it had fitted.  share: of the variance."""

    arms: dict[str, list[tuple[np.ndarray, int | None]]]
    share: np.ndarray


def paths(store: Store, view: SweepView) -> Paths | None:
    """The trajectories of a sweep's confirmed replicas; None where the baseline's were not measured.

    Networks of other shapes than the baseline's have other sketches, so arms with another model are left out.
    """
    base = next((arm for arm in view.arms if arm.name == view.baseline and arm.rows), None)
    if base is None:
        return None
    arms = [arm for arm in view.arms if arm.rows and arm.spec.get("model") == base.spec.get("model")]
    found = measured(store, lambda name: name == "trajectory", trial_id=[arm.trial_id for arm in arms])
    taken, lines = {}, []
    for arm in arms:
        for row in arm.rows:
            steps, points = found.get((arm.trial_id, row["seed"]), {}).get("trajectory", (np.zeros(0), np.zeros(0)))
            if len(steps):
                fitted = None if row["fit_step"] is None else int(np.searchsorted(steps, row["fit_step"]))
                lines.append(points)
                place = None if fitted is None or fitted >= len(steps) else fitted
                taken.setdefault(arm.name, []).append((len(lines) - 1, place))
    if base.name not in taken:
        return None
    flat, share = plane([lines[i] for i, _ in taken[base.name]], lines)
    return Paths({arm: [(flat[i], place) for i, place in mine] for arm, mine in taken.items()}, share)


def draw(view: SweepView, found: Paths) -> Figure:
    """The paths on the baseline's plane, arms in their colours."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.2, 4.2)
        for arm in (arm for arm in view.arms if arm.name in found.arms):
            colour, _, width = look(view, arm)
            for i, (line, fitted) in enumerate(found.arms[arm.name]):
                label = short(arm.name) if i == 0 else None
                axes.plot(*line.T, color=colour, linewidth=width / 2, alpha=0.7, label=label)
                axes.plot(*line[0], marker="o", markerfacecolor=PALETTE["paper"][0], color=colour, markersize=5)
                axes.plot(*line[-1], marker="o", color=colour, markersize=4)
                if fitted is not None:
                    axes.plot(*line[fitted], marker="x", color=colour, markersize=6)
        for name, share in zip(("x", "y"), found.share, strict=False):
            axes.set(**{f"{name}label": f"component {'xy'.index(name) + 1}, {share:.0%} of the baseline's variance"})
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=2.6)
        return figure
