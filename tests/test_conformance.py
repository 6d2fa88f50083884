"""The contract of a Transform, checked on every entry of METHODS (a plugin's too): a method is accepted by passing.

On the level of one replica first, then inside the engine, where lanes, resume and neighbours come in.
"""

from __future__ import annotations

import inspect
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from grokscale_test_plugin import poisoned
from optuna.distributions import CategoricalDistribution
from torch import Tensor
from torch.utils import _pytree as pytree

from grokscale.spec import TrialSpec
from grokscale.train import Evaluation, train
from grokscale.transform import Params, Role, Transform
from tests.trials import FORMS, GROKS, KNOBS, PLUGIN, REGISTRY, fits, trial

# Other tests load plugins that are made to fail; what is accepted here is grokscale's own and the good plugin's.
METHODS = sorted(
    name for name, m in REGISTRY.methods.items() if m.factory.__module__.startswith(("grokscale.methods.", PLUGIN))
)
PAIRS = [(name, form) for form in sorted(FORMS) for name in METHODS if fits(name, form)]
EXTRAS = {"val_accuracy", "val_loss", "inner_grad", "jacobian", "outer_loss", "noise", "roles", "lr"}
ROLES = {
    "table": Role("hidden", 1),
    "linear": Role("hidden", 0),
    "attention": Role("attention", 0),
    "embedding": Role("embedding", 1),
    "head": Role("head", 0),
    "bias": Role("bias"),
    "norm": Role("norm"),
}
SHAPES = {
    "table": (6, 4), "linear": (3, 5), "attention": (4, 4), "embedding": (7, 3), "head": (2, 3), "bias": (4,),
    "norm": (5,),
}  # fmt: skip


def draw(seed: int, dtype: torch.dtype = torch.float64) -> Params:
    source = torch.Generator().manual_seed(seed)
    return {k: torch.randn(shape, generator=source).to(dtype) for k, shape in SHAPES.items()}


def make(name: str, **knobs: Any) -> Transform:
    return REGISTRY.methods[name].factory(**{**REGISTRY.methods[name].defaults, **KNOBS.get(name, {}), **knobs})


def extras(transform: Transform, params: Params, step: int) -> dict[str, Any]:
    """Every extra, given whether or not it was asked for, as the engine may."""
    target = draw(99, next(iter(params.values())).dtype)
    source = torch.Generator().manual_seed(step)
    shapes = transform.noise(params) if transform.noise is not None else {}
    return {
        "val_accuracy": torch.tensor(0.3),
        "val_loss": torch.tensor(1.2),
        "inner_grad": lambda p: {k: p[k] - target[k] for k in p},
        "jacobian": lambda p: torch.stack([(p[k] ** 2).sum() for k in p]).sum().sqrt(),
        "outer_loss": lambda p: torch.stack([((p[k] - target[k]) ** 2).sum() for k in p]).sum(),
        "noise": {
            k: torch.randn(s, generator=source).to(next(iter(params.values())).dtype) for k, s in shapes.items()
        },
        "roles": ROLES,
        "lr": 0.05,
    }


def clone(tree: Any) -> Any:
    return pytree.tree_map(lambda t: t.clone(), tree)


def equal(a: Any, b: Any) -> bool:
    """Same structure and the same bits; NaN equals NaN."""
    left, right = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return pytree.tree_structure(a) == pytree.tree_structure(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x.nan_to_num(-1e9), y.nan_to_num(-1e9))
        for x, y in zip(left, right, strict=True)
    )


def replay(
    transform: Transform, steps: int, dtype: torch.dtype = torch.float64, *, spoil: bool = False, recall: bool = False
) -> list[tuple[Params, Params, Any]]:
    """(gradients, parameters, state) after each step. spoil: overwrite what a step was given once it is over.
    recall: every step also runs on a clone of the state first, and must give the same."""
    params = draw(0, dtype)
    state = transform.init(clone(params), ROLES, torch.Generator().manual_seed(5))
    out = []
    for step in range(1, steps + 1):
        grads, given = draw(step, dtype), clone(params)
        extra = extras(transform, params, step)
        rehearsal = remembered = None
        if recall:
            rehearsal, remembered = transform.update(clone(grads), clone(state), clone(params), step=step, **extra)
        kept_grads, kept_params = clone(grads), clone(given)
        new, state = transform.update(grads, state, given, step=step, **extra)
        assert equal(grads, kept_grads), "update changed its gradients"
        assert equal(given, kept_params), "update changed the parameters"
        if recall:
            assert equal(rehearsal, new)
            assert equal(remembered, state)
        result = clone(new)
        if spoil:
            for tensor in (*grads.values(), *given.values(), *new.values()):
                tensor.fill_(math.nan)
        params = {k: p - 0.1 * result[k] for k, p in params.items()}
        if transform.after is not None and step % transform.period == 0:
            given = clone(params)
            params, state = transform.after(given, state, step=step, **extra)
            params = clone(params)
            if spoil:
                for tensor in given.values():
                    tensor.fill_(math.nan)
        out.append((result, clone(params), clone(state)))
    return out


