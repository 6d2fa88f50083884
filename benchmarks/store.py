"""`python -m benchmarks.store`: a generated store of many replicas, what asking it costs, and MLflow beside it."""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from grokscale.store import SCHEMAS, Store
from tests.rows import replica

SEEDS, PACKS = 10, 50  # replicas of a trial; trials whose replicas a part holds
TASKS, METHODS = 5, 10
ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument("--replicas", type=int, default=1_000_000)
    parser.add_argument("--points", type=int, default=100_000_000, help="of all curves together")
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--appends", type=int, default=500, help="per writer, while a compactor runs")
    parser.add_argument("--paced", type=int, default=60, help="appends per writer, one a second")
    parser.add_argument("--runs", type=int, default=10_000, help="in MLflow")
    parser.add_argument("--folder", type=Path, help="keep the stores there, and take what is there; else temporary")
    parser.add_argument("--prepare", action="store_true", help="generate into --folder and stop: nothing is timed")
    parser.add_argument("--write", metavar="FILE", type=Path, help="also write the table there")
    asked = parser.parse_args()
    if asked.prepare:
        if asked.folder is None:
            parser.error("--prepare needs --folder, where the stores are to stay")
        prepare(asked, asked.folder)
        return
    from benchmarks.__main__ import about, table  # torch, which generating does without

    with tempfile.TemporaryDirectory(prefix="grokscale-bench-") as scratch:
        rows = []
        for row in measure(asked, asked.folder or Path(scratch)):
            rows.append(row)
            if asked.write:  # as they come: one that fails must not take the others along
                asked.write.write_text(f"{about()}\n\n{table(rows)}\n")
    print(table(rows))


def prepare(asked: argparse.Namespace, folder: Path) -> None:
    """Everything that is generated, so that an idle machine is only kept busy by what is timed."""
    generated(folder / f"store-{asked.replicas}-{asked.points}", asked.replicas, asked.points)
    generated(folder / f"store-{asked.runs}-0", asked.runs, 0)
    tracked(folder / f"mlflow-{asked.runs}", asked.runs)


