"""Tasks whose labels change while they train (EGD's continual learning; methods.md EGD-9).

For steps 1 to `relabel` a task is what it is without; then, every `relabel` steps, the same rows get other labels, of
training, validation and test alike. `phases` labellings take turns, and come again. Nothing can be learned for good, so
no accuracy counts as a crossing and replicas are watched to the horizon: compare arms by the area under a curve,
`[[endpoint]] name = "area", metric = "test_acc"`, with `search.trials = 0`. A method with a switch that stays off once
validation accuracy was high (EGD's `sticky`) acts in the first phase only, unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grokscale.entries import TaskEntry
from grokscale.rng import generator
from grokscale.tasks import modular
from grokscale.tasks import parity as signs
from grokscale.tasks.base import Split, Splits, Task

CHANGES: dict[str, Any] = {"relabel": 2000, "phases": 8}
MOST = 100  # phases: every row holds a label for each


def parity(relabel: int = 2000, phases: int = 8, **options: Any) -> Task:
    """Sparse parity whose k secret coordinates move; at first they are the first k, then drawn per seed and phase.

    relabel: steps between changes.  phases: labellings that take turns.  options: as of `parity`.
    Raises ValueError for options out of range.
    """
    task = signs.parity(**options)
    size, k = task.inputs.size, options.get("k", signs.DEFAULTS["k"])

    def relabelling(stream: torch.Generator) -> Callable[[Split], list[Tensor]]:
        secrets = _different(torch.arange(k), lambda: torch.randperm(size, generator=stream)[:k].sort().values, phases)
        return lambda split: [split.x[:, secret].prod(1, dtype=split.y.dtype) for secret in secrets]

    return _changing(task, relabel, phases, math.comb(size, k), relabelling)


def pairs(relabel: int = 2000, phases: int = 8, **options: Any) -> Task:
    """Modular arithmetic from two one-hot halves whose p answers are renamed by permutations, drawn per seed and phase.

    relabel: steps between changes.  phases: labellings that take turns, the first the plain one.
    options: as of `modular.pairs`.  Raises ValueError for options out of range.
    """
    task = modular.pairs(**options)

    def relabelling(stream: torch.Generator) -> Callable[[Split], list[Tensor]]:
        p = task.outputs
        names = _different(torch.arange(p), lambda: torch.randperm(p, generator=stream), phases)
        return lambda split: [name[split.y] for name in names]

    return _changing(task, relabel, phases, math.factorial(task.outputs), relabelling)


def _different(first: Tensor, draw: Callable[[], Tensor], count: int) -> list[Tensor]:
    """`first` and further draws, no two of them equal."""
    found = [first]
    while len(found) < count:
        one = draw()
        if not any(torch.equal(one, other) for other in found):
            found.append(one)
    return found


def _changing(
    task: Task,
    relabel: int,
    phases: int,
    most: int,
    relabelling: Callable[[torch.Generator], Callable[[Split], list[Tensor]]],
) -> Task:
    """The task with a label per phase and row, y (N, phases), of which `labels` picks the column of the step.

    most: how many labellings there are.  relabelling: stream of a seed -> split -> labels (N,) of every phase.
    """
    if relabel < 1 or not 2 <= phases <= min(most, MOST):
        raise ValueError(f"relabel >= 1 and 2 <= phases <= {min(most, MOST)} must hold, got relabel={relabel}, "
                         f"phases={phases}")

    def splits(seed: int, validation: float) -> Splits:
        label = relabelling(generator(seed, "relabel"))
        plain = task.splits(seed, validation)
        every = [one and Split(one.x, torch.stack(label(one), 1)) for one in plain]
        return Splits._make(every)

    def labels(y: Tensor, step: int) -> Tensor:
        return y[..., (max(step, 1) - 1) // relabel % phases]

    return replace(task, splits=splits, labels=labels, moving=True)


TASKS = [
    TaskEntry(
        "parity-relabelled",
        "parity whose secret coordinates move every `relabel` steps; no crossing counts, compare areas",
        "EGD, arXiv 2510.04930",
        parity, {**signs.DEFAULTS, **CHANGES}, horizon=16_000, model=signs.MODEL, optimiser=signs.OPTIMISER,
    ),
    TaskEntry(
        "modular-relabelled",
        "a op b mod p whose answers are renamed every `relabel` steps; no crossing counts, compare areas",
        "EGD, arXiv 2510.04930",
        pairs, {**modular.PAIRS_DEFAULTS, **CHANGES}, horizon=16_000, model=modular.PAIRS_MODEL,
        optimiser=modular.PAIRS_OPTIMISER,
    ),
]  # fmt: skip
