"""Real sweeps through Ray, Optuna, MLflow and Parquet: whole, stopped, killed, run again; and `trainable`.

One Ray serves every test of this file that runs in this process; what has to be killed runs in a process of its own.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import grokscale
from grokscale import registry, search
from grokscale.control import Stop, ask_stop, locked
from grokscale.desk import Progress
from grokscale.errors import GrokscaleError, InputError
from grokscale.spec import Resolved, TrialSpec, parse, seed_for
from grokscale.store import Store
from grokscale.sweep import SweepInterrupted, SweepResult, run_sweep
from grokscale.train import train

FAULTY = "grokscale_faulty_plugin"
PATIENCE_S = 120.0

# Parity on too few rows: lr = 0.1 memorises at once and groks after 100 to 700 steps, without weight decay never (asked
# last, so under a cap); lr = 0.5 diverges; lr = 0.05 with little decay groks about the horizon or not at all. Arms
# differ in what they are asked first, so all of this happens whatever the sampler draws.
MIX: dict[str, Any] = {
    "name": "mix",
    "question": "Do all outcomes come back from a killed sweep?",
    "baseline": "plain",
    "horizon": 1200,
    "eval": {"every": "2%", "min": 25, "examples": 300},
    "task": {"name": "parity", "n": 20, "k": 2, "n_train": 100, "n_val": 300, "n_test": 300},
    "model": {"name": "mlp2", "width": 16},
    "optimiser": {"name": "sgd", "batch": 32, "decay": "inside"},
    "space": {
        "lr": {"low": 0.05, "high": 0.6, "log": True, "default": 0.1},
        "wd": {"low": 1e-2, "high": 4e-2, "log": True, "default": 0.03, "zero": True},
    },
    "arm": [
        {"name": "plain", "method": "none"},
        {"name": "hot", "method": "none", "default": {"lr": 0.5}},
        {"name": "cold", "method": "none", "default": {"lr": 0.05, "wd": 0.01}},
    ],
    "search": {"trials": 4, "seeds": 2, "parallel": 2},
    "race": {"top": 2, "seeds": 2},
    "confirm": {"seeds": 3},
    "resources": {"lanes": 2},
}
DRIVER = """
import sys
from grokscale import registry
from grokscale.errors import GrokscaleError
from grokscale.spec import Experiment
from grokscale.store import Store
from grokscale.sweep import run_sweep

experiment = Experiment.from_json(sys.argv[2])
resolved = experiment.resolve(registry.load(experiment.plugin))
try:
    result = run_sweep(resolved, Store(sys.argv[1]))
except GrokscaleError as error:
    print(error)
    sys.exit(error.exit_code)
print(result.trained, result.reused, "ray" in sys.modules)
"""


def resolve(**changes: Any) -> Resolved:
    experiment = parse({**MIX, **changes})
    return experiment.resolve(registry.load(experiment.plugin))


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    from grokscale.tuner import Cluster

    cluster = Cluster(1, 0)
    cluster.start()
    yield
    cluster.close()


@dataclass
class Ran:
    store: Store
    result: SweepResult
    heard: list[Progress]
    trials: dict[tuple[Any, ...], tuple[Any, ...]]  # as they were at its end
    replicas: dict[tuple[str, int], tuple[Any, ...]]


@pytest.fixture(scope="module")
def undisturbed(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    store, heard = Store(tmp_path_factory.mktemp("undisturbed")), []
    result = run_sweep(resolve(), store, tracking="none", on_progress=heard.append)
    return Ran(store, result, heard, trials_of(store, result.sweep_id), replicas_of(store))


def start(root: Path, resolved: Resolved) -> subprocess.Popen[str]:
    """A driver in a process group of its own, with a Ray of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(root), resolved.experiment.to_json()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for_parts(process: subprocess.Popen[str], root: Path, parts: int) -> None:
    """Until the workers have written so many parts."""
    until = time.monotonic() + PATIENCE_S
    while len(list((root / "replicas").glob("*.parquet"))) < parts:
        assert process.poll() is None, f"the driver ended too soon: {process.stdout and process.stdout.read()}"
        assert time.monotonic() < until, "the driver wrote nothing"
        try:
            process.wait(0.01)
        except subprocess.TimeoutExpired:
            continue


