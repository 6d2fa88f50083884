"""Egalitarian Gradient Descent: equal progress along every singular direction (arXiv 2510.04930; methods.md 1.3).

All forms act on the matrices that `layers` names (`grokscale.methods.matrices.chosen`); everything else keeps its plain
gradient. Since the transformed gradient never shrinks, training cannot settle by itself: the transform switches itself
off once the monitored accuracy has passed `switch` (the paper's Algorithm 1; ambiguity 13 of methods.md).

Where weight decay belongs is the optimiser's decay = "inside" (in the matrix that is equalised, as for the two-layer
nets) or "coupled" / "decoupled" (added behind it; ambiguity 12).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from torch import Tensor
from torch.nn import functional as F

from grokscale.entries import Method
from grokscale.methods import spectra
from grokscale.methods.knobs import check, number, one_of
from grokscale.methods.matrices import COMMON, Form, chosen, flat, over_matrices
from grokscale.methods.spectra import Cost
from grokscale.transform import Role, Scalar, Transform

EPS = FloatDistribution(1e-9, 1e-3, log=True)
RANKS = CategoricalDistribution([4, 8, 16, 30, 36, 40, 64, 128])
COMMON_SPACE: dict[str, BaseDistribution] = {
    "layers": CategoricalDistribution(["hidden", "mlp", "all2d"]),
    "switch": CategoricalDistribution([0.9, 0.95, 0.99, 2.0]), "sticky": CategoricalDistribution([True, False])}

EGD_DEFAULTS: dict[str, Any] = {
    "form": "clamp", "eps": 1e-6, "rtol": 0.0, "polar": "auto", "blocks": 1, "refresh": 1, **COMMON}
EGD_SPACE = {"eps": EPS, **COMMON_SPACE}
COLNORM_DEFAULTS: dict[str, Any] = {"floor": 0.01, "axis": "neuron", **COMMON}
COLNORM_SPACE = {"floor": FloatDistribution(1e-4, 1e-1, log=True), **COMMON_SPACE}
RSVD_DEFAULTS: dict[str, Any] = {"rank": 64, "power": 2, "eps": 1e-6, "fixed_sketch": False, **COMMON}
RSVD_SPACE = {"rank": RANKS, "power": IntDistribution(0, 3), "eps": EPS, **COMMON_SPACE}
TOPK_DEFAULTS: dict[str, Any] = {"rank": 16, "power": 1, "rest": "keep", "by": "subspace", "eps": 1e-6, **COMMON}
TOPK_SPACE = {
    "rank": RANKS, "power": IntDistribution(1, 3), "rest": CategoricalDistribution(["keep", "drop"]), "eps": EPS,
    **COMMON_SPACE}
POWER_DEFAULTS: dict[str, Any] = {"q": 0.5, "eps": 1e-6, **COMMON}
POWER_SPACE = {"q": CategoricalDistribution([1.0, 0.5, 0.0, -0.5, -1.0]), "eps": EPS, **COMMON_SPACE}


def egd(form: str = "clamp", eps: Scalar = 1e-6, rtol: Scalar = 0.0, polar: str = "auto", blocks: int = 1,
        refresh: int = 1, layers: str = "mlp", switch: Scalar = 0.95, sticky: bool = True,
        watch: str = "accuracy") -> Transform:
    """EGD: G = U S V^T -> U min(1, S / eps) V^T, that is U V^T wherever S >= eps.

    form: "clamp" (released code), or "pinv" (paper): U V^T over the singular values above rtol s_max, 0 along the
    rest; ambiguity 9.  eps: of the clamp, singular values below it are damped instead of raised to 1; a float32
    gradient's rounding is raised too, which from 1e-3 upwards hardly shows in grok steps.
    rtol: of pinv; never below max(m, n) x machine epsilon of the gradient, which 0 stands for.
    polar: how: "svd"; "gram", eigenvectors of the smaller Gram matrix in float64, half the cost, right for singular
    values above 1e-8 of the largest; "newton-schulz", products alone, for the clamp of whole matrices; "auto", gram for
    float32 gradients, whose own error is larger than its, and svd for float64.
    blocks: the output units are cut into so many blocks and each is equalised by itself, as if G G^T were
    block-diagonal; with one unit a block it is column normalisation with floor eps.
    refresh: the left singular vectors are those of the last step that refresh divides (counted from 0); lengths along
    them are of the step itself, so that no direction is raised above 1.
    layers: "hidden", "mlp", "all2d" or "all2d+emb" (`matrices.chosen`).
    switch: off once the monitored accuracy is above it; above 1 = never off, below 0 = never on.  sticky: stays off.
    watch: "accuracy", or "loss": off once the monitored loss is below `switch` (the anonymous version; ambiguity 13).
    Source: EGD, eq. (11) and Algorithm 1; blocks and refresh: methods.md 5.3, EGD-12.
    """
    one_of("form", form, ("clamp", "pinv"))
    _check_eps(eps)
    number("rtol", rtol, "0 <= rtol < 1", lambda value: 0 <= value < 1)
    one_of("polar", polar, ("auto", "svd", "gram", "newton-schulz"))
    check(blocks >= 1, f"blocks must be an integer >= 1, got blocks={blocks}")
    check(refresh >= 1, f"refresh must be an integer >= 1, got refresh={refresh}")
    if polar == "newton-schulz":
        check(form == "clamp", f"polar = 'newton-schulz' has no cut-off: form must be 'clamp', got {form!r}")
        check(refresh == 1, f"polar = 'newton-schulz' has no basis to keep: refresh must be 1, got {refresh}")
        return over_matrices(_products(eps, blocks), layers, switch, sticky, watch)

    def weight(shape: torch.Size, dtype: torch.dtype, how: str) -> spectra.Weight:
        if form == "clamp":
            return spectra.clamp(eps)
        sure = max(shape[-2:]) * torch.finfo(dtype).eps
        if how == "gram":
            sure = max(sure, math.sqrt(max(shape[-2:]) * torch.finfo(torch.float64).eps))
        return spectra.pseudo(torch.clamp(rtol, min=sure) if isinstance(rtol, Tensor) else max(rtol, sure))

    return over_matrices(_spectral(weight, polar, blocks, refresh), layers, switch, sticky, watch)


def colnorm(floor: Scalar = 0.01, axis: str = "neuron", layers: str = "mlp", switch: Scalar = 0.95,
            sticky: bool = True, watch: str = "accuracy") -> Transform:
    """EGD-ColNorm: every column c of G -> c / max(||c||, floor).

    floor: smallest norm divided by.  axis: "neuron" (one scale per output unit: all that enters it, the released
    code) or "input" (one per input feature); ambiguity 15.  layers, switch, sticky, watch: as `egd`.
    Source: EGD, column-normalised form.
    """
    number("floor", floor, "floor > 0", lambda value: value > 0)
    one_of("axis", axis, ("neuron", "input"))

    def act(a: Tensor, out_dim: int, kept: None, **_: Any) -> tuple[Tensor, None]:
        along = 1 - out_dim if axis == "neuron" else out_dim
        return a / torch.clamp(torch.linalg.vector_norm(a, dim=along, keepdim=True), min=floor), None

    return over_matrices(Form(act), layers, switch, sticky, watch)


def rsvd(rank: int = 64, power: int = 2, eps: Scalar = 1e-6, fixed_sketch: bool = False, layers: str = "mlp",
         switch: Scalar = 0.95, sticky: bool = True, watch: str = "accuracy") -> Transform:
    """EGD-RSVD: U diag(1 / max(s, eps)) U^T G with U, s of G Q, Q an orthonormal basis that a random sketch leads to.

    rank: columns of the sketch; above min(m, n) it is all of G.  power: times that Q <- qr(G Q), Q <- qr(G^T Q).
    fixed_sketch: one sketch per tensor, drawn at the start and kept (the JAX code); else fresh normals every step (the
    PyTorch code), of which a tensor of n columns takes the first n rows; ambiguity 14.
    eps, layers, switch, sticky, watch: as `egd`.
    Source: EGD, Algorithm 3; methods.md 1.3.5.
    """
    _check_leading(rank, power, least=0)
    _check_eps(eps)

    def act(a: Tensor, out_dim: int, kept: Tensor | None, *, sketch: Tensor | None,
            **_: Any) -> tuple[Tensor, Tensor | None]:
        first = kept if kept is not None else sketch
        assert first is not None
        u, s, basis = spectra.leading(a.double(), first.double(), power)
        del basis  # every step starts from the sketch
        return u @ ((u.mT @ a.double()) / torch.clamp(s, min=eps).unsqueeze(-1)), kept

    form = Form(act, start=_sketched(rank)) if fixed_sketch else Form(act, sketch=rank)
    return over_matrices(form, layers, switch, sticky, watch)


def topk(rank: int = 16, power: int = 1, rest: str = "keep", by: str = "subspace", eps: Scalar = 1e-6,
         layers: str = "mlp", switch: Scalar = 0.95, sticky: bool = True, watch: str = "accuracy") -> Transform:
    """EGD along the leading singular directions only: U_k min(1, S_k / eps) V_k^T, and the rest of G as it is.

    rank: k; above min(m, n) it is all of G.  rest: "keep" G - U_k U_k^T G as it is, or "drop" it.
    by: how the directions are found. "subspace": they follow the gradient by subspace iteration from those of the step
    before, `power` times Q <- qr(G Q), Q <- qr(G^T Q), at a cost linear in the rank. "lanczos": anew at every step, in
    a Krylov space of (power + 1) k dimensions over one column drawn at the start (`spectra.lanczos`); of directions
    with the same singular value it finds one.
    eps, layers, switch, sticky, watch: as `egd`.
    Source: methods.md 5.3, EGD-12 (cheap spectra).
    """
    _check_leading(rank, power, least=1)
    _check_eps(eps)
    one_of("rest", rest, ("keep", "drop"))
    one_of("by", by, ("subspace", "lanczos"))

    def start(shape: tuple[int, int], out_dim: int, generator: torch.Generator) -> Tensor:
        if by == "lanczos":
            return torch.randn(shape[0], 1, generator=generator).double()
        return torch.linalg.qr(_sketched(min(rank, *shape))(shape, out_dim, generator))[0]

    def act(a: Tensor, out_dim: int, kept: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        a = a.double()
        if by == "subspace":
            u, s, basis = spectra.leading(a, kept, power)
            rows = u.mT @ a
        else:
            m, n = a.shape
            u, basis = spectra.lanczos(a, kept, _krylov(m, n, rank, power), min(rank, m, n)), kept
            rows = u.mT @ a
            s = torch.linalg.vector_norm(rows, dim=-1)  # so that nothing is divided by what is not there
        out = u @ (rows / torch.clamp(s, min=eps).unsqueeze(-1))
        return out + (a - u @ rows) if rest == "keep" else out, basis

    return over_matrices(Form(act, start=start), layers, switch, sticky, watch)


def power_form(q: Scalar = 0.5, eps: Scalar = 1e-6, layers: str = "mlp", switch: Scalar = 0.95,
               sticky: bool = True, watch: str = "accuracy") -> Transform:
    """U S^q V^T: from the gradient (q = 1) over EGD (0) to the natural gradient (-1).

    q: what singular values are raised to.  eps: a singular value below it becomes s eps^(q - 1), which goes to 0 with
    s; at q = 0 the clamp of `egd`.  layers, switch, sticky, watch: as `egd`.
    Source: methods.md 1.3.1 (Fisher link) and 5.3, EGD-12.
    """
    _check_eps(eps)
    number("q", q, "-2 <= q <= 2", lambda value: -2 <= value <= 2)
    return over_matrices(_spectral(lambda *_: spectra.power(q, eps), "auto", 1, 1), layers, switch, sticky, watch)


# ------------------------------------------------------------------------------------------------ forms


def _spectral(weight: Callable[[torch.Size, torch.dtype, str], spectra.Weight], polar: str, blocks: int,
              refresh: int) -> Form:
    """Singular values reweighed, in float64. weight: of (shape of a block, dtype of the gradient, how)."""

    def start(shape: tuple[int, int], out_dim: int, generator: torch.Generator) -> Tensor:
        block = cut(torch.empty(shape, device="meta"), out_dim, blocks).shape
        return torch.zeros((*block[:-2], min(block[-2:]), min(block[-2:])), dtype=torch.float64)

    def act(a: Tensor, out_dim: int, kept: Tensor | None, *, step: int, **_: Any) -> tuple[Tensor, Tensor | None]:
        how = polar if polar != "auto" else "svd" if a.dtype == torch.float64 else "gram"
        block = cut(a, out_dim, blocks).double()
        tall = block.shape[-2] > block.shape[-1]
        wide = block.mT if tall else block
        u = spectra.left(wide, how) if kept is None or (step - 1) % refresh == 0 else kept
        new = spectra.reweigh(wide, u, weight(wide.shape, a.dtype, how), a.dtype)
        return joined(new.mT if tall else new, a.shape, out_dim, blocks), u if refresh > 1 else None

    return Form(act, start=start if refresh > 1 else None, timeless=refresh == 1)


def _products(eps: Scalar, blocks: int) -> Form:
    """The clamp without a decomposition, in float64."""

    def act(a: Tensor, out_dim: int, kept: None, **_: Any) -> tuple[Tensor, None]:
        block = cut(a, out_dim, blocks).double()
        tall = block.shape[-2] > block.shape[-1]
        new = spectra.clamped_polar(block.mT if tall else block, eps)
        return joined(new.mT if tall else new, a.shape, out_dim, blocks), None

    return Form(act)


def cut(a: Tensor, out_dim: int, blocks: int) -> Tensor:
    """A matrix (m, n) as blocks (b, rows, inputs) of output units, filled up with units of zeros; itself for one."""
    if blocks == 1:
        return a
    a = a if out_dim == 0 else a.mT
    count = min(blocks, a.shape[0])
    return F.pad(a, (0, 0, 0, -a.shape[0] % count)).unflatten(0, (count, -1))


def joined(parts: Tensor, shape: torch.Size, out_dim: int, blocks: int) -> Tensor:
    """The way back from `cut`."""
    if blocks == 1:
        return parts
    whole = parts.flatten(0, 1)[: shape[out_dim]]
    return whole if out_dim == 0 else whole.mT


def _krylov(m: int, n: int, rank: int, power: int) -> int:
    return min((power + 1) * rank, m, n)


def _sketched(rank: int) -> Callable[[tuple[int, int], int, torch.Generator], Tensor]:
    """Standard normals (n, rank) for a matrix (m, n), drawn as float32 so that both precisions start alike."""
    return lambda shape, out_dim, generator: torch.randn(shape[1], rank, generator=generator).double()


def _check_eps(eps: Scalar) -> None:
    number("eps", eps, "eps > 0", lambda value: value > 0)


def _check_leading(rank: int, power: int, least: int) -> None:
    check(rank >= 1, f"rank must be an integer >= 1, got rank={rank}")
    check(power >= least, f"power must be an integer >= {least}, got power={power}")


# ------------------------------------------------------------------------------------------------ costs

Shapes = Mapping[str, tuple[int, ...]]


def cost(of: Callable[[int, int, int, Mapping[str, Any]], Cost]) -> Callable[..., Cost]:
    """(shapes, roles, knobs) -> Cost of a form over all chosen tensors. of: (m, n, out_dim, knobs) of one."""

    def total(shapes: Shapes, roles: Mapping[str, Role], knobs: Mapping[str, Any]) -> Cost:
        sizes = [flat(shapes[k], roles[k].out_dim) for k in chosen(shapes, roles, knobs["layers"])]
        return sum((of(m, n, out_dim, knobs) for (m, n), out_dim in sizes), Cost(0, 0))

    return total


def flops(of: Callable[..., Cost]) -> Callable[..., float]:
    """The same whether the switch is on or off: what is not used is computed all the same."""
    return lambda shapes, roles, knobs: float(sum(of(shapes, roles, knobs)))


def _egd_cost(m: int, n: int, out_dim: int, knobs: Mapping[str, Any]) -> Cost:
    """auto is float32's gram; the basis is paid for once in `refresh` steps."""
    block = cut(torch.empty((m, n), device="meta"), out_dim, knobs["blocks"]).shape
    m, n = sorted(block[-2:])
    if knobs["polar"] == "newton-schulz":
        one = spectra.clamped_polar_cost(m, n)
    else:
        basis = spectra.left_cost(m, n, "svd" if knobs["polar"] == "svd" else "gram")
        one = basis.times(1 / knobs["refresh"]) + spectra.reweigh_cost(m, n)
    return one.times(math.prod(block[:-2]))