# ------------------------------------------------------------------------------------------- what it declares


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_complete_and_inside_the_space(name: str) -> None:
    method = REGISTRY.methods[name]
    signature = inspect.signature(method.factory).parameters
    assert {k: p.default for k, p in signature.items()} == dict(method.defaults)
    assert method.name == name
    assert method.equation
    assert method.source
    assert isinstance(method.version, int)
    for knob, distribution in method.space.items():
        default = method.defaults[knob]
        assert distribution._contains(distribution.to_internal_repr(default)), f"{knob}={default} not in {distribution}"
        ends = (
            distribution.choices
            if isinstance(distribution, CategoricalDistribution)
            else (distribution.low, distribution.high)  # type: ignore[attr-defined]
        )
        for value in ends:
            assert isinstance(make(name, **{knob: value}), Transform)
    assert make(name).needs <= EXTRAS
    assert make(name).period >= 1
    assert ("noise" in make(name).needs) == (make(name).noise is not None)
    assert ("outer_loss" in make(name).needs) == (make(name).outer > 0)


@pytest.mark.parametrize("name", METHODS)
def test_numbers_outside_their_range_are_refused_with_the_knobs_name(name: str) -> None:
    wrong = {
        "grokfast-ema": {"alpha": 1.0, "lam": -1.0, "init": "theta", "part": "low", "clip": 0.0, "clip_position": "in"},
        "grokfast-ma": {
            "window": 0, "lam": -1.0, "filter_type": "median", "two_stage": -1, "buffer": "fp8", "part": "low",
            "clip": 0.0, "clip_position": "in"},
        "egd": {
            "eps": 0.0, "layers": "none", "form": "exact", "rtol": 1.0, "polar": "qr", "blocks": 0, "refresh": 0},
        "egd-rsvd": {"rank": 0, "power": -1, "eps": 0.0, "layers": "none"},
        "egd-topk": {"rank": 0, "power": 0, "eps": 0.0, "rest": "double", "by": "arnoldi", "layers": "none"},
        "egd-power": {"q": 3.0, "eps": 0.0, "layers": "none"},
        "egd-colnorm": {"floor": 0.0, "axis": "column", "layers": "none"},
        "normgrad": {"c": 0.0, "scope": "row", "clip": -1.0},
        "nap": {"every": 0, "scope": "row"},
        "elr-rewarm": {"cycle": 0, "warm": 1.0, "peak": 0.5, "rho": 0.0, "hold": "none", "scope": "row"},
        "ngd-toy": {"size": 0},
        "shampoo": {"beta": 1.0, "eps": 0.0, "every": 0},
        "grokalign": {"lam": -1.0},
        "soap": {"beta1": 1.0, "beta2": -0.1, "eps": 0.0, "period": 0, "matrices": "some"},
        "muon": {"beta": 1.0, "ns_steps": 100, "ns_dtype": "fp8", "scale": "none", "order": "both", "companion": 0.0,
                 "beta1": 1.0, "beta2": -0.1, "eps": 0.0},
        "ademamix": {"alpha": -1.0, "beta1": 1.0, "beta2": 1.0, "beta3": 1.0, "eps": 0.0, "alpha_warmup": -1,
                     "beta3_warmup": -1},
        "grokadamw": {"alpha": 1.0, "kappa": -1.0, "lam": -1.0, "gamma": 1.0, "beta1": 1.0, "beta2": 1.0, "eps": 0.0},
        "neuralgrok": {"c": 0.0, "kind": "cnn", "width": 0, "depth": 0, "hidden": "64,", "q": -1.0, "period": 0,
                       "rate": -1.0, "meta_wd": -1.0, "outer": 0.0, "inner_clip": -1.0, "scope": "layer",
                       "lookahead_from": "now", "amplifier": "nowhere.pt@0123456789ab"},
    }
    for knob, value in wrong.get(name, {}).items():
        with pytest.raises(ValueError, match=rf"\b{knob}\b"):
            make(name, **{knob: value})


