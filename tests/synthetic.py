"""A finished sweep as rows in a real store, drawn instead of trained: for tests of what reads results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from grokscale.store import Store

HORIZON, TAU = 20_000, 16_384
EXPERIMENT = {
    "name": "tiny", "question": "Which of two made-up methods groks <sooner>?", "baseline": "plain", "horizon": HORIZON,
    "arm": [{"name": "plain"}, {"name": "swift"}, {"name": "shaky"}],
    "space": {"lr": {"low": 0.01, "high": 0.1, "log": True}, "wd": {"low": 0.001, "high": 0.03, "log": True}},
}  # fmt: skip
PARAMS = {"plain": {"lr": 0.0416, "wd": 0.01}, "swift": {"lr": 0.0101, "wd": 0.01, "floor": 0.01},
          "shaky": {"lr": 0.05, "wd": 0.002, "alpha": 0.98}}  # fmt: skip
SPEC = {
    "task": {"name": "toy", "n": 60, "k": 3}, "model": {"name": "net", "width": 100},
    "optimiser": {"name": "sgd", "lr": 0.1, "wd": 0.01, "batch": 32, "decay": "inside"}, "method": [{"name": "plain"}],
    "precision": "fp32", "threshold": 0.95, "eval": {"every": 0.02, "min": 25, "examples": 1024}, "monitor": "val",
    "validation": 0.2, "data": "", "versions": {"engine": 1},
}  # fmt: skip
SEEDS = [900 + i for i in range(8)]


def trial_id(arm: str) -> str:
    return f"{arm:0<12}"


def grok_steps(arm: str) -> list[float]:
    """Grok steps of the confirmation seeds; inf = never. The shaky arm loses two seeds, one by divergence."""
    rng = np.random.default_rng(7)
    base = 6000 * np.exp(0.4 * rng.standard_normal(len(SEEDS)))
    own = 1500 * np.exp(0.3 * rng.standard_normal(len(SEEDS)))
    shaky = 5000 * np.exp(0.9 * rng.standard_normal(len(SEEDS)))
    times = {"plain": base, "swift": own, "shaky": shaky}[arm].round(-1)
    if arm == "shaky":
        times[[1, 4]] = math.inf
    return [float(t) for t in np.where(times <= TAU, times, math.inf)]


def replica(arm: str, seed: int, grok: float, **changes: Any) -> dict[str, Any]:
    """A row of `replicas`."""
    never = math.isinf(grok)
    step = None if never else int(grok)
    spec = json.dumps(SPEC | changes.pop("spec", {}))
    return {
        "trial_id": trial_id(arm), "seed": seed, "attempt": f"{arm}-{seed}", "outcome": "memorised" if never else "grokked",
        "fit_step": 1300, "grok_step": step, "val_grok_step": step, "first_step": step, "val_first_step": step,
        "delay": None if never else max(0, int(grok) - 1300), "observed_to": TAU if never else 2 * int(grok),
        "steps": TAU, "batch": 32, "oracle_per_step": 32.0, "labels": 2000, "params": 6100, "threshold": 0.95,
        "monitor": "val", "task": "toy", "model": "net", "method": arm, "params_json": json.dumps(PARAMS[arm]),
        "spec_json": spec, "device": "cpu", "precision": "fp32", "torch": "2.13", "threads": 1, "lanes": 8,
        "compiled": False, "numerics": "cpu", "version": "0", "host": "here", "wall_s": 1.0, **changes,
    }  # fmt: skip


def curve(arm: str, seed: int, grok: float) -> dict[str, Any]:
    """Columns of `curves`: fits at 1,300 steps and rises at `grok`."""
    steps = np.unique(np.geomspace(25, TAU, 60).astype(np.int64))
    train = 1 / (1 + np.exp(-(steps - 900) / 90))
    test = 0.5 + 0.5 / (1 + np.exp(-(steps - min(grok, 1e9)) / 150))
    loss = np.ones(len(steps))
    return {
        "trial_id": trial_id(arm), "attempt": f"{arm}-{seed}", "seed": seed, "step": steps, "train_loss": loss, "train_acc": train,
        "val_loss": loss, "val_acc": test, "test_loss": loss, "test_acc": test, "active": True, "full": False,
    }  # fmt: skip


def searched(
    store: Store, sweep_id: str = "tiny-0123abcd", experiment: Mapping[str, Any] = EXPERIMENT
) -> str:
    """A sweep whose search has run: one trial of each arm is still asked for. Returns its id."""
    store.append(
        "sweeps",
        [
            {
                "sweep_id": sweep_id,
                "name": experiment["name"],
                "question": experiment["question"],
                "baseline": "plain",
                "horizon": HORIZON,
                "experiment_json": json.dumps(experiment),
                "version": "0",
            }
        ],
    )
    rows = []
    for arm in PARAMS:
        for i in range(4):
            ended = i < 3
            value = math.log(1500 + 500 * i + 10 * len(arm)) if ended else None
            rows.append(
                {
                    "sweep_id": sweep_id,
                    "arm": arm,
                    "phase": "search",
                    "number": i,
                    "trial_id": f"{arm}{i}",
                    "seeds": [1, 2, 3],
                    "params_json": json.dumps(PARAMS[arm]),
                    "cap": HORIZON,
                    "value": value,
                    "state": "ended" if ended else "asked",
                }
            )
    store.append("trials", rows)
    return sweep_id


def confirmed(
    store: Store,
    sweep_id: str = "tiny-0123abcd",
    *,
    seeds: int = len(SEEDS),
    timed: bool = True,
    **changes: Any,
) -> str:
    """`searched`, and the confirmation's plan, replicas, curves and timings on the first `seeds` of the plan's seeds."""
    searched(store, sweep_id)
    winners = {arm: {"trial_id": trial_id(arm), "params": PARAMS[arm], "number": 0} for arm in PARAMS}
    store.append(
        "plans",
        [
            {
                "sweep_id": sweep_id,
                "block": 0,
                "tau": TAU,
                "winners_json": json.dumps(winners),
                "seeds": SEEDS,
                "key": "k",
            }
        ],
    )
    store.append(
        "trials",
        [
            {
                "sweep_id": sweep_id,
                "arm": arm,
                "phase": "confirm",
                "number": 0,
                "trial_id": trial_id(arm),
                "seeds": SEEDS,
                "params_json": json.dumps(PARAMS[arm]),
                "cap": TAU,
                "state": "ended",
                "value": None,
            }
            for arm in PARAMS
        ],
    )
    for arm in PARAMS:
        rows = []
        for seed, grok in list(zip(SEEDS, grok_steps(arm), strict=True))[:seeds]:
            store.append("curves", curve(arm, seed, grok))
            lost = {"outcome": "diverged", "diverged_step": 2200, "observed_to": 2200, "fit_step": None}
            rows.append(
                replica(arm, seed, grok, **(lost if (arm, seed) == ("shaky", SEEDS[4]) else {}), **changes)
            )
        store.append("replicas", rows)
        if timed:
            on = {"plain": 4e-4, "swift": 6e-4, "shaky": 4.2e-4}[arm]
            store.append(
                "timings",
                [
                    {
                        "trial_id": trial_id(arm),
                        "device": "cpu",
                        "threads": 1,
                        "seconds_on": on,
                        "seconds_off": on,
                        "torch": "2.13",
                        "host": "here",
                    }
                ],
            )
    return sweep_id
