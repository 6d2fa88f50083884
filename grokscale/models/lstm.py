"""The recurrent net of the film reviews (methods.md 3.10), of plain operations: `nn.LSTM` has no rule for vmap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from grokscale.entries import ModelEntry
from grokscale.models.base import Model, given, scaled
from grokscale.tasks.base import Task
from grokscale.transform import Role

BLOCK = 25  # positions whose gates are computed at once: a thousand reviews of 500 words would take 2 GB otherwise


class Lstm(Model):
    """Embedding, `layers` of LSTM, a linear layer on the last state; PyTorch's layout and default initialisation.

    i, f, o = sigmoid, g = tanh of x W_ih^T + b_ih + h W_hh^T + b_hh;  c <- f c + i g;  h <- o tanh c.
    Embeddings N(0, 1), all else uniform within 1/sqrt(width). The padding in front is read like any word, as Grokfast's
    script does.

    The part of the gates that comes from below needs no recurrence: it is one product for BLOCK positions. A layer's
    block is done before the layer above it starts on that block, so what is held at once does not grow with the length
    (under a gradient everything is kept, as it must be).
    """

    def __init__(self, task: Task, dim: int, width: int, layers: int) -> None:
        super().__init__()
        self.layers, self.width = layers, width
        law = ("uniform", 1 / math.sqrt(width))
        self.declare("tokens", (task.inputs.size, dim), Role("embedding", 1), ("normal", 1.0))
        for i in range(layers):
            self.declare(f"ih_w_{i}", (4 * width, dim if i == 0 else width), Role("hidden"), law)
            self.declare(f"hh_w_{i}", (4 * width, width), Role("hidden"), law)
            self.declare(f"ih_b_{i}", (4 * width,), Role("bias"), law)
            self.declare(f"hh_b_{i}", (4 * width,), Role("bias"), law)
        self.declare("head", (task.outputs, width), Role("head"), law)
        self.declare("head_b", (task.outputs,), Role("bias"), law)

    def forward(self, ids: Tensor) -> Tensor:
        zeros = self.tokens.new_zeros(len(ids), self.width)
        states = [(zeros, zeros)] * self.layers
        for block in ids.split(BLOCK, 1):
            x = F.embedding(block.mT, self.tokens)  # (positions, B, dim): a position is contiguous
            for i in range(self.layers):
                x, states[i] = self._layer(x, i, *states[i])
        return F.linear(states[-1][0], self.head, self.head_b)

    def _layer(self, x: Tensor, i: int, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(states h of a block's positions, (h, c) after it) of layer i, from (h, c) before it."""
        below = F.linear(x, getattr(self, f"ih_w_{i}"), getattr(self, f"ih_b_{i}") + getattr(self, f"hh_b_{i}"))
        recurrent = getattr(self, f"hh_w_{i}").mT
        out = []
        for gates in below.unbind(0):
            i_gate, f_gate, g, o_gate = (gates + h @ recurrent).chunk(4, -1)
            c = f_gate.sigmoid() * c + i_gate.sigmoid() * g.tanh()
            h = o_gate.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out), (h, c)


def lstm(task: Task, dim: int = 64, width: int = 256, layers: int = 2, scale: float = 1.0) -> Lstm:
    """Recurrent net. dim: of the embedding. width: of a state. layers: stacked. scale: of all first weights."""
    if task.inputs.kind != "tokens":
        raise ValueError(f"lstm reads tokens, and this task gives {given(task)}")
    if min(dim, width, layers) < 1:
        raise ValueError(f"dim, width, layers >= 1 must hold, got dim={dim}, width={width}, layers={layers}")
    return scaled(Lstm(task, dim, width, layers), scale)


def flops(task: Task, batch: int, options: Mapping[str, Any]) -> float:
    """Of a gradient: each product forward and twice backward, less that with the first state, which is zero and fixed.

    Counted like `Program.flops_per_step`, which takes seconds for 500 positions.
    """
    dim, width, layers, length = options["dim"], options["width"], options["layers"], task.inputs.length
    gates = 2 * batch * 4 * width  # per number that comes in
    below = 3 * length * gates * (dim + (layers - 1) * width)
    return float(below + (3 * length - 1) * layers * gates * width + 3 * 2 * batch * width * task.outputs)


DEFAULTS: dict[str, Any] = {"dim": 64, "width": 256, "layers": 2, "scale": 1.0}

MODELS = [ModelEntry("lstm", "embedding, stacked LSTM, linear on the last state", lstm, DEFAULTS, flops=flops)]
