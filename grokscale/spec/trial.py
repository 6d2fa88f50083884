"""One configuration with nothing left open: what the engine trains, and what a result is filed under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

ENGINE_VERSION = 1
"""Raised when the engine would no longer give the same numbers for the same trial; part of `trial_id`."""

PHASES = ("search", "confirm", "run")

OPTIMISER_KEYS = (
    "name", "lr", "wd", "momentum", "beta1", "beta2", "eps", "decay", "batch", "drop_last", "warmup"
)  # fmt: skip


def seed_for(phase: str, k: int) -> int:
    """Seed number `k` of a phase, 31 bits: sha256("grokscale/<phase>/<k>").

    phase: search (the race reads its next seeds), confirm or run.  k: counts from 0.
    The namespaces are disjoint, so that no search ever reads a seed that a confirmation will.
    Raises ValueError for another phase or a negative k.
    """
    if phase not in PHASES:
        raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}")
    if k < 0:
        raise ValueError(f"k >= 0 must hold, got k={k}")
    digest = hashlib.sha256(f"grokscale/{phase}/{k}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def canonical_json(value: Any) -> str:
    """`value` as JSON, the same in every process: sorted keys, no blanks, shortest exact floats, ASCII."""
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )


def digest(value: Any, length: int) -> str:
    """The first `length` hex digits of the sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


@dataclass(frozen=True, eq=False)
class TrialSpec:
    """A trial: everything that can change a number in its curves, and nothing else.

    task: "name" and every option.  model: the same.
    method: the chain in order, each "name" and every knob; plain training is the method that does nothing.
    optimiser: the keys of OPTIMISER_KEYS; those without effect on this optimiser hold its neutral values.
    precision: of products; see `values.Precision`.  threshold: accuracy that counts as grokked.
    eval: {"every", "min", "examples"} or {"epoch": True}.
    monitor: "val" or "test", what a search and a method's switch look at.
    validation: share of a finite table's test half that is held out for it.
    data: hash of the files that the task reads, "" for none.
    versions: engine, method:NAME, task:NAME, model:NAME as integers, plugin:MODULE as the hash of its source.

    Build one with `Resolved.trial`, which normalises spellings (lr = 1 is lr = 1.0); two specs are equal if
    their canonical forms are.
    """

    task: Mapping[str, Any]
    model: Mapping[str, Any]
    method: tuple[Mapping[str, Any], ...]
    optimiser: Mapping[str, Any]
    precision: str
    threshold: float
    eval: Mapping[str, Any]
    monitor: str
    validation: float
    data: str
    versions: Mapping[str, int | str]

    def canonical(self) -> str:
        """The canonical JSON: what is hashed, and what `from_json` reads back."""
        return canonical_json({f.name: getattr(self, f.name) for f in fields(self)})

    @property
    def trial_id(self) -> str:
        """sha256 of the canonical JSON, 12 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:12]

    @property
    def plugins(self) -> tuple[str, ...]:
        """The modules that must be imported before this trial means anything."""
        return tuple(k.removeprefix("plugin:") for k in sorted(self.versions) if k.startswith("plugin:"))

    @classmethod
    def from_json(cls, text: str) -> TrialSpec:
        """The spec whose `canonical` is `text`. Raises ValueError where keys are missing or unknown."""
        data = json.loads(text)
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or set(data) != known:
            got = ", ".join(sorted(data)) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"a trial has the keys {', '.join(sorted(known))}, got {got}")
        return cls(**{**data, "method": tuple(data["method"])})

    def params(self) -> dict[str, Any]:
        """Learning rate, weight decay and the methods' knobs, flat; knobs of a chain as method.knob."""
        flat: dict[str, Any] = {"lr": self.optimiser["lr"], "wd": self.optimiser["wd"]}
        for part in self.method:
            for knob, value in part.items():
                if knob != "name":
                    bare = len(self.method) == 1 and knob not in ("lr", "wd")
                    flat[knob if bare else f"{part['name']}.{knob}"] = value
        return flat

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrialSpec) and self.canonical() == other.canonical()

    def __hash__(self) -> int:
        return hash(self.canonical())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value + 0.0  # -0.0 and 0.0 are one setting
    return value
