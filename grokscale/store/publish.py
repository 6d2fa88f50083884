"""A copy of what stands behind some sweeps' answers, small enough for a repository: no curves, no checkpoints.

Curves, measures and kept weights come along on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from grokscale.errors import InputError, suggest
from grokscale.store import kept
from grokscale.store.relations import to_rows
from grokscale.store.schemas import RULES

if TYPE_CHECKING:
    from grokscale.store.tables import Store

# The sweep's own row last: where it is named, the rest is there.
BY_SWEEP = ("plans", "importances", "endpoints", "speedups", "sweeps")


def publish(
    source: Store, target: Store, sweeps: Iterable[str], *,
    curves: bool = False, measures: Sequence[str] = (), weights: bool = False,
) -> dict[str, int]:
    """Append to `target` what `source` has of these sweeps and `target` has not; rows appended, by table.

    sweeps: ids.  Replicas and timings go by the sweeps' trials.
    curves: those of these trials too.  measures: columns of `measures`, "age_*" for all that begin so.
    weights: kept weights too, counted as files, under "weights"; before the rows, so that no row is there without.
    Raises InputError for a measure that no trial has, GrokscaleError where weights are asked for and a store is no
    folder; both before anything is written.
    """  # fmt: skip
    asked = {sweep_id: source.trials(sweep_id=sweep_id) for sweep_id in sweeps}
    ids = {sweep_id: sorted(set(trials["trial_id"].to_pylist())) for sweep_id, trials in asked.items()}
    measured = _measured(source, sorted({trial for mine in ids.values() for trial in mine}), measures)
    added: dict[str, int] = {}
    for sweep_id, trials in asked.items():
        mine = ids[sweep_id]
        if weights:
            added[kept.WEIGHTS] = added.get(kept.WEIGHTS, 0) + kept.copy(source.local, target.local, mine)
        if measured:
            rows = source.measures(trial_id=mine, measure=measured)
            _add(added, target, "measures", rows, trial_id=mine, measure=measured)
        for table in (*(["curves"] if curves else []), "replicas", "timings"):
            _add(added, target, table, source.table(table, trial_id=mine), trial_id=mine)
        _add(added, target, "trials", trials, sweep_id=sweep_id)
        for table in BY_SWEEP:
            _add(added, target, table, source.table(table, sweep_id=sweep_id), sweep_id=sweep_id)
    return added


def _measured(source: Store, trials: list[str], patterns: Sequence[str]) -> list[str]:
    """The measures of these trials that the patterns mean."""
    if not patterns:
        return []
    there = sorted(source.measures(trial_id=trials)["measure"].unique().to_pylist())
    problems = [f"measures: {pattern!r} is none of these sweeps'; {suggest(pattern, there)}"
                for pattern in patterns if not any(fnmatchcase(name, pattern) for name in there)]  # fmt: skip
    if problems:
        raise InputError(problems)
    return [name for name in there if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _add(added: dict[str, int], target: Store, table: str, rows: pa.Table, **where: Any) -> None:
    there = set(_keys(table, target.table(table, **where)))
    new = rows.filter(pa.array([key not in there for key in _keys(table, rows)], pa.bool_()))
    target.append(table, new)
    added[table] = added.get(table, 0) + new.num_rows


def _keys(table: str, rows: pa.Table) -> list[tuple[Any, ...]]:
    """What each row is about, and when it was written, if it says so: a later one about the same is another one."""
    named = [name for name in dict.fromkeys((*RULES[table].keys, "at")) if name in rows.column_names]
    return [
        tuple(tuple(value) if isinstance(value, list) else value for value in row.values())
        for row in to_rows(rows.select(named))
    ]