def trials_of(store: Store, sweep_id: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    rows = store.trials(sweep_id=sweep_id).to_pylist()
    names = ("trial_id", "params_json", "cap", "value", "state", "error")
    return {
        (row["arm"], row["phase"], row["number"], *row["seeds"]): tuple(row[name] for name in names) for row in rows
    }


def replicas_of(store: Store) -> dict[tuple[str, int], tuple[Any, ...]]:
    names = ("outcome", "fit_step", "grok_step", "val_grok_step", "diverged_step", "stable_step", "observed_to")
    rows = store.replicas().to_pylist()
    return {(row["trial_id"], row["seed"]): tuple(row[name] for name in names) for row in rows}


def trained_twice(store: Store) -> list[tuple[str, int]]:
    """Replicas that ran again although a part of before answered: all parts, as they were written."""
    parts: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    assert store.local is not None
    for path in sorted((store.local / "replicas").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            parts[row["trial_id"], row["seed"]].append(row)
    return [
        key
        for key, rows in parts.items()
        for before, after in pairwise(rows)
        if before["outcome"] in ("grokked", "diverged") or before["observed_to"] >= after["observed_to"]
    ]


def runs_of(uri: str, name: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], max_results=1000))


# ------------------------------------------------------------------------------------------- a whole sweep


def test_a_sweep_from_end_to_end(undisturbed: Ran) -> None:
    store, result = undisturbed.store, undisturbed.result
    assert result.failures == () and result.behind is None
    rows = store.trials(sweep_id=result.sweep_id).to_pylist()
    assert {row["state"] for row in rows} == {"ended"}
    count = Counter((row["arm"], row["phase"]) for row in rows)
    assert all(count[arm, "search"] == 4 and count[arm, "confirm"] == 1 for arm in ("plain", "hot", "cold"))
    assert all(1 <= count[arm, "race"] <= 2 for arm in ("plain", "hot", "cold"))
    seeds = {
        phase: {s for row in rows if row["phase"] == phase for s in row["seeds"]}
        for phase in ("search", "race", "confirm")
    }
    assert seeds["search"] == {seed_for("search", k) for k in (0, 1)}
    assert seeds["race"] == {seed_for("search", k) for k in (2, 3)}
    assert seeds["confirm"] == {seed_for("confirm", k) for k in (0, 1, 2)}
    plan = store.table("plans", sweep_id=result.sweep_id).to_pylist()
    assert [(row["block"], row["tau"], len(row["seeds"])) for row in plan] == [(0, result.tau, 3)]
    assert result.tau is not None and result.tau >= MIX["horizon"]
    answers = store.speedups(sweep_id=result.sweep_id).to_pylist()
    assert {(row["arm"], row["clock"]) for row in answers} == {
        (arm, clock) for arm in ("hot", "cold") for clock in ("steps", "seconds", "oracle", "flops")
    }
    assert trained_twice(store) == []
    assert result.trained == sum(
        pq.read_metadata(path).num_rows for path in (Path(store.root) / "replicas").glob("*.parquet")
    )
    assert not list((Path(store.root) / "checkpoints").iterdir())
    log = (store.sweep_dir(result.sweep_id) / "log.txt").read_text()
    assert "phase race" in log and "plan 0: horizon" in log


def test_all_outcomes_occur(undisturbed: Ran) -> None:
    store, sweep_id = undisturbed.store, undisturbed.result.sweep_id
    horizon = MIX["horizon"]
    found = Counter(row["outcome"] for row in store.replicas().to_pylist())
    assert found["grokked"] and found["diverged"]
    watched = {row["outcome"] for row in store.replicas().to_pylist() if row["observed_to"] >= horizon}
    assert "memorised" in watched
    capped = [
        row for row in store.trials(sweep_id=sweep_id, phase="search").to_pylist()
        if row["cap"] < horizon and row["value"] == pytest.approx(np.log(horizon))
    ]  # fmt: skip
    assert capped
    part = {
        key: row for key, row in replicas_of(store).items() if row[-1] < horizon and row[0] in ("memorised", "unfitted")
    }
    assert part  # replicas that a cap cut short
    labels = {(row["outcome"], label) for row in store.rows("replicas") for label in row["signatures"].split(",")}
    assert ("diverged", "unstable") in labels and ("grokked", "never-generalises") not in labels


def test_progress_is_told(undisturbed: Ran) -> None:
    heard = undisturbed.heard
    assert heard[0].status == "reading the store"
    assert list(dict.fromkeys(p.phase for p in heard if p.phase)) == ["search", "race", "confirm"]
    last = [p for p in heard if p.phase == "search"][-1]
    assert {arm.arm: (arm.done, arm.total, arm.running) for arm in last.arms} == dict.fromkeys(
        ("plain", "hot", "cold"), (4, 4, 0)
    )
    assert any(arm.running for p in heard for arm in p.arms)
    assert heard[-1].trained == undisturbed.result.trained and heard[-1].reused == undisturbed.result.reused
    assert last.arms[0].best is not None and last.arms[0].best < MIX["horizon"]
    assert [p.elapsed for p in heard] == sorted(p.elapsed for p in heard)


