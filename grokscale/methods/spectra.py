"""Matrices by their singular values: what the forms of EGD do to one matrix (methods.md 1.3).

Everything acts on the last two axes (..., m, n) of float64 tensors, batched over the others, and never branches on
values. `Cost` says what it costs: matrix products exactly, decompositions by Golub and Van Loan's counts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor

from grokscale.transform import Scalar

Weight = Callable[[Tensor], Tensor]
"""Singular values (..., k, 1) -> what each direction is multiplied by."""

STEEP = (3.4445, -4.7750, 2.0315)  # Muon's quintic: small values grow by 3.44 a step, but settle near 1 only roughly
EXACT = (1.875, -1.25, 0.375)  # Newton-Schulz of fifth degree: settles at 1 with cubic convergence
STEPS = (STEEP,) * 24 + (EXACT,) * 6  # 3.4445^24 = 8e12: whatever float64 tells from zero


class Cost(NamedTuple):
    """Floating-point operations: of matrix products, and of everything else."""

    products: float
    other: float

    def __add__(self, more: object) -> Cost:
        assert isinstance(more, Cost)
        return Cost(self.products + more.products, self.other + more.other)

    def times(self, factor: float) -> Cost:
        return Cost(self.products * factor, self.other * factor)


# ------------------------------------------------------------------------------------------- weights


def clamp(eps: Scalar) -> Weight:
    """s -> min(1, s / eps): the released code's clamp."""
    return lambda s: 1 / torch.clamp(s, min=eps)


def power(q: Scalar, eps: Scalar) -> Weight:
    """s -> s max(s, eps)^(q - 1), that is s^q wherever s >= eps: q = 1 the gradient, 0 the clamp."""
    return lambda s: torch.clamp(s, min=eps) ** (q - 1)


def pseudo(rtol: Scalar) -> Weight:
    """s -> 1, or 0 for s <= rtol s_max: the Moore-Penrose inverse of the paper."""

    def weight(s: Tensor) -> Tensor:
        kept = s > rtol * s.amax(-2, keepdim=True)
        return torch.where(kept, 1 / torch.where(kept, s, 1), 0)

    return weight


# ------------------------------------------------------------------------------------------- decompositions


