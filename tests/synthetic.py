"""A finished sweep as rows in a real store, drawn instead of trained: for tests of what reads results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grokscale import answers
from grokscale.store import Store

HORIZON, TAU = 20_000, 16_384
ARMS = ("plain", "swift", "shaky")
EXPERIMENT: dict[str, Any] = {
    "name": "tiny",
    "question": "Which of two made-up methods groks <sooner>?",
    "baseline": "plain",
    "horizon": HORIZON,
    "arm": [{"name": arm} for arm in ARMS],
    "space": {
        "lr": {"low": 0.01, "high": 0.1, "log": True},
        "wd": {"low": 0.001, "high": 0.03, "log": True},
    },
}
PARAMS: dict[str, dict[str, float]] = {
    "plain": {"lr": 0.0416, "wd": 0.01},
    "swift": {"lr": 0.0101, "wd": 0.01, "floor": 0.01},
    "shaky": {"lr": 0.05, "wd": 0.002, "alpha": 0.98},
}
SECONDS = {"plain": 4e-4, "swift": 6e-4, "shaky": 4.2e-4}
SPEC: dict[str, Any] = {
    "task": {"name": "toy", "n": 60, "k": 3},
    "model": {"name": "net", "width": 100},
    "optimiser": {"name": "sgd", "lr": 0.1, "wd": 0.01, "batch": 32, "decay": "inside", "momentum": 0.0},
    "method": [{"name": "plain"}],
    "precision": "fp32",
    "threshold": 0.95,
    "eval": {"every": 0.02, "min": 25, "examples": 1024},
    "monitor": "val",
    "validation": 0.2,
    "data": "",
    "versions": {"engine": 1},
}
SEEDS = [900 + i for i in range(8)]
NEVER = math.inf


def trial_id(arm: str) -> str:
    return f"{arm:0<12}"


def grok_steps(arm: str) -> list[float]:
    """Grok steps of the confirmation seeds, inf = never: shaky loses two seeds, one of them by divergence."""
    rng = np.random.default_rng([7, ARMS.index(arm)])
    middle, spread = {"plain": (6000, 0.4), "swift": (1500, 0.3), "shaky": (5000, 0.6)}[arm]
    times = (middle * np.exp(spread * rng.standard_normal(len(SEEDS)))).round(-1)
    lost = [1, 4] if arm == "shaky" else []
    return [NEVER if i in lost or t > TAU else float(t) for i, t in enumerate(times)]


def replica(arm: str, seed: int, grok: float, **changes: Any) -> dict[str, Any]:
    """A row of `replicas`."""
    step = None if grok == NEVER else int(grok)
    return {
        "trial_id": trial_id(arm), "seed": seed, "attempt": f"{arm}-{seed}",
        "outcome": "memorised" if step is None else "grokked", "fit_step": 1300, "grok_step": step,
        "val_grok_step": step, "first_step": step, "val_first_step": step,
        "delay": None if step is None else max(0, step - 1300),
        "observed_to": TAU if step is None else max(TAU, 2 * step), "steps": TAU, "batch": 32,
        "oracle_per_step": 32.0, "labels": 2000, "params": 6100, "threshold": 0.95, "monitor": "val",
        "task": "toy", "model": "net", "method": arm, "params_json": json.dumps(PARAMS[arm]),
        "spec_json": json.dumps(SPEC), "device": "cpu", "precision": "fp32", "torch": "2.13", "threads": 1,
        "lanes": 8, "compiled": False, "numerics": "cpu", "version": "0", "host": "here", "wall_s": 1.0,
        **changes,
    }  # fmt: skip


def curve(arm: str, seed: int, grok: float) -> dict[str, Any]:
    """Columns of `curves`: fits at 1,300 steps and rises at `grok`."""
    steps = np.unique(np.geomspace(25, TAU, 60).astype(np.int64))
    train = 1 / (1 + np.exp(-(steps - 900) / 90))
    rise = np.clip((steps - min(grok, 1e9)) / 150, -50, 50)
    test, loss = 0.5 + 0.5 / (1 + np.exp(-rise)), np.ones(len(steps))
    return {
        "trial_id": trial_id(arm), "attempt": f"{arm}-{seed}", "seed": seed, "step": steps, "train_loss": loss,
        "train_acc": train, "val_loss": loss, "val_acc": test, "test_loss": loss, "test_acc": test,
        "active": True, "full": False,
    }  # fmt: skip


def searched(store: Store, sweep_id: str = "tiny-0123abcd", experiment: Mapping[str, Any] = EXPERIMENT) -> str:
    """A sweep under way: of the four search trials of each arm the last has not ended. Returns its id."""
    head = {key: experiment[key] for key in ("name", "question", "baseline", "horizon")}
    more = {"sweep_id": sweep_id, "experiment_json": json.dumps(experiment), "version": "0"}
    store.append("sweeps", [head | more])
    rows = [
        {
            "sweep_id": sweep_id, "arm": arm, "phase": "search", "number": i, "trial_id": f"{arm}{i}",
            "seeds": [1, 2, 3], "params_json": json.dumps(PARAMS[arm]), "cap": HORIZON,
            "value": math.log(1500 + 500 * i) if i < 3 else None, "state": "ended" if i < 3 else "asked",
        }
        for arm in PARAMS for i in range(4)
    ]  # fmt: skip
    store.append("trials", rows)
    return sweep_id


def confirmed(
    store: Store,
    sweep_id: str = "tiny-0123abcd",
    *,
    times: Mapping[str, Sequence[float]] | None = None,
    seeds: int = len(SEEDS),
    timed: bool = True,
    answered: bool = True,
    practice: str | None = None,
    experiment: Mapping[str, Any] = EXPERIMENT,
    **changes: Any,
) -> str:
    """`searched`, and then the confirmation: plan, replicas, curves, timings, speed-ups. Returns the sweep's id.

    times: grok steps by arm in place of `grok_steps`.  seeds: of the plan's, how many have run.
    answered: store the speed-ups.  practice: the plan's practice baseline.  changes: columns of every replica.
    """
    searched(store, sweep_id, experiment)
    chosen = {arm: {"trial_id": trial_id(arm), "params": PARAMS[arm], "number": 0} for arm in PARAMS}
    plan = {"sweep_id": sweep_id, "block": 0, "tau": TAU, "seeds": SEEDS, "key": "k", "practice": practice}
    store.append("plans", [plan | {"winners_json": json.dumps(chosen)}])
    of_all = {"sweep_id": sweep_id, "phase": "confirm", "number": 0, "seeds": SEEDS, "cap": TAU, "value": None}
    state = "ended" if seeds == len(SEEDS) else "asked"
    store.append("trials", [
        of_all | {"arm": arm, "trial_id": trial_id(arm), "params_json": json.dumps(PARAMS[arm]), "state": state}
        for arm in PARAMS
    ])  # fmt: skip
    for arm in PARAMS:
        steps = (times or {}).get(arm) or grok_steps(arm)
        rows = []
        for seed, grok in list(zip(SEEDS, steps, strict=True))[:seeds]:
            store.append("curves", curve(arm, seed, grok))
            lost = {"outcome": "diverged", "diverged_step": 2200, "observed_to": 2200, "fit_step": None}
            diverged = arm == "shaky" and seed == SEEDS[4] and grok == NEVER
            rows.append(replica(arm, seed, grok, **(lost if diverged else {}), **changes))
        store.append("replicas", rows)
        if timed:
            about = {"trial_id": trial_id(arm), "device": "cpu", "threads": 1, "torch": "2.13", "host": "here"}
            store.append("timings", [about | {"seconds_on": SECONDS[arm], "seconds_off": SECONDS[arm]}])
    if answered:
        store.append("speedups", answers.compute(store, sweep_id))
    return sweep_id


def twins(store: Store, sweep_id: str = "twins-0123abcd") -> str:
    """An A/A check: one trial as two arms, each confirmed on seeds of its own. Returns the sweep's id."""
    experiment = {**EXPERIMENT, "baseline": "left", "aa": True, "arm": [{"name": "left"}, {"name": "right"}]}
    head = {key: experiment[key] for key in ("name", "question", "baseline", "horizon")}
    store.append("sweeps", [{**head, "sweep_id": sweep_id, "experiment_json": json.dumps(experiment), "version": "0"}])
    name, params = trial_id("plain"), PARAMS["plain"]
    chosen = {arm: {"trial_id": name, "params": params, "number": 0, "seeds": SEEDS[i::2]}
              for i, arm in enumerate(("left", "right"))}  # fmt: skip
    plan = {"sweep_id": sweep_id, "block": 0, "tau": TAU, "seeds": SEEDS, "key": "k"}
    store.append("plans", [plan | {"winners_json": json.dumps(chosen)}])
    store.append("replicas", [replica("plain", *pair) for pair in zip(SEEDS, grok_steps("plain"), strict=True)])
    store.append("trials", [
        {"sweep_id": sweep_id, "phase": "confirm", "number": 0, "cap": TAU, "value": None, "state": "ended", "arm": arm,
         "trial_id": name, "seeds": one["seeds"], "params_json": json.dumps(params)}
        for arm, one in chosen.items()
    ])  # fmt: skip
    store.append("speedups", answers.compute(store, sweep_id))
    return sweep_id
