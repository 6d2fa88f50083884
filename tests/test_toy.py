"""The toy problem: its formulas against numbers computed by other means and against Monte Carlo, the engine against the
printed recursion."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import functional_call, grad

from grokscale.models import initial
from grokscale.models.linear import linear
from grokscale.tasks import toy_theory as theory
from grokscale.tasks.parity import parity
from grokscale.tasks.toy import toy
from grokscale.train import Lanes, Program, train
from tests.trials import REGISTRY, trial

SETTING: dict[str, float] = {"eps": 0.01, "theta": math.pi / 3}
U = (0.5, 5.0)


def error(k: int, u: tuple[float, float] = U) -> float:
    return float(theory.exact_error(theory.sgd_weights(k, u, eta=0.1, eps=0.01, s=1.0), **SETTING))


# ------------------------------------------------------------------------------- known answers (methods.md 8)


def test_moments() -> None:
    assert theory.moments(1.0) == pytest.approx((1.525135, 2.525135), abs=5e-7)
    assert theory.moments(0.0) == pytest.approx((math.sqrt(2 / math.pi), 1.0))


def test_the_remark_on_m1_holds_below_a_third_only() -> None:
    assert theory.moments(0.302)[0] < 1 < theory.moments(0.304)[0]


@pytest.mark.parametrize(
    ("k", "expected"), [(0, 1.0), (500, 1.0), (1000, 1.0), (2000, 0.649899), (3000, 0.239824), (5000, 0.032442)]
)
def test_error_curve(k: int, expected: float) -> None:
    assert error(k) == pytest.approx(expected, abs=5e-7)


def test_angle() -> None:
    """r, read off Theorem 1 for weights whose own angle is known: r_k = 1 / sqrt(1.01) for (1, 1)."""
    share = float(theory.theorem1((1.0, 1.0), **SETTING))
    assert share < 1
    assert math.cos(math.acos(1 / math.sqrt(1.01)) / share) == pytest.approx(0.985329, abs=5e-7)


def test_plateau_end_is_where_the_error_leaves_one() -> None:
    end = theory.plateau_end(5.0, eta=0.1, eps=0.01, s=1.0, theta=math.pi / 3)
    assert round(end) == 1564
    assert error(1560) == pytest.approx(1.0, abs=1e-9)
    assert error(1570) < 0.999
    printed = math.log(5 * 2.525135 * math.sqrt(3) / 1.525135) / 0.001
    assert int(printed) == 2662, "what the corollary gives as printed"
    assert error(2662) == pytest.approx(0.336, abs=5e-4), "the plateau is long over by then"


def test_theorem_1_is_exact_on_the_side_of_v_only() -> None:
    weights = theory.sgd_weights([0, 500, 2000, 5000], U, eta=0.1, eps=0.01, s=1.0)
    assert theory.theorem1(weights, **SETTING) == pytest.approx(theory.exact_error(weights, **SETTING))
    other = theory.sgd_weights(500, (0.5, -5.0), eta=0.1, eps=0.01, s=1.0)
    assert float(theory.theorem1(other, **SETTING)) == 1.0
    assert float(theory.exact_error(other, **SETTING)) == 0.0


@given(k=st.integers(0, 10_000), u2=st.floats(0.01, 50), eps=st.floats(1e-4, 1), degrees=st.floats(1, 89))
def test_theorem_1_is_exact_for_positive_u2(k: int, u2: float, eps: float, degrees: float) -> None:
    weights = theory.sgd_weights(k, (0.5, u2), eta=0.1, eps=eps, s=1.0)
    where = {"eps": eps, "theta": math.radians(degrees)}
    assert float(theory.theorem1(weights, **where)) == pytest.approx(
        float(theory.exact_error(weights, **where)), abs=1e-6)  # fmt: skip


def test_closed_forms_are_the_recursions() -> None:
    m1, m2 = theory.moments(0.7)
    sgd = newton = np.array([0.3, -2.0])
    for k in range(200):
        assert theory.sgd_weights(k, (0.3, -2.0), eta=0.1, eps=0.05, s=0.7) == pytest.approx(sgd, abs=1e-12)
        assert theory.newton_weights(k, (0.3, -2.0), eta=0.1, s=0.7) == pytest.approx(newton, abs=1e-12)
        sgd = sgd - 0.1 * np.array([m2 * sgd[0] - m1, 0.05 * sgd[1]])
        newton = newton - 0.1 * (newton - np.array([m1 / m2, 0.0]))


def test_the_newton_form_has_no_plateau() -> None:
    """The same start: at step 100 the Newton form is right, plain gradient descent always wrong until 1564."""
    at = theory.newton_weights(100, U, eta=0.1, s=1.0)
    assert float(theory.exact_error(at, **SETTING)) < 0.001
    assert error(100) == pytest.approx(1.0, abs=1e-9)


def test_weights_of_zero_are_always_wrong() -> None:
    assert float(theory.exact_error([0.0, 0.0], **SETTING)) == 1.0


# --------------------------------------------------------------------------------------------- Monte Carlo

CASES = [
    (w, eps, degrees)
    for w in ((0.5, 5.0), (0.6, 1.0), (0.6, -1.0), (-0.2, 3.0), (-0.5, -1.0), (0.0, 1.0), (1.0, 0.0))
    for eps, degrees in ((0.01, 60.0), (0.3, 20.0), (1.0, 80.0))
]


@pytest.mark.parametrize(("w", "eps", "degrees"), CASES)
def test_exact_error_by_rejection(w: tuple[float, float], eps: float, degrees: float) -> None:
    """Against the definition: draw z, keep what lies in the wedge, count what sign(w z) gets wrong."""
    theta = math.radians(degrees)
    z = np.random.default_rng(0).standard_normal((400_000, 2)) * [1.0, math.sqrt(eps)]
    z = z[(z @ [math.cos(theta), math.sin(theta)]) * z[:, 0] <= 0]
    wrong = float(np.mean(np.sign(z @ np.array(w)) != np.sign(z[:, 0])))
    exact = float(theory.exact_error(w, eps=eps, theta=theta))
    assert abs(wrong - exact) < 5 * math.sqrt(max(exact * (1 - exact), 1 / len(z)) / len(z))


@pytest.mark.parametrize("s", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize(("w", "eps"), [((0.5, 5.0), 0.1), ((0.6, -1.0), 0.3), ((-0.2, 1.0), 1.0), ((1.0, 0.0), 0.1)])
def test_train_error_by_rejection(w: tuple[float, float], eps: float, s: float) -> None:
    z = np.random.default_rng(1).standard_normal((800_000, 2)) * [1.0, math.sqrt(eps)]
    z = z[np.abs(z[:, 0]) >= s]
    wrong = float(np.mean(np.sign(z @ np.array(w)) != np.sign(z[:, 0])))
    exact = float(theory.train_error(w, eps=eps, s=s))
    assert abs(wrong - exact) < 5 * math.sqrt(max(exact * (1 - exact), 1 / len(z)) / len(z))


def test_train_error_without_a_gap_is_an_angle() -> None:
    w, eps = np.array([0.3, 0.8]), 0.2
    angle = math.atan2(math.sqrt(eps) * 0.8, 0.3)
    assert float(theory.train_error(w, eps=eps, s=0.0)) == pytest.approx(angle / math.pi, abs=1e-6)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize(("eps", "s", "degrees"), [(0.01, 1.0, 60.0), (0.5, 0.2, 30.0)])
def test_rows_follow_their_distribution(shift: bool, eps: float, s: float, degrees: float) -> None:
    """Moments of all coordinates, five standard errors wide; where rows may lie; labels."""
    n = 50_000
    splits = toy(eps=eps, s=s, degrees=degrees, shift=shift, n_train=n, n_val=n, n_test=n).splits(0, 0.2)
    theta, m = math.radians(degrees), theory.moments(s)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    for name, split in parts.items():
        assert split is not None
        x, y = split.x.double(), split.y.double()
        assert torch.equal(y, torch.sign(x[:, 0]))
        assert abs(float(y.mean())) < 5 / math.sqrt(n)
        if name == "train" or not shift:
            assert float(x[:, 0].abs().min()) >= s * (1 - 1e-6)
            assert float(x[:, 0].abs().mean()) == pytest.approx(m[0], abs=5 / math.sqrt(n))
            assert float((x[:, 0] ** 2).mean()) == pytest.approx(m[1], abs=25 / math.sqrt(n))
            assert float((x[:, 1] ** 2).mean()) == pytest.approx(eps, rel=5 * math.sqrt(2 / n))
            assert abs(float((x[:, 0] * x[:, 1]).mean())) < 5 * math.sqrt(eps * m[1] / n)
        else:
            assert (x @ torch.tensor([math.cos(theta), math.sin(theta)]).double() * x[:, 0] <= 1e-7).all()
            z = np.random.default_rng(2).standard_normal((3_000_000, 2)) * [1.0, math.sqrt(eps)]
            z = z[(z @ [math.cos(theta), math.sin(theta)]) * z[:, 0] <= 0][:n]
            assert len(z) > 0.9 * n
            for ours, theirs in ((x.numpy() ** 2, z**2), (np.abs(x.numpy()), np.abs(z))):
                spread = np.sqrt(theirs.var(0) / len(z) + ours.var(0) / n)
                assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * spread).all()


def test_validation_is_fresh_and_leaves_training_and_test_alone() -> None:
    task = toy(n_train=50, n_val=40, n_test=30)
    without, with_validation = task.splits(4, 0.0), task.splits(4, 0.2)
    assert without.val is None
    assert with_validation.val is not None
    assert [len(s.y) for s in with_validation if s is not None] == [50, 40, 30]
    assert torch.equal(without.train.x, with_validation.train.x)
    assert torch.equal(without.test.x, with_validation.test.x)
    assert not torch.equal(task.splits(5, 0.0).train.x, without.train.x)


# ---------------------------------------------------------------------------------------------- the engine

SMALL: dict[str, Any] = {"eps": 0.1, "n_train": 500, "n_val": 400, "n_test": 4000}
TABLES: dict[str, Any] = {
    "task": {"name": "toy", **SMALL}, "model": {"name": "linear", "start": [0.1, 1.0], "scale": 5.0},
    "optimiser": {**REGISTRY.tasks["toy"].optimiser, "batch": 500},
}  # fmt: skip


def test_the_loss_has_the_printed_gradient() -> None:
    task = toy(**SMALL)
    split, model = task.splits(0, 0.0).train, linear(task, start=(0.3, -0.7))
    params = initial(model, torch.Generator(), torch.float64)
    gradient = grad(lambda p: task.loss(functional_call(model, p, (split.x,)), split.y))(params)["w"]
    x, y = split.x.numpy().astype(float), split.y.numpy().astype(float)
    assert gradient[:, 0].numpy() == pytest.approx(x.T @ (x @ params["w"][:, 0].numpy() - y) / len(y), abs=1e-13)


def test_full_batch_training_is_the_printed_recursion() -> None:
    """Float64, two replicas: w <- w - eta X'(X w - Y) / n from the preset's start, whatever the order of the rows."""
    spec = trial(TABLES, precision="fp64", validation=0.0)
    program = Program(spec, REGISTRY, "cpu")
    lanes = Lanes(program, [3, 4], [0, 1])
    data = [program.task.splits(seed, 0.0).train for seed in (3, 4)]
    xs = [split.x.numpy().astype(float) for split in data]
    ys = [split.y.numpy().astype(float) for split in data]
    w = [np.array([0.1, 1.0], dtype=np.float32).astype(float) * 5 for _ in xs]
    with torch.no_grad():
        for step in range(1, 201):
            lanes.step(step)
            w = [w - 0.1 * x.T @ (x @ w - y) / 500 for x, y, w in zip(xs, ys, w, strict=True)]
            if step in (1, 2, 50, 200):
                assert lanes.stacked["params"]["w"][..., 0].numpy() == pytest.approx(np.stack(w), abs=1e-6)


def test_the_natural_gradient_is_the_newton_form() -> None:
    """w(k) = (1 - eta)^k w(0) + (1 - (1 - eta)^k) w_ols, with the least squares solution of the seed's own rows."""
    program = Program(trial(TABLES, "ngd-toy", precision="fp64", validation=0.0), REGISTRY, "cpu")
    lanes = Lanes(program, [3, 4], [0, 1])
    data = [program.task.splits(seed, 0.0).train for seed in (3, 4)]
    best = np.stack([np.linalg.lstsq(d.x.numpy().astype(float), d.y.numpy().astype(float))[0] for d in data])
    with torch.no_grad():
        for step in range(1, 61):
            lanes.step(step)
            left = 0.9**step
            expected = left * np.array([0.5, 5.0]) + (1 - left) * best
            assert lanes.stacked["params"]["w"][..., 0].numpy() == pytest.approx(expected, abs=1e-6)


