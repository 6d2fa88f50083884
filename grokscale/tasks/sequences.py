"""Questions about short sequences, for transfer: sorting, reversing, reachability in a graph.

The decoder answers at the last position only, so a row asks for one token: the i-th smallest value, the i-th from the
end, whether t can be reached from s. The rows form a finite table, the same for every seed, of which a seed draws its
split: all rows where there are at most `rows` of them, else `rows` different ones, drawn once. Rows of the same values
in another order are different rows.

Source: sorting and reversing lists are among the tasks of Power et al., arXiv 2201.02177, which asks for whole lists;
reachability was added to see whether what a method learned carries over. None has published numbers in this form.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from grokscale.entries import TaskEntry
from grokscale.rng import generator
from grokscale.tasks.base import Inputs, Task, finite

LIST_DEFAULTS: dict[str, Any] = {"values": 8, "length": 4, "rows": 10_000, "fraction": 0.5, "loss": "cross_entropy"}
GRAPH_DEFAULTS: dict[str, Any] = {"nodes": 6, "edges": 7, "rows": 10_000, "fraction": 0.5, "loss": "cross_entropy"}
MODEL = {"name": "decoder", "dim": 128, "heads": 4, "layers": 2}
OPTIMISER = {
    "name": "adam", "lr": 1e-3, "wd": 1e-3, "beta1": 0.9, "beta2": 0.98, "decay": "coupled", "warmup": 10,
    "batch": 512, "drop_last": False}  # fmt: skip
MOST = 100_000  # rows
DRAWN = 20_000  # graphs at once


def sort(values: int = 8, length: int = 4, rows: int = 10_000, fraction: float = 0.5,
         loss: str = "cross_entropy") -> Task:
    """Row [x_1 ... x_length, i, =], answer the i-th smallest of the x, each in 0..values-1, i from 1.

    Token i is values + i - 1, token = is values + length.
    values, length: of the lists.  rows: at most, of values^length length.  fraction: int(fraction rows) rows train.
    loss: "cross_entropy" or "stablemax".
    Raises ValueError for options out of range.
    """
    x, place = _lists(values, length, rows)
    return _asked(values, length, x, place, x.sort(1).values.gather(1, place), fraction, loss)


def reverse(values: int = 8, length: int = 4, rows: int = 10_000, fraction: float = 0.5,
            loss: str = "cross_entropy") -> Task:
    """Row [x_1 ... x_length, i, =], answer the i-th of the x from the end; tokens and options as of `sort`."""
    x, place = _lists(values, length, rows)
    return _asked(values, length, x, place, x.flip(1).gather(1, place), fraction, loss)


def reachability(nodes: int = 6, edges: int = 7, rows: int = 10_000, fraction: float = 0.5,
                 loss: str = "cross_entropy") -> Task:
    """Row [e_1 ... e_edges, s, t, =], answer whether a walk along the directed edges leads from s to t.

    An edge is one token, those from a before those from a + 1: (a, b) is a (nodes - 1) + b, less 1 where b > a; the
    edges of a graph are all different and stand in order, so that a question has one row. Then come the tokens of the
    nodes, =, no and yes; s and t differ. Half of the rows of the table have the answer yes.
    nodes, edges: of every graph.  rows: of the table, an even number.  fraction: int(fraction rows) rows train.
    loss: "cross_entropy" or "stablemax".
    Raises ValueError for options out of range, and where there are too few graphs for so many rows of either answer.
    """
    if not 3 <= nodes <= 16 or not 1 <= edges <= nodes * (nodes - 1):
        raise ValueError(f"3 <= nodes <= 16 and 1 <= edges <= nodes (nodes - 1) must hold, got {nodes=}, {edges=}")
    if not 2 <= rows <= MOST or rows % 2:
        raise ValueError(f"rows must be an even number from 2 to {MOST:,}, got rows={rows}")
    graphs, start, goal, y = _questions(nodes, edges, rows)
    tokens = nodes * (nodes - 1)
    end = torch.full_like(start, tokens + nodes)
    x = torch.cat([graphs, torch.stack([tokens + start, tokens + goal, end], 1)], 1)
    alphabet = (*((0, tokens),) * edges, *((tokens, nodes),) * 2, (tokens + nodes, 1))
    inputs = Inputs("tokens", tokens + nodes + 3, edges + 3, table=edges + 4, alphabet=alphabet)
    return finite(x, tokens + nodes + 1 + y, fraction, inputs, inputs.size, loss)


def _lists(values: int, length: int, rows: int) -> tuple[Tensor, Tensor]:
    """(lists (N, length), place asked for (N, 1), from 0): every pair of both once, or `rows` different pairs."""
    if not 2 <= values <= 1024 or not 2 <= length <= 16:
        raise ValueError(f"2 <= values <= 1024 and 2 <= length <= 16 must hold, got {values=}, {length=}")
    if not 2 <= rows <= MOST:
        raise ValueError(f"2 <= rows <= {MOST:,} must hold, got rows={rows}")
    total = values**length * length
    if total <= rows:
        found = torch.cartesian_prod(*[torch.arange(values)] * length, torch.arange(length))
        return found[:, :length], found[:, length:]
    stream = generator(0, "table")

    def draw(count: int) -> Tensor:
        x = torch.randint(0, values, (count, length), generator=stream)
        return torch.cat([x, torch.randint(0, length, (count, 1), generator=stream)], 1)

    found = draw(rows).unique(dim=0)
    while len(found) < rows:
        found = torch.cat([found, draw(rows)]).unique(dim=0)
    found = found[torch.randperm(len(found), generator=stream)[:rows]]
    return found[:, :length], found[:, length:]


def _asked(values: int, length: int, x: Tensor, place: Tensor, answer: Tensor, fraction: float, loss: str) -> Task:
    rows = torch.cat([x, values + place, torch.full_like(place, values + length)], 1)
    alphabet = (*((0, values),) * length, (values, length), (values + length, 1))
    inputs = Inputs("tokens", values + length + 1, length + 2, table=length + 3, alphabet=alphabet)
    return finite(rows, answer.squeeze(1), fraction, inputs, inputs.size, loss)


@lru_cache(maxsize=2)  # an experiment is checked before it runs, and asks for the same table each time
def _questions(nodes: int, edges: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Different questions, half of either answer: edge tokens (rows, edges) in order, s, t, 0 or 1 (rows,) each."""
    stream, pairs = generator(0, "table"), nodes * (nodes - 1)
    ends = torch.tensor([(a, b) for a in range(nodes) for b in range(nodes) if a != b])
    found = torch.empty(0, edges + 3, dtype=torch.int64)
    least = drawn = 0
    count, total = min(2 * rows, DRAWN), math.comb(pairs, edges) * pairs
    while least < rows // 2:
        if drawn >= 40 * rows or len(found) == total:
            raise ValueError(f"rows must be at most about {2 * least} for nodes={nodes} and edges={edges}: there are "
                             f"too few graphs for so many of either answer, got rows={rows}")
        drawn += count
        graphs = torch.rand(count, pairs, generator=stream).argsort(1)[:, :edges].sort(1).values
        asked = ends[torch.randint(0, pairs, (count,), generator=stream)]
        yes = _reachable(nodes, ends[graphs]).gather(1, (asked[:, :1] * nodes + asked[:, 1:])).long()
        found = torch.cat([found, torch.cat([graphs, asked, yes], 1)]).unique(dim=0)
        least = int(torch.bincount(found[:, -1], minlength=2).min())
    found = found[torch.randperm(len(found), generator=stream)]
    half = torch.cat([found[found[:, -1] == answer][: rows // 2] for answer in (0, 1)])
    return half[:, :edges], half[:, edges], half[:, edges + 1], half[:, edges + 2]


def _reachable(nodes: int, ends: Tensor) -> Tensor:
    """(N, nodes^2) bool: does a walk lead from a to b?  ends: (N, edges, 2)."""
    step = torch.eye(nodes).repeat(len(ends), 1, 1)
    step[torch.arange(len(ends))[:, None], ends[..., 0], ends[..., 1]] = 1
    for _ in range((nodes - 1).bit_length()):  # walks of 1, 2, 4, ... edges
        step = ((step @ step) > 0).float()
    return step.flatten(1) > 0


TASKS = [
    TaskEntry(
        "sort", "[x_1 ... x_n, i, =] -> the i-th smallest x", "Power et al., arXiv 2201.02177, asked for one token",
        sort, LIST_DEFAULTS, horizon=100_000, model=MODEL, optimiser=OPTIMISER,
    ),
    TaskEntry(
        "reverse", "[x_1 ... x_n, i, =] -> the i-th x from the end",
        "Power et al., arXiv 2201.02177, asked for one token",
        reverse, LIST_DEFAULTS, horizon=100_000, model=MODEL, optimiser=OPTIMISER,
    ),
    TaskEntry(
        "reachability", "[edges, s, t, =] -> can t be reached from s? yes and no in equal parts", "own, for transfer",
        reachability, GRAPH_DEFAULTS, horizon=100_000, model=MODEL, optimiser=OPTIMISER,
    ),
]  # fmt: skip
