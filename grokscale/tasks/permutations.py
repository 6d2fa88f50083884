"""S5: composition in the group of permutations of five things (methods.md 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from grokscale.entries import TaskEntry
from grokscale.tasks.base import Inputs, Task, finite

ORDER = 120
# (a, b) -> the answer, each (..., 5) images of the points; `_after(b, a)` applies a first.
OPERATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "s5": lambda a, b: _after(b, a),
    "s5conj": lambda a, b: _after(a.argsort(-1), _after(b, a)),
    "s5aba": lambda a, b: _after(a, _after(b, a)),
}

DEFAULTS: dict[str, Any] = {"op": "s5", "fraction": 0.5, "loss": "cross_entropy"}
MODEL = {"name": "decoder", "dim": 128, "heads": 4, "layers": 2}
OPTIMISER = {
    "name": "adamw", "lr": 1e-3, "wd": 1.0, "beta1": 0.9, "beta2": 0.98, "decay": "decoupled", "warmup": 10,
    "batch": 512, "drop_last": False}  # fmt: skip


def s5(op: str = "s5", fraction: float = 0.5, loss: str = "cross_entropy") -> Task:
    """Row [a, op, b, =], answer c = b after a: c(i) = b(a(i)), over all 120^2 ordered pairs.

    The 120 permutations of 0..4 are numbered in lexicographic order, token 0 the identity; token = is 120, op is 121.
    op: s5; s5conj, a then b then a^-1; s5aba, a then b then a.  fraction: int(fraction 14,400) rows train; around
    0.25 to 0.3 each hundredth less costs 40 to 50 % more steps.
    loss: "cross_entropy" or "stablemax".
    Raises ValueError for another operator or loss, or a fraction out of range.
    Source: Power et al., arXiv 2201.02177, whose code composes in this order (ambiguity 20).
    """
    if op not in OPERATORS:
        raise ValueError(f"op must be one of {', '.join(OPERATORS)}, got {op!r}")
    elements = torch.tensor(list(permutations(range(5))))
    a, b = torch.cartesian_prod(torch.arange(ORDER), torch.arange(ORDER)).unbind(1)
    places = 5 ** torch.arange(4, -1, -1)  # the images read as digits keep the lexicographic order
    y = torch.searchsorted((elements * places).sum(1), (OPERATORS[op](elements[a], elements[b]) * places).sum(1))
    x = torch.stack([a, torch.full_like(a, ORDER + 1), b, torch.full_like(a, ORDER)], 1)
    inputs = Inputs(
        "tokens", ORDER + 2, 4, table=5, alphabet=((0, ORDER), (ORDER + 1, 1), (0, ORDER), (ORDER, 1)))  # fmt: skip
    return finite(x, y, fraction, inputs, ORDER + 2, loss)


def _after(second: Tensor, first: Tensor) -> Tensor:
    """Images (..., 5) of the points under `first`, then `second`."""
    return second.gather(-1, first)


TASKS = [
    TaskEntry(
        "permutations", "[a, op, b, =] -> b after a in S5 (s5), a b a^-1 (s5conj), a b a (s5aba)",
        "Power et al., arXiv 2201.02177",
        s5, DEFAULTS, horizon=100_000, model=MODEL, optimiser=OPTIMISER,
    ),
]  # fmt: skip
