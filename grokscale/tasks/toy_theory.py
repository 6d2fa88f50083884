"""What the anisotropic Gaussian toy does in the limit of infinitely many rows (EGD section 3, methods.md 3.7).

Pure functions of numpy, for overlays. Weights are (..., 2) in the axes of the data: z ~ N(0, diag(1, eps)), label
sign(z_1), seen in training where |z_1| >= s, tested where z v z_1 <= 0 with v = (cos theta, sin theta). Angles are in
radians. Everything is of the paper's recursion w <- w - eta X'(X w - y) / n, which drops the factor 2 of its loss.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
NODES = 4000  # midpoints of a smooth integral over [0, 1]: errors below 1e-7


def moments(s: float) -> tuple[float, float]:
    """(m_1, m_2) = (E |z_1|, E z_1^2) given |z_1| >= s: m_1 = phi(s) / Q(s), m_2 = 1 + s m_1.

    The paper's remark that m_1 < 1 holds for s <= 0.303 only.
    """
    phi, tail = math.exp(-s * s / 2) / math.sqrt(2 * math.pi), math.erfc(s / math.sqrt(2)) / 2
    return phi / tail, 1 + s * phi / tail


def sgd_weights(k: ArrayLike, u: ArrayLike, *, eta: float, eps: float, s: float) -> Floats:
    """Weights (..., 2) after k full-batch steps of rate eta from u: mu_k and nu_k.

    mu_k = alpha^k u_1 + (1 - alpha^k) m_1 / m_2 with alpha = 1 - eta m_2;  nu_k = beta^k u_2 with beta = 1 - eta eps.
    """
    k, (u1, u2), (m1, m2) = np.asarray(k, dtype=np.float64), np.asarray(u, dtype=np.float64), moments(s)
    alpha = (1 - eta * m2) ** k
    return np.stack([alpha * u1 + (1 - alpha) * m1 / m2, (1 - eta * eps) ** k * u2], -1)


def newton_weights(k: ArrayLike, u: ArrayLike, *, eta: float, s: float) -> Floats:
    """Weights (..., 2) after k steps of the Newton form: (1 - eta)^k u + (1 - (1 - eta)^k) w_ols, w_ols = (m_1/m_2, 0).

    What the paper calls EGD on this task (its equation (9)); EGD proper would only normalise a vector (ambiguity 23).
    """
    left, (m1, m2) = ((1 - eta) ** np.asarray(k, dtype=np.float64))[..., None], moments(s)
    return left * np.asarray(u, dtype=np.float64) + (1 - left) * np.array([m1 / m2, 0.0])


def exact_error(w: ArrayLike, *, eps: float, theta: float) -> Floats:
    """Share of the test distribution that sign(z w) gets wrong, exactly.

    [arccos r + arccos r_k - arccos r_wv] / (2 arccos r), the third line of the paper's proof, with
    r = cos theta / gamma, gamma^2 = cos^2 theta + eps sin^2 theta, r_k = w_1 / L, L^2 = w_1^2 + eps w_2^2 and
    r_wv = (w_1 cos theta + eps w_2 sin theta) / (L gamma). Weights of 0 get everything wrong.
    """
    w = np.asarray(w, dtype=np.float64)
    length = np.sqrt(w[..., 0] ** 2 + eps * w[..., 1] ** 2)
    zero = length == 0
    over = np.where(zero, 1.0, length)
    first, gamma = _angle(theta, eps)
    against = (w[..., 0] * math.cos(theta) + eps * w[..., 1] * math.sin(theta)) / (over * gamma)
    wrong = (first + _arccos(w[..., 0] / over) - _arccos(against)) / (2 * first)
    return np.where(zero, 1.0, np.clip(wrong, 0.0, 1.0))


def theorem1(w: ArrayLike, *, eps: float, theta: float) -> Floats:
    """The paper's min(1, arccos r_k / arccos r): the exact error where w_2 > 0 only (ambiguity 22).

    With eps = 1 it is the appendix' arccos(max(rho, rho_k)) / arccos rho.
    """
    w = np.asarray(w, dtype=np.float64)
    r_k = w[..., 0] / np.sqrt(w[..., 0] ** 2 + eps * w[..., 1] ** 2)
    return np.minimum(1.0, _arccos(r_k) / _angle(theta, eps)[0])


def train_error(w: ArrayLike, *, eps: float, s: float) -> Floats:
    """Share of the training distribution that sign(z w) gets wrong; of the test distribution too where nothing shifts.

    (1 / Q(s)) int_s^inf phi(a) Phi(-a w_1 / (sqrt(eps) |w_2|)) da, by midpoints in the tail probability.
    """
    w = np.asarray(w, dtype=np.float64)
    tail = math.erfc(s / math.sqrt(2)) / 2
    middle = (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES
    a = -torch.special.ndtri(tail * middle)
    across = torch.tensor(w[..., 1]).abs() * math.sqrt(eps)
    along = torch.tensor(w[..., 0])[..., None] * a
    slope = torch.where(across[..., None] > 0, along / across.clamp(min=1e-300)[..., None], along.sign() * math.inf)
    return torch.special.ndtr(-slope).mean(-1).numpy()


def plateau_end(u2: float, *, eta: float, eps: float, s: float, theta: float) -> float:
    """k* = log(|u_2| m_2 / (m_1 |tan theta|)) / (eta eps): the step at which r_k rises above r and the error falls.

    Corollary 1, corrected: it multiplies by |tan theta|. Below 0 there is no plateau.
    """
    m1, m2 = moments(s)
    return math.log(abs(u2) * m2 / (m1 * abs(math.tan(theta)))) / (eta * eps)


def _angle(theta: float, eps: float) -> tuple[float, float]:
    """(arccos r, gamma): the angle between e_1 and v once the data is made isotropic, the length of v then."""
    gamma = math.sqrt(math.cos(theta) ** 2 + eps * math.sin(theta) ** 2)
    return math.acos(math.cos(theta) / gamma), gamma


def _arccos(x: ArrayLike) -> Floats:
    return np.arccos(np.clip(x, -1.0, 1.0))
