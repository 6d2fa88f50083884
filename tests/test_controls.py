"""The controls against their twins, and what makes each of them a control."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grokscale.entries import Registry
from grokscale.methods.controls import norm_of
from grokscale.models import initial
from grokscale.rng import generator
from grokscale.train import Lanes, Program, train
from grokscale.transform import Params, Role, Transform, adam, chain, sgd
from tests import reference_rivals as twins
from tests.test_engine import agree, endless
from tests.trials import FORMS, REGISTRY, trial

ROLES = {"w": Role("hidden", 0), "b": Role("bias"), "head": Role("head", 0)}
SHAPES = {"w": (3, 5), "b": (3,), "head": (2, 3)}


def make(name: str, **knobs: Any) -> Transform:
    return REGISTRY.methods[name].factory(**knobs)


def draw(seed: int, scale: float = 1.0) -> Params:
    source = torch.Generator().manual_seed(seed)
    return {k: scale * torch.randn(s, generator=source, dtype=torch.float64) for k, s in SHAPES.items()}


def once(transform: Transform, grads: Params, params: Params | None = None, **extra: Any) -> Params:
    params = params or draw(0)
    state = transform.init(params, ROLES, torch.Generator())
    return transform.update(grads, state, params, step=1, **extra)[0]


# ---------------------------------------------------------------------------------------------- against the twins


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("normgrad", {}),
        ("normgrad", {"c": 0.2, "clip": 1.0}),
        ("normgrad", {"c": 0.5, "scope": "global"}),
        ("orthograd", {}),
        ("orthograd", {"rescale": False}),
    ],
)
def test_engine_is_the_twin(name: str, knobs: dict[str, Any], form: str) -> None:
    """The decoder by SGD: Adam moves the biases of the keys by rounding noise, which enters orthograd's w.w."""
    plain = {"name": "sgd", "lr": 0.05, "decay": "coupled"} if form == "tokens-decoder" else {}
    spec = endless(form, [{"name": name, **knobs}], optimiser=plain)
    agree(spec, partial(twins.METHODS[name], **knobs), seeds=(3,))


@pytest.mark.parametrize(("every", "scope"), [(1, "tensor"), (7, "tensor"), (1, "global"), (10, "global")])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_projection_is_the_twin(form: str, every: int, scope: str) -> None:
    plain = {"name": "sgd", "lr": 0.05, "decay": "coupled" if form == "tokens-decoder" else "inside"}
    spec = endless(form, [{"name": "nap", "every": every, "scope": scope}], optimiser=plain)
    built = partial(twins.KeptNormOptimiser, every=every, scope=scope)
    agree(spec, lambda: lambda net, accuracy: None, seeds=(3,), built=built)


@pytest.mark.parametrize(
    "knobs",
    [
        {"cycle": 20},
        {"cycle": 7, "warm": 0.5, "peak": 3.0, "scope": "global"},
        {"cycle": 12, "rho": 0.8, "hold": "clamp"},
        {"cycle": 12, "warm": 0.3, "rho": 0.9, "hold": "clamp", "scope": "global"},
    ],
)
@pytest.mark.parametrize("form", sorted(FORMS))
def test_rewarming_is_the_twin(form: str, knobs: dict[str, Any]) -> None:
    plain = {"name": "sgd", "lr": 0.02, "decay": "coupled" if form == "tokens-decoder" else "inside"}
    spec = endless(form, [{"name": "elr-rewarm", **knobs}], optimiser=plain)
    built = partial(twins.RewarmedOptimiser, **knobs)
    agree(spec, lambda: lambda net, accuracy: None, seeds=(3,), built=built)


# ------------------------------------------------------------------------------------------- normalised gradient


def test_every_tensor_has_norm_c_and_a_zero_gradient_stays_zero() -> None:
    grads = {**draw(1, 1e-3), "b": torch.zeros(3, dtype=torch.float64)}
    out = once(make("normgrad", c=0.3), grads)
    assert not out["b"].any()
    for k in ("w", "head"):
        assert float(out[k].norm()) == pytest.approx(0.3, rel=1e-12)
        assert torch.allclose(out[k] / out[k].norm(), grads[k] / grads[k].norm())
    whole = once(make("normgrad", c=0.3, scope="global"), grads)
    assert float(norm_of(whole)) == pytest.approx(0.3, rel=1e-12)
    for k, g in grads.items():
        assert torch.allclose(whole[k] / 0.3, g / norm_of(grads), rtol=1e-12)


