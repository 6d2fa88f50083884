"""Grokfast: amplify the slow part of the gradient (arXiv 2405.20233; methods.md 1.1).

Seen as a signal over steps, every scalar gradient is replaced by g + lam * (h * g) with a low-pass filter h:
a moving average over a window (MA) or an exponential one (EMA). Element-wise on every parameter; the optimiser's
weight decay is added later and is not filtered (but decay = "inside" is in the gradient, hence filtered).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from optuna.distributions import FloatDistribution, IntDistribution

from grokscale.entries import Method
from grokscale.methods.knobs import check, number, one_of
from grokscale.methods.spaces import Complement
from grokscale.transform import Params, Role, Roles, Scalar, Transform

COMMON: dict[str, Any] = {"part": "both", "clip_position": "none", "clip": 5.0}
EMA_DEFAULTS: dict[str, Any] = {"alpha": 0.98, "lam": 2.0, "init": "first_grad", **COMMON}
EMA_SPACE = {"alpha": Complement(0.8, 0.995), "lam": FloatDistribution(0.1, 10.0, log=True)}

MA_DEFAULTS: dict[str, Any] = {
    "window": 100, "lam": 5.0, "warmup": True, "filter_type": "mean", "two_stage": 0, "buffer": "same", **COMMON}
MA_SPACE = {"window": IntDistribution(2, 500, log=True), "lam": FloatDistribution(0.5, 20.0, log=True)}


class EmaState(NamedTuple):
    mu: Params  # exponential mean of the gradients, like params


class MaState(NamedTuple):
    ring: Params  # the last `window` gradients, (window, *shape); slot (step - 1) % window is the newest
    total: Params  # sum over the ring, like params


def ema(alpha: Scalar = 0.98, lam: Scalar = 2.0, init: str = "first_grad", part: str = "both",
        clip_position: str = "none", clip: Scalar = 5.0) -> Transform:
    """Grokfast-EMA: mu <- alpha mu + (1 - alpha) g;  g' = g + lam mu.

    alpha: decay of the mean per step, 0 <= alpha < 1.  lam: amplification, 0 is the identity.
    init: "first_grad" (mu_1 = g_1, as the released code) or "zero".
    part: "both"; the ablations "slow" (g' = lam mu) and "fast" (g' = g - mu).
    clip_position: "none", or the norm over all tensors is kept at `clip` > 0 or below: "pre", of what goes into the
    filter (released code of IMDb), or "post", of what comes out.
    Source: Grokfast, Algorithm 2 and released code; ambiguity 3 and sections 1.1.3, 1.1.4 of methods.md.
    """
    number("alpha", alpha, "0 <= alpha < 1", lambda value: 0 <= value < 1)
    one_of("init", init, ("first_grad", "zero"))
    _check_common(lam, part, clip_position, clip)

    def start(params: Params, roles: Roles, generator: torch.Generator) -> EmaState:
        return EmaState({k: torch.zeros_like(p) for k, p in params.items()})

    def update(grads: Params, state: EmaState, params: Params, *, step: int, **_: Any) -> tuple[Params, EmaState]:
        if clip_position == "pre":
            grads = clipped(grads, clip)
        old = grads if step == 1 and init == "first_grad" else state.mu
        mu = {k: alpha * old[k] + (1 - alpha) * g for k, g in grads.items()}
        if part == "fast":
            out = {k: g - mu[k] for k, g in grads.items()}
        else:
            out = {k: g + lam * mu[k] if part == "both" else lam * mu[k] for k, g in grads.items()}
        return clipped(out, clip) if clip_position == "post" else out, EmaState(mu)

    return Transform(start, update, elementwise=clip_position == "none")


def ma(window: int = 100, lam: Scalar = 5.0, warmup: bool = True, filter_type: str = "mean", two_stage: int = 0,
       buffer: str = "same", part: str = "both", clip_position: str = "none", clip: Scalar = 5.0) -> Transform:
    """Grokfast-MA: g' = g + lam mean(Q), Q the last `window` gradients with the current one.

    window: w >= 1, gradients kept: w x N scalars of memory.  lam: amplification, 0 is the identity.
    warmup: the filter does not act before the window is full (released code); else the mean of what is there (paper).
    filter_type: "mean", or "sum" for lam * sum(Q).
    two_stage: K >= 0: nor does it act on the first K steps, with `warmup` or without (the released code's trigger,
    which without warm-up has no effect there); the window fills all the same.
    buffer: what the window is kept in, "same" as the gradients or "bf16": half of float32's memory, and mean(Q) is of
    the rounded gradients.
    part: "both"; the ablations "slow" (g' = lam mean(Q)) and "fast" (g' = g - mean(Q)), which like the filter leave
    the gradient as it is as long as the filter does not act.
    clip_position, clip: as `ema`.
    Source: Grokfast, Algorithm 1 and released code; ambiguities 1 and 2, sections 1.1.3, 1.1.4 of methods.md.
    """
    check(isinstance(window, int) and window >= 1, f"window must be an integer >= 1, got window={window}")
    one_of("filter_type", filter_type, ("mean", "sum"))
    check(isinstance(two_stage, int) and two_stage >= 0, f"two_stage must be an integer >= 0, got {two_stage=}")
    one_of("buffer", buffer, ("same", "bf16"))
    if part == "fast":
        check(filter_type == "mean", f"part = 'fast' is g - mean(Q): filter_type must be 'mean', got {filter_type!r}")
    _check_common(lam, part, clip_position, clip)

    def start(params: Params, roles: Roles, generator: torch.Generator) -> MaState:
        kept = {k: torch.bfloat16 if buffer == "bf16" else p.dtype for k, p in params.items()}
        ring = {k: p.new_zeros((window, *p.shape), dtype=kept[k]) for k, p in params.items()}
        return MaState(ring, {k: torch.zeros_like(p) for k, p in params.items()})

    def update(grads: Params, state: MaState, params: Params, *, step: int, **_: Any) -> tuple[Params, MaState]:
        if clip_position == "pre":
            grads = clipped(grads, clip)
        slot, count = (step - 1) % window, min(step, window)
        total = {}
        for k, g in grads.items():
            ring = state.ring[k]
            total[k] = state.total[k] + (g.to(ring.dtype).to(g.dtype) - ring[slot].to(g.dtype))
            ring[slot].copy_(g)
            if slot == window - 1:  # once a round the running sum is made exact again: no drift
                total[k] = ring.sum(0, dtype=g.dtype)
        state = MaState(state.ring, total)
        if step <= two_stage or (warmup and count < window):
            out = dict(grads)
        elif part == "fast":
            out = {k: g - total[k] / count for k, g in grads.items()}
        else:
            weight = lam / count if filter_type == "mean" else lam
            out = {k: g + weight * total[k] if part == "both" else weight * total[k] for k, g in grads.items()}
        return clipped(out, clip) if clip_position == "post" else out, state

    return Transform(start, update)


def clipped(grads: Params, limit: Scalar) -> Params:
    """g min(1, limit / (||g|| + 1e-6)), the norm over all tensors together (as `torch.nn.utils.clip_grad_norm_`)."""
    norm = torch.stack([(g * g).sum() for g in grads.values()]).sum().sqrt()
    factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
    return {k: (g * factor).to(g.dtype) for k, g in grads.items()}


Shapes = Mapping[str, tuple[int, ...]]


def scalars(shapes: Shapes) -> int:
    """N: all entries of all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def ema_memory(shapes: Shapes, roles: Mapping[str, Role], knobs: Mapping[str, Any], itemsize: int = 4) -> float:
    """Bytes of mu: N scalars."""
    return scalars(shapes) * itemsize


