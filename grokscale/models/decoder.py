"""The decoder-only transformer of the modular tasks (methods.md 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
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
    normalised version. Causal; exact GELU; untied head without bias; PyTorch's default initialisation.

    Nothing is computed twice or in vain. What a position holds depends on the tokens up to it, and of those there are
    few: with p = 97 the first two positions of [x, op, y, =] take 97 values in a batch of 512. So a position has as
    many rows as there are prefixes (or batch rows, if those are fewer), the first block reads tokens, of which there
    are fewer still, and later positions look up the rows of earlier ones (`Lookup`). The last block computes keys and
    values for all positions and everything else for the last one. Exact: the same sums in another order, 57 % of the
    products.
    """

    def __init__(self, task: Task, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        inputs = task.inputs
        self.dim, self.heads, self.layers, self.length = dim, heads, layers, inputs.length
        self.alphabet = inputs.alphabet or ((0, inputs.size),) * inputs.length
        fan, fan4 = ("uniform", 1 / math.sqrt(dim)), ("uniform", 1 / math.sqrt(4 * dim))
        zero, one = ("constant", 0.0), ("constant", 1.0)
        self.declare("tokens", (inputs.size, dim), Role("embedding", 1), ("normal", 1.0))
        self.declare("positions", (inputs.table, dim), Role("embedding", 1), ("normal", 1.0))
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
        x = [  # (tokens of the alphabet, D) a position
            self.tokens[first : first + count] + self.positions[i] for i, (first, count) in enumerate(self.alphabet)
        ]
        for i in range(self.layers):
            x = self._block(x, i, Lookup(self.alphabet, ids, of_tokens=i == 0))
        return self._norm(x[-1], "ln_w", "ln_b") @ self.head.mT

    def _block(self, x: list[Tensor], i: int, lookup: Lookup) -> list[Tensor]:
        """x: rows of every position, (rows, D) each. Returns those of every position, of the last alone in the end."""

        def p(name: str) -> Tensor:
            return getattr(self, f"{name}_{i}")

        sizes, last = [len(one) for one in x], self.length - 1
        h = self._norm(torch.cat(x), f"ln1_w_{i}", f"ln1_b_{i}")
        wq, wkv = p("qkv_w").split((self.dim, 2 * self.dim))
        bq, bkv = p("qkv_b").split((self.dim, 2 * self.dim))
        k, v = F.linear(h, wkv, bkv).chunk(2, -1)
        h, k, v = h.split(sizes), k.split(sizes), v.split(sizes)
        wanted = range(self.length) if i < self.layers - 1 else (last,)
        q = F.linear(torch.cat([h[at] for at in wanted]), wq, bq).split([sizes[at] for at in wanted])
        mixed = []
        for group in lookup.groups(wanted):
            mixed += self._attend([lookup(q[at - wanted[0]], at, at) for at in group], k, v, group, lookup)
        y = torch.cat([lookup(h[at], at, at) for at in wanted])
        y = y + F.linear(torch.cat(mixed), p("out_w"), p("out_b"))
        h2 = self._norm(y, f"ln2_w_{i}", f"ln2_b_{i}")
        y = y + F.linear(F.gelu(F.linear(h2, p("fc1_w"), p("fc1_b"))), p("fc2_w"), p("fc2_b"))
        return list(y.split([len(one) for one in mixed]))

    def _attend(
        self, q: list[Tensor], k: Sequence[Tensor], v: Sequence[Tensor], group: Sequence[int], lookup: Lookup
    ) -> list[Tensor]:
        """What the rows of some positions take from themselves and the positions before, (rows, D) each.

        q: of the positions `group`, which have the same rows.  Products of so few positions are sums of products:
        faster than thousands of tiny matrices.
        """
        shape = (len(q[0]), 1, -1, self.heads, self.dim // self.heads)  # rows, asking, asked, heads, width
        seen = range(group[-1] + 1)
        keys, values = (torch.stack([lookup(x[j], group[0], j) for j in seen], 1).view(shape) for x in (k, v))
        score = (torch.stack(q, 1).view(shape).transpose(1, 2) * keys).sum(-1) / math.sqrt(shape[-1])
        if len(group) > 1:
            # Made on the device: a CUDA graph records no copy from the CPU. A group's positions follow each other.
            asked, asking = (torch.arange(a, seen.stop, device=score.device) for a in (0, group[0]))
            later = asked > asking.unsqueeze(-1)
            score = score.masked_fill(later.unsqueeze(-1), -math.inf)
        return list((score.softmax(2).unsqueeze(-1) * values).sum(2).flatten(2).unbind(1))

    def _norm(self, x: Tensor, weight: str, bias: str) -> Tensor:
        return F.layer_norm(x, (self.dim,), getattr(self, weight), getattr(self, bias))


class Lookup:
    """Finds for the rows of one position the rows of another, earlier one.

    alphabet: (first id, how many) of every position.  ids: (B, length).
    of_tokens: what is looked up has a row per token of its position, not one per prefix.

    A position has a row per prefix, in order, where there are fewer of them than batch rows; else, and always for the
    last position, a row per batch row.
    """

    def __init__(self, alphabet: Sequence[tuple[int, int]], ids: Tensor, of_tokens: bool) -> None:
        self.counts = [count for _, count in alphabet]
        self.totals = list(accumulate(self.counts, mul))  # prefixes up to each position
        self.few = [total < len(ids) for total in self.totals[:-1]] + [False]
        self.ids = [ids[:, i] - first for i, (first, _) in enumerate(alphabet)]
        self.of_tokens = of_tokens

    def __call__(self, x: Tensor, at: int, before: int) -> Tensor:
        """x: (rows of position `before`, D). Returns (rows of position `at`, D): the row that each had there."""
        if not self.few[at]:
            if self.of_tokens:
                return F.embedding(self.ids[before], x)
            return F.embedding(self._prefix(before), x) if self.few[before] else x
        # Each earlier prefix is followed by the same number of continuations.
        repeats = self.totals[at] // self.totals[before]
        if self.of_tokens:
            x = x.repeat(self.totals[before] // self.counts[before], 1)
        return x if repeats == 1 else x.repeat_interleave(repeats, 0)

    def groups(self, positions: Sequence[int]) -> list[list[int]]:
        """The positions in order, those with a row per batch row together: earlier rows are looked up once for all."""
        many = [at for at in positions if not self.few[at]]
        return [[at] for at in positions if self.few[at]] + ([many] if many else [])

    def _prefix(self, at: int) -> Tensor:
        """(B,) number of the prefix of each batch row up to position `at`."""
        number = self.ids[0]
        for i in range(1, at + 1):
            number = number * self.counts[i] + self.ids[i]
        return number


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

MODELS = [ModelEntry("decoder", "decoder-only transformer of the modular tasks", decoder, DECODER_DEFAULTS, version=2)]
