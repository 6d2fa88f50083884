"""The graph network of the molecules (methods.md 3.9) on padded dense graphs, so that lanes run side by side."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from grokscale.entries import ModelEntry
from grokscale.models.base import Model, given, scaled
from grokscale.tasks.base import Task
from grokscale.transform import Role


class Graph(Model):
    """Two edge-conditioned convolutions, the sum over nodes, two linear layers (PyG's NNConv; Gilmer et al. 2017).

    x_i <- relu(R x_i + b + sum over edges ij of Theta(e_ij)^T x_j), Theta(e) = A2 relu(A1 e + a1) + a2 as an (in, out)
    matrix; then out = V relu(U sum_i x_i + u) + v, over the nodes that there are.

    The kind of an edge is one-hot here, so Theta takes as many values as there are kinds: it is computed once for each
    and multiplied with the adjacency of its kind, which is the same sum as edge by edge. PyTorch's default
    initialisation; b starts at zero, as PyG's does.
    """

    def __init__(self, task: Task, width: int, out: int, hidden: int) -> None:
        super().__init__()
        self.features, self.nodes, self.kinds = task.inputs.size, task.inputs.length, task.inputs.table
        self.sizes = ((self.features, width), (width, out))
        for i, (fan_in, fan_out) in enumerate(self.sizes):
            self._linear(f"edge1_{i}", self.kinds, hidden)
            self._linear(f"edge2_{i}", hidden, fan_in * fan_out)
            self.declare(f"root_w_{i}", (fan_out, fan_in), Role("hidden"), ("uniform", 1 / math.sqrt(fan_in)))
            self.declare(f"conv_b_{i}", (fan_out,), Role("bias"), ("constant", 0.0))
        self._linear("fc", out, 32)
        self._linear("head", 32, task.outputs, "head")

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.fc_w.dtype)
        nodes, joined = x.split((self.features, self.kinds * self.nodes), -1)
        there = (nodes != 0).any(-1, keepdim=True).to(x.dtype)  # (B, n, 1)
        joined = joined.unflatten(-1, (self.kinds, self.nodes))  # (B, n, kinds, n)
        for i, (fan_in, fan_out) in enumerate(self.sizes):
            nodes = torch.relu(self._convolve(nodes, joined, i, fan_in, fan_out))
        pooled = (nodes * there).sum(1)
        return F.linear(torch.relu(F.linear(pooled, self.fc_w, self.fc_b)), self.head_w, self.head_b)

    def _convolve(self, nodes: Tensor, joined: Tensor, i: int, fan_in: int, fan_out: int) -> Tensor:
        def p(name: str) -> Tensor:
            return getattr(self, f"{name}_{i}")

        hidden = torch.relu(p("edge1_w").mT + p("edge1_b"))  # (kinds, hidden): A1 of every one-hot kind
        theta = F.linear(hidden, p("edge2_w"), p("edge2_b")).view(self.kinds * fan_in, fan_out)
        # (B, n, kinds x in): the neighbours' features summed by kind of edge, then one product with all of Theta
        summed = (joined.flatten(1, 2) @ nodes).view(-1, self.nodes, self.kinds * fan_in)
        return F.linear(nodes, p("root_w"), p("conv_b")) + summed @ theta

    def _linear(self, name: str, fan_in: int, fan_out: int, kind: str = "hidden") -> None:
        """Declare NAME_w and NAME_b; a layer's number stays last: edge1_0 gives edge1_w_0."""
        stem, _, number = name.partition("_")
        law, tail = ("uniform", 1 / math.sqrt(fan_in)), f"_{number}" if number else ""
        self.declare(f"{stem}_w{tail}", (fan_out, fan_in), Role(kind), law)
        self.declare(f"{stem}_b{tail}", (fan_out,), Role("bias"), law)


def graph(task: Task, width: int = 32, out: int = 16, hidden: int = 32, scale: float = 1.0) -> Graph:
    """Graph network. width, out: features after the convolutions. hidden: of the edges' net. scale: of all weights."""
    if task.inputs.kind != "graph":
        raise ValueError(f"graph reads graphs, and this task gives {given(task)}")
    if min(width, out, hidden) < 1:
        raise ValueError(f"width, out, hidden >= 1 must hold, got width={width}, out={out}, hidden={hidden}")
    return scaled(Graph(task, width, out, hidden), scale)


DEFAULTS: dict[str, Any] = {"width": 32, "out": 16, "hidden": 32, "scale": 1.0}

MODELS = [ModelEntry("graph", "two edge-conditioned convolutions, sum, two linear layers", graph, DEFAULTS)]
