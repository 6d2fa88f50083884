"""An experiment that can run: arms with nothing left open but what is searched, and their trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from grokscale.errors import InputError, suggest
from grokscale.spec.settings import NEUTRAL, Refused, chosen, coerce, described
from grokscale.spec.tables import Experiment
from grokscale.spec.trial import OPTIMISER_KEYS, TrialSpec, digest
from grokscale.spec.where import shown

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Address = tuple[str, str]
"""Where a setting belongs: ("task" | "model" | "optimiser", key) or ("method:NAME", knob)."""
Tables = dict[str, dict[str, Any]]
"""Complete settings by section: task, model, optimiser and one per method of the chain."""


@dataclass(frozen=True)
class ResolvedArm:
    """An arm with nothing left open but what is searched.

    methods: the chain.
    fixed: own knobs that are not searched, and what `set` fixes, by flat key.
    defaults: every searched knob (own and shared) with its starting value, by flat key.
    space: every searched knob with its range; `zeros` are those that may be 0 outside it.
    points: complete settings of the searched knobs that are asked first, without doubles. The first is
    `defaults`; the last ones hold the zeros, which lie outside `space`.

    tables: everything, searched knobs at their starting values.  addresses: where a flat key belongs.

    A flat key is the knob's name, method.knob in a chain, or a key of the optimiser, task.x or model.x; where
    a method has a knob of the same name, the optimiser's key is optimiser.x.
    """

    name: str
    methods: tuple[str, ...]
    fixed: dict[str, Any]
    defaults: dict[str, Any]
    space: dict[str, BaseDistribution]
    zeros: tuple[str, ...]
    points: tuple[dict[str, Any], ...]
    tables: Tables = field(repr=False)
    addresses: dict[str, Address] = field(repr=False)


@dataclass(frozen=True)
class Resolved:
    """An experiment that can run: presets filled in, names and ranges checked. Build one with `resolve`."""

    experiment: Experiment
    horizon: int
    threshold: float
    arms: tuple[ResolvedArm, ...]
    data: Mapping[str, str] = field(repr=False)  # by arm: hash of the files that its task reads
    versions: Mapping[str, int | str] = field(repr=False)

    @property
    def sweep_id(self) -> str:
        """Name and 8 hex digits of what makes results of two runs of a file comparable.

        Hashed are task, model, optimiser, arms with their spaces, code versions, horizon, evaluation, the number of
        search seeds and the size of a generation, on which what is asked depends. The rest (trials, confirmation
        seeds, race, limits, resources, places) may change, and the same sweep goes on.
        """
        x = self.experiment
        arms = [
            {
                "name": arm.name, "methods": arm.methods, "tables": arm.tables, "zeros": arm.zeros,
                "space": {k: described(v) for k, v in arm.space.items()}, "defaults": arm.defaults,
                "data": self.data[arm.name],
            }
            for arm in self.arms
        ]  # fmt: skip
        content = {
            "arms": arms, "versions": self.versions, "horizon": self.horizon, "eval": _eval(x),
            "seeds": x.search.seeds, "parallel": x.search.parallel,
            "threshold": self.threshold, "validation": x.task.validation, "monitor": x.task.monitor,
        }  # fmt: skip
        if x.aa:
            content["aa"] = True  # other search seeds
        return f"{x.name}-{digest(content, 8)}"

    def arm(self, name: str) -> ResolvedArm:
        """The arm with this label. Raises InputError with the labels there are."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        labels = [arm.name for arm in self.arms]
        raise InputError(
            f"{self.experiment.where.source}: no arm is labelled {shown(name)}; {suggest(name, labels)}"
        )

    def trial(self, arm: str, params: Mapping[str, Any] | None = None) -> TrialSpec:
        """The trial of an arm at these values of its searched knobs; those left out stay at their defaults.

        Raises InputError for a knob that the arm does not search or a value of the wrong type.
        """
        one = self.arm(arm)
        tables = {section: dict(table) for section, table in one.tables.items()}
        for key, value in {**one.defaults, **(params or {})}.items():
            if key not in one.space:
                raise InputError(f"arm {arm}: {key} is not searched; {suggest(key, one.space)}")
            section, name = one.addresses[key]
            try:
                typed = value if chosen(value, one.space[key]) else coerce(value, tables[section][name])
            except Refused as error:
                raise InputError(f"arm {arm}: {key}: {error}") from None
            tables[section][name] = typed
        x = self.experiment
        optimiser = NEUTRAL | tables["optimiser"]
        if optimiser["name"] == "adam" and optimiser["decay"] == "decoupled":
            optimiser["name"] = "adamw"  # one algorithm, one identity
        named = {"engine", f"task:{tables['task']['name']}", f"model:{tables['model']['name']}"}
        named |= {f"method:{name}" for name in one.methods}
        return TrialSpec(
            task=tables["task"],
            model=tables["model"],
            method=tuple({"name": m, **tables[f"method:{m}"]} for m in one.methods),
            optimiser={k: optimiser[k] for k in OPTIMISER_KEYS},
            precision=optimiser["precision"],
            threshold=self.threshold,
            eval=_eval(x),
            monitor=x.task.monitor,
            validation=x.task.validation,
            data=self.data[arm],
            versions={k: v for k, v in self.versions.items() if k in named or k.startswith("plugin:")},
        )


def _eval(x: Experiment) -> dict[str, Any]:
    if isinstance(x.eval, str):
        return {"epoch": True}
    return {"every": x.eval.every, "min": x.eval.min, "examples": x.eval.examples}
