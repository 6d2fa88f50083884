"""The engine against the reference loop, and its promises: schedule, order, horizon, divergence, no global state."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from grokscale.models import initial
from grokscale.rng import generator
from grokscale.spec import TrialSpec
from grokscale.tasks.base import Task
from grokscale.train import Evaluation, compiler, lanes_for, next_evaluation, packs, timings, train
from tests import reference as ref
from tests import reference_egd, reference_grokfast
from tests.trials import FORMS, GROKS, REGISTRY, trial
from tests.twins import decoder_twin, dense_input, from_twin, two_layer_twin

EVERY = {"every": 0.02, "min": 10, "examples": 1024}
STEPS = 50
TWINS = {**ref.METHODS, **reference_grokfast.METHODS, **reference_egd.METHODS}


def stopped_at(spec: TrialSpec, seeds: Sequence[int], step: int, **options: Any) -> Evaluation:
    for evaluation in train(spec, seeds, horizon=10_000, registry=REGISTRY, **options):
        if evaluation.step >= step:
            assert evaluation.step == step
            return evaluation
    raise AssertionError("the run ended early")


def curve(evaluation: Evaluation, seed: int) -> dict[str, np.ndarray]:
    columns = evaluation.curves()
    rows = columns["seed"] == seed
    return {name: column[rows] for name, column in columns.items()}


# ---------------------------------------------------------------------------------------------- the reference


def batches(seed: int, n_train: int, batch: int, drop_last: bool, steps: int) -> list[list[int]]:
    """Row numbers of every step: each epoch's permutation cut into batches, the partial one dropped or kept."""
    out: list[list[int]] = []
    epoch = 0
    while len(out) < steps:
        order = torch.randperm(n_train, generator=generator(seed, f"order/{epoch}")).tolist()
        cut = [order[i : i + batch] for i in range(0, n_train, batch)]
        out += cut[:-1] if drop_last and len(cut[-1]) < batch else cut
        epoch += 1
    return out[:steps]


def reference_run(
    spec: TrialSpec, seed: int, evaluate_at: Sequence[int], method: Any, steps: int = STEPS,
    built: Callable[..., ref.Optimiser] = ref.Optimiser,
) -> tuple[ref.TwoLayer | ref.Decoder, ref.Trace]:  # fmt: skip
    """The slow twin of one replica, from the same first weights, splits and order."""
    options = {k: v for k, v in spec.task.items() if k != "name"}
    task: Task = REGISTRY.tasks[spec.task["name"]].factory(**options)
    model_options = {k: v for k, v in spec.model.items() if k != "name"}
    model = REGISTRY.models[spec.model["name"]].build(task, **model_options)
    params = initial(model, generator(seed, "init"), torch.float64)
    net = decoder_twin(params, model_options["heads"]) if spec.model["name"] == "decoder" else two_layer_twin(params)
    drawn = task.splits(seed, spec.validation)
    assert drawn.val is not None
    signs = task.outputs == 1
    splits = {
        name: ref.Split(dense_input(task, s.x), s.y.to(ref.DTYPE) if signs else s.y)
        for name, s in (("train", drawn.train), ("val", drawn.val), ("test", drawn.test))
    }
    o = spec.optimiser
    optimiser = built(
        o["name"].replace("adamw", "adam"), o["lr"], o["wd"], o["momentum"], (o["beta1"], o["beta2"]), o["eps"],
        o["decay"], o["warmup"])  # fmt: skip
    losses = {"mse": ref.squared_error, "hinge": ref.hinge}
    loss = losses[spec.task["loss"]] if signs else ref.cross_entropy
    trace = ref.train(
        net, splits, batches(seed, len(drawn.train.y), o["batch"], o["drop_last"], steps), optimiser, method, loss,
        ref.sign_accuracy if signs else ref.class_accuracy, evaluate_at)  # fmt: skip
    return net, trace


