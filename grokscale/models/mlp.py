"""The two-layer net of parity and modular arithmetic (methods.md 3.5, 3.6), and MNIST's net (3.8)."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from grokscale.entries import ModelEntry
from grokscale.models.base import Model, given, scaled
from grokscale.tasks.base import Task
from grokscale.transform import Role


class Mlp2(Model):
    """f(x) = W2^T relu(W1^T x + b1), no output bias (EGD, methods.md 3.5 and 3.6).

    W1 (in, width) ~ N(0, 2/in), W2 (width, out) ~ N(0, 2/width), b1 = 0 or N(0, 2/in). One-hot input is gathered:
    the rows of W1 that the ones select are added, which is the same sum as the dense product.
    """

    def __init__(self, task: Task, width: int, bias: str) -> None:
        super().__init__()
        inputs = task.inputs
        std = math.sqrt(2 / inputs.size)
        self.declare("w1", (inputs.size, width), Role("hidden", 1), ("normal", std))
        self.declare("b1", (width,), Role("bias"), ("normal", std) if bias == "normal" else ("constant", 0.0))
        self.declare("w2", (width, task.outputs), Role("head", 1), ("normal", math.sqrt(2 / width)))
        self.gather = inputs.kind == "pair"
        self.offsets = tuple(i * (inputs.size // inputs.length) for i in range(inputs.length))

    def forward(self, x: Tensor) -> Tensor:
        if self.gather:
            rows = [F.embedding(x[:, i] + start, self.w1) for i, start in enumerate(self.offsets)]
            h = sum(rows[1:], rows[0]) + self.b1
        else:
            h = x.to(self.w1.dtype) @ self.w1 + self.b1
        return torch.relu(h) @ self.w2


def mlp2(task: Task, width: int = 100, bias: str = "zero", scale: float = 1.0) -> Mlp2:
    """Two-layer ReLU net. width: hidden units. bias: "zero" or "normal" start of b1. scale: of all first weights."""
    if task.inputs.kind not in ("vector", "pair"):
        raise ValueError(f"mlp2 reads vectors or one-hot pairs, and this task gives {given(task)}")
    if width < 1:
        raise ValueError(f"width >= 1 must hold, got width={width}")
    if bias not in ("zero", "normal"):
        raise ValueError(f"bias must be 'zero' or 'normal', got {bias!r}")
    return scaled(Mlp2(task, width, bias), scale)


class Mlp(Model):
    """x -> relu(x W^T + b) -> ... -> x W^T + b: ordinary layers with PyTorch's default initialisation.

    All of w and b uniform within 1/sqrt(in); 784-200-200-10 has 199,210 parameters (Omnigrok, methods.md 3.8).
    """

    def __init__(self, task: Task, width: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        sizes = [task.inputs.size, *[width] * (depth - 1), task.outputs]
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
            law = ("uniform", 1 / math.sqrt(fan_in))
            self.declare(f"w{i}", (fan_out, fan_in), Role("head" if i == depth else "hidden"), law)
            self.declare(f"b{i}", (fan_out,), Role("bias"), law)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.w1.dtype)
        for i in range(1, self.depth + 1):
            x = F.linear(x, getattr(self, f"w{i}"), getattr(self, f"b{i}"))
            x = torch.relu(x) if i < self.depth else x
        return x


def mlp(task: Task, width: int = 200, depth: int = 3, scale: float = 1.0) -> Mlp:
    """ReLU net with biases. width: hidden units of a layer. depth: layers of weights. scale: of all first weights."""
    if task.inputs.kind != "vector":
        raise ValueError(f"mlp reads vectors, and this task gives {given(task)}")
    if width < 1 or depth < 1:
        raise ValueError(f"width >= 1 and depth >= 1 must hold, got width={width}, depth={depth}")
    return scaled(Mlp(task, width, depth), scale)


MLP2_DEFAULTS: dict[str, Any] = {"width": 100, "bias": "zero", "scale": 1.0}
MLP_DEFAULTS: dict[str, Any] = {"width": 200, "depth": 3, "scale": 1.0}

MODELS = [
    ModelEntry("mlp2", "two-layer ReLU net", mlp2, MLP2_DEFAULTS),
    ModelEntry("mlp", "ReLU net with biases, any depth", mlp, MLP_DEFAULTS),
]
