"""The operators of modular arithmetic against whole numbers in loops, in both forms of the table."""

from __future__ import annotations

import re
from typing import Any

import pytest

from grokscale.tasks.base import Task, training_rows
from grokscale.tasks.modular import DIVISIONS, OPERATORS, pairs, tokens
from tests import reference_tasks as ref

OPS = [*OPERATORS, *DIVISIONS]


def table(task: Task) -> dict[tuple[int, ...], int]:
    """Row -> answer of all splits together; a row that two splits share is an error."""
    seen: dict[tuple[int, ...], int] = {}
    for split in filter(None, task.splits(3, 0.2)):
        for row, label in zip(split.x.tolist(), split.y.tolist(), strict=True):
            assert tuple(row) not in seen
            seen[tuple(row)] = label
    return seen


def test_every_operator_has_its_twin() -> None:
    assert set(OPS) == set(ref.MODULAR)


@pytest.mark.parametrize("p", [2, 7, 11])
@pytest.mark.parametrize("op", OPS)
def test_pairs(op: str, p: int) -> None:
    assert table(pairs(p=p, op=op)) == ref.modular_rows(p, op, low=1 if op == "div" else 0)


@pytest.mark.parametrize(
    ("op", "include_zero"), [(op, zero) for op in OPS for zero in (False, True) if not (zero and op == "div")]
)
def test_tokens(op: str, include_zero: bool) -> None:
    task = tokens(p=7, op=op, include_zero=include_zero)
    truth = ref.modular_rows(7, op, low=0 if include_zero else 1)
    assert table(task) == {(a, 8, b, 7): answer for (a, b), answer in truth.items()}
    for position, (first, count) in enumerate(task.inputs.alphabet):
        there = {row[position] for row in table(task)}
        assert there == set(range(first, first + count)), "a model may rely on the alphabet"


@pytest.mark.parametrize(("op", "low", "rows"), [("x2+xy+y2", True, 9409), ("div", False, 9312), ("add", False, 9312)])
def test_sizes_of_power_et_al(op: str, low: bool, rows: int) -> None:
    splits = tokens(p=97, op=op, include_zero=low).splits(0, 0.0)
    assert len(splits.train.y) + len(splits.test.y) == rows


@pytest.mark.parametrize("op", [op for op in OPS if op not in DIVISIONS])
def test_a_composite_modulus_is_fine_without_division(op: str) -> None:
    assert table(pairs(p=12, op=op)) == ref.modular_rows(12, op, low=0)


@pytest.mark.parametrize("fraction", [0.05, 0.25, 0.3, 0.5, 0.8, 0.999])
@pytest.mark.parametrize("p", [5, 97, 113])
def test_fraction_and_p_are_ordinary_keys(p: int, fraction: float) -> None:
    splits = pairs(p=p, fraction=fraction).splits(1, 0.0)
    assert len(splits.train.y) == training_rows(fraction, p * p) == int(fraction * p * p)
    assert len(splits.test.y) == p * p - len(splits.train.y) > 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"p": 12, "op": "div"}, "p must be a prime for op=div, which needs b^-1 mod p for every b; got p=12, a mult"),
        ({"p": 91, "op": "div-or-sub"}, "p must be a prime for op=div-or-sub"),
        ({"p": 91, "op": "div"}, "got p=91, a multiple of 7"),
        ({"op": "x/y"}, "op must be one of add, sub, mul, x2+y"),
        ({"p": 1025}, "2 <= p <= 1024 must hold, got p=1025"),
        ({"fraction": 1}, "0 < fraction < 1 must hold, got fraction=1"),
        ({"p": 3, "fraction": 0.1}, "fraction must leave at least one of the "),
    ],
)
@pytest.mark.parametrize("factory", [pairs, tokens])
def test_a_refusal_says_what_must_hold(factory: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        factory(**options)


def test_division_by_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="include_zero must be false for op=div"):
        tokens(p=7, op="div", include_zero=True)