def agree(
    spec: TrialSpec, reference: Any = None, seeds: Sequence[int] = (1, 2), within: float = 1e-9,
    built: Callable[..., ref.Optimiser] = ref.Optimiser,
) -> ref.Trace:  # fmt: skip
    """Every parameter after 50 steps, and every loss and accuracy on the way, of every seed."""
    evaluation = stopped_at(spec, seeds, STEPS)
    snapshot = evaluation.snapshot()
    trace = ref.Trace()
    for seed in seeds:
        method = reference() if reference else twin_of(spec.method)
        net, trace = reference_run(spec, seed, (10, 20, 30, 40, 50), method, built=built)
        ours = curve(evaluation, seed)
        assert ours["step"].tolist() == trace.steps == [10, 20, 30, 40, 50]
        for split in ("train", "val", "test"):
            assert np.abs(ours[f"{split}_loss"] - trace.loss[split]).max() < within, split
            assert np.abs(ours[f"{split}_acc"] - trace.accuracy[split]).max() < 1e-12, split
        lane = snapshot["alive"].index(seed)
        for name, theirs in from_twin(net).items():
            difference = (snapshot["stacked"]["params"][name][lane] - theirs).abs()
            if name.startswith("qkv_b"):
                # Softmax does not see the bias of the keys. Its gradient is zero up to rounding, which Adam blows up.
                queries, _, values = difference.chunk(3)
                difference = torch.cat([queries, values])
            assert difference.max() < within, f"{name}: {difference.max()}"
    return trace


def twin_of(chain: Sequence[Mapping[str, Any]]) -> Any:
    made = []
    for part in chain:
        knobs = {k: v for k, v in part.items() if k not in ("name", "layers", "watch")}
        if "switch" in knobs:
            knobs["threshold"] = knobs.pop("switch")
        made.append(TWINS[part["name"]](**knobs))
    return ref.Chain(*made)


def endless(form: str, method: Any = "none", **options: Any) -> TrialSpec:
    """Nothing is decided early: the threshold cannot be reached."""
    return trial(form, method, precision="fp64", every=EVERY, threshold=1.1, **options)


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("name", sorted(ref.METHODS))
def test_engine_is_the_reference(name: str, form: str) -> None:
    agree(endless(form, name))


@pytest.mark.parametrize(
    ("form", "chain", "optimiser"),
    [
        ("parity-mlp2", [{"name": "grokfast-ema", "init": "zero", "alpha": 0.9, "lam": 0.5}], {}),
        ("parity-mlp2", [{"name": "grokfast-ma", "window": 4, "warmup": False}], {"lr": 0.01}),
        ("parity-mlp2", [{"name": "grokfast-ma", "window": 7, "lam": 0.3, "filter_type": "sum"}], {"lr": 0.01}),
        ("parity-mlp2", [{"name": "grokfast-ma", "window": 1}], {"lr": 0.01}),
        ("pairs-mlp2", [{"name": "egd", "eps": 1e-3}], {}),
        ("pairs-mlp2", [{"name": "egd"}], {"wd": 0.0}),
        ("pairs-mlp2", [{"name": "egd-colnorm", "axis": "input"}], {}),
        ("pairs-mlp2", [{"name": "egd-colnorm", "floor": 0.1}], {}),
        ("pairs-mlp2", [{"name": "egd"}, {"name": "grokfast-ema"}], {"lr": 0.05}),
        ("tokens-decoder", [{"name": "egd"}, {"name": "grokfast-ma", "window": 5}], {}),
        ("parity-mlp2", [{"name": "none"}], {"momentum": 0.9, "lr": 0.01}),
        ("parity-mlp2", [{"name": "none"}], {"decay": "coupled", "momentum": 0.5}),
        ("parity-mlp2", [{"name": "egd"}], {"decay": "coupled", "wd": 0.1}),
        ("parity-mlp2", [{"name": "none"}], {"warmup": 10}),
        ("parity-mlp2", [{"name": "none"}], {"name": "adam", "lr": 1e-2, "decay": "inside"}),
        ("pairs-mlp2", [{"name": "grokfast-ema"}], {"name": "adam", "lr": 1e-2, "decay": "coupled", "wd": 0.1}),
        ("pairs-mlp2", [{"name": "none"}], {"name": "adamw", "lr": 1e-2, "decay": "decoupled", "wd": 1.0}),
        ("tokens-decoder", [{"name": "none"}], {"name": "adamw", "decay": "decoupled", "wd": 1.0, "warmup": 4}),
        ("pairs-mlp2", [{"name": "none"}], {"drop_last": False}),
        ("tokens-decoder", [{"name": "none"}], {"drop_last": True}),
    ],
)
def test_engine_is_the_reference_with_other_settings(
    form: str, chain: list[dict[str, Any]], optimiser: dict[str, Any]
) -> None:
    agree(endless(form, chain, optimiser=optimiser), seeds=(3,))


