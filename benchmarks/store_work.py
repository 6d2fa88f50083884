"""What one process of `benchmarks.store` does: `python -m benchmarks.store_work KIND ROOT ARGUMENTS`, JSON out.

A process each, so that memory is its own; no torch here, which would be most of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from grokscale.store import Store
from tests.rows import curve, replica

HORIZON = 20_000
QUESTION = f"""
    WITH logs AS (
        SELECT task, method, outcome, ln(least(coalesce(grok_step, {HORIZON}), {HORIZON})) AS t FROM replicas)
    SELECT task, method, count(*) AS n, avg((outcome = 'grokked')::INT) AS success,
           avg(t) AS mean, stddev_samp(t) AS sd
    FROM logs GROUP BY ALL ORDER BY mean LIMIT 50"""
POINTS = """SELECT step // 1000 AS k, count(*) AS n, avg(test_acc) AS test, avg(train_acc) AS train
            FROM curves GROUP BY ALL ORDER BY ALL"""


def aggregate(store: Store) -> dict[str, Any]:
    """Grok steps per task and method with 95 % intervals, over all replicas."""
    from scipy.stats import t

    from grokscale.store import sql  # noqa: F401  (what is loaded once is no part of a question)

    start = time.perf_counter()
    rows = store.sql(QUESTION).to_pylist()
    for row in rows:
        half = t.ppf(0.975, row["n"] - 1) * row["sd"] / np.sqrt(row["n"])
        row["lo"], row["hi"] = float(np.exp(row["mean"] - half)), float(np.exp(row["mean"] + half))
    took = time.perf_counter() - start
    return {"seconds": took, "rows": len(rows), "replicas": sum(row["n"] for row in rows)}


def points(store: Store) -> dict[str, Any]:
    """Mean accuracies by step, over every point of every curve."""
    rows = store.sql(POINTS).to_pylist()
    return {"points": sum(row["n"] for row in rows)}


def trial(store: Store, name: str) -> dict[str, Any]:
    """The curves of one trial; `again` is a second one, by the same reader."""
    first, second = name.split(",")
    rows = store.curves(trial_id=first).num_rows
    start = time.perf_counter()
    assert store.curves(trial_id=second).num_rows == rows
    return {"rows": rows, "again": time.perf_counter() - start}


def merge(store: Store, grace: str) -> dict[str, Any]:
    """One compaction of everything."""
    done = {one.table: one.rows for one in store.compact(grace=float(grace))}
    return {"rows": done}


def compactor(store: Store, grace: str) -> dict[str, Any]:
    """Compacts without a pause until it is ended."""
    while True:
        store.compact(["replicas", "curves"], grace=float(grace))


def writer(store: Store, name: str, count: str) -> dict[str, Any]:
    """`count` packs, one after the other."""
    for seed in range(int(count)):
        store.append("curves", curve(name, seed))
        store.append("replicas", [replica(name, seed)])
    return {}


def paced(store: Store, name: str, count: str) -> dict[str, Any]:
    """`count` appends, one a second from the moment that stdin says; the seconds that each took."""
    took = []
    print("ready", flush=True)
    start = float(sys.stdin.readline())
    for seed in range(int(count)):
        while (left := start + seed - time.monotonic()) > 0:
            time.sleep(left)
        began = time.perf_counter()
        store.append("replicas", [replica(name, seed)])
        took.append(time.perf_counter() - began)
    return {"took": took}


def mlflow(root: str) -> dict[str, Any]:
    """The same question to MLflow: all runs, then the same figures per task and method."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
    start = time.perf_counter()
    found, token = [], None
    while True:
        page = client.search_runs(["0"], "attributes.status = 'FINISHED'", max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    groups: dict[tuple[str, str], list[float]] = {}
    for run in found:
        key = run.data.params["task"], run.data.params["method"]
        groups.setdefault(key, []).append(np.log(min(run.data.metrics.get("grok_step", HORIZON), HORIZON)))
    means = {key: (len(values), np.mean(values), np.std(values, ddof=1)) for key, values in groups.items()}
    return {"seconds": time.perf_counter() - start, "rows": len(means), "runs": len(found)}


KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "aggregate": aggregate, "points": points, "trial": trial, "merge": merge, "compactor": compactor,
    "writer": writer, "paced": paced,
}  # fmt: skip


def main() -> None:
    kind, root, *rest = sys.argv[1:]
    start = time.perf_counter()
    said = mlflow(root) if kind == "mlflow" else KINDS[kind](Store(root), *rest)
    said = {"seconds": time.perf_counter() - start} | said
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps(said | {"peak": int(peak.split()[1]) * 1024}))


if __name__ == "__main__":
    main()