def _rsvd_cost(m: int, n: int, out_dim: int, knobs: Mapping[str, Any]) -> Cost:
    k = min(m, n if knobs["power"] else m, knobs["rank"])
    return spectra.leading_cost(m, n, knobs["rank"], knobs["power"]) + Cost(4 * k * m * n, k * n)


def _topk_cost(m: int, n: int, out_dim: int, knobs: Mapping[str, Any]) -> Cost:
    k = min(m, n, knobs["rank"])
    rest = Cost(2 * k * m * n, 2 * m * n) if knobs["rest"] == "keep" else Cost(0, 0)
    if knobs["by"] == "lanczos":
        found = spectra.lanczos_cost(m, n, _krylov(m, n, k, knobs["power"])) + Cost(0, 2 * k * n)
    else:
        found = spectra.leading_cost(m, n, k, knobs["power"])
    return found + Cost(4 * k * m * n, k * n) + rest


egd_cost, rsvd_cost, topk_cost = cost(_egd_cost), cost(_rsvd_cost), cost(_topk_cost)
power_cost = cost(lambda m, n, o, knobs: _egd_cost(m, n, o, {"blocks": 1, "polar": "auto", "refresh": 1}))
colnorm_cost = cost(lambda m, n, o, knobs: Cost(0, 3 * m * n))