@pytest.mark.parametrize("name", ["egd", "egd-colnorm"])
@pytest.mark.parametrize("sticky", [True, False])
def test_the_switch_is_the_references(name: str, sticky: bool) -> None:
    """A threshold in the middle of the validation accuracies: it is crossed, and crossed back, on the way."""
    spec = endless("parity-mlp2", [{"name": name, "switch": 2.0, "sticky": sticky}])
    middle = float(np.median(agree(spec).accuracy["val"]))
    switched = endless("parity-mlp2", [{"name": name, "switch": middle, "sticky": sticky}])
    agree(switched)
    active = np.stack([curve(stopped_at(switched, (1, 2), STEPS), seed)["active"] for seed in (1, 2)])
    assert active.any()
    assert not active.all()
    if sticky:
        assert (np.diff(active.astype(int), axis=1) <= 0).all()


def test_hinge_is_the_references() -> None:
    form = {**FORMS["parity-mlp2"], "task": {**FORMS["parity-mlp2"]["task"], "loss": "hinge"}}
    agree(trial(form, precision="fp64", every=EVERY, threshold=1.1))


def test_decoupled_decay_of_sgd() -> None:
    """torch has no such optimiser: p <- p (1 - lr wd) - lr v, the momentum free of the decay."""
    options = {"decay": "decoupled", "wd": 0.3, "momentum": 0.9, "lr": 0.02}
    spec = endless("parity-mlp2", optimiser=options)
    plain = endless("parity-mlp2", optimiser={**options, "wd": 0.0})
    first, without = (_first_step(s) for s in (spec, plain))
    start = _first_weights(spec)
    for key, before in start.items():
        assert torch.allclose(first[key], without[key] - 0.02 * 0.3 * before, atol=1e-14)


def _first_weights(spec: TrialSpec, seed: int = 1) -> dict[str, torch.Tensor]:
    task = REGISTRY.tasks[spec.task["name"]].factory(**{k: v for k, v in spec.task.items() if k != "name"})
    model = REGISTRY.models[spec.model["name"]].build(task, **{k: v for k, v in spec.model.items() if k != "name"})
    return initial(model, generator(seed, "init"), torch.float64)


def _first_step(spec: TrialSpec) -> dict[str, torch.Tensor]:
    from dataclasses import replace

    once = replace(spec, eval={**EVERY, "min": 1, "every": 0.0})
    return {k: p[0] for k, p in stopped_at(once, [1], 1).snapshot()["stacked"]["params"].items()}


# ------------------------------------------------------------------------------------- schedule and horizon


def test_the_schedule_of_the_evaluations() -> None:
    """max(25, 2 % of the step) after the last one; every epoch's end for reproductions."""
    every = {"every": 0.02, "min": 25, "examples": 1024}
    steps = [0]
    while steps[-1] < 3000:
        steps.append(next_evaluation(steps[-1], every, 7))
    assert steps[1:52] == list(range(25, 1276, 25))
    assert steps[52:56] == [1300, 1326, 1352, 1379]
    assert all(b - a == max(25, int(0.02 * a)) for a, b in itertools.pairwise(steps))
    assert [next_evaluation(s, {"epoch": True}, 9) for s in (0, 8, 9, 17)] == [9, 9, 18, 18]


