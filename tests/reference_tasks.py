"""Slow, obvious twins of the tables of modular arithmetic, permutations, sequences and graphs: whole numbers, loops.

Nothing here imports grokscale or torch. A row is a tuple of Python ints, its answer the last entry of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations, product


def quotient(a: int, b: int, p: int) -> int:
    """The c with b c = a mod p, found by trying; raises where there is none or more than one."""
    [c] = [c for c in range(p) if (b * c - a) % p == 0]
    return c


MODULAR: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, p: a + b,
    "sub": lambda a, b, p: a - b,
    "mul": lambda a, b, p: a * b,
    "div": quotient,
    "x2+y": lambda a, b, p: a * a + b,
    "x3+y": lambda a, b, p: a * a * a + b,
    "x2+y2": lambda a, b, p: a * a + b * b,
    "x2+xy+y2": lambda a, b, p: a * a + a * b + b * b,
    "x2+xy+y2+x": lambda a, b, p: a * a + a * b + b * b + a,
    "x3+xy": lambda a, b, p: a * a * a + a * b,
    "x3+xy2+y": lambda a, b, p: a * a * a + a * b * b + b,
    "div-or-sub": lambda a, b, p: quotient(a, b, p) if b % 2 else a - b,
    "add-or-mul": lambda a, b, p: a * b if a % 2 else a + b,
    "add-or-sub": lambda a, b, p: a - b if a % 2 else a + b,
}


def modular_rows(p: int, op: str, low: int) -> dict[tuple[int, int], int]:
    """(a, b) -> a op b mod p for all a from 0 and b from `low`."""
    return {(a, b): MODULAR[op](a, b, p) % p for a, b in product(range(p), range(low, p))}


COMPOSITES: dict[str, tuple[int, Callable[..., int]]] = {
    "a+b": (1, lambda a, b: a + b),
    "a-b": (1, lambda a, b: a - b),
    "a.b": (1, lambda a, b: a * b),
    "a.a-b": (2, lambda a, b: a * a - b),
    "ac+bd-e": (3, lambda a, b, c, d, e: a * c + b * d - e),
}


def composite_rows(expr: str, p: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """([operands, op tokens, =], answer): = is p, the op tokens p + 1, ...; b, c and d leave 0 out (methods.md 3.3)."""
    ops, formula = COMPOSITES[expr]
    nonzero = "b" if expr != "ac+bd-e" else "cd"
    letters = "ab" if expr != "ac+bd-e" else "abcde"
    for operands in product(*(range(1 if letter in nonzero else 0, p) for letter in letters)):
        yield (*operands, *range(p + 1, p + 1 + ops), p), formula(*operands) % p


def then(*steps: Sequence[int]) -> tuple[int, ...]:
    """Where every point ends when the permutations are applied one after the other, the first first."""
    points = list(range(len(steps[0])))
    for step in steps:
        points = [step[point] for point in points]
    return tuple(points)


def undone(step: Sequence[int]) -> tuple[int, ...]:
    return tuple(list(step).index(point) for point in range(len(step)))


S5: dict[str, Callable[[Sequence[int], Sequence[int]], tuple[int, ...]]] = {
    "s5": lambda a, b: then(a, b),
    "s5conj": lambda a, b: then(a, b, undone(a)),
    "s5aba": lambda a, b: then(a, b, a),
}


def permutation_rows(op: str) -> dict[tuple[int, int], int]:
    """(number of a, number of b) -> number of the answer; permutations of five in lexicographic order."""
    elements = list(permutations(range(5)))
    number = {element: i for i, element in enumerate(elements)}
    return {(i, j): number[S5[op](a, b)] for (i, a), (j, b) in product(enumerate(elements), repeat=2)}


def reachable(edges: Sequence[tuple[int, int]], start: int, goal: int) -> bool:
    """Does a walk along the directed edges lead from start to goal?"""
    seen, border = {start}, [start]
    while border:
        here = border.pop()
        for u, v in edges:
            if u == here and v not in seen:
                seen.add(v)
                border.append(v)
    return goal in seen