def test_measured_accuracy_lies_on_the_overlay() -> None:
    """20,000 training rows: the plateau's end and the fall, against the curve of infinitely many rows."""
    task = {**TABLES["task"], "n_train": 20_000}
    tables = {**TABLES, "task": task, "optimiser": {**TABLES["optimiser"], "batch": 20_000}}
    spec = trial(tables, threshold=1.1, every={"every": 0.0, "min": 50, "examples": 4000})
    *_, end = train(spec, [1, 2], horizon=450, registry=REGISTRY)
    curves = end.curves()
    k = curves["step"]
    weights = theory.sgd_weights(k, (0.5, 5.0), eta=0.1, eps=0.1, s=1.0)
    exact = theory.exact_error(weights, eps=0.1, theta=math.pi / 3)
    plateau = theory.plateau_end(5.0, eta=0.1, eps=0.1, s=1.0, theta=math.pi / 3)
    assert 150 < plateau < 160
    assert exact[k <= 150] == pytest.approx(1.0, abs=1e-9)
    assert exact[k == 450].max() < 0.1
    assert np.abs((1 - curves["test_acc"]) - exact).max() < 0.04
    seen = 1 - curves["train_acc"]
    assert np.abs(seen - theory.train_error(weights, eps=0.1, s=1.0)).max() < 0.02


# ----------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"eps": 0.0}, "0 < eps <= 1 must hold, got eps=0.0"),
        ({"s": -1.0}, "0 <= s <= 8 must hold, got s=-1.0"),
        ({"degrees": 90.0}, "0 < degrees < 90 must hold, got degrees=90.0"),
        ({"n_val": 0}, "n_train, n_val, n_test >= 1 must hold"),
    ],
)
def test_an_impossible_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        toy(**options)


def test_the_linear_model_starts_where_it_is_told() -> None:
    task = toy(**SMALL)
    told = initial(linear(task, start=(0.1, 0.995), scale=2.0), torch.Generator(), torch.float64)["w"]
    assert told.flatten().tolist() == pytest.approx([0.2, 1.99], abs=1e-6)
    wide = parity(n=2000, k=2, n_train=1, n_val=1, n_test=1)
    drawn = initial(linear(wide), torch.Generator().manual_seed(0))["w"]
    assert float(drawn.std()) == pytest.approx(1 / math.sqrt(2000), rel=0.1)
    with pytest.raises(ValueError, match="start must hold 2 first weights of this task, or none, got 3"):
        linear(task, start=(1.0, 2.0, 3.0))
