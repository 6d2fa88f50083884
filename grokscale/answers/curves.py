"""Endpoints of other metrics, read from the curves of the confirmed replicas: where nothing groks, or besides."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscale import stats
from grokscale.answers.compare import seeded
from grokscale.answers.sides import Row, Side, asked_for, newest_plan, paired, pairs_of, side, sweep_row
from grokscale.errors import GrokscaleError
from grokscale.stats import endpoints as ends
from grokscale.store import Store

if TYPE_CHECKING:
    from grokscale.spec.claims import Endpoint

Curve = tuple[np.ndarray, np.ndarray]


def endpoints(store: Store, sweep: str | None = None) -> list[dict[str, Any]]:
    """The rows of `endpoints` that a finished sweep stored for its newest plan, else those of `compute_endpoints`.

    A published store has these rows, and not the curves that they were read from.
    p_holm: p corrected for the arms that are compared in one endpoint with one baseline.
    """
    sweep_id = store.find_sweep(sweep)
    plan = newest_plan(store, sweep_id)
    kept = [] if plan is None else store.rows("endpoints", sweep_id=sweep_id, block=plan["block"])
    asked = [table["name"] for table in asked_for(sweep_row(store, sweep_id)).get("endpoint", [])]
    if asked and {row["endpoint"] for row in kept} >= set(asked):
        order = list(json.loads(plan["winners_json"])) if plan else []
        return _corrected(sorted((row for row in kept if row["endpoint"] in asked), key=lambda row: (
            asked.index(row["endpoint"]), row["baseline"], order.index(row["arm"]))))  # fmt: skip
    return _corrected(compute_endpoints(store, sweep_id))


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with p_holm, None where there is no p."""
    for key in {(row["endpoint"], row["baseline"]) for row in rows}:
        mine = [row for row in rows if (row["endpoint"], row["baseline"]) == key and row["p"] is not None]
        for row, p in zip(mine, stats.holm([row["p"] for row in mine]), strict=True):
            row["p_holm"] = p
    return [{"p_holm": None, **row} for row in rows]


def compute_endpoints(store: Store, sweep: str | None = None) -> list[dict[str, Any]]:
    """A row per [[endpoint]] of the experiment and arm, against the baselines as in `compute`; [] without any.

    sweep: id or name, the latest by default.  Read from the curves up to the plan's tau, for all seeds.
    endpoint, kind, metric, up: as the experiment names them.  base, mine: means over the seeds (time_to: geometric,
    clamped; sd_ratio: standard deviations).
    scale: "difference" (above 0 speaks for the arm, in the metric's unit) or "ratio" (above 1 does).
    value, lo, hi, n: with its t interval over the pairs.  p: of sign flips, None for sd_ratio.
    base_values, mine_values: of every seed, in the order of the plan's.
    margin, noninferior: is the arm shown to lose less than the margin? None without a margin.
    censored_*, bound: seeds that never reached the threshold of a time_to, and ">=" or "<=" as for S.

    A replica that diverged keeps the worst value it had; before it was ever looked at it counts as the worst seed of
    the two arms. Raises GrokscaleError for an invalid comparison, for
    missing replicas and curves, and for a ratio of values that are not above 0.
    """
    sweep_id = store.find_sweep(sweep)
    head, plan = sweep_row(store, sweep_id), newest_plan(store, sweep_id)
    experiment = asked_for(head)
    if plan is None or not experiment.get("endpoint"):
        return []
    from grokscale.spec.claims import Endpoint  # pydantic is only loaded where there is something to check

    pairs = pairs_of(plan, head["baseline"], experiment)
    sides = {arm: side(store, sweep_id, arm, plan) for arm in dict.fromkeys(name for pair in pairs for name in pair)}
    rows = []
    for one in (Endpoint.model_validate(table) for table in experiment["endpoint"]):
        curves = {arm: _curves(store, of, one) for arm, of in sides.items()}
        for base, arm in pairs:
            paired(sides[base], sides[arm])
            rows.append({
                "sweep_id": sweep_id, "block": plan["block"], "endpoint": one.name, "kind": one.what,
                "metric": one.curve, "up": one.up, "arm": arm, "baseline": base,
                **_row(one, (sides[base], curves[base]), (sides[arm], curves[arm])),
            })  # fmt: skip
    return rows