def left(a: Tensor, how: str) -> Tensor:
    """Left singular vectors (..., m, m) of a (..., m, n), m <= n.

    how: "svd", or "gram": eigenvectors of a a^T, half the cost, right for directions above 1e-8 of the largest.
    Where one does not converge the other is tried, and where neither does the axes are taken, so that every row is
    weighed by itself, as ColNorm does: a pack must not end because a decomposition does.
    """
    ways = [lambda: torch.linalg.svd(a, full_matrices=False)[0], lambda: torch.linalg.eigh(a @ a.mT)[1]]
    for way in ways if how == "svd" else reversed(ways):
        with suppress(torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
            return way()
    return torch.eye(a.shape[-2], dtype=a.dtype, device=a.device).expand(*a.shape[:-1], a.shape[-2])


def thin(a: Tensor) -> tuple[Tensor, Tensor]:
    """(U (..., m, k), s (..., k), descending) of a (..., m, r), k = min(m, r); by way of the triangular factor of a
    where the decomposition of a itself does not converge."""
    with suppress(torch.linalg.LinAlgError):  # pyright: ignore[reportPrivateImportUsage]
        u, s, _ = torch.linalg.svd(a, full_matrices=False)
        return u, s
    q, r = torch.linalg.qr(a)
    u = left(r, "gram").flip(-1)
    return q @ u, torch.linalg.vector_norm(u.mT @ r, dim=-1)


def reweigh(a: Tensor, u: Tensor, weight: Weight, dtype: torch.dtype = torch.float64) -> Tensor:
    """U diag(w(s)) U^T a in `dtype`, s_i = ||u_i^T a||: a's singular values if U (..., m, m) are its left vectors.

    Where they are another matrix's, as those of an earlier gradient, s still is the length along each direction, so
    that nothing is divided by what is not there.
    """
    rows = u.mT @ a
    rows = weight(torch.linalg.vector_norm(rows, dim=-1, keepdim=True)) * rows
    # Only what is divided by small numbers needs float64; the sum of the weighed rows rounds as any product does.
    return u.to(dtype) @ rows.to(dtype)


def leading(a: Tensor, sketch: Tensor, power: int) -> tuple[Tensor, Tensor, Tensor]:
    """(U (..., m, k), s (..., k), Q (..., n, k)) of the range that a (..., m, n) sends a sketch (..., n, r) to.

    Q <- sketch; `power` times Q <- qr(a Q), Q <- qr(a^T Q); U, s of a Q. k = min(m, n, r), or min(m, r) without power
    iterations.  Source: EGD, Algorithm 3; methods.md 1.3.5.
    """
    for _ in range(power):
        sketch = torch.linalg.qr(a @ sketch)[0]
        sketch = torch.linalg.qr(a.mT @ sketch)[0]
    return *thin(a @ sketch), sketch


def lanczos(a: Tensor, start: Tensor, steps: int, k: int) -> Tensor:
    """(..., m, k) the leading left singular directions of a (..., m, n), from a Krylov space of so many steps.

    Golub and Kahan's bidiagonalisation from start (..., m, 1): v_1 ~ a^T start, u_j ~ a v_j, v_(j+1) ~ a^T u_j, each
    less its part along those before (twice, so that no digit of orthogonality is lost) and of length 1; then the k
    leading left singular vectors of a V, k <= steps <= min(m, n). A direction comes once however often its singular
    value does, and where the space is exhausted the rest are zero.
    Source: Golub and Kahan 1965; methods.md 5.3, EGD-12.
    """
    least = 1e-12 * torch.linalg.matrix_norm(a, keepdim=True)
    right, outs = [_across(a.mT @ start, [], least)], []
    image = [a @ right[0]]
    while len(right) < steps:
        outs.append(_across(image[-1], outs, least))
        right.append(_across(a.mT @ outs[-1], right, least))
        image.append(a @ right[-1])
    u, s = thin(torch.cat(image, -1))
    return u[..., :k] * (s[..., None, :k] > least)


def _across(x: Tensor, others: list[Tensor], least: Tensor) -> Tensor:
    """x (..., m, 1) less its part along orthonormal others, of length 1; zero where no more than `least` is left."""
    if others:
        span = torch.cat(others, -1)
        for _ in range(2):
            x = x - span @ (span.mT @ x)
    length = torch.linalg.vector_norm(x, dim=-2, keepdim=True)
    return torch.where(length > least, x / torch.where(length > least, length, 1.0), 0.0)


# ------------------------------------------------------------------------------------------- without decomposition


def polar(x: Tensor) -> Tensor:
    """U V^T of x = U S V^T (..., m, n), m <= n, by products alone; for a symmetric x its sign.

    X <- a X + (b A + c A^2) X with A = X X^T, from X = x / ||x||_F: every singular value goes to 1,
    and zero stays zero.
    Source: Newton and Schulz; the first coefficients are Muon's (Jordan et al. 2024).
    """
    x = x / torch.clamp(torch.linalg.matrix_norm(x, keepdim=True), min=torch.finfo(x.dtype).tiny)
    for a, b, c in STEPS:
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    return x


def clamped_polar(a: Tensor, eps: Scalar) -> Tensor:
    """U min(1, S / eps) V^T of a (..., m, n), m <= n, by products alone.

    With P = U V^T and H = a P^T = U S U^T: min(H, eps) = (H + eps - (H - eps) sign(H - eps)) / 2, and the answer is
    min(H, eps) P / eps.
    """
    p = polar(a)
    h = a @ p.mT
    h = (h + h.mT) / 2
    floor = eps * torch.eye(a.shape[-2], dtype=a.dtype, device=a.device)
    least = (h + floor - (h - floor) @ polar(h - floor)) / 2
    return (least / eps) @ p


# ------------------------------------------------------------------------------------------- costs


def svd_cost(m: int, n: int) -> float:
    """U1, S and V of a thin singular value decomposition through QR: 6 n m^2 + 20 m^3, m <= n."""
    m, n = sorted((m, n))
    return 6 * n * m**2 + 20 * m**3


def left_cost(m: int, n: int, how: str) -> Cost:
    """Of `left`: a symmetric eigenvalue decomposition with vectors takes 9 m^3."""
    return Cost(0, svd_cost(m, n)) if how == "svd" else Cost(2 * m * m * n, 9 * m**3)


def reweigh_cost(m: int, n: int) -> Cost:
    """Of `reweigh`: two products; a norm and a scale of every entry."""
    return Cost(4 * m * m * n, 3 * m * n)


def leading_cost(m: int, n: int, r: int, power: int) -> Cost:
    """Of `leading`: a thin QR with its Q of (m, k), k <= m, takes 4 m k^2 - 4/3 k^3."""

    def qr(rows: int, columns: int) -> tuple[float, int]:
        k = min(rows, columns)
        return 4 * rows * columns * k - 4 / 3 * k**3, k

    total = Cost(0, 0)
    for _ in range(power):
        first, k = qr(m, r)
        second, after = qr(n, k)
        total += Cost(2 * m * n * r + 2 * m * n * k, first + second)
        r = after
    return total + Cost(2 * m * n * r, svd_cost(m, r))


def lanczos_cost(m: int, n: int, steps: int) -> Cost:
    """Of `lanczos`: 2 steps products of a with a column, out of which what came before is taken twice."""
    total = Cost(4 * m * n, svd_cost(m, steps) + 2 * m * n + 3 * n)
    for j in range(1, steps):
        total += Cost(4 * m * n + 8 * m * (j - 1) + 8 * n * j, 3 * (m + n))
    return total


def polar_cost(m: int, n: int) -> Cost:
    """Of `polar`: three products a step; two scales and two sums."""
    return Cost(len(STEPS) * (4 * m * m * n + 2 * m**3), len(STEPS) * (3 * m * m + 2 * m * n) + 3 * m * n)


def clamped_polar_cost(m: int, n: int) -> Cost:
    """Of `clamped_polar`: two iterations and three products."""
    return polar_cost(m, n) + polar_cost(m, m) + Cost(4 * m * m * n + 2 * m**3, 8 * m * m)
