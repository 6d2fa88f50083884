"""Adam's relatives with a slow second momentum: AdEMAMix and GrokAdamW (methods.md 6).

Both are optimisers themselves: what they return is the direction m / (sqrt(v) + eps) of the step, and plain SGD
behind them applies learning rate and decoupled decay. Grokfast inside AdamW needs no method: it is the chain of
`grokfast-ema` with the optimiser `adamw`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from torch import Tensor

from grokscale.entries import Method
from grokscale.methods.controls import scalars
from grokscale.methods.muon import OWN_OPTIMISER
from grokscale.methods.spaces import Complement
from grokscale.transform import Params, Roles, Scalar, Transform

ADEMAMIX_DEFAULTS: dict[str, Any] = {
    "alpha": 5.0, "beta1": 0.9, "beta2": 0.999, "beta3": 0.9999, "eps": 1e-8, "alpha_warmup": 0, "beta3_warmup": 0,
}  # fmt: skip
ADEMAMIX_SPACE = {
    "alpha": FloatDistribution(0.5, 20.0, log=True),
    "beta3": Complement(0.9, 0.99999),
    "beta2": CategoricalDistribution([0.95, 0.98, 0.999]),
}
GROKADAMW_DEFAULTS: dict[str, Any] = {
    "alpha": 0.98, "kappa": 0.1, "lam": 2.0, "gamma": 0.1, "rescale": True, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
}  # fmt: skip
GROKADAMW_SPACE = {
    "alpha": Complement(0.8, 0.995),
    "kappa": FloatDistribution(0.0, 5.0),
    "lam": FloatDistribution(0.1, 10.0, log=True),
    "gamma": FloatDistribution(0.0, 0.5),
}


class MixState(NamedTuple):
    fast: Params  # mean of gradients over 1 / (1 - beta1) steps, like params
    slow: Params  # the same over 1 / (1 - beta3)
    v: Params  # mean of squares


class GrokState(NamedTuple):
    mu: Params  # Grokfast's mean of the raw gradients, like params
    m: Params  # mean of the amplified gradients
    v: Params  # mean of their squares


def ademamix(
    alpha: Scalar = 5.0,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    beta3: Scalar = 0.9999,
    eps: Scalar = 1e-8,
    alpha_warmup: int = 0,
    beta3_warmup: int = 0,
) -> Transform:
    """AdEMAMix: g' = (m1 / (1 - beta1^t) + alpha m2) / (sqrt(v / (1 - beta2^t)) + eps).

    m1, m2: means of g with beta1 and beta3, both from 0, m2 without correction.  v: mean of g^2 with beta2.
    alpha: weight of the slow mean, 0 is AdamW.
    alpha_warmup: steps over which alpha grows linearly from 0.  beta3_warmup: steps over which the half-life of m2
    grows linearly from beta1's. 0 = none; the paper sets both to the length of the run.
    Raises ValueError for knobs out of range.
    Source: AdEMAMix, arXiv 2409.03137, Algorithm 1 and its schedulers.
    """
    for name, value in (("beta1", beta1), ("beta2", beta2), ("beta3", beta3)):
        _check(isinstance(value, Tensor) or 0 <= value < 1, f"0 <= {name} < 1 must hold, got {name}={value}")
    for name, value in (("alpha", alpha), ("alpha_warmup", alpha_warmup), ("beta3_warmup", beta3_warmup)):
        _check(isinstance(value, Tensor) or value >= 0, f"{name} >= 0 must hold, got {name}={value}")
    _check(isinstance(eps, Tensor) or eps > 0, f"eps > 0 must hold, got eps={eps}")

    def init(params: Params, roles: Roles, generator: torch.Generator) -> MixState:
        return MixState(*({k: torch.zeros_like(p) for k, p in params.items()} for _ in range(3)))

    def update(grads: Params, state: MixState, params: Params, *, step: int, **_: Any) -> tuple[Params, MixState]:
        weight = alpha * min(1.0, step / alpha_warmup) if alpha_warmup else alpha
        slower = half_life_warmup(beta1, beta3, step / beta3_warmup) if step < beta3_warmup else beta3
        fast = {k: beta1 * state.fast[k] + (1 - beta1) * g for k, g in grads.items()}
        slow = {k: slower * state.slow[k] + (1 - slower) * g for k, g in grads.items()}
        v = {k: beta2 * state.v[k] + (1 - beta2) * g * g for k, g in grads.items()}
        first, second = 1 - beta1**step, (1 - beta2**step) ** 0.5
        out = {k: (fast[k] / first + weight * slow[k]) / (v[k].sqrt() / second + eps) for k in grads}
        return out, MixState(fast, slow, v)

    return Transform(init, update)


def half_life_warmup(start: Scalar, end: Scalar, share: float) -> Scalar:
    """The beta whose half-life lies at `share` of the way from that of `start` to that of `end`.

    exp(ln start ln end / ((1 - share) ln end + share ln start)).  share: 0 < share < 1.  A beta of 0 has half-life 0.
    Source: AdEMAMix, arXiv 2409.03137, the scheduler of beta3.
    """
    if isinstance(start, Tensor) or isinstance(end, Tensor):
        a, b = (torch.as_tensor(beta, dtype=torch.float64).log() for beta in (start, end))
        return (1 / ((1 - share) / a + share / b)).exp()
    half_life = sum(part / math.log(beta) for part, beta in ((1 - share, start), (share, end)) if beta > 0.0)
    return math.exp(1 / half_life) if half_life else 0.0


def grokadamw(
    alpha: Scalar = 0.98,
    kappa: Scalar = 0.1,
    lam: Scalar = 2.0,
    gamma: Scalar = 0.1,
    rescale: bool = True,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
) -> Transform:
    """GrokAdamW: Grokfast-EMA inside AdamW, with a memory that shortens while the net does not generalise.

    a_t = alpha exp(-kappa signal);  mu <- a_t mu + (1 - a_t) g from mu = 0;  h = g + lam mu, scaled to ||g||;
    m <- b_i m + (1 - b_i) h with b_i = beta1 (1 - gamma)^i for the i-th parameter tensor, i from 0; v as AdamW;
    g' = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps).
    signal: 1 - val_accuracy, the gap to a training half that is fitted; the released code leaves it to its user, and
    its own choice, max(0, val loss - train loss) / their maximum, needs a training loss, which is not at hand here.
    kappa = 0 uses no signal, and no validation labels.
    The correction of m is that of beta1 for every tensor, as released: later tensors take larger early steps.
    rescale: per tensor, as the released code; else the amplified gradient stands.
    Raises ValueError for knobs out of range.
    Source: GrokAdamW, github.com/cognitivecomputations/grokadamw, README and code.
    """
    for name, value in (("beta1", beta1), ("beta2", beta2), ("gamma", gamma)):
        _check(isinstance(value, Tensor) or 0 <= value < 1, f"0 <= {name} < 1 must hold, got {name}={value}")
    _check(isinstance(alpha, Tensor) or 0 <= alpha < 1, f"0 <= alpha < 1 must hold, got alpha={alpha}")
    for name, value in (("kappa", kappa), ("lam", lam)):
        _check(isinstance(value, Tensor) or value >= 0, f"{name} >= 0 must hold, got {name}={value}")
    _check(isinstance(eps, Tensor) or eps > 0, f"eps > 0 must hold, got eps={eps}")
    watches = isinstance(kappa, Tensor) or kappa > 0

    def amplified(g: Tensor, mu: Tensor) -> Tensor:
        h = g + lam * mu
        if not rescale:
            return h
        return h * (torch.linalg.vector_norm(g) / torch.linalg.vector_norm(h).clamp(min=1e-8))

    def init(params: Params, roles: Roles, generator: torch.Generator) -> GrokState:
        return GrokState(*({k: torch.zeros_like(p) for k, p in params.items()} for _ in range(3)))

    def update(
        grads: Params, state: GrokState, params: Params, *, step: int, val_accuracy: Tensor | None = None, **_: Any
    ) -> tuple[Params, GrokState]:
        memory = alpha
        if watches:
            assert val_accuracy is not None
            gap = (1 - val_accuracy).to(next(iter(grads.values())).dtype)
            memory = alpha * torch.exp(-kappa * gap)
        mu = {k: memory * state.mu[k] + (1 - memory) * g for k, g in grads.items()}
        h = {k: amplified(g, mu[k]) for k, g in grads.items()}
        betas = {k: beta1 * (1 - gamma) ** i for i, k in enumerate(grads)}
        m = {k: b * state.m[k] + (1 - b) * h[k] for k, b in betas.items()}
        v = {k: beta2 * state.v[k] + (1 - beta2) * g * g for k, g in h.items()}
        first, second = 1 - beta1**step, (1 - beta2**step) ** 0.5
        return {k: m[k] / first / (v[k].sqrt() / second + eps) for k in grads}, GrokState(mu, m, v)

    return Transform(init, update, needs=frozenset({"val_accuracy"} if watches else ()))


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


METHODS = [
    Method(
        "ademamix", "g' = (m1 + alpha m2) / (sqrt(v) + eps), m2 the mean of 1 / (1 - beta3) gradients",
        "AdEMAMix, arXiv 2409.03137, Algorithm 1",
        ademamix, ADEMAMIX_DEFAULTS, ADEMAMIX_SPACE, optimiser=OWN_OPTIMISER,
        flops=lambda shapes, roles, knobs: 17.0 * scalars(shapes),
    ),
    Method(
        "grokadamw", "mu <- a_t mu + (1 - a_t) g;  AdamW on (g + lam mu) ||g|| / ||g + lam mu||",
        "GrokAdamW, github.com/cognitivecomputations/grokadamw",
        grokadamw, GROKADAMW_DEFAULTS, GROKADAMW_SPACE, optimiser=OWN_OPTIMISER,
        flops=lambda shapes, roles, knobs: (19.0 + 5.0 * knobs["rescale"]) * scalars(shapes),
    ),
]  # fmt: skip
