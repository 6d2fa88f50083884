"""The decoder-only transformer of the modular tasks (methods.md 3.1)."""

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


class Decoder(Model):
    """The decoder of the modular tasks (methods.md 3.1), answering at the last position only.

    Block: x <- LN1(x); x <- x + MHA(x, x, x); x <- x + MLP(LN2(x)): the residual stream is replaced by its
    normalised version. Causal; exact GELU; untied head without bias; PyTorch's default initialisation. The last
    block computes keys and values for all positions and everything else for the last one, which nothing else reads.
    """

    def __init__(self, task: Task, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.dim, self.heads, self.layers, self.length = dim, heads, layers, task.inputs.length
        fan, fan4 = ("uniform", 1 / math.sqrt(dim)), ("uniform", 1 / math.sqrt(4 * dim))
        zero, one = ("constant", 0.0), ("constant", 1.0)
        self.declare("tokens", (task.inputs.size, dim), Role("embedding", 1), ("normal", 1.0))
        self.declare("positions", (task.inputs.table, dim), Role("embedding", 1), ("normal", 1.0))
        for i in range(layers):
            for norm in ("ln1", "ln2"):
                self.declare(f"{norm}_w_{i}", (dim,), Role("norm"), one)
                self.declare(f"{norm}_b_{i}", (dim,), Role("norm"), zero)
            xavier = ("uniform", math.sqrt(6 / (dim + 3 * dim)))
            self.declare(f"qkv_w_{i}", (3 * dim, dim), Role("attention"), xavier)
            self.declare(f"qkv_b_{i}", (3 * dim,), Role("bias"), zero)
            self.declare(f"out_w_{i}", (dim, dim), Role("attention"), fan)
            self.declare(f"out_b_{i}", (dim,), Role("bias"), zero)
            self.declare(f"fc1_w_{i}", (4 * dim, dim), Role("hidden"), fan)
            self.declare(f"fc1_b_{i}", (4 * dim,), Role("bias"), fan)
            self.declare(f"fc2_w_{i}", (dim, 4 * dim), Role("hidden"), fan4)
            self.declare(f"fc2_b_{i}", (dim,), Role("bias"), fan4)
        self.declare("ln_w", (dim,), Role("norm"), one)
        self.declare("ln_b", (dim,), Role("norm"), zero)
        self.declare("head", (task.outputs, dim), Role("head"), fan)

    def forward(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self.tokens) + self.positions[: self.length]
        for i in range(self.layers):
            x = self._block(x, i, last=i == self.layers - 1)
        return self._norm(x[:, -1], "ln_w", "ln_b") @ self.head.mT

    def _block(self, x: Tensor, i: int, last: bool) -> Tensor:
        def p(name: str) -> Tensor:
            return getattr(self, f"{name}_{i}")

        x = self._norm(x, f"ln1_w_{i}", f"ln1_b_{i}")
        b, length, d = x.shape
        asked = x[:, -1:] if last else x
        wq, wkv = p("qkv_w").split((d, 2 * d))
        bq, bkv = p("qkv_b").split((d, 2 * d))
        q = F.linear(asked, wq, bq).view(b, -1, self.heads, d // self.heads).transpose(1, 2)
        k, v = F.linear(x, wkv, bkv).view(b, length, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        score = q @ k.mT / math.sqrt(d // self.heads)
        if not last:
            hidden = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            score = score.masked_fill(hidden, -math.inf)
        mixed = (score.softmax(-1) @ v).transpose(1, 2).reshape(b, -1, d)
        x = asked + F.linear(mixed, p("out_w"), p("out_b"))
        h = self._norm(x, f"ln2_w_{i}", f"ln2_b_{i}")
        return x + F.linear(F.gelu(F.linear(h, p("fc1_w"), p("fc1_b"))), p("fc2_w"), p("fc2_b"))

    def _norm(self, x: Tensor, weight: str, bias: str) -> Tensor:
        return F.layer_norm(x, (self.dim,), getattr(self, weight), getattr(self, bias))


def decoder(task: Task, dim: int = 128, heads: int = 4, layers: int = 2, scale: float = 1.0) -> Decoder:
    """Decoder-only transformer.

    dim: residual width. heads: attention heads, a divisor of dim. layers: blocks. scale: of all first weights.
    """
    if task.inputs.kind != "tokens":
        raise ValueError(f"decoder reads tokens, and this task gives {given(task)}")
    if layers < 1 or heads < 1 or dim % heads:
        raise ValueError(f"layers >= 1 and dim a multiple of heads must hold, got {layers=}, {heads=}, {dim=}")
    return scaled(Decoder(task, dim, heads, layers), scale)


DECODER_DEFAULTS: dict[str, Any] = {"dim": 128, "heads": 4, "layers": 2, "scale": 1.0}

MODELS = [ModelEntry("decoder", "decoder-only transformer of the modular tasks", decoder, DECODER_DEFAULTS)]