def test_again_runs_nothing_and_starts_no_ray(undisturbed: Ran) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(undisturbed.store.root).rglob("*.parquet")}
    process = start(Path(undisturbed.store.root), resolve(tracking="none"))
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0 and out.split() == ["0", "3", "False"], out
    assert {path: path.stat().st_mtime_ns for path in Path(undisturbed.store.root).rglob("*.parquet")} == before


def test_a_second_driver_is_refused(undisturbed: Ran) -> None:
    sweep_id = undisturbed.result.sweep_id
    with (
        locked(undisturbed.store.sweep_dir(sweep_id) / "lock", sweep_id),
        pytest.raises(GrokscaleError, match=f"is being run by process {os.getpid()} on "),
    ):
        run_sweep(resolve(), undisturbed.store, tracking="none")


def test_more_of_the_same_sweep(undisturbed: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer search goes on from the shorter one; its confirmation has a plan and seeds of its own."""
    longer = resolve(search={"trials": 5, "seeds": 2, "parallel": 2})
    assert longer.sweep_id == undisturbed.result.sweep_id
    first = trials_of(undisturbed.store, longer.sweep_id)
    looked: set[str] = set()
    answered = undisturbed.store.answered
    monkeypatch.setattr(undisturbed.store, "answered", lambda ids: looked.update(ids) or answered(ids))
    result = run_sweep(longer, undisturbed.store, tracking="none")
    # Workers name their files: the store is looked through for the winners alone, when they are timed.
    assert looked <= set(undisturbed.store.trials(sweep_id=longer.sweep_id, phase="confirm")["trial_id"].to_pylist())
    plans = undisturbed.store.table("plans", sweep_id=longer.sweep_id).to_pylist()
    assert sorted(row["block"] for row in plans) == [0, 1]
    seeds = {seed for row in plans for seed in row["seeds"]}
    assert seeds == {seed_for("confirm", k) for k in range(6)}
    after = trials_of(undisturbed.store, longer.sweep_id)
    assert first.items() <= after.items() and len(after) > len(first)
    assert result.trained and trained_twice(undisturbed.store) == []


def test_confirmed_seeds_are_watched_on_to_the_horizon(ray_here: None, tmp_path: Path) -> None:
    """Asked for later, it is the same plan and the same crossings, seen for longer."""
    store, few = Store(tmp_path), {"search": {"trials": 0}, "arm": MIX["arm"][:2]}
    run_sweep(resolve(**few, confirm={"seeds": 2}), store, tracking="none")
    before = {(row["trial_id"], row["seed"]): row for row in store.replicas().to_pylist()}
    assert any(row["observed_to"] < 1200 for row in before.values() if row["outcome"] == "grokked")
    longer = run_sweep(resolve(**few, confirm={"seeds": 2, "until": "horizon"}), store, tracking="none")
    assert len(store.table("plans").to_pylist()) == 1 and longer.trained
    after = {(row["trial_id"], row["seed"]): row for row in store.replicas().to_pylist()}
    assert after.keys() == before.keys()
    for key, row in after.items():
        assert row["observed_to"] >= 1200 or row["outcome"] == "diverged"
        assert (row["outcome"], row["grok_step"], row["fit_step"], row["diverged_step"]) == tuple(
            before[key][name] for name in ("outcome", "grok_step", "fit_step", "diverged_step"))  # fmt: skip


# ------------------------------------------------------------------------------------------- stopped and killed


def test_interrupted_and_killed_sweeps_end_as_if_nothing_had_been(undisturbed: Ran, tmp_path: Path) -> None:
    root, resolved = tmp_path / "disturbed", resolve()
    store = Store(root)

    process = start(root, resolved)
    wait_for_parts(process, root, 1)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130 and "the same command goes on" in out, out
    assert not store.table("plans").num_rows, "it was to stop half-way"
    stopped = len(store.replicas())
    assert stopped

    process = start(root, resolved)
    wait_for_parts(process, root, len(list((root / "replicas").glob("*.parquet"))) + 1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGKILL
    assert len(store.replicas()) > stopped
    assert not store.table("plans").num_rows, "it was to be killed half-way"

    result = run_sweep(resolved, store)  # here, where Ray runs already
    assert result.failures == () and result.behind is None

    assert trials_of(store, result.sweep_id) == undisturbed.trials
    assert replicas_of(store) == undisturbed.replicas
    assert trained_twice(store) == []
    assert not list((root / "checkpoints").iterdir())
    runs = runs_of(f"sqlite:///{root}/mlflow.db", "mix")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 1 + len(trials_of(store, result.sweep_id))


def test_a_limit_in_hours_stops_in_order(ray_here: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(SweepInterrupted, match=r"limits\.hours = 1e-09 reached") as stopped:
        run_sweep(resolve(limits={"hours": 1e-9}), store, tracking="none")
    assert (stopped.value.reason, stopped.value.exit_code) == ("limit", 0)
    assert not store.replicas().num_rows


def test_stop_hears_signals_and_gives_them_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Stop(None) as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop() and stop.reason == "interrupted"
        with pytest.raises(SweepInterrupted) as stopped:
            stop.check()
        assert stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_a_sigterm_while_ray_starts_is_heard() -> None:
    """`ray.init` takes the signal for itself, from its first line on, and exits."""
    from grokscale import tuner

    with Stop(None) as stop:
        ours = signal.getsignal(signal.SIGTERM)
        with tuner._sigterm_stays():
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
            signal.raise_signal(signal.SIGTERM)
        assert stop() and stop.reason == "terminated"
        assert signal.getsignal(signal.SIGTERM) == ours
    with pytest.raises(SystemExit), tuner._sigterm_stays():
        sys.exit(1)  # of another's making


def test_a_trial_that_crashes_does_not_stop_the_others(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grokscale.tuner.FAILURES", 1)  # each costs a new process
    arms = [{"name": "plain", "method": "none"}, {"name": "broken", "method": "crash"}]
    resolved = resolve(plugin=FAULTY, arm=arms, search={"trials": 0}, confirm={"seeds": 2})
    store = Store(tmp_path)
    result = run_sweep(resolved, store, tracking="none")
    assert [(failure.phase, failure.arm) for failure in result.failures] == [("confirm", "broken")]
    states = {row["arm"]: row for row in store.trials(sweep_id=result.sweep_id).to_pylist()}
    assert states["plain"]["state"] == "ended" and states["broken"]["state"] == "failed"
    assert 'File "' in states["broken"]["error"] and "RuntimeError: planted" in states["broken"]["error"]
    assert "\x1b" not in states["broken"]["error"]
    assert len(store.replicas()) == 2 and result.tau == MIX["horizon"]


def test_a_sweep_whose_trials_nearly_all_fail_stops_early_and_says_why(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grokscale.tuner.FAILURES", 1)
    monkeypatch.setattr("grokscale.desk.MANY", 2)
    arms = [{"name": name, "method": "crash"} for name in ("plain", "other")]
    asked = resolve(plugin=FAULTY, arm=arms)
    with pytest.raises(GrokscaleError, match=r"2 of 2 trials failed, so .*planted: this method cannot start; mend"):
        run_sweep(asked, Store(tmp_path), tracking="none")
    rows = Store(tmp_path).trials(sweep_id=asked.sweep_id).to_pylist()
    assert [row["state"] for row in rows].count("failed") == 2 and len(rows) <= 6, "stopped early"
    assert "2 of 2 trials failed" in (tmp_path / "sweeps" / asked.sweep_id / "log.txt").read_text()


def test_a_sweep_goes_on_without_a_trial_that_is_stopped_and_tries_it_again(
    undisturbed: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that could not have won: the first start misses it and nothing else, the second adds it."""
    store, asked = Store(tmp_path), resolve()
    monkeypatch.setattr("grokscale.desk.MANY", 1)  # a trial that failed by itself would end the sweep
    monkeypatch.setattr("grokscale.desk.NEARLY", 0.0)
    last = {key: row for key, row in undisturbed.trials.items() if key[:3] == ("plain", "search", 3)}
    best = min(row[3] for key, row in undisturbed.trials.items() if key[:2] == ("plain", "search"))
    ((key, (trial_id, _, _, value, *_)),) = last.items()
    assert value > best + math.log(search.MARGIN), "the race was to do without it"

    def plant(progress: Progress) -> None:
        if progress.phase == "search":
            ask_stop(store.sweep_dir(asked.sweep_id), trial_id, now=False)

    result = run_sweep(asked, store, tracking="none", on_progress=plant)
    assert [(f.arm, f.number, f.trial_id) for f in result.failures] == [("plain", 3, trial_id)]
    rest = {one: row for one, row in trials_of(store, result.sweep_id).items() if one != key}
    assert rest == {one: row for one, row in undisturbed.trials.items() if one != key}
    assert store.table("speedups").num_rows and trained_twice(store) == []
    assert not run_sweep(asked, store, tracking="none").failures
    assert trials_of(store, result.sweep_id) == undisturbed.trials
    assert replicas_of(store) == undisturbed.replicas


def test_a_plugin_method_that_uses_every_extra_runs_a_whole_sweep(ray_here: None, tmp_path: Path) -> None:
    """Outer step, look-ahead gradient, projection, switch and noise, in a worker that has to import the module."""
    arms = [{"name": "plain", "method": "none"}, {"name": "test-look-ahead"}]
    counts = {"search": {"trials": 2, "seeds": 2}, "race": {"top": 1, "seeds": 1}, "confirm": {"seeds": 2}}
    resolved = resolve(plugin="grokscale_test_plugin", arm=arms, horizon=400, **counts)
    store = Store(tmp_path)
    result = run_sweep(resolved, store, tracking="none")
    assert not result.failures
    done = Counter((row["arm"], row["phase"]) for row in store.rows("trials", sweep_id=result.sweep_id, state="ended"))
    assert {key: n for key, n in done.items() if key[0] == "test-look-ahead"} == {
        ("test-look-ahead", "search"): 2, ("test-look-ahead", "race"): 1, ("test-look-ahead", "confirm"): 1}
    # A worker's rows are what this process trains.
    trained = store.rows("replicas", sweep=result.sweep_id, arm="test-look-ahead", phase="confirm")
    spec, seeds = TrialSpec.from_json(trained[0]["spec_json"]), [row["seed"] for row in trained]
    *_, last = train(spec, seeds, horizon=result.tau or 0, until="stable")
    for ours, theirs in zip(last.replicas(), trained, strict=True):
        for column in ("seed", "outcome", "grok_step", "observed_to", "final_acc"):
            assert ours[column] == theirs[column]


# ------------------------------------------------------------------------------------------- trainable


SMALL: dict[str, Any] = {
    "task": {"name": "parity", "n": 10, "k": 2, "n_train": 60, "n_val": 50, "n_test": 50},
    "model": {"name": "mlp2", "width": 16},
    "eval": {"every": 0.02, "min": 25, "examples": 50},
}


# One of each kind: without state, with a window, with noise, with a step after the optimiser's, with an outer loss,
# with an optimiser of its own. That every method trains is for test_conformance.
KINDS = ("none", "grokfast-ma", "egd-rsvd", "nap", "neuralgrok", "muon")


@pytest.mark.parametrize("method", KINDS)
def test_methods_in_a_plain_tuner(ray_here: None, tmp_path: Path, method: str) -> None:
    from ray import tune

    made = grokscale.trainable(method, **SMALL, horizon=75, seeds=2, wd=0.01)
    results = tune.Tuner(
        made,
        param_space={"lr": 0.1, "seed": 3},
        tune_config=tune.TuneConfig(metric="objective", mode="min"),
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert not results.errors
    last = results[0].metrics
    assert last is not None and last["done"] and 50 <= last["step"] <= 150
    assert 0 <= last["test_accuracy"] <= 1 and 0 <= last["val_accuracy"] <= 1 and 0 <= last["train_accuracy"] <= 1
    assert last["outcome"] in ("grokked", "memorised", "unfitted", "diverged", "mixed")
    assert np.log(25) <= last["objective"] <= np.log(75) + 1e-9
    assert {"grok_step", "val_grok_step", "grokked"} <= last.keys()


def test_trainable_keeps_and_resumes(ray_here: None, tmp_path: Path) -> None:
    made = grokscale.trainable(["none"], **SMALL, horizon=200)

    def finish(one: Any) -> dict[str, Any]:
        while not (result := one.step())["done"]:
            pass
        return result

    whole = made({"lr": 0.05, "seed": 1})
    wanted = finish(whole)
    cut = made({"lr": 0.05, "seed": 1})
    cut.step()
    cut.step()
    cut.save_checkpoint(str(tmp_path))
    other = made({"lr": 0.05, "seed": 1})
    other.load_checkpoint(str(tmp_path))
    np.testing.assert_equal(finish(other), wanted)
    assert other.reset_config({"lr": 0.05, "seed": 2})
    assert finish(other)["step"] >= 200 or other._spec == whole._spec


def test_trainable_says_what_is_wrong_at_once(ray_here: None) -> None:
    with pytest.raises(InputError, match="did you mean 'none'"):
        grokscale.trainable("nonee", **SMALL)
    with pytest.raises(InputError, match="lamda"):
        grokscale.trainable("none", **SMALL, lamda=2.0)
    with pytest.raises(InputError, match="n_trian"):
        grokscale.trainable("none", task={"name": "parity", "n_trian": 10})