# ------------------------------------------------------------------------------------------------- one replica


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", METHODS)
def test_dtype_and_shape_are_kept(name: str, dtype: torch.dtype) -> None:
    history = replay(make(name), 4, dtype)
    first = history[0][2]
    for grads, params, state in history:
        for tree in (grads, params):
            assert {k: (t.shape, t.dtype) for k, t in tree.items()} == {k: (s, dtype) for k, s in SHAPES.items()}
        assert pytree.tree_structure(state) == pytree.tree_structure(first)
        for leaf, like in zip(pytree.tree_leaves(state), pytree.tree_leaves(first), strict=True):
            assert isinstance(leaf, Tensor)
            assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)


@pytest.mark.parametrize("name", METHODS)
def test_update_is_pure(name: str) -> None:
    """The same input gives the same output, on a clone of the state and in a second run."""
    assert equal(replay(make(name), 30, recall=True), replay(make(name), 30))


@pytest.mark.parametrize("name", METHODS)
def test_nothing_that_was_passed_in_or_out_is_kept(name: str) -> None:
    """A method that remembers a view (of a gradient, a parameter, its own answer) sees it overwritten here."""
    assert equal(replay(make(name), 30, spoil=True), replay(make(name), 30))


@pytest.mark.parametrize("name", METHODS)
def test_init_keeps_no_parameter_and_is_a_function_of_its_generator(name: str) -> None:
    params = draw(0)
    state = make(name).init(params, ROLES, torch.Generator().manual_seed(3))
    owned = {t.untyped_storage().data_ptr() for t in params.values()}
    assert all(t.untyped_storage().data_ptr() not in owned for t in pytree.tree_leaves(state))
    again = make(name).init(draw(0), ROLES, torch.Generator().manual_seed(3))
    assert equal(state, again)
    assert equal(params, draw(0))


@pytest.mark.parametrize("name", METHODS)
def test_two_transforms_of_one_factory_share_nothing(name: str) -> None:
    """State lives in what is returned, not in the closure: two interleaved runs are two runs."""
    transform, alone = make(name), replay(make(name), 10)
    params = draw(0)
    states = [transform.init(clone(params), ROLES, torch.Generator().manual_seed(5)) for _ in range(2)]
    for step in range(1, 11):
        for i in (0, 1):
            extra = extras(transform, params, step)
            grads, states[i] = transform.update(draw(step), states[i], clone(params), step=step, **extra)
            assert equal(grads, alone[step - 1][0]), f"run {i}, step {step}"
            if i == 1:
                params = {k: p - 0.1 * grads[k] for k, p in params.items()}
        if transform.after is not None and step % transform.period == 0:
            for i in (0, 1):
                moved, states[i] = transform.after(clone(params), states[i], step=step, **extra)
            params = clone(moved)


@pytest.mark.parametrize("name", [n for n in METHODS if REGISTRY.methods[n].neutral is not None])
def test_neutral_is_the_identity(name: str) -> None:
    transform = make(name, **dict(REGISTRY.methods[name].neutral or {}))
    params = draw(0)
    state = transform.init(params, ROLES, torch.Generator().manual_seed(0))
    for step in range(1, 31):
        grads = draw(step, torch.float64)
        out, state = transform.update(clone(grads), state, params, step=step, **extras(transform, params, step))
        assert equal(out, grads)


