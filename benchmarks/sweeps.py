"""Whole sweeps: against Ray Tune as its documentation shows it, trials a minute, and how long until the first step."""

from __future__ import annotations

import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


# What stands in place of the arm where the first step is looked for; the file that it leaves is `first_step.stamped`'s.
STAMPED = """
[[arm]]
name = "stamped"
[arm.set]
path = "{path}"
"""


def sweep(*, trials: int, seeds: int, horizon: int) -> float:
    """Seconds of `grokscale sweep` on a new store, from the command to the prompt, MLflow included."""
    with tempfile.TemporaryDirectory() as folder:
        return _seconds(_command(Path(folder), EXPERIMENT.format(trials=trials, seeds=seeds, horizon=horizon)))


def first_step(there: Mapping[str, str] | None = None) -> tuple[float, float]:
    """(seconds from the command to the end of the first training step, to the prompt) of a sweep of one trial.

    there: what names a running Ray (`cluster`); None: the sweep starts its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        stamp = Path(folder) / "stamp"
        text = EXPERIMENT.format(trials=1, seeds=1, horizon=25).replace('baseline = "none"', 'baseline = "stamped"')
        text = text.replace('[[arm]]\nname = "none"\n', STAMPED.format(path=stamp))
        command = _command(Path(folder), f'plugin = "benchmarks.first_step"\n{text}')
        start = time.monotonic()
        whole = _seconds(command, there)
        return float(stamp.read_text()) - start, whole


def _command(folder: Path, text: str) -> list[str]:
    file = folder / "bench.toml"
    file.write_text(text)
    return [sys.executable, "-m", "grokscale.cli", "sweep", str(file), "--store", str(folder / "runs")]


def _environment() -> dict[str, str]:
    """Of a user who has set nothing of Ray's: this process has a token of its own, for a Ray that it might start."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def _seconds(command: list[str], more: Mapping[str, str] | None = None) -> float:
    env = {**_environment(), **(more or {})}
    start = time.perf_counter()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - start


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """A Ray of this benchmark's own while inside: its address. Nobody else's is looked for, touched or stopped."""
    ports = {name: _free_port() for name in ("port", "ray-client-server-port", "dashboard-agent-listen-port")}
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        words = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
            f"--num-cpus={len(os.sched_getaffinity(0))}", "--include-dashboard=false", "--disable-usage-stats",
            "--object-store-memory=80000000", f"--temp-dir={folder}", *(f"--{k}={v}" for k, v in ports.items()),
        ]  # fmt: skip
        # An explicit address never takes the token that Ray may have left in the home folder, a head does.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        env = _environment() | token
        with (Path(folder) / "said").open("w") as said:
            process = subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            yield {"RAY_ADDRESS": _address(process, Path(folder) / "said"), **token}
        finally:
            process.terminate()
            process.wait(60)


def _address(process: subprocess.Popen[bytes], said: Path, patience: float = 120.0) -> str:
    """What `ray start` says that its node is to be called by, once it runs."""
    until = time.monotonic() + patience
    while (found := re.search(r"ray start --address='([^']+)'", said.read_text())) is None:
        if process.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"ray start: {said.read_text()[-2000:]}")
        time.sleep(0.1)
    return found[1]


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


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
    ]  # fmt: skip


def starting() -> list[Row]:
    """From the command to the first training step: with a Ray of its own, and on one that has run a sweep before."""
    own, whole = first_step()
    with cluster() as there:
        before, _ = first_step(there)
        second, end = first_step(there)
    about = "one trial of one replica; the step is taken once the optimiser has moved"
    return [
        Row("command to first training step, Ray started", "<= 15 s", f"{own:.1f} s", own <= 15,
            note=f"{about}; prompt after {whole:.1f} s"),
        Row("command to first training step, second sweep on the same cluster", "<= 3 s", f"{second:.1f} s",
            second <= 3, note=f"the first there {before:.1f} s; prompt after {end:.1f} s"),
    ]  # fmt: skip
