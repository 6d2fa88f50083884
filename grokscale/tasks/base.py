"""What a task is: splits per seed, a loss, and what counts as correct."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from grokscale.rng import generator


class Inputs(NamedTuple):
    """What a model has to read.

    kind: "vector" (B, size) numbers; "pair" (B, length) indices, one-hot of `size` in all; "tokens" (B, length) ids;
    "graph" (B, length, size + table x length): a row per node, its features, then for each kind of edge the nodes that
    it is joined with; a row of zeros where there is no node.
    size: features (of a node), one-hot columns of all positions together, or vocabulary.
    length: positions of a row (1 for a vector); the most nodes of a graph.
    table: rows of a position table (tokens), the answer's included; kinds of edges (graph).
    alphabet: (first id, how many) of the tokens that every position may hold; () where any may stand anywhere. A model
    may rely on it to compute once what many rows share.
    """

    kind: str
    size: int
    length: int = 1
    table: int = 0
    alphabet: tuple[tuple[int, int], ...] = ()


class Split(NamedTuple):
    x: Tensor  # (N, ...)
    y: Tensor  # (N,)


class Splits(NamedTuple):
    train: Split
    val: Split | None  # all that a method, a switch or a search may look at; None with validation = 0
    test: Split  # read by reports only


def blank(inputs: Inputs, batch: int) -> Split:
    """A batch of the right shapes on the meta device: what counting operations needs, and no file."""
    shapes = {"vector": (inputs.size,), "graph": (inputs.length, inputs.size + inputs.table * inputs.length)}
    x = torch.zeros(batch, *shapes.get(inputs.kind, (inputs.length,)), device="meta")
    return Split(x if inputs.kind == "vector" else x.int(), torch.zeros(batch, dtype=torch.int64, device="meta"))


@dataclass(frozen=True)
class Task:
    """One problem: `splits(seed, validation)` on the CPU; `loss` and `correct` for a batch of one replica.

    loss(out, y) -> 0-d tensor, differentiable.  correct(out, y) -> (B,) bool.  outputs: width of the model's output.
    labels(y, step) -> y of that step (any leading axes), for a task whose labels change while it trains: `splits` then
    holds what the labels are made of. None: y is the label.
    moving: what is asked changes while it trains. Nothing is then learned for good: no accuracy counts as a crossing,
    and replicas are watched to the horizon.
    Tensors that do not depend on the seed should be the same object for every seed: a pack then holds them once.
    """

    inputs: Inputs
    outputs: int
    splits: Callable[[int, float], Splits]
    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], Tensor]
    labels: Callable[[Tensor, int], Tensor] | None = None
    moving: bool = False


def training_rows(fraction: float, rows: int) -> int:
    """int(fraction rows), the size of the training part of a finite table. Raises ValueError where a part is empty."""
    if not 0 < fraction < 1:
        raise ValueError(f"0 < fraction < 1 must hold, got fraction={fraction}")
    if int(fraction * rows) < 1:
        raise ValueError(f"fraction must leave at least one of the {rows} rows to train on, got fraction={fraction}")
    return int(fraction * rows)


def split_table(x: Tensor, y: Tensor, n_train: int, seed: int, validation: float) -> Splits:
    """Split a finite table: a random `n_train` rows train, `validation` of the rest validate, the others test.

    The permutation comes from Generator(seed, "split"), the validation rows from Generator(seed, "val"), so that the
    training half does not depend on the validation share (evaluation.md section 1).
    """
    rows = torch.randperm(len(x), generator=generator(seed, "split"))
    train, rest = rows[:n_train], rows[n_train:]
    rest = rest[torch.randperm(len(rest), generator=generator(seed, "val"))]
    n_val = int(validation * len(rest))
    val, test = rest[:n_val], rest[n_val:]
    return Splits(Split(x[train], y[train]), Split(x[val], y[val]) if n_val else None, Split(x[test], y[test]))


def squared_error(out: Tensor, y: Tensor) -> Tensor:
    """Mean over rows and outputs of (out - onehot(y))^2, (B, C) outputs against classes (B,) (Omnigrok)."""
    wanted = y.unsqueeze(-1) == torch.arange(out.shape[-1], device=out.device)
    return ((out - wanted.to(out.dtype)) ** 2).mean()


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, C) against classes (B,)."""
    return torch.nn.functional.cross_entropy(out, y)


def stablemax_cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Mean of -log p_y with p_i = s(x_i) / sum_j s(x_j), s(x) = x + 1 for x >= 0 and 1 / (1 - x) below.

    out: logits x, (B, C).  y: classes, (B,).  Computed in float64, returned in the dtype of `out`. s grows linearly
    where exp overflows into rounding, so that a fitted net's gradient does not vanish by lack of digits.
    Source: StableMax, arXiv 2501.04697.
    """
    x = out.double()
    log_s = torch.where(x >= 0, torch.log1p(x.clamp(min=0)), -torch.log1p(-x.clamp(max=0)))
    picked = log_s.gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return (log_s.logsumexp(-1) - picked).mean().to(out.dtype)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy, "stablemax": stablemax_cross_entropy}  # fmt: skip


def class_loss(loss: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a classification task by its option. Raises ValueError for another name."""
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    return LOSSES[loss]


def top1(out: Tensor, y: Tensor) -> Tensor:
    """(B,) bool: the largest logit is the class."""
    return out.argmax(-1) == y


def finite(x: Tensor, y: Tensor, fraction: float, inputs: Inputs, outputs: int, loss: str = "cross_entropy") -> Task:
    """The classification task of a finite table, of which int(fraction rows) train.

    x: (N, ...).  y: (N,) classes below `outputs`.  loss: a key of LOSSES.
    Raises ValueError where nothing would be left to train on, and for another loss.
    """
    n_train = training_rows(fraction, len(x))
    return Task(
        inputs=inputs,
        outputs=outputs,
        splits=lambda seed, validation: split_table(x, y, n_train, seed, validation),
        loss=class_loss(loss),
        correct=top1,
    )
