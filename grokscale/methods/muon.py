"""Muon: momentum, orthogonalised by a Newton-Schulz iteration (methods.md 6).

EGD is Muon without momentum and scale, with an exact decomposition. Muon is an optimiser itself: its answer is the
whole direction of the step, and plain SGD with decoupled decay behind it applies rate and decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor

from grokscale.entries import Method
from grokscale.methods.spaces import Complement
from grokscale.transform import AdamState, Params, Roles, Scalar, Transform, adam

OWN_OPTIMISER = {"name": "sgd", "momentum": 0.0, "decay": "decoupled"}
"""What stands behind a method that is an optimiser itself: p <- p - lr (direction + wd p)."""

COEFFICIENTS = (3.4445, -4.775, 2.0315)
KINDS = ("hidden", "attention")

DEFAULTS: dict[str, Any] = {
    "beta": 0.95, "nesterov": True, "ns_steps": 5, "ns_dtype": "same", "scale": "original", "order": "before",
    "companion": 1.0, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8}  # fmt: skip
SPACE = {
    "beta": Complement(0.5, 0.99),
    "companion": FloatDistribution(0.01, 10.0, log=True),
    "ns_steps": IntDistribution(1, 10),
    "scale": CategoricalDistribution(["original", "match-rms"]),
}


class MuonState(NamedTuple):
    momentum: Params  # of the matrices that are orthogonalised, like params
    companion: AdamState  # of everything else


def muon(
    beta: Scalar = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    ns_dtype: str = "same",
    scale: str = "original",
    order: str = "before",
    companion: Scalar = 1.0,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.98,
    eps: Scalar = 1e-8,
) -> Transform:
    """M <- beta M + (1 - beta) G;  g' = s NS((1 - beta) G + beta M) on hidden and attention matrices, else Adam's step.

    beta: momentum, 0 <= beta < 1.  nesterov: as above, or NS(M).  ns_steps: Newton-Schulz iterations, 1 to 99.
    ns_dtype: "same" (of the gradients) or "bf16" (every product rounded to bfloat16, as in `torch.optim.Muon`).
    scale: s = "original", sqrt(max(1, rows / cols)), or "match-rms", 0.2 sqrt(max(rows, cols)); rows are the output
    units, wherever the matrix keeps them.
    order: "before" (momentum, then NS) or "after" (O = NS(G), M <- beta M + (1 - beta) O: EGD with momentum).
    companion: embeddings, head, biases and norms step by AdamW with `companion` times the learning rate; the decay
    behind takes lr wd p from them too, which is AdamW's with weight decay wd / companion.
    beta1, beta2, eps: the companion's.
    Raises ValueError for knobs out of range.
    Source: K. Jordan et al., Muon (2024), as `torch.optim.Muon`; match-rms: arXiv 2502.16982; grokking: arXiv
    2504.16041.
    """
    for name, value in (("beta", beta), ("beta1", beta1), ("beta2", beta2)):
        _check(isinstance(value, Tensor) or 0 <= value < 1, f"0 <= {name} < 1 must hold, got {name}={value}")
    _check(isinstance(ns_steps, int) and 1 <= ns_steps <= 99, f"1 <= ns_steps <= 99 must hold, got ns_steps={ns_steps}")
    _check(ns_dtype in ("same", "bf16"), f"ns_dtype must be 'same' or 'bf16', got {ns_dtype!r}")
    _check(scale in ("original", "match-rms"), f"scale must be 'original' or 'match-rms', got {scale!r}")
    _check(order in ("before", "after"), f"order must be 'before' or 'after', got {order!r}")
    _check(isinstance(companion, Tensor) or companion > 0, f"companion > 0 must hold, got companion={companion}")
    _check(isinstance(eps, Tensor) or eps > 0, f"eps > 0 must hold, got eps={eps}")
    others = adam(-companion, beta1=beta1, beta2=beta2, eps=eps)  # its update is minus the rate: here the direction

    def orthogonal(g: Tensor) -> Tensor:
        return newton_schulz(g, ns_steps, _to_bf16 if ns_dtype == "bf16" else _as_it_is)

    def init(params: Params, roles: Roles, generator: torch.Generator) -> MuonState:
        ours, rest = _divided(params, roles)
        return MuonState({k: torch.zeros_like(p) for k, p in ours.items()}, others.init(rest, roles, generator))

    def update(
        grads: Params, state: MuonState, params: Params, *, step: int, roles: Roles, **_: Any
    ) -> tuple[Params, MuonState]:
        ours, rest = _divided(grads, roles)
        new = {k: orthogonal(g) for k, g in ours.items()} if order == "after" else ours
        m = {k: beta * state.momentum[k] + (1 - beta) * g for k, g in new.items()}
        ahead = {k: (1 - beta) * g + beta * m[k] for k, g in new.items()} if nesterov else m
        steps = {k: orthogonal(g) for k, g in ahead.items()} if order == "before" else ahead
        moved, adams = others.update(rest, state.companion, {k: params[k] for k in rest}, step=step)
        moved |= {k: _factor(scale, tuple(g.shape), roles[k].out_dim) * g for k, g in steps.items()}
        return {k: moved[k] for k in grads}, MuonState(m, adams)

    return Transform(init, update, needs=frozenset({"roles"}))


def newton_schulz(g: Tensor, steps: int, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """About U V^T of a matrix g = U S V^T: five steps bring singular values near 1 (0.68 to 1.14).

    X = g / max(||g||, 1e-7), then `steps` times X <- a X + (b A + c A A) X with A = X X^T on the shorter side. Those
    below a thousandth of ||g|| stay smaller.
    rounded: what is done to every intermediate result.
    """
    a, b, c = COEFFICIENTS
    x = rounded(g if g.shape[0] <= g.shape[1] else g.mT)
    x = rounded(x / rounded(torch.linalg.vector_norm(x)).clamp(min=1e-7))
    for _ in range(steps):
        gram = rounded(x @ x.mT)
        x = rounded(a * x + rounded(b * gram + c * (gram @ gram)) @ x)
    return x if g.shape[0] <= g.shape[1] else x.mT


def _as_it_is(t: Tensor) -> Tensor:
    return t


def _to_bf16(t: Tensor) -> Tensor:
    """Rounded to bfloat16 and kept in its dtype: bfloat16's own products round differently in packs of other sizes."""
    return t.bfloat16().to(t.dtype)


