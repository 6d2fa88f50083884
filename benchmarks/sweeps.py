"""Whole sweeps: against Ray Tune as its documentation shows it, trials a minute, and how long until the first."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row

TRIALS, SEEDS, STEPS = 8, 8, 2000
MANY = 60
# Rates at which nothing groks within STEPS, so that both sides train every replica to the end.
EXPERIMENT = """
name = "bench"
question = "How long?"
baseline = "none"
horizon = {horizon}
[task]
name = "parity"
n = 60
[space]
lr = {{ low = 0.002, high = 0.005, log = true, default = 0.003 }}
wd = {{ low = 0.001, high = 0.002, log = true, default = 0.001 }}
[[arm]]
name = "none"
[search]
trials = {trials}
seeds = {seeds}
[race]
top = 1
seeds = 0
[confirm]
seeds = 0
"""


def sweep(*, trials: int, seeds: int, horizon: int) -> float:
    """Seconds of `grokscale sweep` on a new store, from the command to the prompt, MLflow included."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.toml"
        file.write_text(EXPERIMENT.format(trials=trials, seeds=seeds, horizon=horizon))
        return _seconds([sys.executable, "-m", "grokscale.cli", "sweep", str(file), "--store", f"{folder}/runs"])


def _seconds(command: list[str]) -> float:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    start = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - start


def against_tune() -> list[Row]:
    """The same replicas as one function trial of Ray Tune per seed."""
    theirs = _seconds([sys.executable, "-m", "benchmarks.tune_per_seed", str(TRIALS), str(SEEDS), str(STEPS)])
    ours = sweep(trials=TRIALS, seeds=SEEDS, horizon=STEPS)
    replicas = TRIALS * SEEDS
    return [
        Row(f"{TRIALS} trials x {SEEDS} seeds x {STEPS} steps, replicas an hour against Ray Tune, a trial per seed",
            ">= 4x", f"{theirs / ours:.2f}x", theirs / ours >= 4, f"{3600 * replicas / ours:,.0f} an hour",
            f"{3600 * replicas / theirs:,.0f} an hour", note=f"{ours:.0f} and {theirs:.0f} s, start to end"),
    ]  # fmt: skip


def trivial() -> list[Row]:
    """Trials that hardly train: what search, Tune, store and MLflow take."""
    one, many = (sweep(trials=count, seeds=1, horizon=25) for count in (1, 1 + MANY))
    rate = 60 * MANY / (many - one)
    return [
        Row("trivial trials a minute through search, Tune, store and MLflow", ">= 300", f"{rate:.0f}", rate >= 300,
            note=f"{MANY} more trials took {many - one:.1f} s"),
        Row("a sweep of one trivial trial, from the command to its end: above the time to its first step", "<= 15 s",
            f"{one:.1f} s", one <= 15),
    ]  # fmt: skip