def measure(asked: argparse.Namespace, folder: Path) -> Iterator[Any]:
    """All rows of the table, one after the other."""
    from benchmarks.measure import Row, ms

    root = folder / f"store-{asked.replicas}-{asked.points}"
    names = generated(root, asked.replicas, asked.points)
    size = f"{asked.replicas:,} replicas, {asked.points:,} points"
    say("compacting")
    before, done = files(root), work("merge", root, "0")
    assert done["rows"]["replicas"] in (asked.replicas, 0)
    if files(root) < before:  # else a folder that was kept has been compacted before
        note = f"peak {gb(done['peak'])}; {files(root)} files left"
        yield Row(f"compact {size}", "", f"{done['seconds']:.0f} s", None, note=note)

    say("asking")
    best = min((work("aggregate", root) for _ in range(3)), key=lambda one: one["seconds"])
    assert best["replicas"] == asked.replicas and best["rows"] == TASKS * METHODS
    whole = f"{best['seconds']:.2f} s, {gb(best['peak'])}"
    met = best["seconds"] < 2 and best["peak"] < 1e9
    yield Row("aggregates over all replicas, 50 rows with intervals", "< 2 s, < 1 GB", whole, met, note=size)
    best = min((work("points", root) for _ in range(2)), key=lambda one: one["seconds"])
    assert best["points"] == asked.points
    yield Row("means over every point", "", f"{best['seconds']:.2f} s, {gb(best['peak'])}", None, note=size)
    found = [work("trial", root, f"{a},{b}") for a, b in names]
    first = sorted(one["seconds"] - one["again"] for one in found)[len(found) // 2]
    again = sorted(one["again"] for one in found)[len(found) // 2]
    note = f"a new reader; by the same reader {ms(again)}; {found[0]['rows']} points"
    yield Row("one trial's curves", "< 200 ms", ms(first), first < 0.2, note=note)

    say(f"{asked.writers} writers and a compactor")
    yield crowd(folder, asked.writers, asked.appends)
    say("paced writers")
    one = paced(folder, 1, asked.paced)
    many = paced(folder, asked.writers, asked.paced)
    note = f"p95 {ms(one)} alone, {ms(many)} together"
    what = f"p95 of an append, {asked.writers} writers at one a second / one writer"
    yield Row(what, "<= 3", f"{many / one:.2f}", many / one <= 3, ms(many), ms(one), note=note)

    say(f"MLflow with {asked.runs:,} runs")
    tracked(folder / f"mlflow-{asked.runs}", asked.runs)
    theirs = work("mlflow", folder / f"mlflow-{asked.runs}")
    assert theirs["runs"] == asked.runs
    small = folder / f"store-{asked.runs}-0"
    generated(small, asked.runs, 0)
    ours = min((work("aggregate", small) for _ in range(3)), key=lambda one: one["seconds"])
    what = f"the same question at {asked.runs:,} runs: MLflow search_runs / store"
    ratio = f"{theirs['seconds'] / ours['seconds']:.0f}x"
    yield Row(what, "", ratio, None, ms(ours["seconds"]), ms(theirs["seconds"]))


def crowd(folder: Path, writers: int, appends: int) -> Any:
    """Processes that append while another compacts: what is there in the end."""
    from benchmarks.measure import Row

    with tempfile.TemporaryDirectory(dir=folder, prefix="crowd-") as root:
        merging = start("compactor", root, "5")
        began = time.monotonic()
        processes = [start("writer", root, f"w{i}", str(appends)) for i in range(writers)]
        for process in processes:
            out, _ = process.communicate()
            assert process.returncode == 0, out
        took = time.monotonic() - began
        assert merging.poll() is None, merging.communicate()
        merging.kill()
        merging.communicate()
        store = Store(root)
        got = store.replicas().select(["trial_id", "seed"]).to_pylist()
        wanted = {(f"w{i}", seed) for i in range(writers) for seed in range(appends)}
        keys = {(row["trial_id"], row["seed"]) for row in got}
        lost, doubled = len(wanted - keys), len(got) - len(keys)
        points = store.curves().num_rows
        parts, generation = files(Path(root)), len(list(Path(root).rglob("*.json")))
        assert generation, "the compactor did nothing"
    right = not lost and not doubled and points == 4 * len(wanted)
    what = f"{writers} processes x {appends} appends, a compactor running"
    note = f"{took:.0f} s, {points:,} points of {4 * len(wanted):,}; {parts} files at the end"
    return Row(what, "0 lost, 0 doubled", f"{lost} lost, {doubled} doubled", right, note=note)


def paced(folder: Path, writers: int, appends: int) -> float:
    """The 95th percentile of the seconds of an append, over all writers, each at its own moment of the second.

    They begin when all are ready: what starting costs is no part of an append.
    """
    moments = np.random.default_rng(0).random(writers)
    with tempfile.TemporaryDirectory(dir=folder, prefix="paced-") as root:
        processes = [start("paced", root, f"w{i}", str(appends)) for i in range(writers)]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        begin = time.monotonic() + 1
        for process, moment in zip(processes, moments, strict=True):
            assert process.stdin is not None
            process.stdin.write(f"{begin + moment}\n")
            process.stdin.flush()
        took = [second for process in processes for second in json.loads(process.communicate()[0])["took"]]
    assert len(took) == writers * appends
    return float(np.percentile(took, 95))


def generated(root: Path, replicas: int, points: int) -> list[tuple[str, str]]:
    """A store with this many replicas and points, as workers would have written it; pairs of trials in it."""
    rng = np.random.default_rng(0)
    trials = -(-replicas // SEEDS)
    names = np.array([f"{value:012x}" for value in rng.choice(2**48, trials, replace=False)])
    picked = [(str(names[i]), str(names[-i - 1])) for i in range(min(7, trials // 2))]
    if (root / "replicas").is_dir():
        return picked
    store = Store(root)
    each = points // replicas
    told = time.monotonic()
    for at in range(0, trials, PACKS):
        chosen = names[at : at + PACKS]
        count = min(SEEDS * len(chosen), replicas - SEEDS * at)
        rows = [_row(str(chosen[k // SEEDS]), at + k // SEEDS, k % SEEDS, rng) for k in range(count)]
        if each:
            store.append("curves", _curves(rows, each, rng))
        store.append("replicas", rows)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            say(f"generated {SEEDS * at:,} of {replicas:,} replicas")
    return picked


def _row(name: str, trial: int, seed: int, rng: np.random.Generator) -> dict[str, Any]:
    grok = int(np.exp(rng.normal(8 + 0.02 * (trial % METHODS), 0.4)))
    grokked = grok < 18_000
    return replica(
        name, seed, attempt=f"{trial:08x}{seed:024x}", outcome="grokked" if grokked else "memorised",
        grok_step=grok if grokked else None, val_grok_step=grok if grokked else None, fit_step=300,
        task=f"task-{trial // METHODS % TASKS}", method=f"method-{trial % METHODS}",
        params_json=json.dumps({"lr": 0.001 * (trial % 977), "wd": 0.01}), at=datetime.now(UTC),
        spec={"trial": trial},
    )  # fmt: skip


def _curves(rows: Sequence[dict[str, Any]], each: int, rng: np.random.Generator) -> pa.Table:
    """`each` points for every replica."""
    count = len(rows) * each
    of = pa.array(np.repeat(np.arange(len(rows)), each))
    curves: dict[str, Any] = {
        "trial_id": pa.array([row["trial_id"] for row in rows]).take(of),
        "seed": pa.array([row["seed"] for row in rows]).take(of),
        "attempt": pa.array([row["attempt"] for row in rows]).take(of),
        "step": np.tile(np.arange(each) * 200, len(rows)),
        "active": np.ones(count, dtype=bool),
        "full": np.zeros(count, dtype=bool),
    }
    for name in ("train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc"):
        curves[name] = rng.integers(0, 1025, count) / 1024
    return pa.table({name: curves[name] for name in SCHEMAS["curves"].names if name in curves})


def tracked(folder: Path, runs: int) -> None:
    """As many runs in MLflow, with what the question is about; goes on where it was cut off."""
    folder.mkdir(parents=True, exist_ok=True)
    there = 0
    if (folder / "mlflow.db").exists():
        with closing(sqlite3.connect(folder / "mlflow.db")) as database:
            ((there,),) = database.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'")
    if there >= runs:
        return
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    rng = np.random.default_rng([1, there])
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    for i in range(there, runs):
        run = client.create_run("0")
        params = [Param("task", f"task-{i // METHODS % TASKS}"), Param("method", f"method-{i % METHODS}")]
        metrics = [Metric("grok_step", float(np.exp(rng.normal(8, 0.4))), 0, 0)]
        client.log_batch(run.info.run_id, metrics=metrics, params=params)
        client.set_terminated(run.info.run_id)


# ---------------------------------------------------------------------------------------- processes


def start(kind: str, root: str | Path, *rest: str) -> subprocess.Popen[str]:
    """A process of `store_work`."""
    words = [sys.executable, "-m", "benchmarks.store_work", kind, str(root), *rest]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def work(kind: str, root: Path, *rest: str) -> dict[str, Any]:
    """What a process of `store_work` says at its end."""
    process = start(kind, root, *rest)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{kind} ended with {process.returncode}")
    return json.loads(out)


def files(root: Path) -> int:
    return sum(1 for path in root.rglob("*.parquet"))


def gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