@pytest.mark.parametrize(("c", "before", "after"), [(0.2, 1.0770330, 1.0), (0.1, 0.5385165, 0.5385165)])
def test_the_clip_makes_c_invisible_with_29_tensors(c: float, before: float, after: float) -> None:
    """methods.md section 8: c sqrt(29) = 1.0770 at c = 0.2 is cut to 1.0, .5385 at c = 0.1 is not."""
    source = torch.Generator().manual_seed(4)
    grads = {str(i): torch.randn(4, 3, generator=source, dtype=torch.float64) for i in range(29)}
    assert float(norm_of(once(make("normgrad", c=c), grads, grads))) == pytest.approx(before, abs=1e-6)
    assert float(norm_of(once(make("normgrad", c=c, clip=1.0), grads, grads))) == pytest.approx(after, abs=2e-6)
    as_tensor = once(make("normgrad", c=c, clip=torch.tensor(1.0).double()), grads, grads)
    assert float(norm_of(as_tensor)) == pytest.approx(after, abs=2e-6)


# -------------------------------------------------------------------------------------------------- orthograd


def test_what_is_left_is_across_the_weights_and_as_long() -> None:
    params, grads = draw(0), draw(1)
    params["b"] = torch.zeros(3, dtype=torch.float64)
    for rescale in (True, False):
        out = once(make("orthograd", rescale=rescale), grads, params)
        for k, g in out.items():
            assert abs(float((g * params[k]).sum())) < 1e-12 * float(grads[k].norm() * (params[k].norm() + 1))
            shorter = float(g.norm()) < float(grads[k].norm()) * (1 - 1e-9)
            assert shorter == (not rescale and k != "b")
        assert torch.allclose(out["b"], grads["b"]), "a zero bias has no direction to take out"


# -------------------------------------------------------------------------------------------------------- nap


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_norms_are_the_first_ones_at_every_projection_and_not_between(scope: str) -> None:
    spec = endless("pairs-mlp2", [{"name": "nap", "every": 20, "scope": scope}])
    seen: dict[int, list[float]] = {}
    for evaluation in train(spec, [5], horizon=1000, registry=REGISTRY):
        params = evaluation.snapshot()["stacked"]["params"]
        one = {k: p[0] for k, p in params.items()}
        seen[evaluation.step] = [float(one[k].norm()) for k in ("w1", "w2")] + [float(norm_of(one))]
        if evaluation.step >= 40:
            break
    program = Program(spec, REGISTRY, "cpu")
    start = initial(program.model, generator(5, "init"), torch.float64)
    first = [float(start[k].norm()) for k in ("w1", "w2")] + [float(norm_of(start))]
    kept = [0, 1] if scope == "tensor" else [2]
    for step, norms in seen.items():
        same = np.isclose([norms[i] for i in kept], [first[i] for i in kept], rtol=1e-12)
        assert same.all() == (step % 20 == 0), (step, norms, first)
    assert {20, 40} < set(seen)


# ------------------------------------------------------------------------------------------------- elr-rewarm


def rewarmed(grads: Params, start: Params, steps: int, **knobs: Any) -> list[Params]:
    """Parameters after each of so many steps of SGD at rate 0.1 on one gradient, and before the first."""
    steps_of, last = make("elr-rewarm", **knobs), sgd(0.1)
    assert steps_of.after is not None
    seen, state = [start], steps_of.init(start, ROLES, torch.Generator())
    for step in range(1, steps + 1):
        out, state = steps_of.update(grads, state, seen[-1], step=step)
        updates, _ = last.update(out, (), seen[-1], step=step)
        moved, state = steps_of.after({k: p + updates[k] for k, p in seen[-1].items()}, state, step=step)
        seen.append(moved)
    return seen


def test_a_rewarmed_step_by_hand() -> None:
    """w = (3, 4), g = (-10, 0): steps of length 1, 2 and 3 by 1 to the right, each scaled back to norm 5."""
    start = {"w": torch.tensor([[3.0, 4.0]], dtype=torch.float64)}
    grads = {"w": torch.tensor([[-10.0, 0.0]], dtype=torch.float64)}
    seen = rewarmed(grads, start, 3, cycle=4, warm=0.5, peak=3.0)
    first = torch.tensor([[4.0, 4.0]]).double() * 5 / math.sqrt(32)
    second = first + torch.tensor([[2.0, 0.0]])
    second = second * 5 / second.norm()
    third = second + torch.tensor([[3.0, 0.0]])
    for got, expected in zip(seen[1:], (first, second, third * 5 / third.norm()), strict=True):
        assert torch.allclose(got["w"], expected, rtol=1e-12)


