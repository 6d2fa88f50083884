"""Egalitarian Gradient Descent: equal progress along every singular direction (arXiv 2510.04930; methods.md 1.3).

Both forms act on the hidden matrices only; everything else keeps its plain gradient. Since the transformed gradient
never shrinks, training cannot settle by itself: the transform switches itself off once the monitored accuracy has
passed `switch` (the paper's Algorithm 1; ambiguity 13 of methods.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from torch import Tensor

from grokscale.entries import Method
from grokscale.transform import Params, Roles, Scalar, Transform

LAYERS = {"hidden": ("hidden",), "all2d": ("hidden", "attention", "head")}

EGD_DEFAULTS: dict[str, Any] = {"eps": 1e-6, "layers": "hidden", "switch": 0.95, "sticky": True}
EGD_SPACE = {"eps": FloatDistribution(1e-9, 1e-3, log=True), "switch": CategoricalDistribution([0.9, 0.95, 0.99, 2.0])}

COLNORM_DEFAULTS: dict[str, Any] = {
    "floor": 0.01, "axis": "neuron", "layers": "hidden", "switch": 0.95, "sticky": True}
COLNORM_SPACE = {
    "floor": FloatDistribution(1e-4, 1e-1, log=True), "switch": CategoricalDistribution([0.9, 0.95, 0.99, 2.0])}


class EgdState(NamedTuple):
    on: Tensor  # 0-d bool: the switch


def egd(eps: Scalar = 1e-6, layers: str = "hidden", switch: Scalar = 0.95, sticky: bool = True) -> Transform:
    """EGD: G = U S V^T -> U min(1, S / eps) V^T, that is U V^T wherever S >= eps.

    eps: singular values below it are damped instead of raised to 1 (the released code's clamp; ambiguity 9).
    layers: "hidden" or "all2d" (hidden, attention and head matrices).
    switch: off once the monitored accuracy is above it; above 1 = never off, below 0 = never on.  sticky: stays off.
    Source: EGD, eq. (11) and Algorithm 1.
    """
    _check(isinstance(eps, Tensor) or eps > 0, f"eps > 0 must hold, got eps={eps}")
    return _switched(lambda g, out_dim: equalise(g, eps), layers, switch, sticky)


def colnorm(floor: Scalar = 0.01, axis: str = "neuron", layers: str = "hidden", switch: Scalar = 0.95,
            sticky: bool = True) -> Transform:
    """EGD-ColNorm: every column c of G -> c / max(||c||, floor).

    floor: smallest norm divided by.  axis: "neuron" (one scale per output unit: all that enters it, the released
    code) or "input" (one per input feature); ambiguity 15.  layers, switch, sticky: as `egd`.
    Source: EGD, column-normalised form.
    """
    _check(isinstance(floor, Tensor) or floor > 0, f"floor > 0 must hold, got floor={floor}")
    _check(axis in ("neuron", "input"), f"axis must be 'neuron' or 'input', got {axis!r}")

    def normalise(g: Tensor, out_dim: int) -> Tensor:
        kept = out_dim if axis == "neuron" else 1 - out_dim
        return g / torch.clamp(torch.linalg.vector_norm(g, dim=1 - kept, keepdim=True), min=floor)

    return _switched(normalise, layers, switch, sticky)


def equalise(g: Tensor, eps: Scalar) -> Tensor:
    """U min(1, S / eps) V^T of a matrix g (m, n).

    float32: from the eigenvectors of the smaller Gram matrix in float64, half the cost of a decomposition of g, and
    its error (1e-7 at a condition of 1e6) is below float32's own. float64: from the singular value decomposition.
    A matrix with a non-finite entry is treated as zero, since both would raise for the whole pack; its lane is
    lost anyway, and known by its loss.
    """
    wide = g if g.shape[0] <= g.shape[1] else g.mT
    a = torch.where(torch.isfinite(wide).all(), wide, torch.zeros_like(wide)).double()
    if g.dtype == torch.float64:
        u, s, _ = torch.linalg.svd(a, full_matrices=False)
    else:
        squares, u = torch.linalg.eigh(a @ a.mT)
        s = squares.clamp(min=0).sqrt()
    out = (u @ ((u.mT @ a) / torch.clamp(s, min=eps).unsqueeze(-1))).to(g.dtype)
    return out if wide is g else out.mT


def _switched(act: Callable[[Tensor, int], Tensor], layers: str, switch: Scalar, sticky: bool) -> Transform:
    _check(layers in LAYERS, f"layers must be one of {', '.join(LAYERS)}, got {layers!r}")
    kinds = LAYERS[layers]

    def init(params: Params, roles: Roles, generator: torch.Generator) -> EgdState:
        device = next(iter(params.values())).device
        return EgdState(torch.ones((), dtype=torch.bool, device=device))

    def update(grads: Params, state: EgdState, params: Params, *, step: int, val_accuracy: Tensor,
               roles: Roles, **_: Any) -> tuple[Params, EgdState]:
        below = val_accuracy <= switch
        on = (state.on & below) if sticky else below
        out = {
            k: torch.where(on, act(g, roles[k].out_dim), g) if roles[k].kind in kinds else g for k, g in grads.items()}
        return out, EgdState(on)

    return Transform(init, update, needs=frozenset({"val_accuracy", "roles"}), active=lambda state: state.on)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


METHODS = [
    Method(
        "egd", "G = U S V^T;  G' = U min(1, S/eps) V^T", "EGD, arXiv 2510.04930, eq. (11), Algorithm 1",
        egd, EGD_DEFAULTS, EGD_SPACE, neutral={"switch": -1.0},
    ),
    Method(
        "egd-colnorm", "g_j' = g_j / max(||g_j||, floor) per neuron j", "EGD, arXiv 2510.04930, column-normalised form",
        colnorm, COLNORM_DEFAULTS, COLNORM_SPACE, neutral={"switch": -1.0},
    ),
]
