"""A copy of what stands behind some sweeps' answers, small enough for a repository: no curves, no checkpoints.

Curves and kept weights come along on request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from grokscale.store import kept
from grokscale.store.schemas import LARGE, RULES

if TYPE_CHECKING:
    from grokscale.store.tables import Store

# The sweep's own row last: where it is named, the rest is there.
BY_SWEEP = ("plans", "importances", "endpoints", "speedups", "sweeps")


def publish(
    source: Store, target: Store, sweeps: Iterable[str], *, curves: bool = False, weights: bool = False
) -> dict[str, int]:
    """Append to `target` what `source` has of these sweeps and `target` has not; rows appended, by table.

    sweeps: ids.  Replicas and timings go by the sweeps' trials.
    curves: `curves` and `measures` of these trials too, which else stay where they are.
    weights: kept weights too, counted as files, under "weights"; before the rows, so that no row is there without.
    Raises GrokscaleError where weights are asked for and a store is no folder.
    """
    added: dict[str, int] = {}
    for sweep_id in sweeps:
        trials = source.trials(sweep_id=sweep_id)
        ids = sorted(set(trials["trial_id"].to_pylist()))
        if weights:
            added[kept.WEIGHTS] = added.get(kept.WEIGHTS, 0) + kept.copy(source.local, target.local, ids)
        for table in (*(LARGE if curves else ()), "replicas", "timings"):
            _add(added, target, table, source.table(table, trial_id=ids), trial_id=ids)
        _add(added, target, "trials", trials, sweep_id=sweep_id)
        for table in BY_SWEEP:
            _add(added, target, table, source.table(table, sweep_id=sweep_id), sweep_id=sweep_id)
    return added


def _add(added: dict[str, int], target: Store, table: str, rows: pa.Table, **where: Any) -> None:
    there = {_key(table, row) for row in target.rows(table, **where)}
    new = [row for row in rows.to_pylist() if _key(table, row) not in there]
    if new:
        target.append(table, new)
    added[table] = added.get(table, 0) + len(new)


def _key(table: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row is about, and when it was written, if it says so: a later one about the same thing is another one."""
    values = (row[name] for name in (*RULES[table].keys, "at") if name in row)
    return tuple(tuple(value) if isinstance(value, list) else value for value in values)
