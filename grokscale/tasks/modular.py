"""Modular arithmetic: the full table of a op b mod p (methods.md 3.2, 3.4, 3.5).

Two forms of one table. `pairs` is EGD's: all p^2 ordered pairs, two one-hot halves. `tokens` is Grokfast's: rows
[x, op, y, =] with the answer to predict at the last position, y from 1. Where an operator divides by b, b is from 1 in
both forms: Power et al. draw (c, b) and set a = b c, which gives the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grokscale.entries import TaskEntry
from grokscale.tasks.base import Inputs, Task, finite

OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "x2+y": lambda a, b: a**2 + b,
    "x3+y": lambda a, b: a**3 + b,
    "x2+y2": lambda a, b: a**2 + b**2,
    "x2+xy+y2": lambda a, b: a**2 + a * b + b**2,
    "x2+xy+y2+x": lambda a, b: a**2 + a * b + b**2 + a,
    "x3+xy": lambda a, b: a**3 + a * b,
    "x3+xy2+y": lambda a, b: a**3 + a * b**2 + b,
    "add-or-mul": lambda a, b: torch.where(a % 2 == 0, a + b, a * b),  # "+*" of Power et al.'s code
    "add-or-sub": lambda a, b: torch.where(a % 2 == 0, a + b, a - b),  # "+-"
}
DIVISIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # the third is b^-1 mod p, 0 for b = 0
    "div": lambda a, b, inverse: a * inverse,
    "div-or-sub": lambda a, b, inverse: torch.where(b % 2 == 1, a * inverse, a - b),  # x/y if y is odd, else x - y
}
NAMES = ", ".join([*OPERATORS, *DIVISIONS])

PAIRS_DEFAULTS: dict[str, Any] = {"p": 97, "op": "add", "fraction": 0.5, "loss": "cross_entropy"}
PAIRS_MODEL = {"name": "mlp2", "width": 512, "bias": "zero"}
PAIRS_OPTIMISER = {"name": "sgd", "lr": 0.7, "wd": 1e-4, "decay": "inside", "batch": 512, "drop_last": True}

TOKENS_DEFAULTS: dict[str, Any] = {
    "p": 97, "op": "mul", "fraction": 0.5, "include_zero": False, "loss": "cross_entropy"}
TOKENS_MODEL = {"name": "decoder", "dim": 128, "heads": 4, "layers": 2}
TOKENS_OPTIMISER = {
    "name": "adam", "lr": 1e-3, "wd": 0.0, "beta1": 0.9, "beta2": 0.98, "decay": "coupled", "warmup": 10, "batch": 512,
    "drop_last": False}


def pairs(p: int = 97, op: str = "add", fraction: float = 0.5, loss: str = "cross_entropy") -> Task:
    """x = [onehot(a); onehot(b)], y = a op b mod p, over all p^2 ordered pairs (EGD, methods.md 3.5).

    p: modulus, a prime for div and div-or-sub.  op: a key of OPERATORS or DIVISIONS; div leaves b = 0 out.
    fraction: int(fraction rows) rows train.  loss: "cross_entropy" or "stablemax".
    Raises ValueError for another operator or loss, for p or fraction out of range.
    """
    a, b, y = _table(p, op, _second(op, include_zero=True))
    return finite(torch.stack([a, b], 1), y, fraction, Inputs("pair", 2 * p, 2), p, loss)


def tokens(p: int = 97, op: str = "mul", fraction: float = 0.5, include_zero: bool = False,
           loss: str = "cross_entropy") -> Task:
    """Row [x, op, y, =], answer x op y mod p; x in 0..p-1, y in 1..p-1; token = is p, op is p + 1 (methods.md 3.2).

    p: modulus, a prime for div and div-or-sub.  op: a key of OPERATORS or DIVISIONS.
    fraction: int(fraction rows) rows train.  include_zero: y from 0, as in Power et al. (methods.md 3.4).
    loss: "cross_entropy" or "stablemax".
    Raises ValueError for another operator or loss, for p or fraction out of range, for a division by zero.
    """
    if include_zero and op == "div":
        raise ValueError("include_zero must be false for op=div, which has no answer for y = 0; got include_zero=true")
    low = _second(op, include_zero)
    a, b, y = _table(p, op, low)
    x = torch.stack([a, torch.full_like(a, p + 1), b, torch.full_like(a, p)], 1)
    inputs = Inputs("tokens", p + 2, 4, table=5, alphabet=((0, p), (p + 1, 1), (low, p - low), (p, 1)))
    return finite(x, y, fraction, inputs, p + 2, loss)


def _second(op: str, include_zero: bool) -> int:
    """The least second operand."""
    return 0 if include_zero and op != "div" else 1


def _table(p: int, op: str, low: int) -> tuple[Tensor, Tensor, Tensor]:
    """(a, b, a op b mod p) of all a from 0 and b from `low`, p (p - low) rows each."""
    if not 2 <= p <= 1024:
        raise ValueError(f"2 <= p <= 1024 must hold, got p={p}")
    if op not in OPERATORS and op not in DIVISIONS:
        raise ValueError(f"op must be one of {NAMES}, got {op!r}")
    a, b = torch.cartesian_prod(torch.arange(p), torch.arange(low, p)).reshape(-1, 2).unbind(1)
    if op in OPERATORS:
        return a, b, OPERATORS[op](a, b) % p
    factor = next(q for q in range(2, p + 1) if p % q == 0)
    if factor < p:
        raise ValueError(f"p must be a prime for op={op}, which needs b^-1 mod p for every b; got p={p}, a multiple of "
                         f"{factor}")
    inverse = torch.tensor([0, *(pow(i, -1, p) for i in range(1, p))])
    return a, b, DIVISIONS[op](a, b, inverse[b]) % p


TASKS = [
    TaskEntry(
        "modular-pairs", f"a op b mod p from two one-hot halves; op: {NAMES}",
        "EGD, arXiv 2510.04930; operators of Power et al., arXiv 2201.02177",
        pairs, PAIRS_DEFAULTS, horizon=135_000, model=PAIRS_MODEL, optimiser=PAIRS_OPTIMISER,
    ),
    TaskEntry(
        "modular-tokens", f"[x, op, y, =] -> x op y mod p; op: {NAMES}",
        "Power et al., arXiv 2201.02177; Grokfast, arXiv 2405.20233",
        tokens, TOKENS_DEFAULTS, horizon=300_000, model=TOKENS_MODEL, optimiser=TOKENS_OPTIMISER,
    ),
]
