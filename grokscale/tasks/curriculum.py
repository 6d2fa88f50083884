"""Modular arithmetic that begins with small operands (methods.md EGD-13)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grokscale.entries import TaskEntry
from grokscale.tasks import modular
from grokscale.tasks.base import Split, Splits, Task, top1

OUTSIDE = -1  # label of a training row that is not asked yet
DEFAULTS: dict[str, Any] = {"p": 97, "op": "add", "fraction": 0.5, "start": 24, "grow": 2000}


def curriculum(p: int = 97, op: str = "add", fraction: float = 0.5, start: int = 24, grow: int = 2000) -> Task:
    """a op b mod p from two one-hot halves; at step t only training rows with a, b < bound(t) count.

    bound(t) = start + (p - start) min(1, (t - 1) / grow), rounded down. The order of the rows is that of the plain
    task: rows beyond the bound stay in the batch and their loss is 0, so early batches are smaller, (start / p)^2 of
    them at first; the loss is the mean over the rows that count. Train accuracy takes the others as wrong; validation
    and test ask every row at every step.
    p, op, fraction: as of `modular.pairs`.  start: bound at step 1.  grow: steps until every row counts.
    Raises ValueError for options out of range.
    """
    task = modular.pairs(p, op, fraction)
    if not 1 <= start <= p or grow < 1:
        raise ValueError(f"1 <= start <= p and grow >= 1 must hold, got start={start}, p={p}, grow={grow}")

    def splits(seed: int, validation: float) -> Splits:
        """y (N, 2): class, and the least bound at which the row counts."""
        train, val, test = task.splits(seed, validation)
        return Splits(_from(train, train.x.amax(1) + 1), val and _from(val), _from(test))

    def labels(y: Tensor, step: int) -> Tensor:
        bound = start + (p - start) * min(max(step, 1) - 1, grow) // grow
        return torch.where(y[..., 1] <= bound, y[..., 0], OUTSIDE)

    return replace(task, splits=splits, labels=labels, loss=loss_of_asked, correct=top1)


def loss_of_asked(out: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy over the rows whose label is not OUTSIDE; 0 where there is none."""
    asked = y != OUTSIDE
    losses = torch.nn.functional.cross_entropy(out, y.clamp(min=0), reduction="none")
    return torch.where(asked, losses, 0.0).sum() / asked.sum().clamp(min=1)


def _from(split: Split, bound: Tensor | None = None) -> Split:
    least = torch.zeros_like(split.y) if bound is None else bound
    return Split(split.x, torch.stack([split.y, least], 1))


TASKS = [
    TaskEntry(
        "modular-curriculum", "a op b mod p, trained on operands below a bound that grows with the step",
        "methods.md EGD-13",
        curriculum, DEFAULTS, horizon=135_000, model=modular.PAIRS_MODEL, optimiser=modular.PAIRS_OPTIMISER,
    ),
]  # fmt: skip
