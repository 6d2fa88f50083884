"""The experiment file as frozen tables: every key, its type, its range and its default."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    model_validator,
)

from grokscale.spec.claims import Endpoint, Paper
from grokscale.spec.values import LABEL, Float, Int, Names, Precision, Scalar, Table, as_tuple, complaint
from grokscale.spec.where import Where, shown

if TYPE_CHECKING:
    from grokscale.entries import Registry
    from grokscale.spec.resolved import Resolved

SECTIONS = ("task", "model", "optimiser")


def flat_settings(value: Any) -> Any:
    """Settings by flat key: {optimiser = {lr = 1}} is {"optimiser.lr" = 1}."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= {f"{key}.{sub}": one for sub, one in flat_settings(item).items()} or {key: item}
        else:
            flat[key] = item
    return flat


def flat_knobs(value: Any) -> Any:
    """Knobs by flat key: a table of tables, or one named after a section, holds knobs and is none itself."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for key, item in value.items():
        tables = isinstance(item, Mapping) and item and all(isinstance(one, Mapping) for one in item.values())
        if tables or (key in SECTIONS and isinstance(item, Mapping)):
            flat |= {f"{key}.{sub}": one for sub, one in item.items()}
        else:
            flat[key] = item
    return flat


def flat_axes(value: Any) -> Any:
    """Axes by flat key: a table that is no range is a section."""
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and not {"low", "high"} & set(item):
            flat |= {f"{key}.{sub}": one for sub, one in flat_axes(item).items()} or {key: item}
        else:
            flat[key] = item
    return flat


def _axis_kind(value: Any) -> str:
    return "range" if isinstance(value, (Mapping, Table)) else "list"


def _percent(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(r"\d+(\.\d+)?\s*%", value):
            raise complaint(f'must be a share such as "2%" or 0.02, got {shown(value)}')
        return float(value.rstrip("% ")) / 100
    return value


def _bytes(value: Any) -> Any:
    """ "8GB" as 8e9, "512MiB" as 512 x 2^20."""
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|[kMGT]i?B)", value)
        if found is None:
            raise complaint(f'must be an amount of memory such as "8GB" or "512MiB", got {shown(value)}')
        return float(found[1]) * (1024 if "i" in found[2] else 1000) ** "BkMGT".index(found[2][0])
    return value


def _auto(value: Any) -> Any:
    """ "auto" as 0, which is how a store keeps it."""
    if value == "auto":
        return 0
    if isinstance(value, str) or (isinstance(value, int) and (value < 0 or value == 1)):
        raise complaint(f'must be an integer >= 2 or "auto", got {shown(value)}')
    return value


Settings = Annotated[dict[str, Any], BeforeValidator(flat_settings)]


class OpenTable(BaseModel):
    """A table whose further keys are options that only the registry knows."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are not fields, as written."""
        return dict(self.model_extra or {})


