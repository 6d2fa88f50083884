"""Sorting, reversing, reachability: every row against lists and walks in plain Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from grokscale.tasks.base import Task
from grokscale.tasks.sequences import reachability, reverse, sort
from tests import reference_tasks as ref
from tests.test_tasks_modular import table

ANSWERS: dict[Callable[..., Task], Callable[[list[int], int], int]] = {
    sort: lambda x, i: sorted(x)[i - 1],
    reverse: lambda x, i: x[-i],
}


@pytest.mark.parametrize("make", ANSWERS)
@pytest.mark.parametrize(("values", "length", "rows"), [(4, 3, 1000), (5, 2, 50), (6, 4, 300), (100, 10, 400)])
def test_lists(make: Callable[..., Task], values: int, length: int, rows: int) -> None:
    """All rows where there are few, else as many different ones as asked for."""
    task = make(values=values, length=length, rows=rows)
    found = table(task)
    for (*x, place, end), answer in found.items():
        assert end == values + length
        assert answer == ANSWERS[make](x, place - values + 1)
        assert all(0 <= one < values for one in x) and values <= place < values + length
    total = values**length * length
    assert len(found) == min(total, rows)
    if total <= rows:
        assert {row[:-1] for row in found} == {
            (*x, values + i) for *x, i in product(*[range(values)] * length, range(length))}  # fmt: skip
    assert task.inputs.size == values + length + 1
    assert task.inputs.table == task.inputs.length + 1 == length + 3


def edge(token: int, nodes: int) -> tuple[int, int]:
    a, b = divmod(token, nodes - 1)
    return a, b + (b >= a)


@pytest.mark.parametrize(("nodes", "edges", "rows"), [(3, 2, 12), (4, 4, 200), (6, 7, 1000), (12, 20, 400)])
def test_reachability(nodes: int, edges: int, rows: int) -> None:
    task = reachability(nodes=nodes, edges=edges, rows=rows)
    found = table(task)
    assert len(found) == rows
    first, pairs = nodes * (nodes - 1), 0
    for (*graph, start, goal, end), answer in found.items():
        assert graph == sorted(set(graph)) and len(graph) == edges, "a graph has one spelling"
        assert all(0 <= token < first for token in graph)
        assert first <= start < first + nodes and first <= goal < first + nodes and start != goal
        assert end == first + nodes
        walks = ref.reachable([edge(token, nodes) for token in graph], start - first, goal - first)
        assert answer == end + 1 + walks
        pairs += walks
    assert pairs == rows // 2
    assert task.outputs == task.inputs.size == first + nodes + 3


def test_an_edge_has_the_token_that_is_documented() -> None:
    assert [edge(token, 3) for token in range(6)] == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


@pytest.mark.parametrize("make", [sort, reverse, reachability])
def test_the_table_is_the_same_whenever_it_is_made(make: Callable[..., Task]) -> None:
    """And the same for every seed: a seed draws the split."""
    one, other = make(rows=200), make(rows=200)
    assert table(one) == table(other)
    seeds = [sorted(map(tuple, torch.cat([s.x for s in one.splits(seed, 0.0) if s is not None]).tolist()))
             for seed in (1, 2)]  # fmt: skip
    assert seeds[0] == seeds[1]
    assert not torch.equal(one.splits(1, 0.0).train.x, one.splits(2, 0.0).train.x)


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (sort, {"values": 1}, "2 <= values <= 1024 and 2 <= length <= 16 must hold, got values=1"),
        (reverse, {"length": 17}, "2 <= length <= 16 must hold, got values=8, length=17"),
        (sort, {"rows": 0}, "rows=0"),
        (reachability, {"nodes": 2}, "3 <= nodes <= 16"),
        (reachability, {"edges": 31}, "1 <= edges <= nodes (nodes - 1) must hold, got nodes=6, edges=31"),
        (reachability, {"rows": 11}, "rows must be an even number"),
        (reachability, {"nodes": 3, "edges": 2, "rows": 100}, "rows must be at most about "),
        (reachability, {"nodes": 5, "edges": 20, "rows": 10}, "rows must be at most about 0 for nodes=5 and edges=20"),
    ],
)
def test_an_impossible_option_is_named(make: Callable[..., Task], options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        make(**options)
