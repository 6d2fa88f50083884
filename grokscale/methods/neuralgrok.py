"""NeuralGrok: weigh the entries of a gradient by a learned distribution (arXiv 2504.17243; methods.md 1.2).

p = softmax(phi(g)) over the entries of a tensor, g' = c p g / ||p g||: the norm is fixed, the direction is learned. phi
is a small network R -> R applied to every entry. Every `period` steps it goes down the loss, on a share of the training
half that training never sees, of the parameters that one plain step along g' would lead to.

Scores of K tensors have total norm c sqrt(K), which the clip cuts back to `inner_clip`: with 29 tensors a c above
0.1857 then changes nothing but the look-ahead (methods.md 1.2.4).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor

from grokscale.entries import Method
from grokscale.methods import amplifier as amp
from grokscale.transform import AdamState, Params, Role, Roles, Scalar, Transform, adam

KINDS = ("mlp", "linear", "power", "uniform")
LEARNED = ("mlp", "linear")
SCOPES = ("tensor", "global")
FLOOR = 1e-12  # smallest norm of n p g that is divided by

DEFAULTS: dict[str, Any] = {
    "c": 0.2, "kind": "mlp", "width": 128, "depth": 2, "hidden": "", "q": 1.0, "period": 4, "rate": 1e-4,
    "meta_wd": 1e-3, "outer": 0.02, "inner_clip": 1.0, "scope": "tensor", "lookahead_from": "post", "amplifier": "",
}  # fmt: skip
SPACE = {
    "c": FloatDistribution(0.05, 2.0, log=True),
    "kind": CategoricalDistribution(["mlp", "linear", "power"]),
    "width": CategoricalDistribution([32, 64, 128, 256, 512]),
    "depth": IntDistribution(1, 3),
    "period": CategoricalDistribution([1, 2, 4, 8, 10]),
    "rate": FloatDistribution(1e-5, 1e-3, log=True),
    "outer": FloatDistribution(0.01, 0.25, log=True),
    "inner_clip": CategoricalDistribution([0.0, 1.0]),
    "scope": CategoricalDistribution(["tensor", "global"]),
}


class NeuralGrokState(NamedTuple):
    phi: Params  # the amplifier's weights, as `amplifier.initial` makes them
    m: Params  # first moment of its optimiser, like phi; empty where it is frozen
    v: Params  # second moment
    updates: Tensor  # 0-d int64: outer updates made
    skipped: Tensor  # 0-d int64: outer updates left out because the outer loss or its gradient was not finite


def neuralgrok(
    c: Scalar = 0.2,
    kind: str = "mlp",
    width: int = 128,
    depth: int = 2,
    hidden: str = "",
    q: Scalar = 1.0,
    period: int = 4,
    rate: Scalar = 1e-4,
    meta_wd: Scalar = 1e-3,
    outer: float = 0.02,
    inner_clip: Scalar = 1.0,
    scope: str = "tensor",
    lookahead_from: str = "post",
    amplifier: str = "",
) -> Transform:
    """NeuralGrok: p = softmax(phi(g)), g' = c p g / max(||p g||, 1e-12) per tensor, p n-fold against underflow.

    c: norm of every transformed tensor.
    kind: of phi: "mlp"; "linear" (1 -> 1); "power", p ~ |g|^q; "uniform", the normalised gradient. The last two learn
        nothing and hold nothing back.
    width, depth: units and number of hidden layers.  hidden: other widths in place of both, as "64,128,64".
    period: T, steps between outer updates.  rate, meta_wd: learning rate and coupled decay of phi's Adam (0.9, 0.98).
    outer: share of the training half held back for the outer loss; 0.02 of it is 1 % of a table split in halves.
    inner_clip: largest total norm of what the optimiser gets, 0 = no clip; the look-ahead is never clipped.
    scope: one softmax and one norm per "tensor" (released code, ambiguity 4) or "global".
    lookahead_from: theta' = theta - lr g' from the parameters after ("post", final code) or before ("pre") the step.
    amplifier: "FILE@HASH", as `grokscale run --save-learned FILE` prints it: that phi, frozen.
        kind, width, depth and hidden are then the file's; nothing is held back.
    Source: NeuralGrok, eq. (2), Algorithm 1, released code; ambiguities 4 to 8 of methods.md.
    """
    _check(_is(c, lambda x: x > 0), f"c > 0 must hold, got c={c}")
    _check(kind in KINDS, f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    _check(width >= 1, f"width >= 1 must hold, got width={width}")
    _check(1 <= depth <= 8, f"1 <= depth <= 8 must hold, got depth={depth}")
    _check(_is(q, lambda x: x >= 0), f"q >= 0 must hold, got q={q}")
    _check(period >= 1, f"period >= 1 must hold, got period={period}")
    _check(_is(rate, lambda x: x >= 0), f"rate >= 0 must hold, got rate={rate}")
    _check(_is(meta_wd, lambda x: x >= 0), f"meta_wd >= 0 must hold, got meta_wd={meta_wd}")
    _check(0 < outer < 1, f"0 < outer < 1 must hold, got outer={outer}")
    _check(_is(inner_clip, lambda x: x >= 0), f"inner_clip >= 0 must hold (0 = no clip), got inner_clip={inner_clip}")
    _check(scope in SCOPES, f"scope must be one of {', '.join(SCOPES)}, got {scope!r}")
    _check(lookahead_from in ("post", "pre"), f"lookahead_from must be 'post' or 'pre', got {lookahead_from!r}")
    sizes = widths(kind, width, depth, hidden)
    frozen = amp.load(amplifier) if amplifier else None
    kind = kind if frozen is None else "mlp"
    meta = adam(rate, beta1=0.9, beta2=0.98, wd=meta_wd)

    def init(params: Params, roles: Roles, generator: torch.Generator) -> Any:
        if kind not in LEARNED:
            return ()
        like = next(iter(params.values()))
        zero = torch.zeros((), dtype=torch.int64, device=like.device)
        if frozen is not None:
            phi = {k: t.to(like.device, like.dtype, copy=True) for k, t in frozen.items()}
            return NeuralGrokState(phi, {}, {}, zero, zero.clone())
        phi = amp.initial(sizes, generator, like)
        m, v = ({k: torch.zeros_like(t) for k, t in phi.items()} for _ in range(2))
        return NeuralGrokState(phi, m, v, zero, zero.clone())

    def amplified(phi: Params, grads: Params, clip: Scalar) -> Params:
        flat, parts = joined(grads, scope)
        return apart(rescaled(numerators(flat, parts, phi, kind=kind, q=q), flat.split(parts), c, clip), grads)

    def update(grads: Params, state: Any, params: Params, *, step: int, **extra: Any) -> tuple[Params, Any]:
        out = amplified(state.phi if kind in LEARNED else {}, grads, inner_clip)
        if learns and lookahead_from == "pre" and step % period == 0:
            state = learned(params, grads, state, extra["outer_loss"], extra["lr"])
        return out, state

    def after(
        params: Params, state: NeuralGrokState, *, step: int, inner_grad: Callable[[Params], Params],
        outer_loss: Callable[[Params], Tensor], lr: Scalar, **_: Any,
    ) -> tuple[Params, NeuralGrokState]:  # fmt: skip
        return dict(params), learned(params, inner_grad(params), state, outer_loss, lr)

    def learned(
        params: Params, grads: Params, state: NeuralGrokState, outer_loss: Callable[[Params], Tensor], lr: Scalar
    ) -> NeuralGrokState:
        def ahead(phi: Params) -> Tensor:
            step = amplified(phi, grads, 0.0)
            return outer_loss({k: p - lr * step[k] for k, p in params.items()})

        slope, loss = torch.func.grad_and_value(ahead)(state.phi)
        fine = torch.stack([torch.isfinite(t).all() for t in (loss, *slope.values())]).all()
        count = (state.updates + 1).to(loss.dtype)
        moved, (m, v) = meta.update(slope, AdamState(state.m, state.v), state.phi, step=count)  # type: ignore[arg-type]
        phi = {k: p + moved[k] for k, p in state.phi.items()}

        def unless_lost(new: Params, old: Params) -> Params:
            return {k: torch.where(fine, t, old[k]) for k, t in new.items()}

        phi, m, v = (unless_lost(*pair) for pair in ((phi, state.phi), (m, state.m), (v, state.v)))
        return NeuralGrokState(phi, m, v, state.updates + fine, state.skipped + ~fine)

    def diagnostics(state: NeuralGrokState, grads: Params) -> dict[str, Tensor]:
        used = amplified(state.phi, grads, inner_clip)
        seen = gauges(distribution(grads, state.phi, kind=kind, scope=scope), used, scope)
        return seen | {"updates": state.updates.double(), "skipped": state.skipped.double()}

    def keep(state: NeuralGrokState) -> bytes:
        return amp.packed(state.phi)

    learns = kind in LEARNED and frozen is None
    fixed = Transform(init, update, diagnostics=diagnostics if kind in LEARNED else None,
                      timeless=not learns or lookahead_from == "post")  # fmt: skip
    if not learns:
        return fixed
    trained = fixed._replace(needs=frozenset({"outer_loss", "lr"}), outer=outer, learned=keep)
    if lookahead_from == "pre":
        return trained._replace(oracle=lambda batch, held: held / period)
    return trained._replace(after=after, period=period, needs=trained.needs | {"inner_grad"},
                            oracle=lambda batch, held: (batch + held) / period)  # fmt: skip


# ------------------------------------------------------------------------------------------ the transform


def joined(grads: Params, scope: str) -> tuple[Tensor, list[int]]:
    """All entries in one row (N,), and the lengths of the parts that are weighed together."""
    flat = torch.cat([g.reshape(-1) for g in grads.values()])
    return flat, [g.numel() for g in grads.values()] if scope == "tensor" else [flat.numel()]


def apart(parts: list[Tensor], grads: Params) -> Params:
    """The inverse of `joined`: tensors of the names and shapes of `grads`."""
    rows = parts if len(parts) == len(grads) else torch.cat(parts).split([g.numel() for g in grads.values()])
    return {k: row.view(g.shape) for row, (k, g) in zip(rows, grads.items(), strict=True)}


def numerators(flat: Tensor, parts: list[int], phi: Params, *, kind: str = "mlp", q: Scalar = 1.0) -> list[Tensor]:
    """What p is proportional to, at most 1, for each part: exp(phi(g) - max), (|g| / max)^q, or 1."""
    if kind in LEARNED:
        # a shift common to a part cancels in p, and so does its slope
        return [(y - y.detach().amax()).exp() for y in amp.evaluate(phi, flat).split(parts)]
    if kind == "power":
        return [torch.where(a.amax() > 0, a / a.amax(), 1.0) ** q for a in flat.abs().split(parts)]
    return [torch.ones_like(g) for g in flat.split(parts)]


def rescaled(weights: list[Tensor], parts: tuple[Tensor, ...], c: Scalar, clip: Scalar) -> list[Tensor]:
    """c n p g / max(||n p g||, FLOOR) for every part, n p = e / mean(e); then all of them clipped to a total norm.

    weights: e, not normalised.  parts: g.  clip: 0 is none; as `torch.nn.utils.clip_grad_norm_`.
    """
    amplified = [e * g for e, g in zip(weights, parts, strict=True)]
    squares = torch.stack([(w * w).sum() for w in amplified]).double()  # sums are exact to a digit, norms are not
    floor = FLOOR * torch.stack([e.mean() for e in weights]).double()
    scale = c * torch.maximum(squares, floor * floor).rsqrt()
    if isinstance(clip, Tensor) or clip > 0:
        factor = (clip / ((scale * scale * squares).sum().sqrt() + 1e-6)).clamp(max=1.0)
        scale = scale * (torch.where(clip > 0, factor, 1.0) if isinstance(clip, Tensor) else factor)
    return [w * s for w, s in zip(amplified, scale.to(amplified[0].dtype), strict=True)]


def distribution(grads: Params, phi: Params, *, kind: str = "mlp", q: Scalar = 1.0, scope: str = "tensor") -> Params:
    """p of every entry, like grads; sums to 1 over each tensor, or over all for scope "global"."""
    flat, parts = joined(grads, scope)
    return apart([e / e.sum() for e in numerators(flat, parts, phi, kind=kind, q=q)], grads)


def gauges(p: Params, used: Params, scope: str = "tensor") -> dict[str, Tensor]:
    """What to watch of an amplifier, 0-d each.

    p: `distribution` of that scope.  used: the gradients that the optimiser got.
    Returns p_max, the largest p (one-hot: 1); p_entropy, the mean over the parts that sum to 1 of -sum p ln p / ln n
    (uniform: 1); effective_norm, of `used`. A part of one entry says nothing, and counts where there is no other.
    """
    flat, sizes = joined(p, scope)
    parts = [t for t in flat.split(sizes) if len(t) > 1] or [flat]
    entropy = torch.stack([torch.special.entr(t).sum() / math.log(max(len(t), 2)) for t in parts])
    return {
        "p_max": torch.stack([t.amax() for t in parts]).amax(),
        "p_entropy": entropy.mean(),
        "effective_norm": torch.stack([(g * g).sum() for g in used.values()]).sum().sqrt(),
    }


# ------------------------------------------------------------------------------------------ knobs


def widths(kind: str, width: int, depth: int, hidden: str) -> tuple[int, ...]:
    """Units of the hidden layers that the knobs ask for. Raises ValueError for a `hidden` that is no list of them."""
    if kind != "mlp":
        return ()
    if not hidden:
        return (width,) * depth
    parts = [part.strip() for part in hidden.split(",")]
    fine = all(part.isdecimal() and int(part) >= 1 for part in parts)
    _check(fine, f"hidden must be widths like '64,128,64', or '' for width and depth, got {hidden!r}")
    return tuple(int(part) for part in parts)


def flops(shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, Role], knobs: Mapping[str, Any]) -> float:
    """Per step and replica: what is done to every entry, and the network on one block of pieces; 1/T of the outer pass.

    The look-ahead's own gradients of the model are counted as examples (`Transform.oracle`), not here.
    """
    entries = sum(math.prod(shape) for shape in shapes.values())
    if knobs["kind"] not in LEARNED and not knobs["amplifier"]:
        return 8.0 * entries
    layers = (1, *widths(knobs["kind"], knobs["width"], knobs["depth"], knobs["hidden"]), 1)
    # The second layer is a running sum over pieces, of which the first alone is a product.
    network = sum(4.0 * (amp.BLOCK * b + a * b if i == 1 else amp.BLOCK * a * b)
                  for i, (a, b) in enumerate(itertools.pairwise(layers)))  # fmt: skip
    forward, backward = 14.0 * entries + network, 16.0 * entries + 3 * network
    return forward + (0.0 if knobs["amplifier"] else (forward + backward) / knobs["period"])


def _is(value: Scalar, holds: Callable[[float], bool]) -> bool:
    return isinstance(value, Tensor) or holds(value)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


METHODS = [
    Method(
        "neuralgrok", "p = softmax(phi(g));  g' = c p g / ||p g||;  phi learns on a held-back share every T steps",
        "NeuralGrok, arXiv 2504.17243, eq. (2), Algorithm 1", neuralgrok, DEFAULTS, SPACE, flops=flops,
    ),
]  # fmt: skip