class Knob(Table):
    """A setting left to the search: a range {low, high, log, int, zero} or {choices}.

    default: what is asked first; where it is left out, the value that the setting has without the search.
    zero: 0 lies outside the range and is asked besides.
    """

    low: Float | None = None
    high: Float | None = None
    log: bool = False
    int: bool = False
    zero: bool = False
    choices: Annotated[tuple[Scalar, ...], BeforeValidator(as_tuple)] | None = None
    default: Scalar | None = None

    @model_validator(mode="after")
    def _invariants(self) -> Knob:
        wrong = self._wrong_choices() if self.choices is not None else self._wrong_range()
        if wrong:
            raise complaint("; ".join(wrong))
        return self

    def _wrong_choices(self) -> list[str]:
        assert self.choices is not None
        wrong = []
        extra = [k for k in ("low", "high", "log", "int", "zero") if getattr(self, k) not in (None, False)]
        if extra:
            wrong.append(
                f"choices stand alone, or low and high without choices; got choices and {', '.join(extra)}"
            )
        if not self.choices:
            wrong.append("choices must not be empty")
        if len({(type(c), c) for c in self.choices}) < len(self.choices):
            wrong.append(f"choices must differ, got {shown(list(self.choices))}")
        if self.default is not None and self.choices and self.default not in self.choices:
            wrong.append(f"default must be one of {shown(list(self.choices))}, got {shown(self.default)}")
        return wrong

    def _wrong_range(self) -> list[str]:
        low, high, default = self.low, self.high, self.default
        if low is None or high is None:
            return [
                "needs low and high, or choices: { low = 1e-3, high = 1, log = true } or { choices = [1, 2] }"
            ]
        got = f"got low={low:g}, high={high:g}"
        if self.log and not 0 < low < high:
            return [f"0 < low < high must hold with log = true, {got}"]
        if not low < high:
            return [f"low < high must hold, {got}"]
        wrong = []
        if self.int and not (low.is_integer() and high.is_integer()):
            wrong.append(f"low and high must be integers with int = true, {got}")
        if self.zero and not low > 0:
            wrong.append(f"0 < low must hold with zero = true (else 0 is in the range already), {got}")
        if isinstance(default, (bool, str)):
            wrong.append(f"default must be a number, got {shown(default)}")
        elif default is not None and not (low <= default <= high or (self.zero and default == 0)):
            zero = " or default = 0" if self.zero else ""
            wrong.append(f"low <= default <= high{zero} must hold, {got}, default={default:g}")
        return wrong


Space = Annotated[dict[str, Knob], BeforeValidator(flat_knobs)]


class Eval(Table):
    """When replicas are looked at: every max(`min` steps, `every` of the step), on `examples` rows."""

    every: Annotated[Float, BeforeValidator(_percent), Field(ge=0, le=1)] = 0.02
    min: Annotated[Int, Field(ge=1)] = 25
    examples: Annotated[Int, Field(ge=1)] = 1024


Schedule = Annotated[
    Annotated[Eval, Tag("table")] | Annotated[Literal["epoch"], Tag("word")],
    Discriminator(lambda value: "word" if isinstance(value, str) else "table"),
]


class Task(OpenTable):
    """[task]: what is learned; keys besides these are the task's own options."""

    name: str = Field(description="which task; `grokscale tasks` lists them")
    threshold: Annotated[Float, Field(gt=0, le=1)] | None = None
    validation: Annotated[Float, Field(ge=0, lt=1)] = 0.2
    monitor: Literal["val", "test"] = "val"


class Model(OpenTable):
    """[model]: the network; by default the one that the task is usually learned with."""

    name: str | None = None


class Optimiser(Table):
    """[optimiser]: keys left out come from the task's preset for this optimiser, or are the usual ones."""

    name: Literal["sgd", "adam", "adamw"] | None = None
    lr: Annotated[Float, Field(gt=0)] | None = None
    wd: Annotated[Float, Field(ge=0)] | None = None
    momentum: Annotated[Float, Field(ge=0, lt=1)] | None = None
    beta1: Annotated[Float, Field(ge=0, lt=1)] | None = None
    beta2: Annotated[Float, Field(ge=0, lt=1)] | None = None
    eps: Annotated[Float, Field(gt=0)] | None = None
    decay: Literal["inside", "coupled", "decoupled"] | None = None
    batch: Annotated[Int, Field(ge=1)] | None = None
    drop_last: bool | None = None
    warmup: Annotated[Int, Field(ge=0)] | None = None
    precision: Precision | None = None