def test_the_engine_keeps_the_schedule() -> None:
    evaluation = stopped_at(trial("parity-mlp2", threshold=1.1, every={**EVERY, "min": 7, "every": 0.1}), [1], 101)
    assert curve(evaluation, 1)["step"].tolist() == [*range(7, 85, 7), 92, 101]


@pytest.mark.parametrize(
    ("form", "drop_last", "steps"),
    [("parity-mlp2", True, 6), ("parity-mlp2", False, 7), ("pairs-mlp2", True, 3), ("pairs-mlp2", False, 4)],
)
def test_an_epoch_drops_or_keeps_the_partial_batch(form: str, drop_last: bool, steps: int) -> None:
    """100 rows and 60 rows in batches of 16; evaluated at the end of every epoch, on full splits."""
    spec = trial(form, optimiser={"drop_last": drop_last}, every={"epoch": True}, threshold=1.1)
    columns = curve(stopped_at(spec, [1, 2], 3 * steps), 1)
    assert columns["step"].tolist() == [steps, 2 * steps, 3 * steps]
    assert columns["full"].all()


def test_one_epoch_sees_every_row_once() -> None:
    """A linear model on one-hot rows would do; here the batches themselves are asked."""
    for drop_last in (True, False):
        flat = [row for batch in batches(5, 100, 16, drop_last, 6 if drop_last else 7) for row in batch]
        assert len(set(flat)) == len(flat) == (96 if drop_last else 100)


def test_samples_and_full_splits() -> None:
    """`examples` rows by default, the full split where the sample crosses the threshold and at the end."""
    every = {"every": 0.02, "min": 25, "examples": 64}
    spec = trial(GROKS, every=every, precision="fp64")
    evaluations = list(train(spec, [3, 4], horizon=400, until="stable", registry=REGISTRY))
    for row in evaluations[-1].replicas():
        if row["outcome"] != "grokked":
            continue
        columns = curve(evaluations[-1], row["seed"])
        at = columns["step"].tolist().index(row["first_step"])
        assert columns["full"][at]
        assert not columns["full"][0]
        assert whole_number(300 * columns["test_acc"][at])
        assert whole_number(64 * columns["test_acc"][~columns["full"]])
        assert whole_number(300 * row["final_acc"])
    assert any(row["outcome"] == "grokked" for row in evaluations[-1].replicas())


def whole_number(x: np.ndarray) -> bool:
    return np.allclose(x, np.round(x), atol=1e-9)


def test_a_longer_horizon_continues_the_same_run() -> None:
    """The horizon is no part of a trial: neither the schedule nor a switch may notice it, on a tick or between."""
    spec = trial(GROKS, "egd-colnorm", every={"every": 0.02, "min": 25, "examples": 64})
    *_, far = train(spec, [1, 2, 3], horizon=310, until="stable", registry=REGISTRY)
    for horizon in (50, 60, 74, 75, 100):
        *_, near = train(spec, [1, 2, 3], horizon=horizon, registry=REGISTRY)
        for seed in (1, 2, 3):
            a, b = curve(near, seed), curve(far, seed)
            n = len(a["step"])
            for name in a:
                assert a[name].tobytes() == b[name][:n].tobytes(), f"{name} at horizon {horizon}"


def test_a_snapshot_goes_on_to_another_horizon() -> None:
    spec = trial(GROKS, every=EVERY)
    *_, whole = train(spec, [1, 2, 3], horizon=300, until="stable", registry=REGISTRY)
    snapshot = next(e.snapshot() for e in train(spec, [1, 2, 3], horizon=100, registry=REGISTRY) if e.step == 60)
    *_, resumed = train(spec, [1, 2, 3], horizon=300, until="stable", state=snapshot, registry=REGISTRY)
    assert resumed.replicas() == whole.replicas()


def test_a_replica_at_the_horizon_is_given_up() -> None:
    *_, end = train(endless("parity-mlp2"), [1, 2, 3], horizon=45, registry=REGISTRY)
    assert end.done
    assert end.finished.all()
    assert end.step == 45
    for row in end.replicas():
        assert row["observed_to"] == row["steps"] == 45
        assert row["outcome"] in ("memorised", "unfitted")
        assert row["grok_step"] is None
        assert row["final_acc"] is not None


