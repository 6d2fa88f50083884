"""Weights that a worker keeps and `load_model` gives back: of the right step and replica, no more than asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

import grokscale
from grokscale.errors import GrokscaleError
from grokscale.spec import TrialSpec
from grokscale.store import Store
from grokscale.train import train
from grokscale.worker import Work
from tests.trials import GROKS, trial

SEEDS = [3, 4, 5]


def job(spec: TrialSpec, keep: str | None, horizon: int = 3000, until: str = "stable") -> dict[str, Any]:
    asked = {"spec": spec.canonical(), "seeds": SEEDS, "horizon": horizon, "until": until}
    return {"job": asked, "lanes": 4, "device": "cpu", "keep": keep}


@pytest.fixture(scope="module")
def spec() -> TrialSpec:
    return trial(GROKS)


@pytest.fixture(scope="module")
def store(spec: TrialSpec, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Confirmed replicas, which end at different steps: the pack shrinks under the ones that stay."""
    store = Store(tmp_path_factory.mktemp("runs"))
    list(Work(store, job(spec, "log-spaced")))
    return store


def test_a_loaded_model_has_the_stored_test_accuracy(store: Store, spec: TrialSpec):
    rows = store.replicas(trial_id=spec.trial_id).to_pylist()
    assert len(rows) == len(SEEDS) and len({row["steps"] for row in rows}) > 1
    for row in rows:
        loaded = grokscale.load_model(store, spec.trial_id, row["seed"])
        assert loaded.step == row["steps"] and loaded.spec == spec
        assert loaded.accuracy("test") == row["final_acc"]
        assert loaded.accuracy("val") == row["final_val_acc"]
        x = torch.ones(2, 16)
        assert torch.equal(loaded.model(x), functional_call(loaded.model, loaded.params, (x,)))


def test_log_spaced_weights_are_those_on_the_way(store: Store, spec: TrialSpec):
    loaded = grokscale.load_model(store, spec.trial_id, SEEDS[0])
    octaves = [int(math.log2(step)) for step in loaded.steps[:-1]]
    assert len(set(octaves)) == len(octaves) > 3
    curve = store.curves(trial_id=spec.trial_id, seed=SEEDS[0]).to_pylist()
    first = grokscale.load_model(store, spec.trial_id, SEEDS[0], step=loaded.steps[0])
    seen = {row["step"]: row["test_acc"] for row in curve}
    assert first.accuracy() == seen[first.step]  # 300 rows of test: an evaluation sees them all
    assert first.accuracy() < loaded.accuracy()


def test_a_lone_run_gives_the_same_weights(store: Store, spec: TrialSpec):
    *_, last = train(spec, SEEDS[:1], horizon=3000, until="stable", keep="final")
    (kept,) = last.kept
    loaded = grokscale.load_model(store, spec.trial_id, SEEDS[0])
    assert kept.seed == SEEDS[0] and kept.step == loaded.step
    assert all(torch.equal(p, loaded.params[name]) for name, p in kept.params.items())


def test_nothing_is_kept_unless_asked_and_an_answered_replica_is_not_trained_again(spec: TrialSpec, tmp_path: Path):
    store = Store(tmp_path)
    list(Work(store, job(spec, None, horizon=100)))
    assert not (tmp_path / "weights").exists()
    list(Work(store, job(spec, "final", horizon=100)))
    assert not (tmp_path / "weights").exists()
    with pytest.raises(GrokscaleError, match=r"are not kept \(at no step\).*new store"):
        grokscale.load_model(store, spec.trial_id, SEEDS[0])
    with pytest.raises(GrokscaleError, match="no replica of trial"):
        grokscale.load_model(store, spec.trial_id, 99)


def test_a_stopped_run_keeps_what_the_whole_one_does(store: Store, spec: TrialSpec, tmp_path: Path):
    cut = Store(tmp_path)
    work = Work(cut, job(spec, "log-spaced"))
    for step in work:
        if step > 300:
            break
    work.keep()
    list(Work(cut, job(spec, "log-spaced")))
    names = {path.name for path in (tmp_path / "weights" / spec.trial_id).iterdir()}
    assert names == {path.name for path in (Path(store.root) / "weights" / spec.trial_id).iterdir()}


def test_a_learned_amplifier_is_kept_with_the_weights(tmp_path: Path):
    spec, store = trial(GROKS, "neuralgrok"), Store(tmp_path)
    list(Work(store, job(spec, "final", horizon=50, until="decided")))
    *_, last = train(spec, SEEDS[:1], horizon=50)
    assert grokscale.load_model(store, spec.trial_id, SEEDS[0]).learned == last.learned(SEEDS[0])


def test_a_torn_file_and_another_split_are_said(spec: TrialSpec, tmp_path: Path):
    store = Store(tmp_path)
    list(Work(store, job(spec, "final", horizon=50)))
    loaded = grokscale.load_model(store, spec.trial_id, SEEDS[0])
    with pytest.raises(ValueError, match="split must be train, val or test"):
        loaded.accuracy("tset")
    path = tmp_path / "weights" / spec.trial_id / f"{SEEDS[0]}-{loaded.step}.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(GrokscaleError, match="cannot be read"):
        grokscale.load_model(store, spec.trial_id, SEEDS[0])
    with pytest.raises(ValueError, match="keep must be"):
        next(train(spec, SEEDS, horizon=50, keep="all"))