class Arm(Table):
    """[[arm]]: a label, a method or chain, settings that are fixed, knobs that are searched.

    method: a method's name or a list of them in order; left out, the label is the name.
    set: settings that this arm fixes.  default: other starting points for knobs that it searches.
    space: ranges of own knobs in place of the method's.  search: which own knobs to search, all by default.
    """

    name: str = Field(pattern=LABEL, description="a label of letters, digits and - _ + . , : =, at most 96")
    method: Names = ()
    set: Settings = Field(default_factory=dict)
    default: Settings = Field(default_factory=dict)
    space: Space = Field(default_factory=dict)
    search: Names | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The chain: names of methods, in order."""
        return self.method or (self.name,)


class Axis(Table):
    """An axis of a Sobol grid: a range {low, high, log, int}."""

    low: Float
    high: Float
    log: bool = False
    int: bool = False

    @model_validator(mode="after")
    def _invariants(self) -> Axis:
        if not self.low < self.high or (self.log and not self.low > 0):
            bound = "0 < low < high must hold with log = true" if self.log else "low < high must hold"
            raise complaint(f"{bound}, got low={self.low:g}, high={self.high:g}")
        return self


Values = Annotated[tuple[Scalar, ...], BeforeValidator(as_tuple)]
Axes = Annotated[
    dict[str, Annotated[Annotated[Axis, Tag("range")] | Annotated[Values, Tag("list")], Discriminator(_axis_kind)]],
    BeforeValidator(flat_axes),
]


class Grid(Table):
    """[grid]: one arm per point of `axes`, any keys that an arm's `set` may have.

    axes: key -> list of values; with `points` also key -> range {low, high, log, int}.
    points: so many points of a Sobol sequence in place of the full product.
    arms: labels of the arms that are multiplied; left out, all but the baseline.
    expanded: the points stand among the arms already, as in what the store keeps.
    """

    axes: Axes = Field(min_length=1, description="a table [grid.axes] with a list of values per key")
    points: Annotated[Int, Field(ge=1, le=4096)] | None = None
    arms: Names = ()
    expanded: bool = False

    @model_validator(mode="after")
    def _invariants(self) -> Grid:
        wrong = [f"axis {key} has no value" for key, axis in self.axes.items() if axis == ()]
        if self.points is None:
            ranges = [key for key, axis in self.axes.items() if isinstance(axis, Axis)]
            wrong += [f"axis {key} is a range, which needs points = N (Sobol); or list its values" for key in ranges]
            total = math.prod(len(axis) for axis in self.axes.values() if not isinstance(axis, Axis))
            if total > 4096:
                wrong.append(f"at most 4096 points, got {total}; take points = N for a part of them")
        if wrong:
            raise complaint("; ".join(wrong))
        return self


class Search(Table):
    """[search]: trials per arm, seeds per trial, trials that are asked together."""

    trials: Annotated[Int, Field(ge=0)] = 30
    seeds: Annotated[Int, Field(ge=1)] = 3
    parallel: Annotated[Int, Field(ge=1)] = 4


class Race(Table):
    """[race]: the best `top` of each arm run on `seeds` further search seeds; 0 leaves the race out."""

    top: Annotated[Int, Field(ge=1)] = 5
    seeds: Annotated[Int, Field(ge=0)] = 8


class Confirm(Table):
    """[confirm]: fresh seeds for the winner of each arm; 0 leaves everything exploratory.

    until: stable, a replica that grokked is watched to twice its grok step; horizon, and every one to the horizon, for
    endpoints that are read there. No part of the plan: asking for it later watches the same seeds longer.
    """

    seeds: Annotated[Int, Field(ge=0)] = 20
    until: Literal["stable", "horizon"] = "stable"


class Metrics(Table):
    """[metrics]: what to look at besides accuracy; `grokscale metrics` lists names and costs.

    names: measures; one about methods is followed by theirs, "name:METHOD:METHOD".  search: in the search and the
    race too, else in the confirmation only. No part of a trial's identity: asking later trains again.
    """

    names: Names = ()
    search: bool = False

    def during(self, phase: str) -> tuple[str, ...]:
        """The measures to take in a phase."""
        return tuple(sorted(set(self.names))) if self.search or phase == "confirm" else ()


class Limits(Table):
    """[limits]: of one run of the sweep, which then stops in order and shows what there is; again = resume.

    hours: of wall time.  trials: that are trained.  device_hours: of all GPUs that trials had, or of CPUs without.
    """

    hours: Annotated[Float, Field(gt=0)] | None = None
    trials: Annotated[Int, Field(ge=1)] | None = None
    device_hours: Annotated[Float, Field(gt=0)] | None = None


class Cluster(Table):
    """[cluster]: where `submit` runs a sweep; no part of what is asked. --address and GROKSCALE_ADDRESS go before."""

    address: str | None = None


class Resources(Table):
    """[resources] of one trial: CPUs (threads), GPUs, replicas of a pack at most, devices to share the replicas.

    gpus: less than 1 is a share of one, of its memory too.
    lanes: from 2 up; halved where memory runs out; "auto" (kept as 0) is what a few steps of a small pack say fits.
    devices: GPUs among which a trial's replicas are dealt out; gpus has to be as many.
    compile: compile the gradient, where there is a compiler: half a minute a trial, for runs of many minutes.
    memory: what its methods may remember, "8GB"; None is what the machine has.
    """

    cpus: Annotated[Int, Field(ge=1)] = 1
    gpus: Annotated[Float, Field(ge=0)] = 0.0
    lanes: Annotated[Int, BeforeValidator(_auto)] = 32
    devices: Annotated[Int, Field(ge=1)] = 1
    compile: bool = False
    memory: Annotated[Float, BeforeValidator(_bytes), Field(gt=0)] | None = None


class Experiment(Table):
    """The question: one file under `experiments/`.

    horizon: steps after which a replica counts as not grokked; None is the task's.
    baseline: label of the arm that the others are compared with.
    practice: labels of plain optimisers; the one that the search finds best is a second baseline.
    aa: every arm has seeds of its own, to compare a method with itself; the arms differ in their labels only.
    tracking: MLflow's URI; None is what MLFLOW_TRACKING_URI names, else a database beside the store; "none" is no
    MLflow.
    keep: the weights of confirmed replicas in the store: "final", or "log-spaced", which adds those after every power
    of two of steps. No part of a trial's identity; what is stored without stays so (`grokscale.load_model`).
    Build one with `load` or `parse`, which check it as a whole; `resolve` checks it against the registry.
    """

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,63}$", description="a-z, 0-9 and -, at most 64, not starting with -"
    )
    question: str = ""
    baseline: str = Field(description="label of the arm that the others are compared with")
    horizon: Annotated[Int, Field(ge=1)] | None = None
    plugin: Names = ()
    eval: Schedule = Eval()
    task: Task = Field(description='a table [task] with name = "..."')
    model: Model = Model()
    optimiser: Optimiser = Optimiser()
    space: Space = Field(default_factory=dict)
    arm: Annotated[tuple[Arm, ...], BeforeValidator(as_tuple)] = Field(
        min_length=1, description='at least one [[arm]] with name = "..."'
    )
    grid: Grid | None = None
    search: Search = Search()
    race: Race = Race()
    confirm: Confirm = Confirm()
    keep: Literal["final", "log-spaced"] | None = None
    metrics: Metrics = Metrics()
    practice: Names = ()
    aa: bool = False
    endpoint: Annotated[tuple[Endpoint, ...], BeforeValidator(as_tuple)] = ()
    paper: Annotated[tuple[Paper, ...], BeforeValidator(as_tuple)] = ()
    limits: Limits = Limits()
    resources: Resources = Resources()
    cluster: Cluster = Cluster()
    store: Annotated[str, Field(min_length=1)] = "runs"
    tracking: Annotated[str, Field(min_length=1)] | None = None

    _where: Where = PrivateAttr(default_factory=Where)

    @property
    def where(self) -> Where:
        """Turns a key into "file:line: key" for messages."""
        return self._where

    def to_json(self) -> str:
        """Everything that was asked for, as JSON that `from_json` reads back."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Experiment:
        """The experiment whose `to_json` is `text`."""
        return cls.model_validate_json(text)

    def resolve(self, registry: Registry) -> Resolved:
        """This experiment with every name, type and range checked; see `grokscale.spec.resolve`."""
        from grokscale.spec.resolve import resolve

        return resolve(self, registry)
