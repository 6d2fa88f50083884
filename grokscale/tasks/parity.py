"""Sparse parity: the product of k secret signs among n (EGD, methods.md 3.6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokscale.entries import TaskEntry
from grokscale.rng import generator
from grokscale.tasks.base import Inputs, Split, Splits, Task

DEFAULTS: dict[str, Any] = {"n": 100, "k": 3, "n_train": 2000, "n_val": 10_000, "n_test": 10_000, "loss": "mse"}
MODEL = {"name": "mlp2", "width": 100, "bias": "normal"}
OPTIMISER = {"name": "sgd", "lr": 0.0416, "wd": 0.01, "decay": "inside", "batch": 32, "drop_last": True}


def mse(out: Tensor, y: Tensor) -> Tensor:
    """mean (out - y)^2: what the released code computes under the name of hinge (ambiguity 21)."""
    return ((out.squeeze(-1) - y) ** 2).mean()


def hinge(out: Tensor, y: Tensor) -> Tensor:
    """mean max(0, 1 - y out): what the paper's text says."""
    return torch.relu(1 - y * out.squeeze(-1)).mean()


LOSSES = {"mse": mse, "hinge": hinge}


def parity(n: int = 100, k: int = 3, n_train: int = 2000, n_val: int = 10_000, n_test: int = 10_000,
           loss: str = "mse") -> Task:
    """x uniform in {-1, +1}^n, y = product of the first k coordinates.

    n, k: coordinates, secret ones.  n_train, n_val, n_test: rows; training rows are drawn once per seed, validation
    rows are fresh draws.  loss: "mse" or "hinge".
    """
    if not 1 <= k <= n:
        raise ValueError(f"1 <= k <= n must hold, got k={k}, n={n}")
    if min(n_train, n_val, n_test) < 1:
        raise ValueError(f"n_train, n_val, n_test >= 1 must hold, got {n_train}, {n_val}, {n_test}")
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")

    def draw(rows: int, stream: torch.Generator) -> Split:
        x = torch.randint(0, 2, (rows, n), generator=stream, dtype=torch.int8) * 2 - 1
        return Split(x, x[:, :k].prod(1, dtype=torch.int8))

    def splits(seed: int, validation: float) -> Splits:
        stream = generator(seed, "split")
        train, test = draw(n_train, stream), draw(n_test, stream)
        return Splits(train, draw(n_val, generator(seed, "val")) if validation else None, test)

    return Task(
        inputs=Inputs("vector", n),
        outputs=1,
        splits=splits,
        loss=LOSSES[loss],
        correct=lambda out, y: y * out.squeeze(-1) > 0,
    )


TASKS = [
    TaskEntry(
        "parity", "y = x_1 ... x_k among n signs", "EGD, arXiv 2510.04930; Barak et al. 2022",
        parity, DEFAULTS, horizon=100_000, model=MODEL, optimiser=OPTIMISER,
    ),
    # The paper's other sizes have their own widths and rates; the horizons are its epochs of 62 steps.
    TaskEntry(
        "parity-400-2", "parity of 2 among 400 signs, as published", "EGD, arXiv 2510.04930",
        parity, {**DEFAULTS, "n": 400, "k": 2}, horizon=626_200, model={**MODEL, "width": 50},
        optimiser={**OPTIMISER, "lr": 0.01, "wd": 1e-3},
    ),
    TaskEntry(
        "parity-50-4", "parity of 4 among 50 signs, as published", "EGD, arXiv 2510.04930",
        parity, {**DEFAULTS, "n": 50, "k": 4}, horizon=372_000, model=MODEL, optimiser={**OPTIMISER, "lr": 0.0231},
    ),
]
