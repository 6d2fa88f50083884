"""A plugin as a user would write one: methods that use every extra of the contract but `jacobian`, a task and a model.

Named by `plugin = "grokscale_test_plugin"` in an experiment file; its folder has to be on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor

from grokscale.entries import Method, ModelEntry, TaskEntry
from grokscale.methods import METHODS
from grokscale.models import MODELS, Model
from grokscale.rng import generator as stream
from grokscale.tasks import TASKS
from grokscale.tasks.base import Inputs, Split, Splits, Task
from grokscale.transform import Params, Role, Roles, Scalar, Transform

# ------------------------------------------------------------------------------- a method that uses it all


class LookState(NamedTuple):
    gain: Tensor  # 0-d: weight of the look-ahead gradient, learned on the held-back share
    norm: Params  # 0-d each: first norm of every hidden matrix
    on: Tensor  # 0-d bool: the switch


def look_ahead(
    ahead: Scalar = 0.1,
    sigma: Scalar = 0.01,
    rate: Scalar = 0.1,
    every: int = 5,
    switch: Scalar = 0.9,
    share: float = 0.25,
) -> Transform:
    """g' = gain * gradient at (p - ahead g) + sigma * noise while the monitored accuracy is at most `switch`.

    Every `every` steps gain goes down the loss on the held-back `share` of the training half by `rate`, and the
    hidden matrices are scaled back to their first norms.
    """
    if every < 1:
        raise ValueError(f"every >= 1 must hold, got every={every}")
    if not 0 < share < 1:
        raise ValueError(f"0 < share < 1 must hold, got share={share}")

    def init(params: Params, roles: Roles, generator: torch.Generator) -> LookState:
        hidden = {k: p.norm() for k, p in params.items() if roles[k].kind == "hidden"}
        like = next(iter(params.values()))
        return LookState(like.new_ones(()), hidden, torch.ones((), dtype=torch.bool, device=like.device))

    def update(
        grads: Params, state: LookState, params: Params, *, step: int, val_accuracy: Tensor,
        inner_grad: Callable[[Params], Params], noise: Params, **_: Any,
    ) -> tuple[Params, LookState]:  # fmt: skip
        on = state.on & (val_accuracy <= switch)
        far = inner_grad({k: p - ahead * grads[k] for k, p in params.items()})
        out = {k: torch.where(on, state.gain * far[k] + sigma * noise[k], g) for k, g in grads.items()}
        return out, state._replace(on=on)

    def after(
        params: Params, state: LookState, *, step: int, inner_grad: Callable[[Params], Params],
        outer_loss: Callable[[Params], Tensor], **_: Any,
    ) -> tuple[Params, LookState]:  # fmt: skip
        grads = inner_grad(params)
        slope = torch.func.grad(lambda gain: outer_loss({k: p - gain * grads[k] for k, p in params.items()}))
        moved = state.gain - rate * slope(state.gain)
        gain = torch.where(torch.isfinite(moved), moved.clamp(0.1, 2.0), state.gain)
        projected = {k: p * (state.norm[k] / p.norm()) if k in state.norm else p for k, p in params.items()}
        return projected, state._replace(gain=gain)

    return Transform(
        init,
        update,
        after,
        period=every,
        needs=frozenset({"val_accuracy", "inner_grad", "outer_loss", "noise"}),
        noise=lambda params: {k: tuple(p.shape) for k, p in params.items()},
        outer=share,
        active=lambda state: state.on,
    )


LOOK_DEFAULTS: dict[str, Any] = {
    "ahead": 0.1, "sigma": 0.01, "rate": 0.1, "every": 5, "switch": 0.9, "share": 0.25}  # fmt: skip
LOOK_SPACE = {"sigma": FloatDistribution(1e-3, 0.1, log=True), "every": IntDistribution(1, 20)}

# ---------------------------------------------------------------------------------- a method that goes wrong


def poison(at: int = 15, share: Scalar = 0.5, value: str = "nan") -> Transform:
    """g' = value, "nan" or "inf", from step `at` on, in a share of the replicas.

    They are those whose first draw from Generator(seed, "method") is below `share`.
    """
    if at < 1:
        raise ValueError(f"at >= 1 must hold, got at={at}")
    if value not in ("nan", "inf"):
        raise ValueError(f"value must be 'nan' or 'inf', got {value!r}")

    def init(params: Params, roles: Roles, generator: torch.Generator) -> Tensor:
        return torch.rand((), generator=generator, dtype=torch.float64)

    def update(grads: Params, state: Tensor, params: Params, *, step: int, **_: Any) -> tuple[Params, Tensor]:
        if step < at:
            return dict(grads), state
        return {k: torch.where(state < share, torch.full_like(g, float(value)), g) for k, g in grads.items()}, state

    return Transform(init, update)


def poisoned(seed: int, share: float = 0.5) -> bool:
    """Does `poison` go wrong in the replica `seed`?"""
    return bool(torch.rand((), generator=stream(seed, "method"), dtype=torch.float64) < share)


# -------------------------------------------------------------------------------- a task and a model of its own


def majority(n: int = 9, k: int = 3, n_train: int = 60, n_val: int = 200, n_test: int = 200) -> Task:
    """x uniform in {-1, +1}^n, y = sign of the sum of the first k coordinates, k odd: learned within a few steps."""
    if k % 2 == 0 or k > n:
        raise ValueError(f"k odd and k <= n must hold, got k={k}, n={n}")

    def draw(rows: int, source: torch.Generator) -> Split:
        x = torch.randint(0, 2, (rows, n), generator=source, dtype=torch.int8) * 2 - 1
        return Split(x, x[:, :k].sum(1).sign())

    def splits(seed: int, validation: float) -> Splits:
        source = stream(seed, "split")
        train, test = draw(n_train, source), draw(n_test, source)
        return Splits(train, draw(n_val, stream(seed, "val")) if validation else None, test)

    return Task(
        inputs=Inputs("vector", n),
        outputs=1,
        splits=splits,
        loss=lambda out, y: ((out.squeeze(-1) - y) ** 2).mean(),
        correct=lambda out, y: y * out.squeeze(-1) > 0,
    )


class Linear(Model):
    """f(x) = W^T x."""

    def __init__(self, task: Task, scale: float) -> None:
        super().__init__()
        self.declare("w", (task.inputs.size, task.outputs), Role("hidden", 1), ("normal", scale))

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.w.dtype) @ self.w


def linear(task: Task, scale: float = 0.1) -> Linear:
    """One linear map. scale: deviation of the first weights."""
    if task.inputs.kind != "vector":
        raise ValueError(f"test-linear reads vectors, and this task gives {task.inputs.kind}")
    return Linear(task, scale)


METHODS["test-look-ahead"] = Method(
    "test-look-ahead", "g' = gain g(p - ahead g) + sigma noise", "tests", look_ahead, LOOK_DEFAULTS, LOOK_SPACE
)
METHODS["test-poison"] = Method(
    "test-poison", "g' = nan in some replicas", "tests", poison,
    {"at": 15, "share": 0.5, "value": "nan"}, {}, neutral={"share": 0.0},
)  # fmt: skip
TASKS["test-majority"] = TaskEntry(
    "test-majority", "sign of x_1 + ... + x_k among n signs", "tests", majority,
    {"n": 9, "k": 3, "n_train": 60, "n_val": 200, "n_test": 200}, horizon=1000,
    model={"name": "test-linear"}, optimiser={"name": "sgd", "lr": 0.05, "wd": 0.0, "batch": 10},
)  # fmt: skip
MODELS["test-linear"] = ModelEntry("test-linear", "one linear map", linear, {"scale": 0.1})