def ma_memory(shapes: Shapes, roles: Mapping[str, Role], knobs: Mapping[str, Any], itemsize: int = 4) -> float:
    """Bytes of the window and its sum: w N and N scalars."""
    return scalars(shapes) * (knobs["window"] * (2 if knobs["buffer"] == "bf16" else itemsize) + itemsize)


def ema_flops(shapes: Shapes, roles: Mapping[str, Role], knobs: Mapping[str, Any]) -> float:
    """Two products and a sum for mu, what the part takes, a clip: 2 N for the norm and N for the scale."""
    return scalars(shapes) * (3 + _PART_FLOPS[knobs["part"]] + _clip_flops(knobs))


def ma_flops(shapes: Shapes, roles: Mapping[str, Role], knobs: Mapping[str, Any]) -> float:
    """In with the newest, out with the oldest, and a w-th part of the sum over the window, taken once a round."""
    return scalars(shapes) * (3 + _PART_FLOPS[knobs["part"]] + _clip_flops(knobs))


_PART_FLOPS = {"both": 2, "slow": 1, "fast": 2}


def _clip_flops(knobs: Mapping[str, Any]) -> int:
    return 0 if knobs["clip_position"] == "none" else 3


def _check_common(lam: Scalar, part: str, clip_position: str, clip: Scalar) -> None:
    number("lam", lam, "lam >= 0", lambda value: value >= 0)
    one_of("part", part, ("both", "slow", "fast"))
    one_of("clip_position", clip_position, ("none", "pre", "post"))
    number("clip", clip, "clip > 0", lambda value: value > 0)


METHODS = [
    Method(
        "grokfast-ema", "mu <- alpha mu + (1 - alpha) g;  g' = g + lam mu", "Grokfast, arXiv 2405.20233, Algorithm 2",
        ema, EMA_DEFAULTS, EMA_SPACE, neutral={"lam": 0.0}, flops=ema_flops, memory=ema_memory,
    ),
    Method(
        "grokfast-ma", "g' = g + lam mean(last w gradients)", "Grokfast, arXiv 2405.20233, Algorithm 1",
        ma, MA_DEFAULTS, MA_SPACE, neutral={"lam": 0.0}, flops=ma_flops, memory=ma_memory,
    ),
]
