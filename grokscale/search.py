"""Optuna as a pure function of the ledger, and the plans of a sweep's phases (evaluation.md section 3).

A sweep is a function of its file. Trials are asked in generations by a fresh sampler, seeded with hash(sweep,
arm, generation), from the outcomes of earlier generations told in trial order; caps come from the same set.
So neither the number of workers, nor the order in which trials end, nor a dead driver changes what is asked
next, and the study can be rebuilt from the store at any time. Nothing here reads a clock, a file or a random
state of its own.

A *plan* says what a phase has to do (`jobs`), hears what came of it (`tell`) and knows when it is through
(`done`).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from grokscale import stats
from grokscale.spec import Resolved, ResolvedArm, TrialSpec, seed_for

STARTUP = 8  # trials of an arm before the sampler models what it was told; fewer are spread at random
BETTER = 3  # trials that importances are drawn from at least: two say hardly more than chance
MARGIN = 2.0  # a trial that cannot come within this factor of its arm's best is not watched to the end


class Ended(NamedTuple):
    """A search trial that is through. value: the objective, None where it failed. capped: it was stopped
    early.
    """

    number: int
    params: dict[str, Any]
    value: float | None
    capped: bool = False


@dataclass(frozen=True, eq=False)
class Job:
    """One trial of one phase: a configuration on some seeds, each watched to `cap` steps."""

    phase: str
    arm: str
    number: int
    params: Mapping[str, Any]
    spec: TrialSpec
    seeds: tuple[int, ...]
    cap: int
    until: str = "decided"
    trial_id: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trial_id", self.spec.trial_id)

    @property
    def key(self) -> tuple[str, str, int]:
        """What names a job within a plan."""
        return self.phase, self.arm, self.number


class Plan(Protocol):
    """What a phase has to do. The answers may come in any order; they change nothing but when the next are
    asked.
    """

    phase: str

    @property
    def sizes(self) -> Mapping[str, int]:
        """Jobs in all, per arm."""
        ...

    def jobs(self) -> list[Job]:
        """Every job that may run now and has not been told, the arms taking turns."""
        ...

    def tell(self, job: Job, value: float | None, capped: bool) -> None:
        """A job is through; value None where it failed."""
        ...

    @property
    def done(self) -> bool: ...


# ------------------------------------------------------------------------------------------------- pure parts


def generation_seed(sweep_id: str, arm: str, generation: int) -> int:
    """Seed of the sampler of one generation of one arm: 32 bits of sha256."""
    return int.from_bytes(hashlib.sha256(f"{sweep_id}/{arm}/{generation}".encode()).digest()[:4], "big")


def propose(
    arm: ResolvedArm, ended: Sequence[Ended], generation: int, *, count: int, seed: int
) -> list[dict[str, Any]]:
    """The parameters of the next `count` trials of an arm: a pure function of its arguments.

    ended: every trial of the earlier generations, in any order.  generation: only for the error message.
    seed: of the sampler.  A longer generation begins with the shorter one's trials.

    The arm's points are asked first. A capped trial is told as it is valued (log horizon), a failed one is
    not told, nor is a point outside the space (a knob's zero). The sampler sees a range's own scale (`asked`).
    """
    past = sorted(ended)
    if [trial.number for trial in past] != list(range(len(past))):
        raise ValueError(
            f"generation {generation} of arm {arm.name!r} needs the trials 0 to {len(past) - 1}, each once, "
            f"got {[trial.number for trial in past]}"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP))
    space = {knob: asked(range_) for knob, range_ in arm.space.items()}
    for trial in past:
        if trial.value is not None and inside(trial.params, arm.space):
            study.add_trial(_told(trial, arm.space, space))
    points = [dict(point) for point in arm.points[len(past) : len(past) + count]]
    drawn = []
    for _ in range(count - len(points)):
        answer = study.ask(space).params
        drawn.append({**arm.defaults, **{knob: returned(answer[knob], r) for knob, r in arm.space.items()}})
    return points + drawn


class _Told(FrozenTrial):
    """A trial of the past. A study takes a copy down to the last leaf, which was three quarters of the time of a
    proposal after 10,000 trials; nobody writes into a trial that is through, so copies may share its tables.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> _Told:
        return copy.copy(self)


def _told(
    trial: Ended, space: Mapping[str, BaseDistribution], scales: dict[str, BaseDistribution]
) -> FrozenTrial:
    """A trial that is through, for a study. scales: the space as `asked`."""
    params = {knob: mirrored(trial.params[knob], range_) for knob, range_ in space.items()}
    # No sampler looks at the clock.
    return _Told(
        number=-1, trial_id=-1, state=TrialState.COMPLETE, value=trial.value, params=params, distributions=scales,
        datetime_start=datetime.min, datetime_complete=datetime.min, user_attrs={}, system_attrs={},
        intermediate_values={},
    )  # fmt: skip


def asked(range_: BaseDistribution) -> BaseDistribution:
    """What the sampler is asked in place of a range: of x whose `complement` matters, 1 - x on a log scale."""
    if not getattr(range_, "complement", False):
        return range_
    assert isinstance(range_, FloatDistribution)
    return FloatDistribution(1 - range_.high, 1 - range_.low, log=True)


def mirrored(value: Any, range_: BaseDistribution) -> Any:
    """A setting as the sampler knows it; it lies in `asked(range_)` wherever the setting lies in the range."""
    return 1 - value if getattr(range_, "complement", False) else value


def returned(value: Any, range_: BaseDistribution) -> Any:
    """The sampler's answer as a setting: the way back, which rounding must not lead out of the range."""
    if not getattr(range_, "complement", False):
        return value
    assert isinstance(range_, FloatDistribution)
    return min(max(1 - value, range_.low), range_.high)


def inside(params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> bool:
    """Does every searched knob lie in its range?"""
    for knob, distribution in space.items():
        value = params[knob]
        if isinstance(distribution, CategoricalDistribution):
            fits = value in distribution.choices
        else:
            assert isinstance(distribution, FloatDistribution | IntDistribution)
            fits = distribution.low <= value <= distribution.high
        if not fits:
            return False
    return True


def cap_for(earlier: Iterable[Ended], horizon: int) -> int:
    """Steps after which a search trial cannot come within MARGIN of the best of earlier generations of its
    arm.
    """
    values = [trial.value for trial in earlier if trial.value is not None and not trial.capped]
    return min([horizon, *(math.ceil(MARGIN * math.exp(value)) for value in values)])


def value_of(rows: Sequence[Mapping[str, Any]], cap: int, horizon: int) -> tuple[float, bool]:
    """(objective, capped) of a trial from its replicas: log of the geometric mean of min(val_grok_step,
    horizon).

    What a replica did after `cap` is not looked at, though the store may know it from elsewhere. A replica
    that had neither grokked nor diverged at a cap below the horizon makes the trial capped: its value is then
    log(horizon), for early and late trials alike.  Divergence is known for good, so it counts as the horizon
    and caps nothing.
    """
    seen = times(rows, cap)
    lost = [row["diverged_step"] is not None and row["diverged_step"] <= cap for row in rows]
    capped = cap < horizon and any(math.isinf(t) and not d for t, d in zip(seen, lost, strict=True))
    return (math.log(horizon) if capped else stats.objective(seen, horizon)), capped


def times(rows: Sequence[Mapping[str, Any]], cap: int) -> list[float]:
    """What a search sees of replicas: val_grok_step, inf where that was not by `cap`."""
    return [_until(row["val_grok_step"], cap) for row in rows]


def _until(step: int | None, cap: int) -> float:
    return math.inf if step is None or step > cap else float(step)


def shortlist(ended: Sequence[Ended], top: int) -> list[Ended]:
    """The trials of an arm that race: the `top` of lowest value, the earlier first where they tie.

    None beyond MARGIN of the best: later ones of that kind were capped, and early ones, which had no cap to be
    stopped at, are treated alike. Where nothing was watched to its end, all are in.
    """
    running = [(trial.value, trial.number, trial) for trial in ended if trial.value is not None]
    watched = [entry for entry in running if not entry[2].capped] or running
    limit = min((value for value, *_ in watched), default=0.0) + math.log(MARGIN)
    return [trial for value, _, trial in sorted(watched) if value <= limit][:top]


def importances(space: Mapping[str, BaseDistribution], ended: Sequence[Ended]) -> dict[str, float]:
    """Knob -> its share in what tells the better half of the trials from all, by PED-ANOVA; the greatest first, sum 1.

    A capped trial counts as it was told, among the worst; failed ones and points outside the space do not count. The
    better half is smaller where fewer are better than the worst. {} with fewer than STARTUP trials or BETTER in that
    half, or where no knob is searched. Watanabe et al. 2023, IJCAI.
    """
    kept = [trial for trial in sorted(ended) if trial.value is not None and inside(trial.params, space)]
    values = [trial.value for trial in kept if trial.value is not None]
    better = min(math.ceil(len(values) / 2), sum(value < max(values) for value in values))
    if not space or len(kept) < STARTUP or better < BETTER:
        return {}
    study = optuna.create_study()
    scales = {knob: asked(range_) for knob, range_ in space.items()}
    for trial in kept:
        study.add_trial(_told(trial, space, scales))
    quantile = (better - 0.5) / len(kept)  # which is rounded up to `better` trials
    found = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile).evaluate(study)
    total = sum(found.values())
    ordered = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    return {knob: share / total for knob, share in ordered} if total > 0 else {}


def tau_confirm(steps: Sequence[float], horizon: int) -> int:
    """The horizon of a confirmation from the raced baseline's grok steps (inf = never).

    max(horizon, 3 x median rounded up to a power of two); 2 x horizon where fewer than half of the seeds
    grok.
    """
    grokked = np.isfinite(steps)
    middle = stats.median(np.where(grokked, steps, horizon), grokked) if len(steps) else None
    if middle is None or grokked.sum() * 2 < len(steps):
        return 2 * horizon
    return max(horizon, stats.power_of_two_up(3 * middle))


# ------------------------------------------------------------------------------------------------- plans


class SearchPlan:
    """Search: generations of `parallel` trials, every arm at its own pace."""

    phase = "search"

    def __init__(self, resolved: Resolved) -> None:
        experiment = resolved.experiment
        self.resolved, self.sweep_id, self.horizon = resolved, resolved.sweep_id, resolved.horizon
        self.parallel = experiment.search.parallel
        count = experiment.search.seeds
        self.seeds = {arm.name: tuple(search_seeds(resolved, arm.name)[:count]) for arm in resolved.arms}
        self.sizes = {arm.name: size(arm, experiment.search.trials) for arm in resolved.arms}
        self.ended: dict[str, list[Ended]] = {arm.name: [] for arm in resolved.arms}
        self._open: dict[str, list[Job]] = {arm.name: self._ask(arm) for arm in resolved.arms}
        self._told: dict[str, list[Ended]] = {arm.name: [] for arm in resolved.arms}  # of the open generation

    def _ask(self, arm: ResolvedArm) -> list[Job]:
        past = self.ended[arm.name]
        count = min(self.parallel, self.sizes[arm.name] - len(past))
        if count <= 0:
            return []
        generation = len(past) // self.parallel
        seed = generation_seed(self.sweep_id, arm.name, generation)
        cap = cap_for(past, self.horizon)
        return [
            Job(
                "search",
                arm.name,
                len(past) + i,
                params,
                self.resolved.trial(arm.name, params),
                self.seeds[arm.name],
                cap,
            )
            for i, params in enumerate(propose(arm, past, generation, count=count, seed=seed))
        ]

    def jobs(self) -> list[Job]:
        told = {(arm, trial.number) for arm, trials in self._told.items() for trial in trials}
        waiting = [job for jobs in self._open.values() for job in jobs if (job.arm, job.number) not in told]
        return sorted(waiting, key=lambda job: job.number)  # a stable sort: within a number, arms as in the file

    def tell(self, job: Job, value: float | None, capped: bool) -> None:
        told = self._told[job.arm]
        told.append(Ended(job.number, dict(job.params), value, capped))
        if len(told) == len(self._open[job.arm]):
            self.ended[job.arm] += sorted(told, key=lambda trial: trial.number)
            told.clear()
            self._open[job.arm] = self._ask(self.resolved.arm(job.arm))

    @property
    def done(self) -> bool:
        return not any(self._open.values())


class FixedPlan:
    """A phase whose jobs are all known from the start: the race, the confirmation."""

    def __init__(self, phase: str, jobs: Sequence[Job]) -> None:
        self.phase = phase
        self.sizes = Counter(job.arm for job in jobs)
        self._jobs = {job.key: job for job in jobs}
        self.values: dict[tuple[str, str, int], tuple[float | None, bool]] = {}

    def jobs(self) -> list[Job]:
        return [job for key, job in self._jobs.items() if key not in self.values]

    def tell(self, job: Job, value: float | None, capped: bool) -> None:
        self.values[job.key] = (value, capped)

    @property
    def done(self) -> bool:
        return len(self.values) == len(self._jobs)


def size(arm: ResolvedArm, trials: int) -> int:
    """Search trials of an arm: an arm without a knob to search has its points only."""
    return trials if arm.space else min(trials, len(arm.points))


def search_seeds(resolved: Resolved, arm: str) -> list[int]:
    """The seeds that an arm's search reads, and after them those of its race.

    The same for every arm; in an A/A check, whose searches are independent, the arms take turns with the seeds.
    """
    x = resolved.experiment
    arms, turn = (len(resolved.arms), [one.name for one in resolved.arms].index(arm)) if x.aa else (1, 0)
    return [seed_for("search", k * arms + turn) for k in range(x.search.seeds + x.race.seeds)]


def race_plan(resolved: Resolved, ended: Mapping[str, Sequence[Ended]]) -> FixedPlan:
    """Race: the best trials of every arm on further search seeds, watched to the horizon."""
    experiment = resolved.experiment
    race = experiment.race
    seeds = {arm.name: tuple(search_seeds(resolved, arm.name)[experiment.search.seeds :]) for arm in resolved.arms}
    racing = {arm.name: shortlist(ended[arm.name], race.top) if race.seeds else [] for arm in resolved.arms}
    jobs = [
        Job(
            "race",
            arm,
            trial.number,
            trial.params,
            resolved.trial(arm, trial.params),
            seeds[arm],
            resolved.horizon,
        )
        for rank in range(race.top)
        for arm, trials in racing.items()
        for trial in trials[rank : rank + 1]
    ]
    return FixedPlan("race", jobs)


@dataclass(frozen=True)
class Winner:
    """The configuration of an arm that is confirmed.

    value: its objective over search and race seeds, None where nothing was searched.
    seeds: its own confirmation seeds in an A/A check, None where all arms share the plan's.
    """

    number: int
    params: dict[str, Any]
    trial_id: str
    value: float | None = None
    seeds: tuple[int, ...] | None = None


def winners(resolved: Resolved, ended: Mapping[str, Sequence[Ended]], race: FixedPlan) -> dict[str, Winner]:
    """The winner of every arm: the lowest objective pooled over search and race seeds.

    The objective is a mean over seeds, so pooling weighs the two by their seeds. An arm all of whose trials
    failed has no winner; one whose races all failed is judged by its search alone.
    """
    n_search, n_race = resolved.experiment.search.seeds, resolved.experiment.race.seeds
    chosen = {}
    for arm in resolved.arms:
        running = shortlist(ended[arm.name], resolved.experiment.race.top)
        pooled = []
        for trial in running:
            raced, _ = race.values.get(("race", arm.name, trial.number), (None, False))
            if raced is not None and trial.value is not None:
                value = (n_search * trial.value + n_race * raced) / (n_search + n_race)
                pooled.append((value, trial.number, trial))
        if pooled or running:
            value, _, best = min(pooled) if pooled else (running[0].value, 0, running[0])
            trial_id = resolved.trial(arm.name, best.params).trial_id
            chosen[arm.name] = Winner(best.number, dict(best.params), trial_id, value)
    return chosen


def practice(resolved: Resolved, winners: Mapping[str, Winner]) -> str | None:
    """The arm that stands for the practice baseline: the candidate that searched and raced best, None without any.

    Candidates without a value (nothing was searched) come in the order of the file.
    """
    listed = [name for name in resolved.experiment.practice if name in winners]
    values = {name: winners[name].value for name in listed}
    return min(listed, key=lambda name: math.inf if (v := values[name]) is None else v, default=None)


def apart(resolved: Resolved, winners: Mapping[str, Winner], seeds: Sequence[int]) -> dict[str, Winner]:
    """The winners of an A/A check, each with its share of the seeds, which the arms take in turns."""
    arms = [arm.name for arm in resolved.arms if arm.name in winners]
    return {name: replace(winners[name], seeds=tuple(seeds[i :: len(arms)])) for i, name in enumerate(arms)}


def defaults(resolved: Resolved) -> dict[str, Winner]:
    """The winners where nothing is searched: every arm's settings as they stand."""
    return {
        arm.name: Winner(0, dict(arm.defaults), resolved.trial(arm.name, arm.defaults).trial_id)
        for arm in resolved.arms
    }


def confirm_plan(resolved: Resolved, winners: Mapping[str, Winner], seeds: Sequence[int], tau: int) -> FixedPlan:
    """Confirm: the winner of every arm on fresh seeds, watched as [confirm] until says."""
    chosen = [(arm.name, winners[arm.name]) for arm in resolved.arms if arm.name in winners]
    jobs = [
        Job(
            "confirm",
            arm,
            one.number,
            one.params,
            resolved.trial(arm, one.params),
            tuple(seeds if one.seeds is None else one.seeds),
            tau,
            resolved.experiment.confirm.until,
        )
        for arm, one in chosen
    ]
    return FixedPlan("confirm", jobs)