def test_the_effective_rate_is_the_schedule_once_a_cycle() -> None:
    """Steps of one norm on biases, which are not projected: ||u|| is 1 to 10 and back, and 1 again after a cycle."""
    grads = {k: g / norm_of(draw(1)) for k, g in draw(1).items()}
    seen = rewarmed(grads, draw(0), 25, cycle=20, warm=0.25, peak=10.0)
    unit = float(0.1 * grads["b"].norm())
    lengths = [float((b["b"] - a["b"]).norm()) / unit for a, b in pairwise(seen)]
    rising = [1 + 9 * i / 5 for i in range(6)]
    falling = [1 + 9 * (1 + math.cos(math.pi * i / 15)) / 2 for i in range(1, 15)]
    assert lengths == pytest.approx([*rising, *falling, *rising[:5]], rel=1e-9)
    for params in seen:
        for k in ("w", "head"):
            assert float(params[k].norm()) == pytest.approx(float(draw(0)[k].norm()), rel=1e-12)


def test_a_clamp_lets_norms_shrink_and_a_peak_of_one_is_nap() -> None:
    start = draw(0)
    inwards = {k: 2.0 * p for k, p in start.items()}  # a step of 0.1 takes a fifth of the weights away
    shrunk = rewarmed(inwards, start, 1, peak=1.0, hold="clamp")[-1]
    held = rewarmed(inwards, start, 1, peak=1.0, hold="clamp", rho=0.5)[-1]
    for k in ("w", "head"):
        assert torch.allclose(shrunk[k], 0.8 * start[k])
        assert float(held[k].norm()) == pytest.approx(0.5 * float(start[k].norm()))
    nap, params = make("nap"), start
    state = nap.init(start, ROLES, torch.Generator())
    assert nap.after is not None
    for step in range(1, 6):
        params, state = nap.after({k: p - 0.1 * draw(1)[k] for k, p in params.items()}, state, step=step)
    same = rewarmed(draw(1), start, 5, peak=1.0)[-1]
    assert all(torch.allclose(same[k], params[k], rtol=1e-12) for k in SHAPES)


# ---------------------------------------------------------------------------------------------------- ngd-toy


def linear_trial(method: Any, lr: float = 0.1, batch: int = 60, **task: Any) -> Any:
    """The plugin's linear model under a square loss; full batch."""
    form: Mapping[str, Any] = {
        "task": {"name": "test-majority", "n": 3, "k": 3, "n_train": 60, **task},
        "model": {"name": "test-linear"},
        "optimiser": {"lr": lr, "wd": 0.0, "batch": batch},
    }
    return trial(form, method, precision="fp64", every={"every": 0.02, "min": 5, "examples": 64}, threshold=1.1)


def data_of(spec: Any, seed: int, registry: Registry = REGISTRY) -> tuple[Tensor, Tensor, Tensor]:
    """X (60, 3), y (60,), first weights (3,) of a seed."""
    program = Program(spec, registry, "cpu")
    splits, _ = program.splits(seed)
    start, *_ = program.start(seed)
    return splits.train.x.double(), splits.train.y.double(), start["w"].flatten()


def test_newton_form_goes_straight_to_least_squares() -> None:
    """w(k) = (1 - eta)^k w(0) + (1 - (1 - eta)^k) w_ols, the closed form of methods.md 3.7, through the engine."""
    eta = 0.1
    spec = linear_trial([{"name": "ngd-toy", "size": 3}], eta)
    for seed in (1, 2):
        x, y, start = data_of(spec, seed)
        solution = torch.from_numpy(np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0])
        for evaluation in train(spec, [seed], horizon=1000, registry=REGISTRY):
            left = (1 - eta) ** evaluation.step
            got = evaluation.snapshot()["stacked"]["params"]["w"][0].flatten()
            assert torch.allclose(got, left * start + (1 - left) * solution, rtol=1e-10, atol=1e-12), evaluation.step
            if evaluation.step >= 20:
                break