@pytest.mark.parametrize("name", METHODS)
def test_a_hyperparameter_may_be_a_tensor(name: str) -> None:
    """0-d tensors in place of floats, all at once; structural knobs are ints, bools and strings."""
    numbers = {k: v for k, v in REGISTRY.methods[name].defaults.items() if isinstance(v, float)}
    if name == "test-look-ahead":
        del numbers["share"]  # the share of a split is structure
    if name == "neuralgrok":
        del numbers["outer"]
    as_tensors = make(name, **{k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()})
    for a, b in zip(replay(make(name), 20), replay(as_tensors, 20), strict=True):
        for x, y in zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True):
            assert torch.allclose(x, y, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", METHODS)
def test_vmap_over_lanes_is_a_loop_over_replicas(name: str) -> None:
    """Hyperparameters per lane included: what the engine relies on."""
    transform = make(name)
    lanes = [draw(seed) for seed in range(3)]
    states = [transform.init(p, ROLES, torch.Generator().manual_seed(i)) for i, p in enumerate(lanes)]
    stacked: Any = pytree.tree_map(lambda *t: torch.stack(t), *states)
    params = {k: torch.stack([p[k] for p in lanes]) for k in SHAPES}
    for step in range(1, 15):
        extra = extras(transform, lanes[0], step)
        each = [draw(100 * step + i) for i in range(3)]
        together, stacked = torch.func.vmap(
            lambda g, s, p, step=step, extra=extra: transform.update(g, s, p, step=step, **extra)
        )({k: torch.stack([g[k] for g in each]) for k in SHAPES}, stacked, params)
        for i in range(3):
            alone, states[i] = transform.update(each[i], states[i], lanes[i], step=step, **extra)
            for k in SHAPES:
                assert torch.allclose(together[k][i], alone[k], rtol=1e-9, atol=1e-12), k


# ---------------------------------------------------------------------------------------------- in the engine
# Few steps, but past the ring buffer's first round, an epoch's end, several evaluations and an outer step.

EVERY = {"every": 0.02, "min": 10, "examples": 1024}
SHORT = 30


def curve_of(evaluation: Evaluation, seed: int, without: str = "seed") -> np.ndarray:
    """(columns, E) of one replica; NaN stays NaN."""
    curves = evaluation.curves()
    rows = curves["seed"] == seed
    return np.stack([np.asarray(v[rows], dtype=np.float64) for k, v in sorted(curves.items())
                     if k not in ("seed", without)])


def bits(evaluation: Evaluation, seed: int) -> bytes:
    return curve_of(evaluation, seed).tobytes()


def last(spec: TrialSpec, seeds: list[int], horizon: int = SHORT, **options: Any) -> Evaluation:
    *_, evaluation = train(spec, seeds, horizon=horizon, registry=REGISTRY, **options)
    return evaluation


def lane_bits(evaluation: Evaluation, seed: int) -> dict[str, bytes]:
    """Everything of a replica that has not ended, as bytes: parameters, state, last accuracy."""
    snapshot = evaluation.snapshot()
    if seed not in snapshot["alive"]:
        return {}
    lane = snapshot["alive"].index(seed)
    leaves, _ = pytree.tree_flatten_with_path(snapshot["stacked"])
    return {pytree.keystr(path): leaf[lane].numpy().tobytes() for path, leaf in leaves}


def stopped_at(spec: TrialSpec, seeds: list[int], step: int, horizon: int = 10_000, **options: Any) -> Evaluation:
    """The evaluation at `step` of a run that would go on, so that every replica is still there to be compared."""
    for evaluation in train(spec, seeds, horizon=horizon, registry=REGISTRY, **options):
        if evaluation.step >= step:
            assert evaluation.step == step
            return evaluation
    raise AssertionError(f"the run ended before step {step}")


def restored(snapshot: Mapping[str, Any]) -> dict[str, Any]:
    """Through a file's bytes, read the careful way."""
    buffer = io.BytesIO()
    torch.save(dict(snapshot), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


# Threshold above 1: nothing is decided early, so every lane lives to be compared to the last bit.
def endless(form: str, method: Any, **options: Any) -> TrialSpec:
    return trial(form, method, every=EVERY, threshold=1.1, **options)


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_split_run_is_whole_run(name: str, form: str) -> None:
    spec = endless(form, name)
    run = train(spec, [1, 2, 3], horizon=10_000, registry=REGISTRY)
    half = restored(next(run).snapshot())
    *_, whole = next(run), next(run)
    assert (half["step"], whole.step) == (10, SHORT)
    expected = {seed: (bits(whole, seed), lane_bits(whole, seed)) for seed in (1, 2, 3)}
    resumed = stopped_at(spec, [1, 2, 3], SHORT, state=half)
    for seed, (curve, tensors) in expected.items():
        assert bits(resumed, seed) == curve
        assert lane_bits(resumed, seed) == tensors


@pytest.mark.parametrize("name", METHODS)
def test_a_snapshot_is_a_copy_that_nothing_touches(name: str) -> None:
    """Taken in the middle of a run that goes on: ring buffers and the like are written in place behind it."""
    spec = endless("parity-mlp2", name)
    run = train(spec, [1, 2], horizon=10_000, registry=REGISTRY)
    next(run)
    snapshot = next(run).snapshot()
    before = restored(snapshot)
    next(run)
    assert torch.equal(before["stacked"]["params"]["w1"], snapshot["stacked"]["params"]["w1"])
    for a, b in zip(pytree.tree_leaves(before), pytree.tree_leaves(snapshot), strict=True):
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    second = stopped_at(spec, [1, 2], SHORT, state=snapshot)
    assert lane_bits(second, 1) == lane_bits(stopped_at(spec, [1, 2], SHORT, state=before), 1)


SEEDS = list(range(1, 9))


@pytest.mark.parametrize(("name", "form"), [pair for pair in PAIRS if pair[0] != "test-poison"])
def test_lanes_do_not_see_each_other(name: str, form: str) -> None:
    """The bits of a replica do not depend on its pack's size, its place in it, its neighbours or a resume."""
    spec = endless(form, name)
    run = train(spec, SEEDS, horizon=10_000, registry=REGISTRY)
    half = restored(next(run).snapshot())
    *_, whole = next(run), next(run)
    assert whole.step == SHORT
    expected = {seed: (bits(whole, seed), lane_bits(whole, seed)) for seed in SEEDS}
    assert len({curve for curve, _ in expected.values()}) == len(SEEDS), "seeds differ"
    for pack in ([3, 1, 8, 5, 6], [8, 5, 2], [5]):
        evaluation = stopped_at(spec, pack, SHORT)
        for seed in pack:
            assert (bits(evaluation, seed), lane_bits(evaluation, seed)) == expected[seed], f"{pack}: {seed}"
    for pack in ([7, 2, 4], [6, 3]):
        evaluation = stopped_at(spec, pack, SHORT, state=half)
        for seed in pack:
            assert (bits(evaluation, seed), lane_bits(evaluation, seed)) == expected[seed], f"resumed {pack}: {seed}"


@pytest.mark.parametrize("name", ["none", "egd", "grokfast-ma"])
def test_lanes_do_not_see_each_other_up_to_grokking(name: str) -> None:
    """Whole runs, in which packs shrink as replicas finish at different steps."""
    spec = trial(GROKS, [{"name": name, **({"window": 20, "lam": 1.0} if name == "grokfast-ma" else {})}])
    options = {"horizon": 400, "until": "stable"}
    whole, halfway = None, None
    for whole in train(spec, [1, 2, 3, 4, 5], registry=REGISTRY, **options):
        if halfway is None and whole.finished.any():
            halfway = restored(whole.snapshot())
    assert whole is not None
    assert halfway is not None
    rows = {row["seed"]: row for row in whole.replicas()}
    outcomes = [row["outcome"] for row in rows.values()]
    assert "grokked" in outcomes
    assert len({row["steps"] for row in rows.values()}) > 1
    left = halfway["alive"]
    for pack, state in (([4, 2], None), ([5, 3, 1], None), (left[-1:], halfway), (left[:3], halfway)):
        evaluation = last(spec, pack, state=state, **options)
        for row in evaluation.replicas():
            seed = row["seed"]
            assert bits(evaluation, seed) == bits(whole, seed)
            assert {**row, "lanes": 5} == rows[seed]


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("name", [n for n in METHODS if n != "test-poison"])
def test_a_lost_lane_is_diverged_and_changes_no_other(name: str, value: str) -> None:
    """Non-finite gradients go through the method itself (a decomposition would raise for the whole pack)."""
    chain = [{"name": "test-poison", "at": 13, "share": 0.5, "value": value}, {"name": name, **KNOBS.get(name, {})}]
    clean = [{**chain[0], "share": 0.0}, chain[1]]
    lost = {seed for seed in SEEDS if poisoned(seed)}
    assert 0 < len(lost) < len(SEEDS)
    evaluation = stopped_at(endless("parity-mlp2", chain), SEEDS, SHORT)
    whole = stopped_at(endless("parity-mlp2", clean), SEEDS, SHORT)
    for row in evaluation.replicas():
        seed = row["seed"]
        if seed in lost:
            assert row["outcome"] == "diverged"
            assert row["diverged_step"] == 14  # the first loss computed from the parameters that step 13 spoiled
            assert row["grok_step"] is None
            assert np.isfinite(curve_of(evaluation, seed)).all()
        else:
            assert row["outcome"] == "unfitted"
            assert row["diverged_step"] is None
            assert bits(evaluation, seed) == bits(whole, seed)
            assert lane_bits(evaluation, seed)["['params']['w1']"] == lane_bits(whole, seed)["['params']['w1']"]
    assert evaluation.finished.tolist() == [seed in lost for seed in SEEDS]


@pytest.mark.parametrize(("name", "form"), [pair for pair in PAIRS if REGISTRY.methods[pair[0]].neutral])
def test_a_neutral_method_is_the_baseline_bit_for_bit(name: str, form: str) -> None:
    neutral = [{"name": name, **KNOBS.get(name, {}), **dict(REGISTRY.methods[name].neutral or {})}]
    ours, plain = (stopped_at(endless(form, chain), [1, 2], SHORT) for chain in (neutral, "none"))
    for seed in (1, 2):
        seen = [curve_of(run, seed, without="active").tobytes() for run in (ours, plain)]  # a switch may be off
        assert seen[0] == seen[1]
        for key, weights in lane_bits(plain, seed).items():
            if key.startswith("['params']"):
                assert lane_bits(ours, seed)[key] == weights