METHODS = [
    Method(
        "egd", "G = U S V^T;  G' = U min(1, S/eps) V^T", "EGD, arXiv 2510.04930, eq. (11), Algorithm 1",
        egd, EGD_DEFAULTS, EGD_SPACE, neutral={"switch": -1.0}, flops=flops(egd_cost),
    ),
    Method(
        "egd-colnorm", "g_j' = g_j / max(||g_j||, floor) per neuron j", "EGD, arXiv 2510.04930, column-normalised form",
        colnorm, COLNORM_DEFAULTS, COLNORM_SPACE, neutral={"switch": -1.0}, flops=flops(colnorm_cost),
    ),
    Method(
        "egd-rsvd", "U, s of G Q, Q random;  G' = U max(s, eps)^-1 U^T G", "EGD, arXiv 2510.04930, Algorithm 3",
        rsvd, RSVD_DEFAULTS, RSVD_SPACE, neutral={"switch": -1.0}, flops=flops(rsvd_cost),
    ),
    Method(
        "egd-topk", "G' = U_k min(1, S_k/eps) V_k^T + (G - U_k U_k^T G)", "methods.md 5.3, EGD-12",
        topk, TOPK_DEFAULTS, TOPK_SPACE, neutral={"switch": -1.0}, flops=flops(topk_cost),
    ),
    Method(
        "egd-power", "G = U S V^T;  G' = U S^q V^T", "EGD, arXiv 2510.04930, section on Fisher; methods.md 5.3, EGD-12",
        power_form, POWER_DEFAULTS, POWER_SPACE, neutral={"switch": -1.0}, flops=flops(power_cost),
    ),
]
