"""What methods remember, in bytes, before anything runs: shown by every verb that trains, refused above a limit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from grokscale.entries import Registry
from grokscale.errors import InputError
from grokscale.report.words import count, number, plain
from grokscale.spec import Resolved, TrialSpec, canonical_json
from grokscale.spec.settings import ends
from grokscale.train import DTYPES, lanes_for

LINES = 6  # arms that are shown


@dataclass(frozen=True)
class Need:
    """What one method of a trial remembers in a pack.

    knobs: those that the amount depends on, with their values.  copies: of `params` numbers of `itemsize` bytes that
    a replica keeps.  lanes: replicas side by side.
    """

    method: str
    knobs: Mapping[str, Any]
    copies: float
    params: int
    itemsize: int
    lanes: int

    @property
    def bytes(self) -> float:
        return self.copies * self.params * self.itemsize * self.lanes

    def __str__(self) -> str:
        at = "".join(f", {knob} {plain(value)}" for knob, value in self.knobs.items())
        return (f"{self.method}{at}: remembers {self.copies:.4g} x {number(self.params)} parameters x {self.itemsize} "
                f"bytes x {self.lanes} lanes = {size(self.bytes)}")


def needs(spec: TrialSpec, replicas: int, registry: Registry, built: dict[str, Any] | None = None) -> list[Need]:
    """What the methods of a trial remember in a pack of `replicas`, for those that say so.

    built: models by what they were built from, for callers that ask for many trials of one model.
    """
    entries = [(part, registry.methods[part["name"]]) for part in spec.method]
    if not any(entry.memory for _, entry in entries):
        return []
    built = {} if built is None else built
    key = canonical_json([spec.task, spec.model])
    if key not in built:
        task = registry.tasks[spec.task["name"]].factory(**_options(spec.task))
        built[key] = registry.models[spec.model["name"]].build(task, **_options(spec.model))
    model = built[key]
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    params = sum(p.numel() for p in model.parameters())
    itemsize = DTYPES[spec.precision].itemsize
    found = []
    for part, entry in entries:
        if entry.memory is None:
            continue
        knobs = _options(part)
        amount = partial(entry.memory, shapes, model.roles, itemsize=itemsize)
        whole = {k: v for k, v in knobs.items() if isinstance(v, int) and not isinstance(v, bool)}
        telling = {k: v for k, v in whole.items() if amount({**knobs, k: v + 1}) > amount(knobs)}
        copies = amount(knobs) / params / itemsize
        found.append(Need(entry.name, telling, copies, params, itemsize, lanes_for(replicas)))
    return found


def largest(resolved: Resolved, registry: Registry) -> dict[str, list[Need]]:
    """By arm, what its trials may come to remember: at its starting values, and at either end of every range."""
    x = resolved.experiment
    seeds = [x.confirm.seeds, *((x.search.seeds, x.race.seeds) if x.search.trials else ())]
    replicas = min(x.resources.lanes or 2, max(1, *seeds))  # "auto" takes no more than fit
    found: dict[str, list[Need]] = {}
    built: dict[str, Any] = {}
    for arm in resolved.arms:
        points = [{}] + [{knob: end} for knob, range_ in arm.space.items() for end in ends(range_)]
        tried = [needs(resolved.trial(arm.name, point), replicas, registry, built) for point in points]
        found[arm.name] = max(tried, key=sum_of)
    return {arm: one for arm, one in found.items() if one}


def shown(found: Mapping[str, Sequence[Need]]) -> list[str]:
    """A line per arm and method; of many arms, as a grid has them, those that need most."""
    order = sorted(found, key=lambda arm: -sum_of(found[arm])) if len(found) > LINES else list(found)
    lines = [f"{arm}: {need}" if arm != need.method else str(need) for arm in order[:LINES] for need in found[arm]]
    return [*lines, f"{count(len(order) - LINES, 'arm')} more, with less"] if len(order) > LINES else lines


def refuse(resolved: Resolved, found: Mapping[str, Sequence[Need]]) -> None:
    """Raise InputError for arms that remember more than [resources] memory, or than this machine has."""
    allowed = resolved.experiment.resources.memory
    limit, whose = (machine(), "this machine's memory") if allowed is None else (allowed, "resources.memory")
    place = resolved.experiment.where.at(("resources", "memory"))
    problems = []
    for arm, one in found.items():
        if limit is not None and sum_of(one) > limit:
            knobs = sorted({knob for need in one for knob in need.knobs})
            smaller = f"a smaller {' or '.join(knobs)} (fixed in set, or another range), " if knobs else ""
            problems.append(
                f"{place}: {'; '.join(shown({arm: one}))}, more than {whose}, {size(limit)}, for one trial; take "
                f"{smaller}fewer resources.lanes, or allow more: resources.memory = \"{size(2 * sum_of(one))}\"")
    if problems:
        raise InputError(problems)


def sum_of(one: Sequence[Need]) -> float:
    """Bytes of all methods of an arm."""
    return sum(need.bytes for need in one)


def machine() -> float | None:
    """Bytes of memory of this machine; None where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return None


def size(amount: float) -> str:
    """1.5GB: three digits, decimal units."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= 0.9995 * factor:
            return f"{amount / factor:.3g}{unit}"
    return f"{amount:.0f}B"


def _options(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k != "name"}
