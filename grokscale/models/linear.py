"""The linear model of the toy problem (EGD section 3, methods.md 3.7)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from grokscale.entries import ModelEntry
from grokscale.models.base import Model, given, scaled
from grokscale.tasks.base import Task
from grokscale.transform import Role


class Linear(Model):
    """f(x) = x w, without bias; w (in, out) starts at given numbers or ~ N(0, 1/in)."""

    def __init__(self, task: Task, start: Sequence[float]) -> None:
        super().__init__()
        law = ("values", tuple(start)) if start else ("normal", 1 / math.sqrt(task.inputs.size))
        self.declare("w", (task.inputs.size, task.outputs), Role("hidden", 1), law)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.w.dtype) @ self.w


def linear(task: Task, start: Sequence[float] = (), scale: float = 1.0) -> Linear:
    """Linear model without bias.

    start: first weights, row by row; none to draw them from N(0, 1/in).  scale: of all first weights.
    Raises ValueError where the task gives no vectors, or for another number of first weights.
    """
    if task.inputs.kind != "vector":
        raise ValueError(f"linear reads vectors, and this task gives {given(task)}")
    wanted = task.inputs.size * task.outputs
    if len(start) not in (0, wanted):
        raise ValueError(f"start must hold {wanted} first weights of this task, or none, got {len(start)}")
    return scaled(Linear(task, start), scale)


DEFAULTS: dict[str, Any] = {"start": (), "scale": 1.0}

MODELS = [ModelEntry("linear", "linear model without bias, w' x", linear, DEFAULTS)]
