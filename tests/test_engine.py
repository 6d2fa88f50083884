"""The engine against the reference loop, and its promises: schedule, order, horizon, divergence, no global state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from grokscale.models import initial
from grokscale.rng import generator
from grokscale.spec import TrialSpec
from grokscale.tasks.base import Task
from grokscale.train import Evaluation, lanes_for, next_evaluation, packs, train
from tests import reference as ref
from tests.trials import FORMS, GROKS, REGISTRY, trial
from tests.twins import decoder_twin, dense_input, from_twin, two_layer_twin

EVERY = {"every": 0.02, "min": 10, "examples": 1024}
STEPS = 50


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
    spec: TrialSpec, seed: int, evaluate_at: Sequence[int], method: Any, steps: int = STEPS
) -> tuple[ref.TwoLayer | ref.Decoder, ref.Trace]:
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
    optimiser = ref.Optimiser(
        o["name"].replace("adamw", "adam"), o["lr"], o["wd"], o["momentum"], (o["beta1"], o["beta2"]), o["eps"],
        o["decay"], o["warmup"])  # fmt: skip
    losses = {"mse": ref.squared_error, "hinge": ref.hinge}
    loss = losses[spec.task["loss"]] if signs else ref.cross_entropy
    trace = ref.train(
        net, splits, batches(seed, len(drawn.train.y), o["batch"], o["drop_last"], steps), optimiser, method, loss,
        ref.sign_accuracy if signs else ref.class_accuracy, evaluate_at)  # fmt: skip
    return net, trace


def agree(spec: TrialSpec, reference: Any = None, seeds: Sequence[int] = (1, 2), within: float = 1e-9) -> ref.Trace:
    """Every parameter after 50 steps, and every loss and accuracy on the way, of every seed."""
    evaluation = stopped_at(spec, seeds, STEPS)
    snapshot = evaluation.snapshot()
    trace = ref.Trace()
    for seed in seeds:
        method = reference() if reference else twin_of(spec.method)
        net, trace = reference_run(spec, seed, (10, 20, 30, 40, 50), method)
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
        knobs = {k: v for k, v in part.items() if k not in ("name", "layers")}
        if "switch" in knobs:
            knobs["threshold"] = knobs.pop("switch")
        made.append(ref.METHODS[part["name"]](**knobs))
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