def test_evaluations_are_arrays_over_the_seeds_of_the_call() -> None:
    evaluations = list(train(trial(GROKS, "egd-colnorm"), [4, 1, 3], horizon=400, registry=REGISTRY))
    for evaluation in evaluations:
        assert evaluation.seeds == (4, 1, 3)
        assert set(evaluation.metrics) == {
            f"{split}_{what}" for split in ("train", "val", "test") for what in ("loss", "acc")}  # fmt: skip
        assert all(m.shape == (3,) for m in evaluation.metrics.values())
        assert evaluation.done == evaluation.finished.all() == (evaluation is evaluations[-1])
    gone = [e for e in evaluations if np.isnan(e.metrics["train_loss"]).any()]
    for evaluation in gone:
        earlier = evaluations[evaluations.index(evaluation) - 1].finished
        assert (np.isnan(evaluation.metrics["test_acc"]) == earlier).all()


def test_the_iterators_mood_stays_its_own() -> None:
    """Gradients are off inside a step and on for whoever iterates."""
    for _ in train(trial("parity-mlp2", threshold=1.1), [1], horizon=20, registry=REGISTRY):
        assert torch.is_grad_enabled()


def test_packs_and_lanes() -> None:
    assert packs([5, 6, 7, 8, 9], 2) == [[5, 6], [7, 8], [9]]
    assert packs([5, 6], 32) == [[5, 6]]
    assert [lanes_for(n) for n in (1, 2, 3, 4, 5, 8, 9, 32)] == [2, 2, 4, 4, 8, 8, 16, 32]
    assert sorted({lanes_for(n, fine=True) for n in range(1, 33)}) == [*range(2, 9), 10, 12, 14, 16, 20, 24, 28, 32]
    assert all(n <= lanes_for(n, fine=True) <= lanes_for(n) for n in range(1, 100))


def test_a_matrix_product_does_not_depend_on_its_place() -> None:
    """What lane invariance rests on: MKL is told to round alike at every alignment (see grokscale/__init__.py)."""
    source = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 49, 60, generator=source), torch.randn(8, 60, 11, generator=source)
    whole = torch.bmm(a, b)
    for lanes in ([3, 1, 5, 7], [7, 0], [6, 4, 2, 0, 1, 3, 5, 7]):
        assert torch.equal(torch.bmm(a[lanes], b[lanes]), whole[lanes])


# --------------------------------------------------------------------------------------- refusals and rows


def test_a_snapshot_of_another_trial_is_refused() -> None:
    snapshot = stopped_at(endless("parity-mlp2"), [1, 2], 10).snapshot()
    with pytest.raises(ValueError, match="trial"):
        next(train(endless("parity-mlp2", "egd"), [1, 2], horizon=50, state=snapshot, registry=REGISTRY))
    with pytest.raises(ValueError, match="7"):
        next(train(endless("parity-mlp2"), [1, 7], horizon=50, state=snapshot, registry=REGISTRY))


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_seeds_are_different_and_there_is_one(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match="seeds"):
        next(train(endless("parity-mlp2"), seeds, horizon=50, registry=REGISTRY))


def test_an_unknown_end_is_refused() -> None:
    with pytest.raises(ValueError, match="until"):
        next(train(endless("parity-mlp2"), [1], horizon=50, until="forever", registry=REGISTRY))


def test_without_validation_the_test_split_is_watched_and_the_row_says_so() -> None:
    spec = trial("pairs-mlp2", "egd", validation=0.0, monitor="test", every=EVERY, threshold=1.1)
    evaluation = stopped_at(spec, [1, 2], 20)
    columns = evaluation.curves()
    assert np.array_equal(columns["val_acc"], columns["test_acc"])
    assert np.array_equal(columns["val_loss"], columns["test_loss"])
    assert {row["monitor"] for row in evaluation.replicas()} == {"test"}


