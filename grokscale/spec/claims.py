"""What an experiment asks besides grok steps: endpoints of other metrics, and published values to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field, model_validator

from grokscale.errors import suggest
from grokscale.spec.values import LABEL, Float, Int, Table, complaint
from grokscale.spec.where import Path, shown

if TYPE_CHECKING:
    from grokscale.spec.tables import Experiment

Metric = Literal["train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc"]
METRICS: tuple[str, ...] = get_args(Metric)
Kind = Literal["time_to", "best", "final", "area", "distance", "sd_ratio"]
KINDS: tuple[str, ...] = get_args(Kind)
PLAIN = ("best", "final", "area")  # in the metric's own unit, so that a difference means something


class Endpoint(Table):
    """[[endpoint]]: what else is read from every curve up to tau and compared with the baseline.

    kind: time_to (a sustained threshold), best, final, area (mean over time), distance (of the last value from the
    first), sd_ratio (how much less the last values spread over seeds); left out, the name is the kind.
    metric or measure: which curve, one of METRICS, or a column of what [metrics] names, such as weight_norm or
    kappa/w1; a vector counts by its distance from its first value.
    direction: what is better, up or down; by default up for accuracies, else and for a distance down.
    threshold: of time_to.  margin: in the metric's unit; the arm is no worse if it is shown to lose less than this.
    scale: difference or ratio; by default difference for best, final and area, else ratio.
    """

    name: str = Field(pattern=LABEL, description="a label of letters, digits and - _ + . , : =, at most 96")
    kind: Kind | None = None
    metric: Metric | None = None
    measure: str | None = None
    direction: Literal["up", "down"] | None = None
    threshold: Float | None = None
    margin: Annotated[Float, Field(gt=0)] | None = None
    scale: Literal["difference", "ratio"] | None = None

    @model_validator(mode="after")
    def _invariants(self) -> Endpoint:
        kind = self.what
        if kind not in KINDS:
            raise complaint(f"needs kind, one of {', '.join(KINDS)}; or one of these as its name")
        wrong = []
        if (self.metric is None) == (self.measure is None):
            wrong.append(f"needs a metric ({', '.join(METRICS)}), or a measure that [metrics] names; not both")
        if (kind == "time_to") != (self.threshold is not None):
            wrong.append(
                "time_to needs a threshold" if kind == "time_to" else f"a threshold is for time_to, not {kind}"
            )
        if self.scale == "difference" and kind not in PLAIN:
            wrong.append(f'scale = "difference" is for {", ".join(PLAIN)}, not {kind}')
        if self.margin is not None and (kind not in PLAIN or self.scale == "ratio"):
            wrong.append(f"a margin is for differences of {', '.join(PLAIN)}")
        if wrong:
            raise complaint("; ".join(wrong))
        return self

    @property
    def what(self) -> str:
        """The kind."""
        return self.kind or self.name

    @property
    def curve(self) -> str:
        """The metric or the measure."""
        return self.metric or self.measure or ""

    @property
    def up(self) -> bool:
        """Is greater better?"""
        if self.direction:
            return self.direction == "up"
        return self.curve.endswith("_acc") and self.what != "distance"

    @property
    def ratio(self) -> bool:
        return self.scale == "ratio" if self.scale else self.what not in PLAIN


class Paper(Table):
    """[[paper]]: a published value, to be compared with the spread of our seeds.

    claim: time (what one arm took), speedup (how many times fewer than another), endpoint (an arm's mean of one) or
    ratio (how many times better than another's it is, above 1).  value: as printed.
    endpoint: the [[endpoint]] that the last two are about; not one of kind sd_ratio, which no seed has alone.
    clock: what it counts; epochs need steps_per_epoch where the claim is a time.
    arm: ours.  against: the arm that it was compared with; a speed-up's is the baseline by default.
    against_value: the published value of `against`, which makes a time or an endpoint a claim of a ratio too.
    at: the step at which an endpoint's value was read, our horizon: seeds that were not watched so far do not compare.
    threshold: the accuracy that counted; it must be the experiment's.  m: runs that the value is the mean of.
    """

    id: str = Field(pattern=LABEL, description="a label of letters, digits and - _ + . , : =, at most 96")
    claim: Literal["time", "speedup", "endpoint", "ratio"]
    value: Annotated[Float, Field(gt=0)]
    clock: Literal["steps", "epochs", "oracle", "flops", "seconds"] = "steps"
    arm: str = Field(description="label of the arm that the value is about")
    against: str | None = None
    endpoint: str | None = None
    at: Annotated[Int, Field(ge=1)] | None = None
    against_value: Annotated[Float, Field(gt=0)] | None = None
    steps_per_epoch: Annotated[Int, Field(ge=1)] | None = None
    threshold: Annotated[Float, Field(gt=0, le=1)] | None = None
    m: Annotated[Int, Field(ge=1)] = 1
    source: str = Field(min_length=1, description="where it was published, such as a table's number")

    @model_validator(mode="after")
    def _invariants(self) -> Paper:
        wrong = []
        epochs = self.clock == "epochs"
        if epochs and self.claim == "time" and self.steps_per_epoch is None:
            wrong.append("a time in epochs needs steps_per_epoch")
        if not epochs and self.steps_per_epoch is not None:
            wrong.append('steps_per_epoch is for clock = "epochs"')
        if self.relative and self.value == 1:
            wrong.append("a ratio of 1 claims nothing")
        if self.relative and self.against_value is not None:
            wrong.append(f"against_value is for times and endpoints; a {self.claim} is a ratio already")
        if (self.claim in ("endpoint", "ratio")) != (self.endpoint is not None):
            wrong.append("endpoint belongs to claim = \"endpoint\" and \"ratio\", and both need it")
        if self.endpoint is not None and (self.clock != "steps" or self.threshold is not None):
            wrong.append("an endpoint has no clock and no threshold")
        if self.at is not None and self.endpoint is None:
            wrong.append("at is for an endpoint: a time is read where it is")
        if not self.relative and (self.against is None) != (self.against_value is None):
            wrong.append("against and against_value belong together: whose time, and which")
        if self.against_value == self.value:
            wrong.append("against_value must differ from value: equal times claim nothing")
        if wrong:
            raise complaint("; ".join(wrong))
        return self

    @property
    def relative(self) -> bool:
        """Is the value one arm's over another's?"""
        return self.claim in ("speedup", "ratio")


def check_claims(x: Experiment) -> list[tuple[Path, str]]:
    """What is wrong between these tables and the rest of an experiment: (path, message)."""
    labels = [arm.name for arm in x.arm]
    known = {*labels, *(label for label in x.where.labels if label)}  # an arm that was refused is a problem of its own
    found: list[tuple[Path, str]] = []

    def arm(path: Path, label: str | None) -> None:
        if label is not None and label not in known:
            found.append((path, f"no arm is labelled {shown(label)}; {suggest(label, labels)}"))

    found += _twice("endpoint", "name", [one.name for one in x.endpoint])
    found += _twice("paper", "id", [one.id for one in x.paper])
    for i, one in enumerate(x.endpoint):
        if (one.metric or "").startswith("val_") and x.task.validation == 0:
            path = ("endpoint", i, "metric")
            found.append((path, f"task.validation = 0 leaves no {one.metric}; take test_{one.curve[4:]}"))
    for i, one in enumerate(x.paper):
        arm(("paper", i, "arm"), one.arm)
        arm(("paper", i, "against"), one.against)
        if one.endpoint is not None:
            kinds = {end.name: end.what for end in x.endpoint}
            if one.endpoint not in kinds:
                text = f"no [[endpoint]] is named {shown(one.endpoint)}; {suggest(one.endpoint, kinds)}"
                found.append((("paper", i, "endpoint"), text))
            elif kinds[one.endpoint] == "sd_ratio":
                found.append((("paper", i, "endpoint"), "is a sd_ratio, which no seed has alone to be compared with"))
        if one.at is not None and one.at != x.horizon and not x.search.trials:
            found.append((("paper", i, "at"), f"must be the horizon, {x.horizon:,}, up to which endpoints are read"))
        if one.arm == (one.against or (x.baseline if one.relative else None)):
            found.append((("paper", i, "arm"), f"{shown(one.arm)} is compared with itself; name another arm"))
    for label in x.practice:
        arm(("practice",), label)
    if len(set(x.practice)) < len(x.practice):
        found.append((("practice",), "names an arm twice; once is allowed"))
    if len(x.practice) > 1 and x.search.trials == 0:
        text = "the best of several is what the search finds best, and search.trials = 0; name one arm, or search"
        found.append((("practice",), text))
    return [*found, *_alone(x)]


def _twice(table: str, key: str, names: Sequence[str]) -> list[tuple[Path, str]]:
    return [
        ((table, i, key), f"{shown(name)} is used twice; they must differ")
        for i, name in enumerate(names) if name in names[:i]
    ]  # fmt: skip


def _alone(x: Experiment) -> list[tuple[Path, str]]:
    """An A/A check compares grok steps of arms that differ in their labels only, and nothing else."""
    if not x.aa:
        return []
    found: list[tuple[Path, str]] = [
        ((key,), "is of no use in an A/A check, which compares a method with itself; take it out")
        for key in ("endpoint", "paper", "practice", "grid") if getattr(x, key)
    ]  # fmt: skip
    if len(x.arm) < 2:
        found.append((("aa",), "needs two arms of one method, with labels of their own"))
    first = next(iter(x.arm))
    for i, arm in enumerate(x.arm[1:], 1):
        if arm.methods != first.methods:
            found.append(
                (("arm", i), f"must be the method of {shown(first.name)}, as aa = true compares it with itself")
            )
        differing = [key for key in ("set", "default", "space", "search") if getattr(arm, key) != getattr(first, key)]
        found += [(("arm", i, key), f"must be as in {shown(first.name)} where aa = true") for key in differing]
    return found