def _curves(store: Store, of: Side, one: Endpoint) -> list[Curve]:
    """(steps, values) of every seed of a side, in their order; a divergence is a last value that is not finite.

    A measure that is a vector counts by how far it has come from its first value.
    A replica that diverged before it was ever looked at has no points.
    """
    about: dict[str, Any] = {"trial_id": of.trial_id, "seed": list(of.seeds)}
    if one.measure is not None:
        table, name = store.measures(**about, measure=one.measure), "value"
        vectors = table["vector"].to_pylist()
    else:
        table, name = store.curves(**about), one.curve
        vectors = []
    seeds, steps = (np.array(table[key].to_pylist(), dtype=np.int64) for key in ("seed", "step"))
    values = np.array([math.nan if value is None else value for value in table[name].to_pylist()], dtype=float)
    found = []
    for row in of.rows:
        mine = np.flatnonzero(seeds == row["seed"])
        if not len(mine) and row["diverged_step"] is None:
            raise GrokscaleError(
                f"{of.sweep_id}: arm '{of.arm}' has no {one.curve} of seed {row['seed']}, and pairs are never dropped; "
                "run the sweep again if it was asked for since"
            )
        mine = mine[np.argsort(steps[mine], kind="stable")]
        t, v = steps[mine], values[mine]
        if vectors and len(mine) and vectors[mine[0]] is not None:
            points = np.array([vectors[i] for i in mine], dtype=float)
            v = np.linalg.norm(points - points[0], axis=1)
        if row["diverged_step"] is not None and len(t):
            t, v = np.append(t, max(t[-1] + 1, row["diverged_step"])), np.append(v, math.nan)
        found.append((t, v))
    return found


def _row(one: Endpoint, base: tuple[Side, list[Curve]], arm: tuple[Side, list[Curve]]) -> dict[str, Any]:
    (left, base_curves), (right, arm_curves) = base, arm
    rng = seeded(f"{right.sweep_id}/{one.name}/{right.arm}/{left.arm}")
    try:
        if one.what == "time_to":
            return _time_to(one, right.tau, base_curves, arm_curves, rng)
        reads = ends.final if one.what == "sd_ratio" else getattr(ends, one.what)
        both = [*base_curves, *arm_curves]
        values = np.array([reads(*c, right.tau, up=one.up) if len(c[0]) else math.nan for c in both])
        if np.isnan(values).all():
            raise ValueError("every seed diverged before it was looked at")
        worst = (np.nanmin if one.up else np.nanmax)(values)
        values = np.where(np.isnan(values), worst, values)
        x, y = np.split(values, [len(base_curves)])
        return _compared(one, x, y, rng)
    except ValueError as error:
        raise GrokscaleError(
            f"{right.sweep_id}: endpoint '{one.name}' of '{right.arm}' against '{left.arm}': {error}"
        ) from None


def _time_to(one: Endpoint, tau: int, base: list[Curve], arm: list[Curve], rng: np.random.Generator) -> dict[str, Any]:
    assert one.threshold is not None
    x, y = ([ends.time_to(*c, tau, one.threshold, up=one.up) for c in side] for side in (base, arm))
    s = stats.paired_speedup(x, y, tau, rng=rng)
    base_mean, mean = (stats.geometric_mean_clamped(side, tau) for side in (x, y))
    both = [list(map(float, stats.clamped(side, tau)[0])) for side in (x, y)]
    return _filled(one, base_mean, mean, stats.Interval(s.s, s.lo, s.hi, s.n), s.p, *both) | {
        "censored_base": s.censored_base, "censored_arm": s.censored_arm, "bound": s.bound,
    }  # fmt: skip


def _compared(one: Endpoint, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    if one.what == "sd_ratio":
        base_sd, sd = (float(side.std(ddof=1)) if len(side) > 1 else 0.0 for side in (x, y))
        return _filled(one, base_sd, sd, ends.sd_ratio(x, y), None, x.tolist(), y.tolist())
    base, mine = float(x.mean()), float(y.mean())
    if not one.ratio:
        found, p = ends.gain(x, y, up=one.up), stats.sign_flip(y - x, rng)
    else:
        found, p = ends.log_ratio(x, y, up=one.up), stats.sign_flip(np.log(y) - np.log(x), rng)
    return _filled(one, base, mine, found, p, x.tolist(), y.tolist())


def _filled(
    one: Endpoint, base: float, mine: float, found: stats.Interval, p: float | None,
    base_values: list[float], mine_values: list[float],
) -> dict[str, Any]:
    within = None if one.margin is None else ends.noninferior(found, one.margin)
    return {
        "base": base, "mine": mine, "scale": "ratio" if one.ratio else "difference", "value": found.value,
        "lo": found.lo, "hi": found.hi, "n": found.n, "p": p, "margin": one.margin, "noninferior": within,
        "censored_base": 0, "censored_arm": 0, "bound": "=",
        "base_values": base_values, "mine_values": mine_values,
    }  # fmt: skip


def summary(row: Row) -> str:
    """A row of `endpoints` in words: "+0.012 [+0.004, +0.02], loss < 0.005"."""
    lo, hi = row["lo"], row["hi"]
    if row["scale"] == "ratio":
        bound = "" if row["bound"] == "=" else f"{row['bound']} "
        interval = f" [{lo:.3g}, {hi:.3g}]" if math.isfinite(hi) and lo > 0 else ""
        text = f"{bound}{row['value']:.3g}x{interval}"
    else:
        interval = f" [{lo:+.3g}, {hi:+.3g}]" if math.isfinite(hi) else ""
        text = f"{row['value']:+.3g}{interval}"
    if row["noninferior"] is not None:
        text += f", loss < {row['margin']:g}{'' if row['noninferior'] else ' not shown'}"
    return text