def _divided(tensors: Params, roles: Roles) -> tuple[Params, Params]:
    """(what Muon orthogonalises, what its companion steps)."""
    ours = {k: t for k, t in tensors.items() if roles[k].kind in KINDS and t.ndim == 2}
    return ours, {k: t for k, t in tensors.items() if k not in ours}


def _factor(scale: str, shape: tuple[int, ...], out_dim: int) -> float:
    rows, cols = shape[out_dim], shape[1 - out_dim]
    return math.sqrt(max(1.0, rows / cols)) if scale == "original" else 0.2 * math.sqrt(max(rows, cols))


def _flops(shapes: Mapping[str, tuple[int, ...]], roles: Roles, knobs: Mapping[str, Any]) -> float:
    """Products of the iteration, 5 operations per scalar of its momentum, 14 per scalar of Adam."""
    total = 0.0
    for k, shape in shapes.items():
        if roles[k].kind in KINDS and len(shape) == 2:
            short, long = sorted(shape)
            total += knobs["ns_steps"] * (4 * short**2 * long + 2 * short**3) + 9 * short * long
        else:
            total += 14 * math.prod(shape)
    return total


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


METHODS = [
    Method(
        "muon", "M <- beta M + (1 - beta) G;  W <- (1 - lr wd) W - lr s NS5((1 - beta) G + beta M)",
        "Muon, as torch.optim.Muon; arXiv 2502.16982; on grokking: arXiv 2504.16041",
        muon, DEFAULTS, SPACE, optimiser=OWN_OPTIMISER, flops=_flops,
    ),
]  # fmt: skip
