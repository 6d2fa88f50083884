"""What measures say once runs are over: trajectories, and what goes with a late grok step. Exploratory throughout.

numpy and scipy over the store; a correlation here is a hint at a mechanism, not a test of one (evaluation.md).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import rankdata

from grokscale.outcomes import clamp
from grokscale.spec import canonical_json

if TYPE_CHECKING:
    from grokscale.store import Store

Floats = NDArray[np.float64]
Series = Mapping[str, tuple[np.ndarray, np.ndarray]]  # column -> (steps (E,), values (E,) or vectors (E, k))
Row = Mapping[str, Any]

EARLY = 200  # step at which an early sign is read
LATE = 1.25  # times the step wanted: a look that came later than that is not taken for it
FITTED = 500  # state B of a replica whose fit step is not known
Z95 = 1.959963984540054


# ---------------------------------------------------------------------------------------------- trajectories


@dataclass(frozen=True)
class Distances:
    """Between A = initialisation, B = fitted, C = the end: lengths; Grokfast's table holds their squares.

    b, c: steps of the looks that were taken for B and C.
    """

    ab: float
    bc: float
    ac: float
    b: int
    c: int

    @property
    def squared(self) -> tuple[float, float, float]:
        """(AB, BC, AC) squared, as arXiv 2405.20233 must mean them: its lengths break the triangle inequality
        (ambiguity 17)."""
        return self.ab**2, self.bc**2, self.ac**2


def distances(steps: np.ndarray, points: np.ndarray, fitted: int | None = None) -> Distances | None:
    """How far the parameters went, from the looks of one replica.

    steps: (E,) increasing, the first 0.  points: (E, k) parameters or sketches of them.  fitted: step of B, 500 (the
    paper's) where it is None; the first look at or after it is taken. None where there is no such look.
    """
    late = np.flatnonzero(steps >= (FITTED if fitted is None else fitted))
    if not len(late) or steps[0] != 0:
        return None
    a, b, c = points[0], points[late[0]], points[-1]
    ab, bc, ac = (float(np.linalg.norm(x - y)) for x, y in ((a, b), (b, c), (a, c)))
    return Distances(ab, bc, ac, int(steps[late[0]]), int(steps[-1]))


def plane(reference: Sequence[np.ndarray], paths: Sequence[np.ndarray]) -> tuple[list[Floats], Floats]:
    """(paths (E, 2) each, share of variance (2,)): principal components of the reference's points, paths put on them.

    reference, paths: (E, k) each.  Grokfast fits the plane to the baseline and projects both runs onto it
    (methods.md 2.2). The sign of an axis is fixed by its greatest loading, so a picture is the same twice.
    """
    fit = np.concatenate(list(reference)).astype(np.float64)
    centre = fit.mean(0)
    _, s, axes = np.linalg.svd(fit - centre, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(1)])[:, None]
    energy = s * s
    share = energy[:2] / energy.sum() if energy.sum() > 0 else np.zeros(len(energy[:2]))
    return [(np.asarray(path, dtype=np.float64) - centre) @ axes.T for path in paths], share


# ---------------------------------------------------------------------------------------------- reading


def measured(store: Store, columns: Callable[[str], bool] | None = None, **filters: Any) -> dict[tuple[str, int], Any]:
    """(trial_id, seed) -> Series of what was measured.  columns: which to read.  filters: as for `Store.table`."""
    table = store.measures(**filters)
    wanted = [name for name in table["measure"].unique().to_pylist() if columns is None or columns(name)]
    found: dict[tuple[str, int], Any] = defaultdict(lambda: defaultdict(lambda: ([], [])))
    names = ("trial_id", "seed", "step", "measure", "value", "vector")
    keep = set(wanted)
    for trial, seed, step, name, value, vector in zip(*(table[n].to_pylist() for n in names), strict=True):
        if name in keep:
            steps, values = found[trial, seed][name]
            steps.append(step)
            values.append(value if vector is None else vector)
    return {
        key: {name: (np.array(s, dtype=np.int64), np.array(v, dtype=np.float64)) for name, (s, v) in series.items()}
        for key, series in found.items()
    }


# ---------------------------------------------------------------------------------------------- associations


def _at(series: Series, name: str, step: int) -> float | None:
    """The value of the first look at or after a step, unless it came much later."""
    steps, values = series.get(name, (np.zeros(0), np.zeros(0)))
    i = int(np.searchsorted(steps, step))
    return float(values[i]) if i < len(steps) and steps[i] <= LATE * step else None


def _early(row: Row, value: float | None) -> float | None:
    """Only of replicas that had not grokked yet: what comes before is to say something of what comes after."""
    return None if row["grok_step"] is not None and row["grok_step"] <= EARLY else value


def age_drop(row: Row, series: Series) -> float | None:
    """Greatest raw gradient entropy minus that of the last look, up to the grok step (NeuralGrok's claim)."""
    steps, values = series.get("age_raw", (np.zeros(0), np.zeros(0)))
    values = values[steps <= (row["grok_step"] or row["observed_to"])]
    return float(values.max() - values[-1]) if len(values) >= 2 else None


def condition(row: Row, series: Series) -> float | None:
    """Mean log of the hidden gradients' condition number (95 % of the energy) at step 200 (EGD's explanation)."""
    found = [_at(series, name, EARLY) for name in series if name.startswith("kappa95/")]
    logs = [math.log(value) for value in found if value is not None and value > 0]
    return _early(row, float(np.mean(logs))) if found and len(logs) == len(found) else None


def travelled(row: Row, series: Series) -> float | None:
    """Distance from fitting to the end, on the sketch (Grokfast's explanation)."""
    if "trajectory" not in series or row["fit_step"] is None:
        return None
    found = distances(*series["trajectory"], row["fit_step"])
    return None if found is None else found.bc


def early_norm(row: Row, series: Series) -> float | None:
    """Weight norm at step 200 (Omnigrok's explanation)."""
    return _early(row, _at(series, "weight_norm", EARLY))


PREDICTORS: dict[str, Callable[[Row, Series], float | None]] = {
    "age_drop": age_drop, "condition_200": condition, "d_bc": travelled, "norm_200": early_norm,
}  # fmt: skip
_COLUMNS = ("age_raw", "trajectory", "weight_norm")


def associations(store: Store, sweep: str | None = None, **filters: Any) -> pa.Table:
    """Does a measure go with a late grok step? Spearman's rho per task, with 95 % intervals; exploratory.

    sweep, filters: which replicas, as for `Store.table`; all by default.  One row per task, predictor and level:

    level "all": over all replicas of the task, whatever their settings. Replicas of one trial are alike, so with few
    trials this interval is too narrow.  level "within": ranks are taken within each trial, so that settings and
    methods drop out and only what differs between seeds is left.

    The grok step is clamped at the shortest watch of a replica that never grokked, a diverged one counts as never:
    censored replicas share the highest rank.  Interval: Fisher's z with Bonett and Wright's standard error
    sqrt((1 + rho^2 / 2) / (m - 3)), m replicas, less one per trial after the first within trials; null below m = 5.
    Closed, so that it needs no draws, and close to nominal at the sizes there are, where BCa is not.

    columns: task, task_json, predictor, level, n, trials, censored, rho, lo, hi, exploratory.
    """
    wanted = {**({"sweep": sweep} if sweep is not None else {}), **filters}
    replicas = {(row["trial_id"], row["seed"]): row for row in store.rows("replicas", **wanted) if row["measured"]}
    ids = sorted({trial for trial, _ in replicas})
    series = measured(store, lambda name: name in _COLUMNS or name.startswith("kappa95/"), trial_id=ids) if ids else {}
    groups: dict[str, list[tuple[Row, Series]]] = defaultdict(list)
    for key, row in sorted(replicas.items()):
        if key in series:
            groups[canonical_json(json.loads(row["spec_json"])["task"])].append((row, series[key]))
    out = [
        {"task": group[0][0]["task"], "task_json": task, "predictor": name, **found, "exploratory": True}
        for task, group in sorted(groups.items())
        for name, predict in PREDICTORS.items()
        for found in _correlate([(row, predict(row, one)) for row, one in group])
    ]
    return pa.Table.from_pylist(out, _SCHEMA)


_SCHEMA = pa.schema([
    ("task", pa.string()), ("task_json", pa.string()), ("predictor", pa.string()), ("level", pa.string()),
    ("n", pa.int64()), ("trials", pa.int64()), ("censored", pa.int64()), ("rho", pa.float64()), ("lo", pa.float64()),
    ("hi", pa.float64()), ("exploratory", pa.bool_()),
])  # fmt: skip


def _correlate(pairs: Iterable[tuple[Row, float | None]]) -> list[dict[str, Any]]:
    known = [(row, value) for row, value in pairs if value is not None and math.isfinite(value)]
    if not known:
        return []
    rows, values = [row for row, _ in known], np.array([value for _, value in known])
    never = [row["grok_step"] is None for row in rows]
    watched = [row["observed_to"] for row in rows if row["grok_step"] is None and row["diverged_step"] is None]
    tau = min(watched) if watched else 1 + max((row["grok_step"] or 0) for row in rows)
    times = np.array([clamp(row["grok_step"], tau) for row in rows])
    trial = np.unique([row["trial_id"] for row in rows], return_inverse=True)[1]
    trials = int(trial.max()) + 1
    about = {"n": len(rows), "trials": trials, "censored": int(np.sum(never))}
    inside = [_within(x, trial) for x in (values, times)]
    levels = (("all", rankdata(values), rankdata(times), len(rows)), ("within", *inside, len(rows) - trials + 1))
    return [{"level": level, **about, **interval(pearson(x, y), m)} for level, x, y, m in levels]


def _within(values: np.ndarray, trial: np.ndarray) -> Floats:
    """Ranks within each trial, centred and on one scale: -1/2 ... 1/2."""
    out = np.zeros(len(values))
    for one in range(int(trial.max()) + 1):
        mine = trial == one
        out[mine] = (rankdata(values[mine]) - 0.5) / mine.sum() - 0.5
    return out


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation; NaN where one does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale > 0 else math.nan


def interval(rho: float, m: int) -> dict[str, float | None]:
    """{rho, lo, hi}: Fisher's z with Bonett and Wright's standard error for ranks (Psychometrika 65, 2000).

    m: observations. Null bounds below m = 5; rho null where it is not defined.
    """
    if math.isnan(rho):
        return {"rho": None, "lo": None, "hi": None}
    if m < 5 or abs(rho) >= 1:
        return {"rho": rho, "lo": None, "hi": None}
    half = Z95 * math.sqrt((1 + rho * rho / 2) / (m - 3))
    return {"rho": rho, "lo": math.tanh(math.atanh(rho) - half), "hi": math.tanh(math.atanh(rho) + half)}
