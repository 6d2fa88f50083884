"""Modular arithmetic: the full table of a op b mod p (methods.md 3.2, 3.5).

Two forms of one table. `pairs` is EGD's: all p^2 ordered pairs, two one-hot halves. `tokens` is Grokfast's: rows
[x, op, y, =] with the answer to predict at the last position, y from 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grokscale.entries import TaskEntry
from grokscale.tasks.base import Inputs, Task, class_loss, split_table, top1

OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}

PAIRS_DEFAULTS: dict[str, Any] = {"p": 97, "op": "add", "fraction": 0.5, "loss": "cross_entropy"}
PAIRS_MODEL = {"name": "mlp2", "width": 512, "bias": "zero"}
PAIRS_OPTIMISER = {"name": "sgd", "lr": 0.7, "wd": 1e-4, "decay": "inside", "batch": 512, "drop_last": True}

TOKENS_DEFAULTS: dict[str, Any] = {"p": 97, "op": "mul", "fraction": 0.5, "loss": "cross_entropy"}
TOKENS_MODEL = {"name": "decoder", "dim": 128, "heads": 4, "layers": 2}
TOKENS_OPTIMISER = {
    "name": "adam", "lr": 1e-3, "wd": 0.0, "beta1": 0.9, "beta2": 0.98, "decay": "coupled", "warmup": 10, "batch": 512,
    "drop_last": False}


def pairs(p: int = 97, op: str = "add", fraction: float = 0.5, loss: str = "cross_entropy") -> Task:
    """x = [onehot(a); onehot(b)], y = a op b mod p, over all p^2 ordered pairs (EGD, methods.md 3.5).

    p: modulus.  op: add, sub or mul.  fraction: int(fraction p^2) rows train.
    loss: "cross_entropy" or "stablemax".
    """
    a, b, y = _table(p, op, fraction, range(p))
    x = torch.stack([a, b], 1)
    return Task(
        inputs=Inputs("pair", 2 * p, 2),
        outputs=p,
        splits=lambda seed, validation: split_table(x, y, int(fraction * len(x)), seed, validation),
        loss=class_loss(loss),
        correct=top1,
    )


def tokens(p: int = 97, op: str = "mul", fraction: float = 0.5, loss: str = "cross_entropy") -> Task:
    """Row [x, op, y, =], answer x op y mod p; x in 0..p-1, y in 1..p-1; token = is p, op is p + 1 (methods.md 3.2).

    p: modulus.  op: add, sub or mul.  fraction: int(fraction p (p - 1)) rows train.
    loss: "cross_entropy" or "stablemax".
    """
    a, b, y = _table(p, op, fraction, range(1, p))
    x = torch.stack([a, torch.full_like(a, p + 1), b, torch.full_like(a, p)], 1)
    return Task(
        inputs=Inputs("tokens", p + 2, 4, table=5, alphabet=((0, p), (p + 1, 1), (1, p - 1), (p, 1))),
        outputs=p + 2,
        splits=lambda seed, validation: split_table(x, y, int(fraction * len(x)), seed, validation),
        loss=class_loss(loss),
        correct=top1,
    )


def _table(p: int, op: str, fraction: float, second: range) -> tuple[Tensor, Tensor, Tensor]:
    if not 2 <= p <= 1024:
        raise ValueError(f"2 <= p <= 1024 must hold, got p={p}")
    if op not in OPERATORS:
        raise ValueError(f"op must be one of {', '.join(OPERATORS)}, got {op!r}")
    if not 0 < fraction < 1:
        raise ValueError(f"0 < fraction < 1 must hold, got fraction={fraction}")
    a, b = torch.cartesian_prod(torch.arange(p), torch.tensor(list(second))).unbind(1)
    return a, b, OPERATORS[op](a, b) % p


TASKS = [
    TaskEntry(
        "modular-pairs", "a op b mod p from two one-hot halves", "EGD, arXiv 2510.04930",
        pairs, PAIRS_DEFAULTS, horizon=135_000, model=PAIRS_MODEL, optimiser=PAIRS_OPTIMISER,
    ),
    TaskEntry(
        "modular-tokens", "[x, op, y, =] -> x op y mod p", "Power et al., arXiv 2201.02177; Grokfast, arXiv 2405.20233",
        tokens, TOKENS_DEFAULTS, horizon=300_000, model=TOKENS_MODEL, optimiser=TOKENS_OPTIMISER,
    ),
]