def test_natural_gradient_is_the_printed_recursion() -> None:
    """eta (X'X/n)^-1 X'(Xw - y)/n on ill-conditioned data: the factor 2 of the loss cancels."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, generator=source, dtype=torch.float64) * torch.tensor([1.0, 0.1]).double()
    y = x[:, 0].sign()

    def inner_grad(params: Params) -> Params:
        return torch.func.grad(lambda p: ((x @ p["w"] - y[:, None]) ** 2).mean())(params)

    params = {"w": torch.randn(2, 1, generator=source, dtype=torch.float64)}
    out = once(make("ngd-toy"), inner_grad(params), params, inner_grad=inner_grad)["w"]
    sigma, residual = x.T @ x / 500, x.T @ (x @ params["w"] - y[:, None]) / 500
    assert torch.allclose(out, torch.linalg.inv(sigma) @ residual, rtol=1e-9)


def test_directions_without_data_keep_still() -> None:
    """Rank one data: the pseudo-inverse, and nothing of size 1 / rounding."""
    x = torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [0.0]], dtype=torch.float64)

    def inner_grad(params: Params) -> Params:
        return torch.func.grad(lambda p: ((x @ p["w"] - y) ** 2).mean())(params)

    params = {"w": torch.tensor([[0.3], [-0.7]], dtype=torch.float64)}
    g = inner_grad(params)
    expected = torch.linalg.pinv(x.T @ x, rtol=1e-12) @ (x.T @ (x @ params["w"] - y))
    assert torch.allclose(once(make("ngd-toy"), g, params, inner_grad=inner_grad)["w"], expected, rtol=1e-9)
    assert not once(make("ngd-toy"), {"w": 0 * g["w"]}, params, inner_grad=lambda p: {"w": 0 * p["w"]})["w"].any()


def test_larger_matrices_keep_their_gradient_and_cost_nothing() -> None:
    grads = draw(3)

    def refuse(params: Params) -> Params:
        raise AssertionError("no matrix is small enough")

    assert all(torch.equal(out, grads[k]) for k, out in once(make("ngd-toy"), grads, inner_grad=refuse).items())


def test_oracle_counts_the_gradients_of_the_natural_gradient() -> None:
    spec = linear_trial([{"name": "ngd-toy", "size": 3}], batch=20)
    plain = linear_trial("none", batch=20)
    lanes = [Lanes(Program(s, REGISTRY, "cpu"), [1], [0, 0]).oracle for s in (spec, plain)]
    assert lanes == [20 + 4 * 20, 20]


# ------------------------------------------------------------------------------------------ what they are not


def test_under_adam_a_scale_of_the_gradient_is_invisible() -> None:
    """Why lr x (1 + lambda) is an arm's setting and no method: Adam divides a constant factor out, SGD does not."""
    params, moved = draw(0), {}
    for name, last in (("adam", adam(0.1)), ("sgd", sgd(0.1))):
        for c in (1.0, 3.0):
            steps = chain(make("normgrad", c=c), last)
            state = steps.init(params, ROLES, torch.Generator())
            for step in (1, 2, 3):
                moved[name, c], state = steps.update(draw(step), state, params, step=step)
    for k in SHAPES:
        assert torch.allclose(moved["adam", 3.0][k], moved["adam", 1.0][k], rtol=1e-5)
        assert torch.allclose(moved["sgd", 3.0][k], 3 * moved["sgd", 1.0][k], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "knobs", "per_scalar"),
    [
        ("normgrad", {}, 3),
        ("normgrad", {"clip": 1.0}, 6),
        ("orthograd", {}, 11),
        ("nap", {"every": 10}, 0.3),
        ("elr-rewarm", {}, 6),
    ],
)
def test_flops_are_a_few_per_scalar(name: str, knobs: dict[str, Any], per_scalar: float) -> None:
    method = REGISTRY.methods[name]
    assert method.flops is not None
    declared = method.flops(SHAPES, ROLES, {**method.defaults, **knobs})
    assert declared == pytest.approx(per_scalar * sum(math.prod(s) for s in SHAPES.values()))


def test_flops_of_the_natural_gradient_are_of_the_small_matrices_alone() -> None:
    flops = REGISTRY.methods["ngd-toy"].flops
    assert flops is not None
    small: dict[str, tuple[int, ...]] = {"w": (2, 1)}
    assert flops({**small, "wide": (100, 5), "b": (2,)}, ROLES, {"size": 2}) == flops(small, ROLES, {"size": 2}) > 0
    assert flops(SHAPES, ROLES, {"size": 2}) == 0
