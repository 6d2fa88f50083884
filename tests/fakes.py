"""A registry without torch, and experiments on it: what the tests of `spec` run against."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from grokscale.entries import Measure, Method, ModelEntry, Registry, TaskEntry


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise ValueError(text)


def plain() -> tuple[Any, ...]:
    return ()


def damp(rate: float, depth: int, mode: str, eps: float, rank: Any) -> tuple[Any, ...]:
    _check(0 < rate <= 1, f"0 < rate <= 1 must hold, got rate={rate}")
    _check(depth >= 1, f"depth >= 1 must hold, got depth={depth}")
    _check(mode in ("soft", "hard"), f"mode must be 'soft' or 'hard', got {mode!r}")
    return rate, depth, mode, eps, rank


def boost(gain: float, on: bool) -> tuple[Any, ...]:
    _check(gain >= 0, f"gain >= 0 must hold, got gain={gain}")
    return gain, on


def coins(n: int, k: int, bias: float, sizes: Sequence[int], label: str | None) -> tuple[Any, ...]:
    _check(1 <= k <= n, f"1 <= k <= n must hold, got k={k}, n={n}")
    return "coins", n, k, bias, tuple(sizes), label


class Net:
    """What a model's entry builds, as far as checking a file looks at it: what its tensors are for."""

    def __init__(self) -> None:
        kinds = {"w1": "hidden", "b1": "bias", "head": "head"}
        self.roles = {name: SimpleNamespace(kind=kind) for name, kind in kinds.items()}
        self.laws = dict.fromkeys(kinds, ("constant", 0.0))

    def named_parameters(self) -> list[tuple[str, None]]:
        return [(name, None) for name in self.roles]


def tiny(task: Any, width: int, act: str) -> Net:
    _check(width >= 1, f"width >= 1 must hold, got width={width}")
    return Net()


def odd(about: tuple[str, Any]) -> None:
    raise ValueError(f"{about[0]} is odd")


def registry(plugins: Sequence[str] = (), **versions: int) -> Registry:
    """The fake registry. versions: of entries, by name, where they are not 1."""
    methods = [
        Method("none", "g -> g", "", plain),
        Method(
            "damp", "g -> r g", "", damp,
            {"rate": 0.5, "depth": 3, "mode": "soft", "eps": 1e-6, "rank": "full"},
            {
                "rate": FloatDistribution(0.01, 1.0, log=True), "depth": IntDistribution(1, 9),
                "rank": CategoricalDistribution(["full", 4, 8]),
            },
            version=versions.get("damp", 1),
        ),
        Method(
            "boost", "g -> g + l m", "", boost, {"gain": 2.0, "on": True},
            {"gain": FloatDistribution(0.1, 10.0, log=True)},
        ),
    ]  # fmt: skip
    tasks = [
        TaskEntry(
            "coins", "", "", coins, {"n": 10, "k": 2, "bias": 0.0, "sizes": (8, 8), "label": None},
            version=versions.get("coins", 1), threshold=0.9, horizon=5000,
            model={"name": "tiny", "width": 32},
            optimiser={"name": "sgd", "lr": 0.05, "wd": 0.01, "batch": 16, "drop_last": True},
        ),
        TaskEntry(
            "files", "", "", lambda rows: rows, {"rows": 10}, horizon=10, model={"name": "tiny"},
            data=lambda rows: f"hash-of-{rows}",
        ),
        TaskEntry("bare", "", "", lambda: "bare"),
    ]  # fmt: skip
    models = [
        ModelEntry("tiny", "", tiny, {"width": 16, "act": "relu"}, version=versions.get("tiny", 1)),
        ModelEntry("wide", "", lambda task, depth: Net(), {"depth": 2}),
    ]
    measures = [
        Measure("norms", {"weight_norm": "", "weight_norm/TENSOR": "", "kappa/HIDDEN": ""}, "", "", lambda: "norms"),
        Measure("compare", {}, "", "", lambda one, two: (one, two), methods=2),
        Measure("odd", {}, "", "", odd, methods=1),
    ]
    return Registry(
        {m.name: m for m in methods}, {t.name: t for t in tasks}, {m.name: m for m in models},
        {name: f"sha-of-{name}" for name in plugins}, {m.name: m for m in measures},
    )  # fmt: skip


BASIC: dict[str, Any] = {
    "name": "basic",
    "baseline": "none",
    "horizon": 2000,
    "task": {"name": "coins", "n": 12},
    "space": {
        "lr": {"low": 0.01, "high": 0.1, "log": True, "default": 0.04},
        "wd": {"low": 1e-3, "high": 3e-2, "log": True, "default": 0.01, "zero": True},
    },
    "arm": [{"name": "none"}, {"name": "damp"}, {"name": "boost"}],
    "search": {"trials": 6, "seeds": 4},
    "confirm": {"seeds": 12},
}


def basic(**changes: Any) -> dict[str, Any]:
    """BASIC with top-level keys replaced; a table is merged into the one there."""
    tables = copy.deepcopy(BASIC)
    for key, value in changes.items():
        merged = isinstance(value, Mapping) and isinstance(tables.get(key), dict)
        tables[key] = {**tables[key], **value} if merged else value
    return tables
