"""The anisotropic Gaussian toy: a plateau that can be computed (EGD section 3, methods.md 3.7)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from grokscale.entries import TaskEntry
from grokscale.rng import generator
from grokscale.tasks.base import Inputs, Split, Splits, Task

DEFAULTS: dict[str, Any] = {
    "eps": 0.01, "s": 1.0, "degrees": 60.0, "shift": True, "n_train": 10_000, "n_val": 10_000, "n_test": 10_000}
MODEL = {"name": "linear", "start": (0.1, 0.995), "scale": 5.0}
OPTIMISER = {"name": "sgd", "lr": 0.1, "wd": 0.0, "decay": "inside", "batch": 10_000, "drop_last": True}


def half_square(out: Tensor, y: Tensor) -> Tensor:
    """1/2 mean (out - y)^2, whose gradient X'(X w - y) / n is the printed recursion's: it drops the loss's factor 2."""
    return ((out.squeeze(-1) - y) ** 2).mean() / 2


def toy(eps: float = 0.01, s: float = 1.0, degrees: float = 60.0, shift: bool = True, n_train: int = 10_000,
        n_val: int = 10_000, n_test: int = 10_000) -> Task:
    """z ~ N(0, diag(1, eps)), y = sign(z_1); trained where |z_1| >= s, tested where (z v) z_1 <= 0.

    Accuracy is measured on draws (10,000 rows: within 0.01); `toy_theory` has the exact curves to compare with.
    Training and test rows are drawn once per seed; validation rows are fresh draws from the test distribution.
    eps: variance of z_2.  s: least |z_1| in training.  degrees: the angle theta of v = (cos theta, sin theta).
    shift: false tests where it trains, the variant with equal distributions.  n_train, n_val, n_test: rows.
    Raises ValueError for options out of range.
    Source: EGD, arXiv 2510.04930, section 3; sizes and angle are not published (ambiguity 24).
    """
    if not 0 < eps <= 1:
        raise ValueError(f"0 < eps <= 1 must hold, got eps={eps}")
    if not 0 <= s <= 8:
        raise ValueError(f"0 <= s <= 8 must hold, got s={s}")
    if not 0 < degrees < 90:
        raise ValueError(f"0 < degrees < 90 must hold, got degrees={degrees}")
    if min(n_train, n_val, n_test) < 1:
        raise ValueError(f"n_train, n_val, n_test >= 1 must hold, got {n_train}, {n_val}, {n_test}")
    theta = math.radians(degrees)
    # Of v once z_2 is divided by sqrt(eps) and the plane is isotropic.
    angle = math.atan2(math.sqrt(eps) * math.sin(theta), math.cos(theta))
    tail = math.erfc(s / math.sqrt(2)) / 2

    def where_trained(rows: int, stream: torch.Generator) -> Split:
        share = 1 - torch.rand(rows, generator=stream, dtype=torch.float64)  # (0, 1]
        y = torch.randint(0, 2, (rows,), generator=stream) * 2 - 1
        z2 = math.sqrt(eps) * torch.randn(rows, generator=stream, dtype=torch.float64)
        return _split(-torch.special.ndtri(tail * share) * y, z2)

    def where_tested(rows: int, stream: torch.Generator) -> Split:
        """In the isotropic plane: a direction between the two half planes, either way, and any length."""
        radius = (-2 * (1 - torch.rand(rows, generator=stream, dtype=torch.float64)).log()).sqrt()
        turn = math.pi / 2 + angle * torch.rand(rows, generator=stream, dtype=torch.float64)
        turn = turn + math.pi * torch.randint(0, 2, (rows,), generator=stream)
        return _split(radius * turn.cos(), math.sqrt(eps) * radius * turn.sin())

    def splits(seed: int, validation: float) -> Splits:
        stream, held_out = generator(seed, "split"), where_tested if shift else where_trained
        train, test = where_trained(n_train, stream), held_out(n_test, stream)
        return Splits(train, held_out(n_val, generator(seed, "val")) if validation else None, test)

    return Task(
        inputs=Inputs("vector", 2),
        outputs=1,
        splits=splits,
        loss=half_square,
        correct=lambda out, y: y * out.squeeze(-1) > 0,
    )


def _split(z1: Tensor, z2: Tensor) -> Split:
    return Split(torch.stack([z1, z2], 1).float(), torch.where(z1 > 0, 1, -1).to(torch.int8))


TASKS = [
    TaskEntry(
        "toy", "y = sign(z_1), z ~ N(0, diag(1, eps)); trained where |z_1| >= s, tested in a wedge around z_1 = 0",
        "EGD, arXiv 2510.04930, section 3",
        toy, DEFAULTS, horizon=10_000, model=MODEL, optimiser=OPTIMISER,
    ),
]  # fmt: skip
