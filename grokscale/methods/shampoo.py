"""Shampoo: whitening by the means of G G' and G' G (methods.md 6).

With beta = 0 and no damping it is EGD, U V^T: the control that asks whether a memory in the metric helps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor

from grokscale.entries import Method
from grokscale.methods.spaces import Complement
from grokscale.transform import Params, Roles, Scalar, Transform

KINDS = ("hidden", "attention")
TINY = 1e-30  # keeps the root of a zero matrix finite

DEFAULTS: dict[str, Any] = {"beta": 0.95, "eps": 1e-6, "every": 1}
SPACE = {
    "beta": Complement(0.0, 0.999),
    "eps": FloatDistribution(1e-9, 1e-2, log=True),
}


class ShampooState(NamedTuple):
    left: Params  # mean of G G', (m, m) for a matrix (m, n)
    right: Params  # mean of G' G, (n, n)
    left_root: Params  # inverse fourth roots of both, as of the last refresh
    right_root: Params


def shampoo(beta: Scalar = 0.95, eps: Scalar = 1e-6, every: int = 1) -> Transform:
    """G' = L^(-1/4) G R^(-1/4) of hidden and attention matrices; L <- beta L + (1 - beta) G G', R the same of G' G.

    Both means start from 0 and are corrected by 1 / (1 - beta^t); the original sums over all steps instead, which
    lets the step die out. All other parameters keep their gradient.
    beta: memory, 0 <= beta < 1.  eps: damping relative to the largest eigenvalue, L + eps max(L) I.
    every: steps between new roots, >= 1; the means move every step. Above 1 it is cheaper, and a gradient in a
    direction that the roots have not seen is amplified by up to eps^(-1/2): small batches diverge.
    Raises ValueError for knobs out of range.
    Source: Shampoo, arXiv 1802.09568, Algorithm 1, with exponential means.
    """
    _check(isinstance(beta, Tensor) or 0 <= beta < 1, f"0 <= beta < 1 must hold, got beta={beta}")
    _check(isinstance(eps, Tensor) or eps > 0, f"eps > 0 must hold, got eps={eps}")
    _check(isinstance(every, int) and every >= 1, f"every must be an integer >= 1, got every={every}")

    def init(params: Params, roles: Roles, generator: torch.Generator) -> ShampooState:
        def zeros(side: int) -> Params:
            mine = {k: p for k, p in params.items() if _whitened(k, p, roles)}
            return {k: p.new_zeros(p.shape[side], p.shape[side]) for k, p in mine.items()}

        return ShampooState(zeros(0), zeros(1), zeros(0), zeros(1))

    def update(
        grads: Params, state: ShampooState, params: Params, *, step: int, **_: Any
    ) -> tuple[Params, ShampooState]:
        left = {k: beta * m + (1 - beta) * (grads[k] @ grads[k].mT) for k, m in state.left.items()}
        right = {k: beta * m + (1 - beta) * (grads[k].mT @ grads[k]) for k, m in state.right.items()}
        roots = state.left_root, state.right_root
        if (step - 1) % every == 0:
            seen = 1 - beta**step
            roots = tuple({k: _inverse_fourth_root(m / seen, eps) for k, m in side.items()} for side in (left, right))
        out = {k: roots[0][k] @ g @ roots[1][k] if k in left else g for k, g in grads.items()}
        return out, ShampooState(left, right, *roots)

    return Transform(init, update)


def _inverse_fourth_root(m: Tensor, eps: Scalar) -> Tensor:
    """(M + eps max(M) I)^(-1/4) in float64, NaN where M has a non-finite entry (`eigh` would raise for all lanes)."""
    finite = torch.isfinite(m).all()
    values, vectors = torch.linalg.eigh(torch.where(finite, m, torch.zeros_like(m)).double())
    damped = values.clamp(min=0) + eps * values.amax().clamp(min=0) + TINY
    return torch.where(finite, (vectors * damped**-0.25) @ vectors.mT, torch.nan).to(m.dtype)


def _whitened(key: str, p: Tensor, roles: Roles) -> bool:
    return roles[key].kind in KINDS and p.ndim == 2


def _flops(shapes: Mapping[str, tuple[int, ...]], roles: Roles, knobs: Mapping[str, Any]) -> float:
    """Four products per matrix, and about 12 m^3 for the eigenvectors and the root of each side when they are due."""
    matrices = [shape for k, shape in shapes.items() if roles[k].kind in KINDS and len(shape) == 2]
    return float(sum(4 * m * n * (m + n) + 12 * (m**3 + n**3) / knobs["every"] for m, n in matrices))


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


METHODS = [
    Method(
        "shampoo", "G' = L^(-1/4) G R^(-1/4), L and R the means of G G' and G' G", "Shampoo, arXiv 1802.09568",
        shampoo, DEFAULTS, SPACE, flops=_flops,
    ),
]  # fmt: skip
