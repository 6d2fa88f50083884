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
from grokscale.methods.knobs import check, number, one_of
from grokscale.methods.muon import OWN_OPTIMISER
from grokscale.methods.spaces import Complement
from grokscale.transform import Params, Roles, Scalar, Transform

MATRICES = ("all", "inner")
INNER = ("hidden", "attention")
SHIFT = 1e-6  # of the largest diagonal entry: what directions count that no gradient has shown

DEFAULTS: dict[str, Any] = {"beta1": 0.95, "beta2": 0.95, "eps": 1e-8, "period": 10, "matrices": "all"}
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


def soap(
    beta1: Scalar = 0.95, beta2: Scalar = 0.95, eps: Scalar = 1e-8, period: int = 10, matrices: str = "all"
) -> Transform:
    """g' = P [(P' M Q) / (1 - beta1^t) / (sqrt(V / (1 - beta2^t)) + eps)] Q' on matrices, Adam on all else.

    M <- beta1 M + (1 - beta1) G;  V <- beta2 V + (1 - beta2) (P' G Q)^2;  L <- beta2 L + (1 - beta2) G G', R the same
    of G' G. The first gradient only makes L, R and their eigenvectors P, Q, by falling eigenvalue: no parameter is
    moved by it, and t counts from the next, so that no gradient is turned by a basis that it made. After every
    `period` steps the columns of P, and V with them, are put in the order of diag(P' L P), and P <- qr(L P), one step
    of power iteration; Q alike.
    Directions that no gradient has shown have the eigenvalue 0 several times over, and rounding alone would choose
    among them and turn them: at first they are told apart by a ramp (`eigenvectors`), then 1e-6 of its largest
    diagonal entry times I is added to L, which moves no eigenvector.
    beta1, beta2: memories, 0 <= beta < 1.  eps: > 0.  period: steps between new bases, >= 1.
    matrices: which have a basis: "all" of two axes (the released code up to 10,000 units a side), or "inner", hidden
    and attention matrices alone.
    Raises ValueError for knobs out of range.
    Source: SOAP, arXiv 2409.11321, Algorithms 3 and 4; defaults, first step and order of its released code
    (nikhilvyas/SOAP), whose eps stands beside sqrt(V) before the correction.
    """
    for name, value in (("beta1", beta1), ("beta2", beta2)):
        number(name, value, f"0 <= {name} < 1", lambda x: 0 <= x < 1)
    number("eps", eps, "eps > 0", lambda x: x > 0)
    check(isinstance(period, int) and period >= 1, f"period must be an integer >= 1, got period={period}")
    one_of("matrices", matrices, MATRICES)

    def init(params: Params, roles: Roles, generator: torch.Generator) -> SoapState:
        ours = {k: p for k, p in params.items() if _turns(tuple(p.shape), roles[k].kind, matrices)}
        zeros = [{k: torch.zeros_like(p) for k, p in params.items()} for _ in range(2)]
        means = [{k: p.new_zeros(p.shape[side], p.shape[side]) for k, p in ours.items()} for side in (0, 1)]
        bases = [
            {k: torch.eye(p.shape[side], dtype=p.dtype, device=p.device) for k, p in ours.items()} for side in (0, 1)]
        return SoapState(*zeros, *means, *bases)

    def update(grads: Params, state: SoapState, params: Params, *, step: int, **_: Any) -> tuple[Params, SoapState]:
        left = {k: beta2 * mean + (1 - beta2) * (grads[k] @ grads[k].mT) for k, mean in state.left.items()}
        right = {k: beta2 * mean + (1 - beta2) * (grads[k].mT @ grads[k]) for k, mean in state.right.items()}
        if step == 1:
            p = {k: eigenvectors(grads[k]).to(grads[k].dtype) for k in left}
            q = {k: eigenvectors(grads[k].mT).to(grads[k].dtype) for k in right}
            out = {k: torch.zeros_like(g) for k, g in grads.items()}
            return out, SoapState(state.m, state.v, left, right, p, q)
        p, q, t = state.left_basis, state.right_basis, step - 1
        seen = {k: p[k].mT @ g @ q[k] if k in p else g for k, g in grads.items()}
        m = {k: beta1 * state.m[k] + (1 - beta1) * g for k, g in grads.items()}
        v = {k: beta2 * state.v[k] + (1 - beta2) * g * g for k, g in seen.items()}
        first, second = 1 - beta1**t, (1 - beta2**t) ** 0.5
        out = {k: (1 / first) * (p[k].mT @ m[k] @ q[k] if k in p else m[k]) / (v[k].sqrt() / second + eps) for k in m}
        out = {k: p[k] @ d @ q[k].mT if k in p else d for k, d in out.items()}
        if t % period == 0:
            p, q = dict(p), dict(q)
            for k in p:
                p[k], rows = turned(left[k], p[k])
                q[k], columns = turned(right[k], q[k])
                v[k] = torch.take_along_dim(v[k], rows.unsqueeze(1), 0)
                v[k] = torch.take_along_dim(v[k], columns.unsqueeze(0), 1).contiguous()
        return out, SoapState(m, v, left, right, p, q)

    return Transform(init, update)


