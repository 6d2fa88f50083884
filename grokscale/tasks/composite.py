"""NeuralGrok's modular arithmetic: operands first, then operator tokens, then = (methods.md 3.3).

The operator tokens are the same in every row and carry no information; they are kept because they add parameters.
The paper's split is 49 % to train on, 1 % for the amplifier, 50 % to test on, and 50/0/50 for what it compares with.
Here the amplifier's rows are carved out of the training half, the same half for all methods: 4563/93/4656 of 9312.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grokscale.entries import TaskEntry
from grokscale.tasks.base import Inputs, Task, finite

# expression -> (operator tokens, least value of each operand, formula before the modulus)
EXPRESSIONS: dict[str, tuple[int, tuple[int, ...], Callable[..., Tensor]]] = {
    "a+b": (1, (0, 1), lambda a, b: a + b),
    "a-b": (1, (0, 1), lambda a, b: a - b),
    "a.b": (1, (0, 1), lambda a, b: a * b),
    "a.a-b": (2, (0, 1), lambda a, b: a * a - b),
}
FIVE: tuple[int, tuple[int, ...], Callable[..., Tensor]] = (
    3, (0, 0, 1, 1, 0), lambda a, b, c, d, e: a * c + b * d - e)  # fmt: skip

DEFAULTS: dict[str, Any] = {"p": 97, "expr": "a.a-b", "fraction": 0.5, "loss": "cross_entropy"}
MODEL = {"name": "decoder", "dim": 128, "heads": 4, "layers": 2}
FIVE_DEFAULTS: dict[str, Any] = {"p": 7, "fraction": 0.5, "loss": "cross_entropy"}
FIVE_MODEL = {**MODEL, "layers": 4}
OPTIMISER = {
    "name": "adam", "lr": 1e-3, "wd": 1e-3, "beta1": 0.9, "beta2": 0.98, "decay": "coupled", "warmup": 10,
    "batch": 512, "drop_last": False}  # fmt: skip


def composite(p: int = 97, expr: str = "a.a-b", fraction: float = 0.5, loss: str = "cross_entropy") -> Task:
    """Row [a, b, op tokens, =], answer expr(a, b) mod p; a in 0..p-1, b in 1..p-1; token = is p, the ops from p + 1.

    p: modulus.  expr: a+b, a-b, a.b, or a.a-b, which has two op tokens.  fraction: int(fraction p (p - 1)) rows train.
    loss: "cross_entropy" or "stablemax".
    Raises ValueError for another expression or loss, for p or fraction out of range.
    Source: NeuralGrok, arXiv 2504.17243 and its code; it says p^n rows, its code leaves b = 0 out (ambiguity 19).
    """
    if not 2 <= p <= 1024:
        raise ValueError(f"2 <= p <= 1024 must hold, got p={p}")
    if expr not in EXPRESSIONS:
        raise ValueError(f"expr must be one of {', '.join(EXPRESSIONS)}, got {expr!r}")
    return _task(p, fraction, loss, *EXPRESSIONS[expr])


def composite_five(p: int = 7, fraction: float = 0.5, loss: str = "cross_entropy") -> Task:
    """Row [a, b, c, d, e, three op tokens, =], answer a c + b d - e mod p; c and d in 1..p-1, the others from 0.

    p: modulus.  fraction: int(fraction p^3 (p - 1)^2) rows train.  loss: as `composite`.
    Raises ValueError for p or fraction out of range.  Source: as `composite`.
    """
    if not 2 <= p <= 13:
        raise ValueError(f"2 <= p <= 13 must hold (the table has p^3 (p - 1)^2 rows), got p={p}")
    return _task(p, fraction, loss, *FIVE)


def _task(p: int, fraction: float, loss: str, ops: int, low: tuple[int, ...],
          formula: Callable[..., Tensor]) -> Task:
    operands = torch.cartesian_prod(*(torch.arange(least, p) for least in low)).reshape(-1, len(low))
    symbols = (*range(p + 1, p + 1 + ops), p)
    x = torch.cat([operands, torch.tensor(symbols).expand(len(operands), -1)], 1)
    inputs = Inputs(
        "tokens", p + 1 + ops, x.shape[1], table=x.shape[1] + 1,
        alphabet=(*((least, p - least) for least in low), *((symbol, 1) for symbol in symbols)))  # fmt: skip
    return finite(x, formula(*operands.unbind(1)) % p, fraction, inputs, inputs.size, loss)


TASKS = [
    TaskEntry(
        "modular-composite", "[a, b, ops, =] -> a+b, a-b, a.b or a.a-b mod p", "NeuralGrok, arXiv 2504.17243",
        composite, DEFAULTS, horizon=300_000, model=MODEL, optimiser=OPTIMISER,
    ),
    TaskEntry(
        "modular-composite-5", "[a, b, c, d, e, ops, =] -> a.c + b.d - e mod p, four layers",
        "NeuralGrok, arXiv 2504.17243",
        composite_five, FIVE_DEFAULTS, horizon=300_000, model=FIVE_MODEL, optimiser=OPTIMISER,
    ),
]  # fmt: skip
