"""GrokAlign: a penalty on how much the outputs move with the inputs (methods.md 6)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor

from grokscale.entries import Method
from grokscale.methods.controls import scalars
from grokscale.methods.knobs import number
from grokscale.transform import Params, Roles, Scalar, State, Transform

DEFAULTS: dict[str, Any] = {"lam": 0.001}
SPACE = {"lam": FloatDistribution(1e-5, 1.0, log=True)}


def grokalign(lam: Scalar = 0.001) -> Transform:
    """g' = g + lam dP / dtheta, P = sqrt(mean over the batch of ||J_x f||_F^2): the gradient of loss + lam P.

    The norm is exact, by one vector-Jacobian product per output; the released estimate draws the products at random.
    lam: weight of the penalty, >= 0; 0 is off. The default is ours: nothing is at hand that says a published one.
    Raises ValueError for a negative lam.
    Source: GrokAlign, methods.md 6.
    """
    number("lam", lam, "lam >= 0", lambda x: x >= 0)

    def update(
        grads: Params, state: State, params: Params, *, step: int, jacobian: Callable[[Params], Tensor], **_: Any
    ) -> tuple[Params, State]:
        slope = torch.func.grad(jacobian)(params)
        return {k: g + lam * slope[k] for k, g in grads.items()}, state

    def init(params: Params, roles: Roles, generator: torch.Generator) -> State:
        return ()

    return Transform(init, update, needs=frozenset({"jacobian"}))


METHODS = [
    Method(
        "grokalign", "g' = g + lam dP/dtheta, P = sqrt(mean of ||J_x f||_F^2)", "GrokAlign, methods.md 6",
        grokalign, DEFAULTS, SPACE, neutral={"lam": 0.0}, inputs=("vector",),
        flops=lambda shapes, roles, knobs: 2.0 * scalars(shapes),
    ),
]  # fmt: skip
