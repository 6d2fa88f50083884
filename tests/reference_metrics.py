"""Slow, obvious versions of the measures: numpy and plain loops in float64, nothing of grokscale imported.

Gradients and parameters are dicts of arrays, as the definitions in the papers speak of them (methods.md section 2).
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

Arrays = Mapping[str, np.ndarray]


def entries(values: Arrays) -> list[float]:
    return [float(x) for array in values.values() for x in array.reshape(-1)]


def age(values: Sequence[float]) -> float:
    """-sum |x| ln |x|, entry by entry."""
    return -sum(abs(x) * math.log(abs(x)) for x in values if x != 0)


def shannon(values: Sequence[float]) -> float:
    total = sum(abs(x) for x in values)
    return age([abs(x) / total for x in values])


def length(values: Arrays) -> float:
    return math.sqrt(sum(x * x for x in entries(values)))


def cosine(a: Arrays, b: Arrays) -> float:
    inner = sum(x * y for x, y in zip(entries(a), entries(b), strict=True))
    return inner / (length(a) * length(b))


def spectral(matrix: np.ndarray, energy: float = 0.95) -> dict[str, float]:
    """Singular values as roots of the eigenvalues of the smaller Gram matrix."""
    a = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    s = sorted((math.sqrt(max(0.0, x)) for x in np.linalg.eigvalsh(a @ a.T)), reverse=True)
    total, so_far, q = sum(x * x for x in s), 0.0, 0.0
    for q in s:
        so_far += q * q
        if so_far >= energy * total:
            break
    shares = [x / sum(s) for x in s]
    return {
        "kappa": s[0] / s[-1], "kappa95": s[0] / q, "stable_rank": total / s[0] ** 2,
        "effective_rank": math.exp(age(shares)),
    }  # fmt: skip


def mean(stream: Sequence[Arrays], alpha: float) -> dict[str, np.ndarray]:
    """mu_1 = g_1, mu <- alpha mu + (1 - alpha) g, after the last of the stream."""
    mu = {k: v.copy() for k, v in stream[0].items()}
    for g in stream[1:]:
        mu = {k: alpha * mu[k] + (1 - alpha) * v for k, v in g.items()}
    return mu


def power(signal: np.ndarray) -> list[float]:
    """Power at k / W per step under a Hann window by the definition of the Fourier transform, mean over columns."""
    w, d = signal.shape
    window = [0.5 - 0.5 * math.cos(2 * math.pi * t / w) for t in range(w)]
    out = []
    for k in range(w // 2 + 1):
        turn = [cmath.exp(-2j * math.pi * k * t / w) * window[t] for t in range(w)]
        sums = [abs(sum(turn[t] * signal[t, j] for t in range(w))) ** 2 for j in range(d)]
        out.append(sum(sums) / d / sum(x * x for x in window))
    return out


def ranks(values: Sequence[float]) -> list[float]:
    """1 for the least; equal values share the mean of their places."""
    return [1 + sum(y < x for y in values) + (sum(y == x for y in values) - 1) / 2 for x in values]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson's correlation of the ranks."""
    x, y = ranks(a), ranks(b)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    return top / math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))


def drops(values: Sequence[float], by: float) -> int:
    """How often a value lies more than `by` below the one before."""
    return sum(before - after > by for before, after in pairwise(values))
