"""MEASURES: everything that can be looked at while replicas train, by name. A plugin adds its own entry to this dict.

Chosen by `[metrics] names`, `grokscale run --metrics` or `train(..., metrics=...)`. Measures never change a trial's
numbers, so they are no part of its identity; curves are the same bits with and without them.
"""

from __future__ import annotations

from grokscale.entries import Measure, Registry
from grokscale.metrics import gradient, mechanism, sketch
from grokscale.metrics.base import Look, Probe, Step

MEASURES: dict[str, Measure] = {m.name: m for m in (*gradient.MEASURES, *sketch.MEASURES, *mechanism.MEASURES)}

__all__ = ["MEASURES", "Look", "Probe", "Step", "build"]


def build(name: str, registry: Registry) -> Probe:
    """The probe of "name" or "name:METHOD:METHOD"; methods are taken with their default knobs.

    Raises ValueError for a measure or method that is not there, and for another number of methods than it is about.
    """
    head, *methods = name.split(":")
    if head not in registry.measures:
        raise ValueError(f"metrics must be among {', '.join(registry.measures)}, got {head!r}")
    entry = registry.measures[head]
    if len(methods) != entry.methods:
        raise ValueError(f"metric {head} is about {entry.methods} methods, written name:METHOD:METHOD; got {name!r}")
    unknown = [m for m in methods if m not in registry.methods]
    if unknown:
        raise ValueError(f"metric {name}: methods must be among {', '.join(registry.methods)}, got {unknown[0]!r}")
    chosen = [(m, registry.methods[m].factory(**registry.methods[m].defaults)) for m in methods]
    return entry.factory(*chosen)
