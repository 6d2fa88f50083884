"""What two sides must share before one is called sooner: across sweeps, seed by seed, and in an A/A check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grokscale import answers, stats
from grokscale.errors import GrokscaleError, InputError
from grokscale.store import Store
from tests.rows import SPEC, grokked, plan, sweep

ONE, TWO = "q-00000001", "r-00000002"
SEEDS = [11, 12, 13]
OTHERS = [21, 22, 23]


def put(store: Store, trial_id: str, steps: list[int], seeds: list[int], **values: Any) -> None:
    rows = [grokked(trial_id, seed, step, **values) for seed, step in zip(seeds, steps, strict=True)]
    store.append("replicas", rows)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two sweeps: plain in the one, swift in the other, on the same seeds."""
    store = Store(tmp_path / "runs")
    store.append("sweeps", [sweep(ONE), sweep(TWO)])
    store.append("plans", [plan({"plain": "t"}, SEEDS), plan({"swift": "u"}, SEEDS, sweep_id=TWO)])
    put(store, "t", [4000, 6000, 9000], SEEDS)
    put(store, "u", [1000, 2000, 3000], SEEDS)
    return store


def replan(store: Store, **values: Any) -> None:
    store.append("plans", [plan({"swift": "u"}, values.pop("seeds", SEEDS), sweep_id=TWO, block=1, **values)])


def test_arms_of_two_sweeps_are_compared_where_the_question_is_the_same(store: Store):
    rows = {row["clock"]: row for row in answers.compare(store, ("q", "plain"), ("r", "swift")).to_pylist()}
    assert set(rows) == {"steps", "oracle"} and rows["steps"]["s"] == pytest.approx((4 * 3 * 3) ** (1 / 3))
    assert (rows["steps"]["baseline"], rows["steps"]["arm"]) == (f"{ONE}:plain", "swift")


@pytest.mark.parametrize(("values", "named"), [
    ({"tau": 30_000}, "horizon: 20000 ('plain' of q-00000001) against 30000 ('swift' of r-00000002)"),
    ({"seeds": [11, 12, 14]}, "pairing: seed 13 of 'plain' of q-00000001 alone, seed 14 of 'swift'"),
    ({"seeds": [12, 11, 13]}, "pairing: the seeds stand in another order"),
    ({"seeds": [11, 12]}, "pairing: seed 13 of 'plain' of q-00000001 alone"),
])  # fmt: skip
def test_another_horizon_and_other_pairs_are_refused_by_name(store: Store, values: dict[str, Any], named: str):
    put(store, "u", [1000], [14])
    replan(store, **values)
    with pytest.raises(GrokscaleError) as caught:
        answers.compare(store, ("q", "plain"), ("r", "swift"))
    assert named in str(caught.value) and "cannot be compared" in str(caught.value)


@pytest.mark.parametrize(("key", "value"), [
    ("task", {"name": "other"}), ("threshold", 0.9), ("eval", {"epoch": True}), ("monitor", "test"),
    ("validation", 0.5), ("data", "abc"),
])  # fmt: skip
def test_every_part_of_the_question_is_looked_at(store: Store, key: str, value: Any):
    put(store, "v", [1000, 2000, 3000], SEEDS, spec_json=json.dumps({**SPEC, key: value}))
    store.append("plans", [plan({"swift": "v"}, SEEDS, sweep_id=TWO, block=1)])
    with pytest.raises(GrokscaleError, match=f"differ in {key}"):
        answers.compare(store, ("q", "plain"), ("r", "swift"))


def test_all_differences_are_named_at_once(store: Store):
    put(store, "v", [1000, 2000, 3000], OTHERS, spec_json=json.dumps({**SPEC, "monitor": "test", "threshold": 0.9}))
    store.append("plans", [plan({"swift": "v"}, OTHERS, sweep_id=TWO, block=1, tau=10_000)])
    with pytest.raises(GrokscaleError) as caught:
        answers.compare(store, ("q", "plain"), ("r", "swift"))
    for part in ("horizon: 20000", "monitor: 'val'", "threshold: 0.95", "pairing: seeds 11, 12, 13 of"):
        assert part in str(caught.value)


def test_an_unknown_arm_and_a_sweep_without_a_confirmation_are_refused(store: Store):
    with pytest.raises(InputError, match="no confirmed arm 'plane'; did you mean 'plain'"):
        answers.compare(store, ("q", "plane"), ("r", "swift"))
    store.append("sweeps", [sweep("s-00000003")])
    with pytest.raises(GrokscaleError, match="nothing is confirmed"):
        answers.compare(store, ("s", "plain"), ("r", "swift"))


def test_a_seed_that_stands_twice_is_refused(store: Store):
    replan(store, seeds=[11, 12, 12])
    with pytest.raises(GrokscaleError, match="pairing: arm 'swift' was asked for seed 12 more than once"):
        answers.compare(store, ("q", "plain"), ("r", "swift"))


# ----------------------------------------------------------------------------------------- A/A


def twins(store: Store, left: list[int], right: list[int], *, aa: bool) -> None:
    """A newer plan of the first sweep: one configuration as two arms, each on seeds of its own."""
    chosen = {name: {"trial_id": "w", "params": {}, "number": 0, "seeds": seeds}
              for name, seeds in (("left", left), ("right", right))}  # fmt: skip
    store.append("plans", [plan({}, left + right, block=1, winners_json=json.dumps(chosen))])
    store.append("sweeps", [sweep(ONE, baseline="left", experiment_json=json.dumps({"aa": aa}), at=None)])


@pytest.fixture
def apart(tmp_path: Path) -> Store:
    store = Store(tmp_path / "apart")
    rng = np.random.default_rng(3)
    steps = (6000 * np.exp(0.4 * rng.standard_normal(6))).astype(int).tolist()
    put(store, "w", steps, SEEDS + OTHERS)
    return store


def test_an_aa_check_compares_arms_on_seeds_of_their_own(apart: Store):
    twins(apart, SEEDS, OTHERS, aa=True)
    row = next(row for row in answers.compute(apart, ONE) if row["clock"] == "steps")
    steps = [apart.answered(["w"])["w", seed]["grok_step"] for seed in SEEDS + OTHERS]
    theirs = stats.unpaired_speedup(steps[:3], steps[3:], 20_000)
    assert (row["s"], row["lo"], row["hi"], row["p"]) == (theirs.s, theirs.lo, theirs.hi, theirs.p)
    assert row["paired"] is False and row["corr"] is None and row["n"] == 3 and row["lo"] < 1 < row["hi"]
    assert [(arm["arm"], arm["n"], arm["planned"]) for arm in answers.arms(apart, ONE)] == [
        ("left", 3, 3), ("right", 3, 3)]  # fmt: skip


def test_seeds_apart_are_no_pairs_without_an_aa_experiment(apart: Store):
    twins(apart, SEEDS, OTHERS, aa=False)
    with pytest.raises(GrokscaleError, match="pairing: seeds 11, 12, 13 of 'left' alone, seeds 21, 22, 23 of 'right'"):
        answers.compute(apart, ONE)


def test_an_aa_check_whose_arms_share_a_seed_is_refused(apart: Store):
    twins(apart, SEEDS, [13, *OTHERS[1:]], aa=True)
    with pytest.raises(GrokscaleError, match="pairing: seed 13 on both sides"):
        answers.compute(apart, ONE)
