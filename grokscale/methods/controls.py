"""Controls: what an accelerator has to beat to be more than a change of scale, norm or metric (methods.md 1.4, 6).

Larger learning rates and larger beta1 are controls too, and no methods: an arm says `set = { lr = ... }`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor

from grokscale.entries import Method
from grokscale.transform import Params, Roles, Scalar, State, Transform, stateless

SCOPES = ("tensor", "global")
HOLDS = ("project", "clamp")
SMALLEST = 1e-12  # norm below which a gradient counts as zero
TINY = 1e-30  # keeps 0 / 0 at 0

NORMGRAD_DEFAULTS: dict[str, Any] = {"c": 1.0, "scope": "tensor", "clip": 0.0}
NORMGRAD_SPACE = {
    "c": FloatDistribution(0.05, 2.0, log=True),
    "scope": CategoricalDistribution(["tensor", "global"]),
    "clip": CategoricalDistribution([0.0, 1.0]),
}
ORTHOGRAD_DEFAULTS: dict[str, Any] = {"rescale": True}
ORTHOGRAD_SPACE = {"rescale": CategoricalDistribution([True, False])}
NAP_DEFAULTS: dict[str, Any] = {"every": 1, "scope": "tensor"}
NAP_SPACE = {
    "every": IntDistribution(1, 1000, log=True),
    "scope": CategoricalDistribution(["tensor", "global"]),
}
REWARM_DEFAULTS: dict[str, Any] = {
    "cycle": 1000, "warm": 0.1, "peak": 10.0, "rho": 1.0, "hold": "project", "scope": "tensor"}  # fmt: skip
REWARM_SPACE = {
    "cycle": IntDistribution(100, 10_000, log=True),
    "peak": FloatDistribution(1.0, 100.0, log=True),
    "scope": CategoricalDistribution(["tensor", "global"]),
}
NGD_DEFAULTS: dict[str, Any] = {"size": 2}


class NapState(NamedTuple):
    norms: Params  # 0-d each: first norm of every weight tensor, or of all parameters together under "all"


class RewarmState(NamedTuple):
    norms: Params  # as in NapState
    before: Params  # the parameters before the optimiser's step


def normgrad(c: Scalar = 1.0, scope: str = "tensor", clip: Scalar = 0.0) -> Transform:
    """Normalised gradient: g' = c g / max(||g||, 1e-12): what NeuralGrok is with an amplifier that learned nothing.

    c: norm of the result, c > 0.  scope: "tensor" (every tensor has norm c, all K together c sqrt(K)) or "global".
    clip: the norm of all that is returned is cut to this, as `torch.nn.utils.clip_grad_norm_` does; 0 = not at all.
    Raises ValueError for knobs out of range.
    Source: NeuralGrok, arXiv 2504.17243, eq. (2) with uniform p, and its clip in code; methods.md 1.2.4 and 1.4.
    """
    _check(isinstance(c, Tensor) or c > 0, f"c > 0 must hold, got c={c}")
    _check(scope in SCOPES, f"scope must be 'tensor' or 'global', got {scope!r}")
    _check(isinstance(clip, Tensor) or clip >= 0, f"clip >= 0 must hold, got clip={clip}")

    def update(grads: Params, params: Params, *, step: int) -> Params:
        norms = norms_of(grads) if scope == "tensor" else dict.fromkeys(grads, norm_of(grads))
        out = {k: g / norms[k].clamp(min=SMALLEST) * c for k, g in grads.items()}
        if not isinstance(clip, Tensor) and clip == 0.0:
            return out
        factor = (clip / (norm_of(out) + 1e-6)).clamp(max=1.0)  # 1e-6 as in torch
        if isinstance(clip, Tensor):
            factor = torch.where(clip > 0, factor, torch.ones_like(factor))
        return {k: g * factor for k, g in out.items()}

    return stateless(update, timeless=True)


def orthograd(rescale: bool = True) -> Transform:
    """Perp-grad, per tensor: g' = g - (w.g / (w.w + 1e-30)) w, then scaled back to the norm of g.

    The part of the gradient along the weights is taken out, which would only scale the logits up.
    rescale: scale back (released code) or not (the paper's formula); ambiguity 26 of methods.md.
    Source: perp-grad, arXiv 2501.04697, and its released code.
    """

    def across(g: Tensor, w: Tensor) -> Tensor:
        out = g - ((w * g).sum() / ((w * w).sum() + TINY)) * w
        return out * (torch.linalg.vector_norm(g) / (torch.linalg.vector_norm(out) + TINY)) if rescale else out

    return stateless(lambda grads, params, *, step: {k: across(g, params[k]) for k, g in grads.items()}, timeless=True)


def nap(every: int = 1, scope: str = "tensor") -> Transform:
    """Projection to the first weight norm: w <- w ||w_0|| / ||w|| after every `every`-th step.

    every: steps between projections, >= 1.  scope: "tensor" (every weight tensor to its own norm; biases and norms
    are left alone, most start at zero) or "global" (all parameters together to their common norm, as Omnigrok does).
    Weight decay moves along w, which the projection undoes: set wd = 0 with "global".
    Raises ValueError for knobs out of range.
    Source: NaP, arXiv 2407.01800 (projection only); Omnigrok, arXiv 2210.01117, constrained norm.
    """
    _check(isinstance(every, int) and every >= 1, f"every must be an integer >= 1, got every={every}")
    _check(scope in SCOPES, f"scope must be 'tensor' or 'global', got {scope!r}")

    def init(params: Params, roles: Roles, generator: torch.Generator) -> NapState:
        return NapState(_held(params, roles, scope))

    def after(params: Params, state: NapState, *, step: int, **_: Any) -> tuple[Params, NapState]:
        return _projected(params, state.norms, scope), state

    return Transform(init, lambda grads, state, params, *, step, **_: (dict(grads), state), after, period=every,
                     elementwise=True, timeless=True)


def elr_rewarm(
    cycle: int = 1000,
    warm: Scalar = 0.1,
    peak: Scalar = 10.0,
    rho: Scalar = 1.0,
    hold: str = "project",
    scope: str = "tensor",
) -> Transform:
    """Re-warmed effective learning rate ||u|| / ||w||: w <- (w + s(t) u) rho ||w_0|| / ||w + s(t) u||.

    u: what the optimiser adds, its decay included. The norm of w is held, so that s(t) alone sets the effective rate
    of an optimiser whose updates keep their size.
    s(t): with x = ((t - 1) mod cycle) / cycle, linear from 1 to `peak` over x < warm, then half a cosine back to 1.
    cycle: steps between two re-warmings, >= 1.  warm: share of a cycle in which s rises, 0 < warm < 1.
    peak: >= 1, in units of the optimiser's rate; 1 is `nap` after every step.
    rho: norm that is held, in units of the first one, > 0.  hold: "project" (the norm is kept at that) or "clamp" (at
    most that).  scope: "tensor" or "global", as for `nap`, and like there set wd = 0.
    Remembers one number per parameter.
    Raises ValueError for knobs out of range.
    Source: ELR re-warming, arXiv 2507.20057; the shape of s and the reading of rho are ours, methods.md 6.
    """
    _check(isinstance(cycle, int) and cycle >= 1, f"cycle must be an integer >= 1, got cycle={cycle}")
    _check(isinstance(warm, Tensor) or 0 < warm < 1, f"0 < warm < 1 must hold, got warm={warm}")
    _check(isinstance(peak, Tensor) or peak >= 1, f"peak >= 1 must hold, got peak={peak}")
    _check(isinstance(rho, Tensor) or rho > 0, f"rho > 0 must hold, got rho={rho}")
    _check(hold in HOLDS, f"hold must be 'project' or 'clamp', got {hold!r}")
    _check(scope in SCOPES, f"scope must be 'tensor' or 'global', got {scope!r}")

    def init(params: Params, roles: Roles, generator: torch.Generator) -> RewarmState:
        return RewarmState(_held(params, roles, scope), {k: p.clone() for k, p in params.items()})

    def update(
        grads: Params, state: RewarmState, params: Params, *, step: int, **_: Any
    ) -> tuple[Params, RewarmState]:
        return dict(grads), state._replace(before={k: p.clone() for k, p in params.items()})

    def after(params: Params, state: RewarmState, *, step: int, **_: Any) -> tuple[Params, RewarmState]:
        s = 1 + (peak - 1) * _swell(((step - 1) % cycle) / cycle, warm)
        longer = {k: p + s * (params[k] - p) for k, p in state.before.items()}
        norms = {k: rho * first for k, first in state.norms.items()}
        return _projected(longer, norms, scope, at_most=hold == "clamp"), state

    return Transform(init, update, after, elementwise=True)


def _swell(x: float, warm: Scalar) -> Scalar:
    """x / warm up to x = warm, then (1 + cos(pi (x - warm) / (1 - warm))) / 2.  x: place in the cycle, 0 <= x < 1."""
    if isinstance(warm, Tensor):
        fall = (1 + torch.cos(math.pi * ((x - warm) / (1 - warm)).clamp(min=0.0))) / 2
        return (x / warm).clamp(max=1.0) * fall
    return x / warm if x < warm else (1 + math.cos(math.pi * (x - warm) / (1 - warm))) / 2


def _held(params: Params, roles: Roles, scope: str) -> Params:
    """The norms that a projection holds: of every weight tensor by name, or of all parameters together as "all"."""
    if scope == "global":
        return {"all": norm_of(params)}
    return norms_of({k: p for k, p in params.items() if roles[k].kind not in ("bias", "norm")})


def _projected(params: Params, norms: Params, scope: str, at_most: bool = False) -> Params:
    """Scaled to the norms of `_held`, or down to them only; what they do not name keeps its value."""
    now = {"all": norm_of(params)} if scope == "global" else norms_of({k: params[k] for k in norms})
    factors = {k: norm / now[k].clamp(min=SMALLEST) for k, norm in norms.items()}
    if at_most:
        factors = {k: factor.clamp(max=1.0) for k, factor in factors.items()}
    if scope == "global":
        return {k: p * factors["all"] for k, p in params.items()}
    return {k: p * factors[k] if k in factors else p for k, p in params.items()}


def ngd_toy(size: int = 2) -> Transform:
    """Natural gradient of a linear model under a square loss: g' = H^+ g, H = d^2 loss / dw^2 on the batch.

    For loss (1/n) ||X w - y||^2, H is twice the inner product matrix X'X/n, and a step of rate eta is the Newton form
    w <- w - eta (X'X/n)^+ X'(X w - y)/n (the factor 2 cancels). H is read off the gradient, exactly where the loss is
    quadratic: H e_i = grad(w + e_i) - grad(w). H^+ leaves out eigenvalues below rounding.
    size: matrices of at most so many scalars are transformed, each by its own H; all else keeps its gradient.
    Costs size + 1 gradients of the batch.
    Raises ValueError for knobs out of range.
    Source: EGD, arXiv 2510.04930, eq. (9); ambiguity 23 of methods.md: the formula of EGD proper, put to a vector,
    would only normalise it.
    """
    _check(isinstance(size, int) and size >= 1, f"size must be an integer >= 1, got size={size}")

    def update(
        grads: Params, state: State, params: Params, *, step: int, inner_grad: Callable[[Params], Params], **_: Any
    ) -> tuple[Params, State]:
        small = [k for k, p in params.items() if p.ndim == 2 and math.prod(p.shape) <= size]
        here = inner_grad(params) if small else {}
        bent = {k: _newton(grads[k], _curvature(inner_grad, params, here, k)) for k in small}
        return {**grads, **bent}, state

    return Transform(
        lambda params, roles, generator: (), update, needs=frozenset({"inner_grad"}),
        oracle=lambda batch, outer: (size + 1) * batch)  # fmt: skip


def _curvature(inner_grad: Callable[[Params], Params], params: Params, here: Params, key: str) -> Tensor:
    """(n, n) second derivatives of the loss with respect to the n scalars of one parameter, of a quadratic loss."""
    p = params[key]
    n = math.prod(p.shape)
    directions = torch.eye(n, dtype=p.dtype, device=p.device).reshape(n, *p.shape)
    rows = torch.func.vmap(lambda e: inner_grad({**params, key: p + e})[key] - here[key])(directions)
    return rows.reshape(n, n)


def _newton(g: Tensor, hessian: Tensor) -> Tensor:
    """H^+ g in float64. A matrix with a non-finite entry is taken as zero: `eigh` would raise for the whole pack."""
    finite = torch.isfinite(hessian).all()
    h = torch.where(finite, (hessian + hessian.mT) / 2, torch.zeros_like(hessian)).double()
    values, vectors = torch.linalg.eigh(h)
    least = len(h) * torch.finfo(g.dtype).eps * values.abs().amax()
    inverse = torch.where(values > least, 1 / torch.where(values > least, values, 1.0), 0.0)
    out = vectors @ (inverse * (vectors.mT @ g.reshape(-1).double()))
    return torch.where(finite, out, torch.nan).to(g.dtype).reshape(g.shape)


def norms_of(tensors: Params) -> Params:
    """Euclidean norm of every tensor, 0-d each."""
    return {k: torch.linalg.vector_norm(t) for k, t in tensors.items()}


def norm_of(tensors: Params) -> Tensor:
    """Euclidean norm of all tensors together, 0-d."""
    return torch.linalg.vector_norm(torch.stack(list(norms_of(tensors).values())))


def scalars(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Scalars of all parameters together."""
    return sum(math.prod(shape) for shape in shapes.values())


def _ngd_flops(shapes: Mapping[str, tuple[int, ...]], roles: Roles, knobs: Mapping[str, Any]) -> float:
    sizes = [math.prod(shape) for shape in shapes.values() if len(shape) == 2 and math.prod(shape) <= knobs["size"]]
    return float(sum(10 * n**3 + 4 * n**2 for n in sizes))  # the eigenvectors, then two products


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


METHODS = [
    Method(
        "normgrad", "g' = c g / max(||g||, 1e-12)", "NeuralGrok, arXiv 2504.17243, eq. (2) with uniform p",
        normgrad, NORMGRAD_DEFAULTS, NORMGRAD_SPACE,
        flops=lambda shapes, roles, knobs: (3.0 + 3.0 * (knobs["clip"] > 0)) * scalars(shapes),
    ),
    Method(
        "orthograd", "g' = g - (w.g / w.w) w, scaled to ||g||", "perp-grad, arXiv 2501.04697",
        orthograd, ORTHOGRAD_DEFAULTS, ORTHOGRAD_SPACE,
        flops=lambda shapes, roles, knobs: (6.0 + 5.0 * knobs["rescale"]) * scalars(shapes),
    ),
    Method(
        "nap", "w <- w ||w_0|| / ||w|| every k steps", "NaP, arXiv 2407.01800; Omnigrok, arXiv 2210.01117",
        nap, NAP_DEFAULTS, NAP_SPACE,
        flops=lambda shapes, roles, knobs: 3.0 * scalars(shapes) / knobs["every"],
    ),
    Method(
        "elr-rewarm", "w <- (w + s(t) u) ||w_0|| / ||w + s(t) u||, s from 1 to peak and back every cycle",
        "ELR re-warming, arXiv 2507.20057",
        elr_rewarm, REWARM_DEFAULTS, REWARM_SPACE,
        flops=lambda shapes, roles, knobs: 6.0 * scalars(shapes),
        memory=lambda shapes, roles, knobs, itemsize: float(itemsize * scalars(shapes)),
    ),
    Method(
        "ngd-toy", "g' = H^+ g of matrices of at most `size` scalars", "EGD, arXiv 2510.04930, eq. (9)",
        ngd_toy, NGD_DEFAULTS, flops=_ngd_flops,
    ),
]  # fmt: skip
