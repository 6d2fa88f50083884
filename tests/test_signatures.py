"""Labels of what went wrong: each on a curve that has it and on the nearest one that has not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokscale.outcomes import judge
from grokscale.signatures import signatures, slingshots
from tests import reference_metrics as ref


def curve(count: int = 20, **columns: Any) -> dict[str, np.ndarray]:
    """Evaluations every 100 steps: fitted from the third on, loss falling to .01, grokked in the middle."""
    steps = 100 * np.arange(1, count + 1)
    half = np.where(np.arange(count) < count // 2, 0.5, 1.0)
    usual = {
        "step": steps, "train_acc": np.where(np.arange(count) < 2, 0.6, 1.0),
        "train_loss": np.geomspace(1.0, 0.01, count), "val_loss": np.geomspace(1.0, 0.1, count),
        "val_acc": half, "test_acc": half,
    }  # fmt: skip
    return {**usual, **{name: np.asarray(values, dtype=float) for name, values in columns.items()}}


def labels(look: dict[str, np.ndarray], diverged: int | None = None, **measures: Any) -> set[str]:
    outcome = judge(look, threshold=0.95, observed_to=int(look["step"][-1]), diverged_step=diverged)
    taken = {name.replace("__", "/"): (look["step"], np.asarray(v, dtype=float)) for name, v in measures.items()}
    return set(signatures(look, outcome, taken))


def test_a_replica_that_groks_and_stays_has_no_label() -> None:
    assert labels(curve(), used_norm=np.geomspace(1, 0.1, 20), weight_norm=np.linspace(9, 5, 20)) == set()


def test_oscillation_needs_two_drops_after_the_first_crossing() -> None:
    shape = np.array([0.5, 0.1, 0.5, 0.1] + [0.5] * 4 + [1.0] * 12)  # drops before the crossing are none
    assert labels(curve(val_acc=shape)) == set()
    once = shape.copy()
    once[15] = 0.7
    assert labels(curve(val_acc=once)) == set()
    twice = once.copy()
    twice[17] = 0.75
    assert labels(curve(val_acc=twice)) == {"oscillating"}
    shallow = twice.copy()
    shallow[17] = 0.85
    assert labels(curve(val_acc=shallow)) == set()


@given(st.lists(st.sampled_from([0.3, 0.6, 0.85, 1.0]), min_size=3, max_size=30))
def test_oscillation_is_what_counting_gives(values: list[float]) -> None:
    look = curve(len(values), val_acc=values)
    first = next((i for i, v in enumerate(values) if v >= 0.95), None)
    expected = first is not None and ref.drops(values[first:], 0.2) >= 2
    assert ("oscillating" in labels(look)) == expected


def test_stagnation_is_an_unfitted_replica_that_no_longer_learns() -> None:
    flat = curve(train_acc=np.full(20, 0.4), val_acc=np.full(20, 0.4), test_acc=np.full(20, 0.4))
    assert labels(flat) == {"stagnating"}
    assert labels({**flat, "train_acc": np.linspace(0.2, 0.9, 20)}) == set()
    assert labels(curve(2, train_acc=[0.4, 0.4], test_acc=[0.4, 0.4])) == set()  # too short to tell


def test_memorising_for_good() -> None:
    flat = curve(val_acc=np.full(20, 0.5), test_acc=np.full(20, 0.5))
    assert labels(flat) == {"never-generalises"}
    assert labels({**flat, "val_acc": np.linspace(0.3, 0.8, 20)}) == set()


def test_instability_is_divergence_or_a_loss_that_comes_back() -> None:
    assert labels(curve(), diverged=2000) == {"unstable"}  # after it had grokked
    assert labels(curve(test_acc=np.full(20, 0.5)), diverged=2000) == {"unstable"}
    back = np.geomspace(1.0, 0.001, 20)
    back[12] = 0.3
    assert "unstable" in labels(curve(train_loss=back))
    back[12] = 0.005  # more than ten times nothing is nothing still
    back[11] = 0.0001
    assert labels(curve(train_loss=back)) == set()


def test_labels_that_need_a_measure_are_given_only_with_it() -> None:
    look = curve()
    assert labels(look, method__p_max=np.full(20, 0.5)) == set()
    assert labels(look, method__p_max=np.linspace(0.1, 0.995, 20)) == {"collapsed"}
    assert labels(look, method__1__p_max=np.linspace(0.1, 0.995, 20)) == {"collapsed"}
    rising = {**look, "val_loss": np.geomspace(0.1, 1.0, 20)}
    assert labels(rising) == set()
    assert labels(rising, outer_loss=np.geomspace(1.0, 0.1, 20)) == {"outer-overfit"}
    assert labels(look, outer_loss=np.geomspace(1.0, 0.1, 20)) == set()
    assert labels(look, used_norm=np.full(20, 3.5)) == {"cannot-settle"}
    shrinking = np.where(np.arange(20) < 12, 3.5, 1.0)
    assert labels(look, used_norm=shrinking) == set()
    assert labels(look, used_norm=np.full(20, math.nan)) == set()


def test_slingshots_are_spikes_of_loss_and_norm_after_fitting() -> None:
    loss = np.geomspace(1.0, 0.01, 20)
    loss[1], loss[14] = 50.0, 2.0  # the first comes before anything is fitted
    look = curve(train_loss=loss)
    assert slingshots(look).tolist() == [1500]
    assert "slingshot" in labels(look)
    norms = np.linspace(5.0, 6.0, 20)
    norms[14:] += 3.0
    assert slingshots(look, (look["step"], norms)).tolist() == [1500]
    norms = np.linspace(5.0, 6.0, 20)
    norms[12:] += 3.0  # the norm jumped at another time
    assert slingshots(look, (look["step"], norms)).tolist() == []
    assert slingshots(curve(train_acc=np.full(20, 0.5), train_loss=loss)).tolist() == []


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_short_curves_have_no_labels(count: int) -> None:
    look = curve(count)
    outcome = judge(look, threshold=0.95, observed_to=100 * count)
    steps = look["step"].astype(float)
    taken = {name: (look["step"], steps) for name in ("outer_loss", "used_norm", "weight_norm", "method/p_max")}
    assert set(signatures(look, outcome, taken)) <= {"collapsed"}
