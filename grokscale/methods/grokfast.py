"""Grokfast: amplify the slow part of the gradient (arXiv 2405.20233; methods.md 1.1).

Seen as a signal over steps, every scalar gradient is replaced by g + lam * (h * g) with a low-pass filter h:
a moving average over a window (MA) or an exponential one (EMA). Element-wise on every parameter; the optimiser's
weight decay is added later and is not filtered.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor

from grokscale.entries import Method
from grokscale.transform import Params, Roles, Scalar, Transform

EMA_DEFAULTS: dict[str, Any] = {"alpha": 0.98, "lam": 2.0, "init": "first_grad"}
# The knob that matters on a log scale is 1 - alpha in [0.005, 0.2]; alpha's own scale is kept for readability.
EMA_SPACE = {"alpha": FloatDistribution(0.8, 0.995), "lam": FloatDistribution(0.1, 10.0, log=True)}

MA_DEFAULTS: dict[str, Any] = {"window": 100, "lam": 5.0, "warmup": True, "filter_type": "mean"}
MA_SPACE = {"window": IntDistribution(2, 500, log=True), "lam": FloatDistribution(0.5, 20.0, log=True)}


class EmaState(NamedTuple):
    mu: Params  # exponential mean of the gradients, like params


class MaState(NamedTuple):
    ring: Params  # the last `window` gradients, (window, *shape); slot (step - 1) % window is the newest
    total: Params  # sum over the ring, like params


def ema(alpha: Scalar = 0.98, lam: Scalar = 2.0, init: str = "first_grad") -> Transform:
    """Grokfast-EMA: mu <- alpha mu + (1 - alpha) g;  g' = g + lam mu.

    alpha: decay of the mean per step, 0 <= alpha < 1.  lam: amplification, 0 is the identity.
    init: "first_grad" (mu_1 = g_1, as the released code) or "zero".
    Source: Grokfast, Algorithm 2 and released code; ambiguity 3 of methods.md.
    """
    _check(isinstance(alpha, Tensor) or 0 <= alpha < 1, f"0 <= alpha < 1 must hold, got alpha={alpha}")
    _check(isinstance(lam, Tensor) or lam >= 0, f"lam >= 0 must hold, got lam={lam}")
    _check(init in ("first_grad", "zero"), f"init must be 'first_grad' or 'zero', got {init!r}")

    def start(params: Params, roles: Roles, generator: torch.Generator) -> EmaState:
        return EmaState({k: torch.zeros_like(p) for k, p in params.items()})

    def update(grads: Params, state: EmaState, params: Params, *, step: int, **_: Any) -> tuple[Params, EmaState]:
        old = grads if step == 1 and init == "first_grad" else state.mu
        mu = {k: alpha * old[k] + (1 - alpha) * g for k, g in grads.items()}
        return {k: g + lam * mu[k] for k, g in grads.items()}, EmaState(mu)

    return Transform(start, update)


def ma(window: int = 100, lam: Scalar = 5.0, warmup: bool = True, filter_type: str = "mean") -> Transform:
    """Grokfast-MA: g' = g + lam mean(Q), Q the last `window` gradients with the current one.

    window: w >= 1, gradients kept: w x N scalars of memory.  lam: amplification, 0 is the identity.
    warmup: add nothing before the window is full (released code); else the mean of what is there (paper).
    filter_type: "mean", or "sum" for lam * sum(Q).
    Source: Grokfast, Algorithm 1 and released code; ambiguity 1 of methods.md.
    """
    _check(isinstance(window, int) and window >= 1, f"window must be an integer >= 1, got window={window}")
    _check(isinstance(lam, Tensor) or lam >= 0, f"lam >= 0 must hold, got lam={lam}")
    _check(filter_type in ("mean", "sum"), f"filter_type must be 'mean' or 'sum', got {filter_type!r}")

    def start(params: Params, roles: Roles, generator: torch.Generator) -> MaState:
        ring = {k: p.new_zeros((window, *p.shape)) for k, p in params.items()}
        return MaState(ring, {k: torch.zeros_like(p) for k, p in params.items()})

    def update(grads: Params, state: MaState, params: Params, *, step: int, **_: Any) -> tuple[Params, MaState]:
        slot, count = (step - 1) % window, min(step, window)
        total = {}
        for k, g in grads.items():
            ring = state.ring[k]
            total[k] = state.total[k] + (g - ring[slot])
            ring[slot].copy_(g)
            if slot == window - 1:  # once a round the running sum is made exact again: no drift
                total[k] = ring.sum(0)
        state = MaState(state.ring, total)
        if warmup and count < window:
            return dict(grads), state
        weight = lam / count if filter_type == "mean" else lam
        return {k: g + weight * total[k] for k, g in grads.items()}, state

    return Transform(start, update)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


METHODS = [
    Method(
        "grokfast-ema", "mu <- alpha mu + (1 - alpha) g;  g' = g + lam mu", "Grokfast, arXiv 2405.20233, Algorithm 2",
        ema, EMA_DEFAULTS, EMA_SPACE, neutral={"lam": 0.0},
    ),
    Method(
        "grokfast-ma", "g' = g + lam mean(last w gradients)", "Grokfast, arXiv 2405.20233, Algorithm 1",
        ma, MA_DEFAULTS, MA_SPACE, neutral={"lam": 0.0},
    ),
]
