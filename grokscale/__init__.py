"""Which gradient transform makes a network grok sooner, and by how much?

The public names are loaded when they are first used, so that `import grokscale` costs nothing and reading
results needs neither torch nor Ray.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grokscale.answers import speedups
    from grokscale.errors import GrokscaleError, InputError
    from grokscale.explain import associations
    from grokscale.spec import Experiment, TrialSpec, load
    from grokscale.store import Store
    from grokscale.store.show import show
    from grokscale.train import Evaluation, train
    from grokscale.weights import load_model
    from grokscale.worker import trainable

# MKL's fast kernels round differently by the alignment of a matrix in memory, so a replica's bits would depend on
# its place in a pack. STRICT takes that away at no measurable cost. Read once, at MKL's first use in the process.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__version__ = "0.1.0"

_HOME = {
    "Evaluation": "train",
    "Experiment": "spec",
    "GrokscaleError": "errors",
    "InputError": "errors",
    "Store": "store",
    "TrialSpec": "spec",
    "associations": "explain",
    "load": "spec",
    "load_model": "weights",
    "show": "store.show",
    "speedups": "answers",
    "train": "train",
    "trainable": "worker",
}

__all__ = [
    "Evaluation",
    "Experiment",
    "GrokscaleError",
    "InputError",
    "Store",
    "TrialSpec",
    "associations",
    "load",
    "load_model",
    "show",
    "speedups",
    "train",
    "trainable",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module, once."""
    if name not in _HOME:
        raise AttributeError(f"module 'grokscale' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"grokscale.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