def test_the_switch_watches_the_monitored_split() -> None:
    """Same trial but for the monitor: the switch, and with it the run, follows another accuracy."""
    options = {"precision": "fp64", "every": EVERY, "threshold": 1.1}
    method = [{"name": "egd", "switch": 0.55, "sticky": False}]
    for monitor in ("val", "test"):
        columns = curve(stopped_at(trial("parity-mlp2", method, monitor=monitor, **options), [1, 2], 50), 1)
        expected = [True, *(columns[f"{monitor}_acc"][:-1] <= 0.55)]
        assert columns["active"].tolist()[1:] == expected[1:]


def test_a_row_says_what_was_run() -> None:
    spec = trial("pairs-mlp2", "test-look-ahead", every=EVERY, threshold=1.1)
    (row, _) = stopped_at(spec, [1, 2], 20).replicas()
    assert row["trial_id"] == spec.trial_id
    assert (row["seed"], row["batch"], row["precision"], row["lanes"]) == (1, 16, "fp32", 2)
    assert row["params"] == 22 * 32 + 32 + 32 * 11
    assert row["labels"] >= 60
    assert math.isfinite(row["threshold"])


def test_an_outer_share_is_held_back_from_training() -> None:
    """60 rows of training data, a quarter of them for the outer loss: 45 remain, two batches of 16 an epoch."""
    spec = trial("pairs-mlp2", "test-look-ahead", every={"epoch": True}, threshold=1.1)
    assert curve(stopped_at(spec, [1, 2], 4), 1)["step"].tolist() == [2, 4]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own inductor
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler: grokscale trains eagerly here")
def test_a_compiled_pack_trains_as_the_eager_one_and_says_so() -> None:
    """Within rounding, in a size that stays when replicas finish; every lane keeps its bits at any place."""
    spec = trial(GROKS, "egd", precision="fp64", every={"every": 0.02, "min": 10, "examples": 1024})
    *_, eager = train(spec, [1, 2, 3], horizon=40, registry=REGISTRY)
    *_, compiled = train(spec, [1, 2, 3], horizon=40, registry=REGISTRY, compiled=True)
    *_, turned = train(spec, [3, 1, 2], horizon=40, registry=REGISTRY, compiled=True)
    for name, column in eager.curves().items():
        assert np.allclose(compiled.curves()[name], column, rtol=1e-9, atol=1e-12), name
    one, other = (e.curves() for e in (compiled, turned))
    for seed in (1, 2, 3):
        a, b = (c["train_loss"][c["seed"] == seed] for c in (one, other))
        assert np.array_equal(a, b)
    assert [row["compiled"] for row in compiled.replicas()] == [True] * 3
    assert {row["lanes"] for row in compiled.replicas()} == {4}


@pytest.mark.parametrize("form", ["pairs-mlp2", "tokens-decoder"])
def test_bf16_rounds_products_and_keeps_parameters_in_float32(form: str) -> None:
    exact, rounded = (trial(form, "grokfast-ema", precision=p) for p in ("fp32", "bf16"))
    assert exact.trial_id != rounded.trial_id
    *_, a = train(exact, [1, 2], horizon=30, registry=REGISTRY)
    *_, b = train(rounded, [1, 2], horizon=30, registry=REGISTRY)
    assert {t.dtype for t in b._pack.lanes.stacked["params"].values()} == {torch.float32}
    left, right = a.curves()["train_loss"], b.curves()["train_loss"]
    assert not np.array_equal(left, right)
    assert np.allclose(left, right, rtol=0.05)


# ---------------------------------------------------------------------------------------------- timing


def test_trials_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that gets slower all the while does so for each of them: every look takes 5 % longer than the last."""
    looks = itertools.accumulate(1.05**k for k in itertools.count())
    monkeypatch.setattr(time, "perf_counter", lambda: next(looks))
    specs = [trial(GROKS, "none"), trial(GROKS, "egd"), trial(GROKS, "none")]
    (first, plain), (_, off), (last, _) = timings(specs, registry=REGISTRY)
    assert 1 < last / first < 1.05**8  # three trials and one with its method off: 8 looks a round
    assert first == plain and first < off < last
