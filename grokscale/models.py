"""Models: ordinary modules for one replica, with the role of every parameter.

A model is built on the meta device, where it costs nothing: parameters are drawn by `initial(model, generator)`
and given to the module by `torch.func.functional_call`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from grokscale.entries import ModelEntry
from grokscale.tasks.base import Task
from grokscale.transform import Params, Role


class Model(nn.Module):
    """A module that says what its parameters are for and how they are drawn.

    roles: a Role for every parameter.  laws: for every parameter ("normal" | "uniform" | "constant", scale).
    """

    def __init__(self) -> None:
        super().__init__()
        self.roles: dict[str, Role] = {}
        self.laws: dict[str, tuple[str, float]] = {}

    if TYPE_CHECKING:  # every attribute that is not set in __init__ is a declared parameter

        def __getattr__(self, name: str) -> Tensor: ...

    def declare(self, name: str, shape: tuple[int, ...], role: Role, law: tuple[str, float]) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(shape, device="meta")))
        self.roles[name], self.laws[name] = role, law


def initial(model: Model, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
    """Draw the parameters of one replica, in order of declaration, on the CPU.

    Drawn in float32 whatever the dtype, so that a float64 oracle starts from the same numbers.
    """
    draw = {
        "normal": lambda shape, scale: torch.randn(shape, generator=generator) * scale,
        "uniform": lambda shape, scale: (torch.rand(shape, generator=generator) * 2 - 1) * scale,
        "constant": lambda shape, scale: torch.full(shape, scale),
    }
    return {
        name: draw[kind](tuple(model.get_parameter(name).shape), scale).to(dtype)
        for name, (kind, scale) in model.laws.items()
    }


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


def mlp2(task: Task, width: int = 100, bias: str = "zero") -> Mlp2:
    """Two-layer ReLU net. width: hidden units. bias: "zero" or "normal" start of b1."""
    if task.inputs.kind == "tokens":
        raise ValueError("mlp2 reads vectors or one-hot pairs, and this task gives tokens; use the decoder")
    if width < 1:
        raise ValueError(f"width >= 1 must hold, got width={width}")
    if bias not in ("zero", "normal"):
        raise ValueError(f"bias must be 'zero' or 'normal', got {bias!r}")
    return Mlp2(task, width, bias)


def decoder(task: Task, dim: int = 128, heads: int = 4, layers: int = 2) -> Decoder:
    """Decoder-only transformer. dim: residual width. heads: attention heads, a divisor of dim. layers: blocks."""
    if task.inputs.kind != "tokens":
        raise ValueError(f"decoder reads tokens, and this task gives a {task.inputs.kind}; use mlp2")
    if layers < 1 or heads < 1 or dim % heads:
        raise ValueError(f"layers >= 1 and dim a multiple of heads must hold, got {layers=}, {heads=}, {dim=}")
    return Decoder(task, dim, heads, layers)


MLP2_DEFAULTS: dict[str, Any] = {"width": 100, "bias": "zero"}
DECODER_DEFAULTS: dict[str, Any] = {"dim": 128, "heads": 4, "layers": 2}

MODELS: dict[str, ModelEntry] = {
    "mlp2": ModelEntry("mlp2", "two-layer ReLU net", mlp2, MLP2_DEFAULTS, 1),
    "decoder": ModelEntry("decoder", "decoder-only transformer of the modular tasks", decoder, DECODER_DEFAULTS, 1),
}
