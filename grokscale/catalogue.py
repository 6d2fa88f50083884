"""What can be named in an experiment file, as text: `grokscale methods`, `grokscale tasks`, `metrics`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from grokscale.data import examine, expected
from grokscale.entries import Registry
from grokscale.report.words import WIDTH, plain


def methods(registry: Registry) -> str:
    """Every method with its equation, its source, its knobs and its own operations on the first task's usual net."""
    blocks = []
    first = next(iter(registry.tasks.values()))
    options = {key: value for key, value in first.model.items() if key != "name"}
    net = registry.models[first.model["name"]].build(first.factory(**first.defaults), **options)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    for entry in registry.methods.values():
        rows = [
            f"{key} = {plain(value)}{_range(entry.space.get(key))}" for key, value in entry.defaults.items()
        ]
        if entry.flops is not None:
            count = entry.flops(shapes, net.roles, entry.defaults)
            rows.append(f"flops: {count:.3g} a step on the net of {first.name}, besides the gradient")
        blocks.append(_block(entry.name, entry.equation, entry.source, rows or ["no knobs"]))
    return "\n\n".join(blocks) + "\n"


def tasks(registry: Registry) -> str:
    """Every task with its options and presets, then every model with its options."""
    from grokscale.train.costs import model_flops

    blocks = []
    for entry in registry.tasks.values():
        rows = [
            f"options: {_settings(entry.defaults)}",
            f"model: {_settings(entry.model)}",
            f"optimiser: {_settings(entry.optimiser)}",
            f"grokked at {entry.threshold:g}, horizon {entry.horizon:,} steps",
            f"flops: {model_flops(entry, registry):.3g} a step, the model forward and backward on a batch of "
            f"{entry.optimiser['batch']:,}",
        ]
        blocks.append(_block(entry.name, entry.summary, entry.source, rows))
    for entry in registry.models.values():
        blocks.append(
            _block(f"model {entry.name}", entry.summary, "", [f"options: {_settings(entry.defaults)}"])
        )
    return "\n\n".join(blocks) + "\n"


def metrics(registry: Registry) -> str:
    """Every measure with its columns, its source and its cost."""
    blocks = []
    for entry in registry.measures.values():
        rows = [f"{column}: {what}" for column, what in entry.columns.items()]
        name = ":".join([entry.name, *["METHOD"] * entry.methods])
        blocks.append(_block(name, f"cost: {entry.cost}", entry.source, rows))
    return "\n\n".join(blocks) + "\n"


def data(registry: Registry) -> str:
    """Every dataset with its source and the state of its files."""
    blocks = []
    for entry in registry.tasks.values():
        if (dataset := entry.dataset) is None:
            continue
        lines = [_block(dataset.name, dataset.source, dataset.url, [])]
        lines += [f"    {found.path}: {found.problem or 'is right'}" for found in examine(dataset)]  # paths stay whole
        if not expected(dataset)[1]:
            lines.append("    these are your own files, not the published ones: results compare with no paper's")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _block(name: str, what: str, source: str, rows: list[str]) -> str:
    lines = [name, *_wrap(what), *_wrap(source), *(line for row in rows for line in _wrap(row, "    "))]
    return "\n".join(lines)


def _wrap(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def _settings(table: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {plain(value)}" for key, value in table.items()) or "none"


def _range(distribution: Any) -> str:
    """ "  searched 0.1 to 10, log", or nothing where it is not searched."""
    if distribution is None:
        return ""
    if hasattr(distribution, "choices"):
        return f"  searched among {', '.join(plain(choice) for choice in distribution.choices)}"
    log = ", log in 1 - x" if getattr(distribution, "complement", False) else ", log" if distribution.log else ""
    return f"  searched {plain(distribution.low)} to {plain(distribution.high)}{log}"