def eigenvectors(g: Tensor) -> Tensor:
    """(m, m) in float64, of G G' by falling eigenvalue, for g (m, n); I for G = 0.

    Where G has no part, up to rounding, they are those of diag(1, 2, ..., m) on what is left open, by rising value.
    """
    wide, finite = _safe(g)
    square, size = wide @ wide.mT, len(g)
    values, vectors = torch.linalg.eigh(square)
    rounding = max((max(g.shape) * torch.finfo(g.dtype).eps) ** 2, size * torch.finfo(wide.dtype).eps)
    open_ = vectors * (values <= rounding * values.amax()).to(wide.dtype)
    ramp = torch.arange(1, size + 1, dtype=wide.dtype, device=wide.device) / size
    left_open = (open_ @ open_.mT) @ torch.diag(ramp) @ (open_ @ open_.mT)
    _, vectors = torch.linalg.eigh(square - _top(square) * left_open)  # what is open comes behind the rest
    return torch.where(finite, vectors.flip(1), torch.nan).contiguous()


def turned(mean: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """(qr((M + 1e-6 max(diag M) I) B) in float64, order (n,) in which its columns come from those of the basis B).

    Columns whose share of M is below the shift keep their order behind the others.
    """
    wide, finite = _safe(mean)
    basis, shift = basis.double(), SHIFT * _top(wide)
    moved = wide @ basis
    shares = (basis * moved).sum(0)
    order = torch.where(shares > shift, shares, 0.0).argsort(descending=True, stable=True)
    moved = torch.take_along_dim(moved + shift * basis, order.unsqueeze(0), 1)
    new = torch.where(finite, torch.linalg.qr(moved)[0], torch.nan)
    # As a snapshot stores it: products of a transposed layout round otherwise.
    return new.to(mean.dtype).contiguous(), order


def _safe(mean: Tensor) -> tuple[Tensor, Tensor]:
    """(the mean in float64, zero where it holds anything non-finite, and whether it holds nothing such)."""
    finite = torch.isfinite(mean).all()
    return torch.where(finite, mean, torch.zeros_like(mean)).double(), finite


def _top(wide: Tensor) -> Tensor:
    """The largest diagonal entry, 1 where that is 0."""
    top = wide.diagonal().amax()
    return torch.where(top > 0, top, torch.ones_like(top))


def _turns(shape: tuple[int, ...], kind: str, matrices: str) -> bool:
    return len(shape) == 2 and (matrices == "all" or kind in INNER)


def _flops(shapes: Mapping[str, tuple[int, ...]], roles: Roles, knobs: Mapping[str, Any]) -> float:
    """Per matrix six products for the three turns, two for the means, and when bases are due one product and a
    decomposition of each side (about 2 + 8/3 m^3); 14 operations per scalar of Adam."""
    total = 0.0
    for k, shape in shapes.items():
        total += 14 * math.prod(shape)
        if _turns(shape, roles[k].kind, knobs["matrices"]):
            m, n = shape
            total += 8 * m * n * (m + n) + 14 / 3 * (m**3 + n**3) / knobs["period"]
    return total


METHODS = [
    Method(
        "soap", "g' = P Adam(P' G Q) Q', P and Q near the eigenvectors of the means of G G' and G' G",
        "SOAP, arXiv 2409.11321", soap, DEFAULTS, SPACE, version=2, optimiser=OWN_OPTIMISER, flops=_flops,
    ),
]  # fmt: skip
