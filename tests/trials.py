"""Small trials for tests of the engine, built from the registry's presets without an experiment file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grokscale import registry
from grokscale.entries import Registry
from grokscale.spec import ENGINE_VERSION, TrialSpec

PLUGIN = "grokscale_test_plugin"
REGISTRY = registry.load([PLUGIN])

OPTIMISER: dict[str, Any] = {
    "name": "sgd", "lr": 0.1, "wd": 0.0, "momentum": 0.0, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8,
    "decay": "inside", "batch": 32, "drop_last": True, "warmup": 0,
}  # fmt: skip

# The three forms of section "Tests" of the first issue, at sizes that fit into a test.
FORMS: dict[str, dict[str, Any]] = {
    "parity-mlp2": {
        "task": {"name": "parity", "n": 12, "k": 2, "n_train": 100, "n_val": 90, "n_test": 110},
        "model": {"name": "mlp2", "width": 16, "bias": "normal"},
        "optimiser": {"lr": 0.05, "wd": 0.01, "batch": 16},
    },
    "pairs-mlp2": {
        "task": {"name": "modular-pairs", "p": 11},
        "model": {"name": "mlp2", "width": 32},
        "optimiser": {"lr": 0.5, "wd": 1e-4, "batch": 16},
    },
    "tokens-decoder": {
        "task": {"name": "modular-tokens", "p": 11},
        "model": {"name": "decoder", "dim": 16, "heads": 4, "layers": 2},
        "optimiser": {
            "name": "adam", "lr": 1e-3, "wd": 5e-3, "decay": "coupled", "batch": 16, "drop_last": False,
            "warmup": 10,
        },
    },
}  # fmt: skip

# Knobs that let something happen within 50 steps; everything else keeps its default.
KNOBS: dict[str, dict[str, Any]] = {
    "grokfast-ma": {"window": 12},
    "egd-rsvd": {"rank": 4},
    "egd-topk": {"rank": 3},
    "neuralgrok": {"width": 16, "period": 2},
    "nap": {"every": 10},
    "elr-rewarm": {"cycle": 12},
    "ngd-toy": {"size": 6},
}  # fmt: skip



def fits(method: str, form: str) -> bool:
    """Does the method work on what the task of a form gives?"""
    entry, options = REGISTRY.methods[method], dict(FORMS[form]["task"])
    task = REGISTRY.tasks[options.pop("name")]
    return not entry.inputs or task.factory(**{**task.defaults, **options}).inputs.kind in entry.inputs


# Of a method that is an optimiser itself: at the forms' rates, which are for SGD, it would leap about.
OWN_RATE = {"lr": 1e-3}

# Memorised after about 60 steps, grokked after 100 to 800: a whole run within a second or two.
GROKS: dict[str, Any] = {
    "task": {"name": "parity", "n": 16, "k": 2, "n_train": 100, "n_val": 300, "n_test": 300},
    "model": {"name": "mlp2", "width": 32, "bias": "normal"},
    "optimiser": {"lr": 0.1, "wd": 0.01, "batch": 32},
}


def trial(
    form: str | Mapping[str, Any],
    method: str | Sequence[Mapping[str, Any]] = "none",
    *,
    precision: str = "fp32",
    optimiser: Mapping[str, Any] | None = None,
    every: Mapping[str, Any] | None = None,
    validation: float = 0.2,
    monitor: str = "val",
    threshold: float = 0.95,
    using: Registry = REGISTRY,
) -> TrialSpec:
    """A complete TrialSpec: a form of FORMS (or its tables), a method by name or a chain with knobs."""
    tables = FORMS[form] if isinstance(form, str) else form
    chain = [{"name": method, **KNOBS.get(method, {})}] if isinstance(method, str) else method
    task, model = tables["task"], tables["model"]
    own = {k: v for m in chain for k, v in using.methods[m["name"]].optimiser.items()}
    names = {
        f"task:{task['name']}": using.tasks[task["name"]].version,
        f"model:{model['name']}": using.models[model["name"]].version,
        **{f"method:{m['name']}": using.methods[m["name"]].version for m in chain},
    }
    entry = using.tasks[task["name"]]
    options = {k: v for k, v in {**entry.defaults, **task}.items() if k != "name"}
    return TrialSpec(
        task={**entry.defaults, **task},
        model={**using.models[model["name"]].defaults, **model},
        method=tuple({**using.methods[m["name"]].defaults, **m} for m in chain),
        optimiser={**OPTIMISER, **tables["optimiser"], **(own and own | OWN_RATE), **(optimiser or {})},
        precision=precision,
        threshold=threshold,
        eval=dict(every or {"every": 0.02, "min": 10, "examples": 1024}),
        monitor=monitor,
        validation=validation,
        data=entry.data(**options) if entry.data is not None else "",
        versions={"engine": ENGINE_VERSION, **names, **{f"plugin:{k}": v for k, v in using.plugins.items()}},
    )
