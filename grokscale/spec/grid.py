"""[grid]: one arm per point of some axes, the full product or a Sobol sequence."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grokscale.errors import suggest
from grokscale.spec.tables import Axis, Grid
from grokscale.spec.where import Path, shown

Problems = list[tuple[Path, str]]


def expand(grid: Grid, arms: Sequence[Any], baseline: str | None) -> tuple[list[tuple[int, Any]], Problems]:
    """The arms with every one that the grid multiplies replaced by its points.

    arms: as read from the file, checked or not; baseline: its label, None where the file names none.
    Returns (position in the file, arm) in order, and what is wrong, by path. A point is the arm with the axes'
    values in its `set`, labelled "ARM:key=value,key=value".
    """
    labels = [arm["name"] for arm in arms if isinstance(arm, Mapping) and isinstance(arm.get("name"), str)]
    chosen = grid.arms or tuple(label for label in labels if label != baseline)
    problems: Problems = [
        (("grid", "arms"), f"no arm is labelled {shown(label)}; {suggest(label, labels)}")
        for label in chosen if label not in labels
    ]  # fmt: skip
    if baseline in chosen and baseline is not None:
        text = f"the baseline {shown(baseline)} is multiplied by the grid; name one of its points, such as "
        problems.append((("baseline",), text + shown(point_label(baseline, first(grid)))))
    if not chosen:
        problems.append((("grid", "arms"), "the grid multiplies no arm: add one besides the baseline, or name it here"))
    points = list(points_of(grid))
    out: list[tuple[int, Any]] = []
    for i, arm in enumerate(arms):
        if not isinstance(arm, Mapping) or arm.get("name") not in chosen:
            out.append((i, arm))
            continue
        given = arm.get("set")
        fixed: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
        problems += [
            (("arm", i, "set", key), "is fixed in set and an axis of the grid; take one of them out")
            for key in grid.axes if key in fixed
        ]  # fmt: skip
        # An arm whose label is its method keeps the method under its new label.
        rest = {**arm, "method": arm.get("method") or arm["name"]}
        out += [(i, {**rest, "name": point_label(arm["name"], p), "set": {**fixed, **p}}) for p in points]
    return out, problems


def points_of(grid: Grid) -> Iterable[dict[str, Any]]:
    """The grid's points, axis -> value: the product in the order of the axes, or `points` of a Sobol sequence."""
    if grid.points is None:
        values = [tuple(axis) for axis in grid.axes.values() if not isinstance(axis, Axis)]
        return (dict(zip(grid.axes, point, strict=True)) for point in itertools.product(*values))
    import numpy as np
    from scipy.stats import qmc

    # Scrambled with a fixed seed: the first points of a plain sequence are corners. A power of two keeps the balance.
    power = max(1, (grid.points - 1).bit_length())
    unit = qmc.Sobol(len(grid.axes), rng=np.random.default_rng(0)).random_base2(power)[: grid.points]
    return (
        {key: _placed(axis, float(u)) for (key, axis), u in zip(grid.axes.items(), row, strict=True)} for row in unit
    )


def first(grid: Grid) -> dict[str, Any]:
    """Some point of the grid, for messages."""
    return next(iter(points_of(grid)))


def point_label(arm: str, point: Mapping[str, Any]) -> str:
    """The label of a point: "ARM:lam=2,alpha=0.98"; characters that a label cannot have become _."""
    short = {key: key.rpartition(".")[2] for key in point}
    names = short if len(set(short.values())) == len(short) else {key: key for key in point}
    text = ",".join(f"{names[key]}={_text(value)}" for key, value in point.items())
    return re.sub(r"[^\w+.,:=-]", "_", f"{arm}:{text}", flags=re.ASCII)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _placed(axis: tuple[Any, ...] | Axis, u: float) -> Any:
    """The value of an axis at u in [0, 1), rounded to what its label shows."""
    if not isinstance(axis, Axis):
        return axis[int(u * len(axis))]
    value = axis.low * (axis.high / axis.low) ** u if axis.log else axis.low + (axis.high - axis.low) * u
    return round(value) if axis.int else float(f"{value:.4g}")
