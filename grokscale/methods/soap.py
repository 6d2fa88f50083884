"""SOAP: Adam in the eigenbasis of Shampoo's two means (methods.md 6).

Shampoo with the memory of a diagonal: where its basis stands still it is Adam on rotated coordinates. SOAP is an
optimiser itself: its answer is the whole direction of the step, and plain SGD with decoupled decay behind it applies
rate and decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor

from grokscale.entries import Method
from grokscale.methods.knobs import check, number
from grokscale.methods.muon import OWN_OPTIMISER
from grokscale.methods.spaces import Complement
from grokscale.transform import Params, Roles, Scalar, Transform

KINDS = ("hidden", "attention")
SHIFT = 1e-6  # of the largest diagonal entry: directions that no gradient has shown keep their place in the basis

DEFAULTS: dict[str, Any] = {"beta1": 0.95, "beta2": 0.95, "eps": 1e-8, "period": 10}
SPACE = {
    "beta1": Complement(0.8, 0.99),
    "beta2": Complement(0.8, 0.999),
    "eps": FloatDistribution(1e-10, 1e-4, log=True),
    "period": IntDistribution(1, 100, log=True),
}


class SoapState(NamedTuple):
    m: Params  # mean of gradients, like params
    v: Params  # mean of squares, of matrices in their basis, like params
    left: Params  # mean of G G', (m, m) for a matrix (m, n)
    right: Params  # mean of G' G, (n, n)
    left_basis: Params  # orthogonal, its columns near the eigenvectors of `left`
    right_basis: Params


def soap(beta1: Scalar = 0.95, beta2: Scalar = 0.95, eps: Scalar = 1e-8, period: int = 10) -> Transform:
    """g' = P [(P' M Q) / (1 - beta1^t) / (sqrt(V / (1 - beta2^t)) + eps)] Q' on hidden and attention matrices.

    M <- beta1 M + (1 - beta1) G;  V <- beta2 V + (1 - beta2) (P' G Q)^2;  L <- beta2 L + (1 - beta2) G G', R the same
    of G' G; after every `period` steps P <- qr(L P), Q <- qr(R Q), one step of power iteration each, V as it is. All
    other parameters step by Adam, which is P = Q = I.
    P and Q start as I and no step is left out, so that the first `period` steps are Adam's; the released code starts
    from the eigenvectors of the first gradient's factors and leaves that step out. L and R are shifted by 1e-6 of
    their largest diagonal entry times I, which moves no eigenvector: without it, directions that no gradient has shown
    yet would be turned by rounding alone.
    beta1, beta2: memories, 0 <= beta < 1.  eps: > 0.  period: steps between new bases, >= 1.
    Raises ValueError for knobs out of range.
    Source: SOAP, arXiv 2409.11321, Algorithms 3 and 4; defaults of its released code.
    """
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        number(name, value, f"0 <= {name} < 1", lambda x: 0 <= x < 1)
    number("eps", eps, "eps > 0", lambda x: x > 0)
    check(isinstance(period, int) and period >= 1, f"period must be an integer >= 1, got period={period}")

    def init(params: Params, roles: Roles, generator: torch.Generator) -> SoapState:
        ours = {k: p for k, p in params.items() if roles[k].kind in KINDS and p.ndim == 2}
        zeros = [{k: torch.zeros_like(p) for k, p in params.items()} for _ in range(2)]
        means = [{k: p.new_zeros(p.shape[side], p.shape[side]) for k, p in ours.items()} for side in (0, 1)]
        bases = [
            {k: torch.eye(p.shape[side], dtype=p.dtype, device=p.device) for k, p in ours.items()} for side in (0, 1)]
        return SoapState(*zeros, *means, *bases)

    def update(grads: Params, state: SoapState, params: Params, *, step: int, **_: Any) -> tuple[Params, SoapState]:
        p, q = state.left_basis, state.right_basis
        seen = {k: p[k].mT @ g @ q[k] if k in p else g for k, g in grads.items()}
        m = {k: beta1 * state.m[k] + (1 - beta1) * g for k, g in grads.items()}
        v = {k: beta2 * state.v[k] + (1 - beta2) * g * g for k, g in seen.items()}
        first, second = 1 - beta1**step, (1 - beta2**step) ** 0.5
        out = {k: (1 / first) * (p[k].mT @ m[k] @ q[k] if k in p else m[k]) / (v[k].sqrt() / second + eps) for k in m}
        out = {k: p[k] @ d @ q[k].mT if k in p else d for k, d in out.items()}
        left = {k: beta2 * mean + (1 - beta2) * (grads[k] @ grads[k].mT) for k, mean in state.left.items()}
        right = {k: beta2 * mean + (1 - beta2) * (grads[k].mT @ grads[k]) for k, mean in state.right.items()}
        if step % period == 0:
            p = {k: turned(left[k], basis) for k, basis in p.items()}
            q = {k: turned(right[k], basis) for k, basis in q.items()}
        return out, SoapState(m, v, left, right, p, q)

    return Transform(init, update)


def turned(mean: Tensor, basis: Tensor) -> Tensor:
    """qr((M + 1e-6 max(diag M) I) B) in float64: one step of power iteration; B itself where M is zero."""
    wide = mean.double()
    top = wide.diagonal().amax()
    shift = torch.where(top > 0, SHIFT * top, torch.ones_like(top))
    new, _ = torch.linalg.qr(wide @ basis.double() + shift * basis.double())
    finite = torch.isfinite(mean).all()
    # As a snapshot stores it: products of a transposed layout round otherwise.
    return torch.where(finite, new, torch.nan).to(basis.dtype).contiguous()


def _flops(shapes: Mapping[str, tuple[int, ...]], roles: Roles, knobs: Mapping[str, Any]) -> float:
    """Per matrix six products for the three turns, two for the means, and when bases are due one product and a
    decomposition of each side (about 2 + 8/3 m^3); 14 operations per scalar of Adam."""
    total = 0.0
    for k, shape in shapes.items():
        total += 14 * math.prod(shape)
        if roles[k].kind in KINDS and len(shape) == 2:
            m, n = shape
            total += 8 * m * n * (m + n) + 14 / 3 * (m**3 + n**3) / knobs["period"]
    return total


METHODS = [
    Method(
        "soap", "g' = P Adam(P' G Q) Q', P and Q near the eigenvectors of the means of G G' and G' G",
        "SOAP, arXiv 2409.11321", soap, DEFAULTS, SPACE, optimiser=OWN_OPTIMISER, flops=_flops,
    ),
]  # fmt: skip
