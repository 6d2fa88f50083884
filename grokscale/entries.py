"""What METHODS, TASKS, MODELS and MEASURES hold: everything about an entry but its code.

Free of torch: checking an experiment file needs the entries, not the tensors. A factory raises ValueError
with a text that states the invariant, then the value, for a setting that makes no sense; `spec` shows it
beside the key.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from grokscale.data import Dataset


@dataclass(frozen=True)
class Method:
    """One way to change gradients.

    name: what experiment files and results call it.
    equation: one line of mathematics.
    source: paper or code it restates.
    factory: knobs -> Transform.
    defaults: every knob with its published setting; the type of a default is the type of the knob.
    space: the knobs worth searching, over the range worth searching.
    version: raised when the same knobs would no longer give the same numbers; part of a trial's identity.
    neutral: knobs with which the method changes nothing, None where it has no off.
    optimiser: settings that an arm with this method takes unless it names others: a method that is an optimiser
        itself (its update is final) asks for plain SGD behind it.
    flops: (parameter shapes, roles, knobs) -> the transform's own floating-point operations per step and replica.
    memory: (parameter shapes, roles, knobs, bytes of a number) -> bytes of what the method remembers, per replica;
        for a method that remembers much. Shown before a run, and refused above a limit.
    inputs: kinds of input (`tasks.base.Inputs.kind`) that the method works on, () = any; others are refused.
    """

    name: str
    equation: str
    source: str
    factory: Callable[..., Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, BaseDistribution] = field(default_factory=dict)
    version: int = 1
    neutral: Mapping[str, Any] | None = None
    optimiser: Mapping[str, Any] = field(default_factory=dict)
    flops: Callable[..., float] | None = None
    memory: Callable[..., float] | None = None
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskEntry:
    """One family of data with its loss and accuracy.

    name, summary, source: as for a method.
    factory: options -> Task.
    defaults: every option with its usual value.
    version: raised when the same options would no longer give the same data, loss or accuracy.
    threshold: accuracy at which the task counts as grokked.
    horizon: steps after which a replica that has not grokked is given up.
    model: preset of the [model] table, "name" among the keys.
    optimiser: preset of the [optimiser] table, "name" among the keys.
    data: options -> hash of the files read, for a task that reads files.
    dataset: those files, for `grokscale data`.
    """

    name: str
    summary: str
    source: str
    factory: Callable[..., Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    threshold: float = 0.95
    horizon: int = 100_000
    model: Mapping[str, Any] = field(default_factory=dict)
    optimiser: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[..., str] | None = None
    dataset: Dataset | None = None


@dataclass(frozen=True)
class ModelEntry:
    """One architecture.

    name, summary: as for a method.
    build: (task, **options) -> an ordinary nn.Module for one replica, with roles.
    defaults: every option with its usual value.
    version: raised when the same options would no longer give the same network or the same first weights.
    flops: (task, batch, options) -> operations of the loss's gradient on a batch, for a net that takes long to count.
    """

    name: str
    summary: str
    build: Callable[..., Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    version: int = 1
    flops: Callable[..., float] | None = None


def undeclared(net: Any) -> str:
    """Why what a model's entry built cannot be trained, "" where every parameter has a role and a law.

    A parameter without would neither be drawn from the replica's seed nor trained, and nothing would say so.
    """
    told = [getattr(net, name, {}) for name in ("roles", "laws")]
    named = net.named_parameters() if hasattr(net, "named_parameters") else ()
    wanting = [name for name, _ in named if any(name not in one for one in told)]
    if all(told) and not wanting:
        return ""
    of = f": {', '.join(wanting)}" if wanting else ""
    return (
        f"builds a {type(net).__name__} that does not say what its parameters are for{of}; build a "
        "grokscale.models.Model and declare() every parameter"
    )


def content_digest(content: bytes) -> str:
    """What stands for a file's content in a knob, and so in a trial's identity: 12 hex digits of its sha256."""
    return hashlib.sha256(content).hexdigest()[:12]


@dataclass(frozen=True)
class Measure:
    """Something to look at while a replica trains. It changes no number of a trial, and costs nothing when off.

    name: what `[metrics] names` calls it; one that is about methods is followed by theirs, "name:METHOD:METHOD".
    columns: column of `measures` -> what it is; "x/TENSOR" stands for one per tensor, "x/HIDDEN" per hidden matrix.
    source: paper or section it restates.
    cost: what it adds to a step and to a look, in words; N is the number of parameters.
    factory: a (name, Transform) pair for each of its methods -> grokscale.metrics.Probe.
    methods: how many methods it is about.
    """

    name: str
    columns: Mapping[str, str]
    source: str
    cost: str
    factory: Callable[..., Any]
    methods: int = 0

    def called(self, roles: Mapping[str, Any]) -> list[str]:
        """Its columns in a network of these tensors: of "x/TENSOR" one for each, others as they are.

        roles: tensor -> grokscale.transform.Role.
        """
        hidden = [name for name, role in roles.items() if role.kind == "hidden"]
        out: list[str] = []
        for column in self.columns:
            stem, _, stands = column.partition("/")
            names = {"TENSOR": list(roles), "HIDDEN": hidden}.get(stands)
            out += [column] if names is None else [f"{stem}/{name}" for name in names]
        return out

    def gives(self, column: str, roles: Mapping[str, Any]) -> bool:
        """Is this one of its columns in a network of these tensors? Of "x/NAME" every "x/..." is."""
        return any(fnmatchcase(column, re.sub(r"/[A-Z]+", "/?*", mine)) for mine in self.called(roles))


@dataclass(frozen=True)
class Registry:
    """Everything that can be named in an experiment file.

    plugins: module -> sha256 of its source, for every plugin that was loaded.
    """

    methods: Mapping[str, Method]
    tasks: Mapping[str, TaskEntry]
    models: Mapping[str, ModelEntry]
    plugins: Mapping[str, str] = field(default_factory=dict)
    measures: Mapping[str, Measure] = field(default_factory=dict)
