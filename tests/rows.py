"""Rows for a store, with every column that is not the point of a test filled in."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

SPEC: dict[str, Any] = {
    "task": {"name": "toy", "n": 60, "n_train": 1000}, "model": {"name": "net", "width": 100},
    "threshold": 0.95,
    "method": [{"name": "plain"}], "optimiser": {"name": "sgd", "lr": 0.1, "batch": 32}, "precision": "fp32",
    "eval": {"every": 0.02, "min": 25, "examples": 1024}, "monitor": "val", "validation": 0.0, "data": "",
    "versions": {"engine": 1, "task:toy": 1, "method:plain": 1},
}  # fmt: skip


def replica(trial_id: str = "t0", seed: Any = 0, **values: Any) -> dict[str, Any]:
    """A replica that was watched to step 20,000 and has not grokked unless told so; spec: changes to SPEC."""
    spec = {**SPEC, **values.pop("spec", {})}
    row = {
        "trial_id": trial_id, "seed": seed, "attempt": "first", "outcome": "memorised", "fit_step": 500,
        "observed_to": 20_000, "steps": 20_000, "batch": 32, "oracle_per_step": 32.0,
        "labels": 1000, "params": 6201, "threshold": 0.95, "monitor": "val", "task": "toy", "model": "net",
        "method": "plain", "params_json": "{}",
        "spec_json": json.dumps(spec), "device": "cpu", "precision": "fp32", "torch": "2.13.0", "threads": 1,
        "lanes": 4, "compiled": False, "numerics": "cpu/fp32", "version": "0", "host": "here", "wall_s": 1.5,
    }  # fmt: skip
    return {**row, **values}


def grokked(trial_id: str, seed: int, step: int, **values: Any) -> dict[str, Any]:
    """A replica that grokked at a step, fitted at 500, and was watched to twice that step without a dip."""
    found = {"outcome": "grokked", "grok_step": step, "val_grok_step": step, "delay": max(0, step - 500),
             "comprehended": step <= 550, "stable_step": step, "dips": 0, "observed_to": 2 * step,
             "active_steps": step, "final_acc": 1.0}  # fmt: skip
    return replica(trial_id, seed, **{**found, **values})


def curve(trial_id: str, seed: int, attempt: str = "first", points: int = 4, **values: Any) -> dict[str, Any]:
    """Columns of `curves` for one replica, evaluated every 25 steps, with no validation split."""
    ones = np.ones(points)
    columns = {
        "trial_id": trial_id, "seed": seed, "attempt": attempt, "step": 25 * np.arange(points),
        "train_loss": ones, "train_acc": ones, "val_loss": np.nan * ones, "val_acc": np.nan * ones,
        "test_loss": ones, "test_acc": ones, "active": True, "full": False,
    }  # fmt: skip
    return {**columns, **values}


def trial(arm: str, number: int, trial_id: str, seeds: list[int], **values: Any) -> dict[str, Any]:
    """A search trial of sweep q-00000001 that ended."""
    row = {
        "sweep_id": "q-00000001",
        "arm": arm,
        "phase": "search",
        "number": number,
        "trial_id": trial_id,
        "seeds": seeds,
        "params_json": json.dumps({"lr": 0.1}),
        "cap": 20_000,
        "state": "ended",
        "value": 8.0,
    }
    return {**row, **values}


def sweep(sweep_id: str = "q-00000001", **values: Any) -> dict[str, Any]:
    row = {
        "sweep_id": sweep_id,
        "name": sweep_id.rsplit("-", 1)[0],
        "question": "Which?",
        "baseline": "plain",
        "horizon": 20_000,
        "experiment_json": "{}",
        "version": "0",
    }
    return {**row, **values}


def plan(winners: dict[str, str], seeds: list[int], **values: Any) -> dict[str, Any]:
    """The confirmation of sweep q-00000001.  winners: arm -> trial_id."""
    chosen = {arm: {"trial_id": name, "params": {"lr": 0.1}, "number": 0} for arm, name in winners.items()}
    row = {
        "sweep_id": "q-00000001",
        "block": 0,
        "tau": 20_000,
        "winners_json": json.dumps(chosen),
        "seeds": seeds,
        "key": "k",
    }
    return {**row, **values}


def timing(trial_id: str, seconds_on: float, seconds_off: float, **values: Any) -> dict[str, Any]:
    row = {
        "trial_id": trial_id,
        "device": "cpu",
        "threads": 1,
        "seconds_on": seconds_on,
        "seconds_off": seconds_off,
        "torch": "2.13.0",
        "host": "here",
    }
    return {**row, **values}
