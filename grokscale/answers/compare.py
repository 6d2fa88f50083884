"""S of every arm over the baselines on every clock: the rows of `speedups`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from grokscale import stats
from grokscale.answers.sides import Row, Side, asked_for, newest_plan, paired, pairs_of, side, sweep_row
from grokscale.errors import GrokscaleError, InputError, suggest
from grokscale.store import Store
from grokscale.store.schemas import to_table

Event = Literal["grok_step", "first_step"]


def speedups(
    store: Store, sweep: str | None = None, baseline: str | None = None, event: Event = "grok_step"
) -> pa.Table:
    """The speed-ups of a sweep: one row per arm and clock, as in the table `speedups`.

    sweep: id or name, the latest by default.  baseline: another arm to compare with, worked out afresh.
    Without it these are the stored rows of the newest confirmation that has any; worked out if none has.

    event: "first_step" for T of first crossings, sustained or not: what papers print, and no measure of who groks
    sooner. Worked out afresh, never stored, and the column `event` says so.
    """
    sweep_id = store.find_sweep(sweep)
    if event not in get_args(Event):
        raise InputError(f"unknown event {event!r}; {suggest(event, get_args(Event))}")
    if event != "grok_step":
        found = to_table("speedups", compute(store, sweep_id, baseline=baseline, event=event))
        return found.append_column("event", pa.array([event] * found.num_rows, pa.string()))
    stored = store.speedups(sweep_id=sweep_id)
    if baseline is None and stored.num_rows:
        newest = max(stored["block"].to_pylist())
        return store.speedups(sweep_id=sweep_id, block=newest)
    return to_table("speedups", compute(store, sweep_id, baseline=baseline))


def compute(
    store: Store, sweep_id: str, *, baseline: str | None = None, event: Event = "grok_step"
) -> list[dict[str, Any]]:
    """Rows for `speedups` from the newest plan: every arm against the baseline in steps, seconds, oracle, flops.

    Where the plan names a practice baseline, every arm that was no candidate for it is compared with it too.
    baseline: another arm to compare with, in place of both.

    T is the sustained crossing on test (or the first one, by `event`), clamped at the plan's tau; a diverged replica
    counts as never.
    Seconds need timings of both sides on one device, flops the replicas' counts; they are left out without.
    [] while nothing is planned. In an A/A experiment the arms have seeds of their own and S is unpaired.
    Raises GrokscaleError for an invalid comparison, naming the difference, and for replicas still missing.
    """
    plan = newest_plan(store, sweep_id)
    if plan is None:
        return []
    sweep = sweep_row(store, sweep_id)
    experiment = asked_for(sweep)
    winners: dict[str, Any] = json.loads(plan["winners_json"])
    against = baseline or sweep["baseline"]
    sides = {arm: side(store, sweep_id, arm, plan) for arm in dict.fromkeys([against, *winners])}
    pairs = pairs_of(plan, against, {} if baseline else experiment)
    timings = store.rows("timings", trial_id=[one.trial_id for one in sides.values()])
    answers = []
    for base, arm in pairs:
        rows = _compare(sides[base], sides[arm], timings, plan["block"], bool(experiment.get("aa")), event)
        answers += list(rows)
    return _corrected(answers)


def compare(store: Store, base: tuple[str, str], arm: tuple[str, str]) -> pa.Table:
    """An arm of one sweep against an arm of another, each (sweep, arm), as rows of `speedups`.

    Raises GrokscaleError where they did not face the same question over the same horizon on the same seeds.
    """
    sides = []
    for sweep, name in (base, arm):
        sweep_id = store.find_sweep(sweep)
        plan = newest_plan(store, sweep_id)
        if plan is None:
            raise GrokscaleError(f"{sweep_id}: nothing is confirmed, and only confirmed arms are compared")
        sides.append((side(store, sweep_id, name, plan), plan["block"]))
    (one, _), (other, block) = sides
    timings = store.rows("timings", trial_id=[one.trial_id, other.trial_id])
    rows = list(_compare(one, other, timings, block, apart=False))
    if one.sweep_id != other.sweep_id:
        rows = [{**row, "baseline": f"{one.sweep_id}:{one.arm}"} for row in rows]
    return to_table("speedups", _corrected(rows))


def _compare(
    base: Side, arm: Side, timings: Sequence[Row], block: int, apart: bool, event: Event = "grok_step"
) -> Iterator[dict[str, Any]]:
    pairs = paired(base, arm, apart=apart)
    now = datetime.now(UTC)
    for clock, (of_base, of_arm) in clocks_of(base, arm, timings).items():
        rng = seeded(f"{arm.sweep_id}/{block}/{arm.arm}/{base.arm}/{clock}")
        found = (stats.paired_speedup if pairs else stats.unpaired_speedup)(
            times(base, event), times(arm, event), arm.tau, clock_base=of_base, clock_arm=of_arm, rng=rng
        )
        yield {
            "sweep_id": arm.sweep_id,
            "block": block,
            "arm": arm.arm,
            "baseline": base.arm,
            "clock": clock,
            "phase": "confirm",
            **asdict(found),
            "paired": pairs,
            "version": _version(),
            "at": now,
        }


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with p_holm: p corrected for the arms that are compared with the same baseline on the same clock."""
    for key in {(row["baseline"], row["clock"]) for row in rows}:
        mine = [row for row in rows if (row["baseline"], row["clock"]) == key]
        for row, p in zip(mine, stats.holm([row["p"] for row in mine]), strict=True):
            row["p_holm"] = p
    return rows


def seeded(what: str) -> np.random.Generator:
    """A generator that is a function of what it is for, so that the same question gets the same p."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big"))


def times(one: Side, column: str = "grok_step") -> list[float]:
    """T in steps, NaN for never; a crossing before the first step counts as the first, as logs are taken."""
    return [np.nan if row[column] is None else max(1, row[column]) for row in one.rows]


# ------------------------------------------------------------------------------------------------ clocks


Clocks = tuple[stats.Clock, stats.Clock]


def clocks_of(base: Side, arm: Side, timings: Sequence[Row]) -> dict[str, Clocks]:
    """Clock -> steps to its unit for either side; those that cannot be told for both are left out."""
    found: dict[str, Clocks] = {"steps": (_steps, _steps)}
    if timed := _timed(base.trial_id, arm.trial_id, timings):
        on, off = ([timing[name] for timing in timed] for name in ("seconds_on", "seconds_off"))
        found["seconds"] = switched(base.rows, on[0], off[0]), switched(arm.rows, on[1], off[1])
    found["oracle"] = _oracle(base.rows), _oracle(arm.rows)
    if _counted(base.rows) and _counted(arm.rows):
        found["flops"] = _flops(base.rows), _flops(arm.rows)
    return found


def clock_of(one: Side, clock: str, timings: Sequence[Row] = ()) -> stats.Clock | None:
    """Steps (n,) -> `clock` (n,) for one side alone; None where the store cannot tell."""
    match clock:
        case "steps":
            return _steps
        case "oracle":
            return _oracle(one.rows)
        case "flops":
            return _flops(one.rows) if _counted(one.rows) else None
    if timed := _timed(one.trial_id, one.trial_id, timings):
        return switched(one.rows, timed[0]["seconds_on"], timed[0]["seconds_off"])
    return None


def _steps(steps: stats.Floats) -> stats.Floats:
    return steps


def switched(rows: Sequence[Row], on: Any, off: Any) -> stats.Clock:
    """Steps -> price: `on` a step while the transform was on, `off` after that."""
    active = np.array([np.inf if row["active_steps"] is None else row["active_steps"] for row in rows])

    def clock(steps: stats.Floats) -> stats.Floats:
        busy = np.minimum(steps, active)
        return busy * on + (steps - busy) * off

    return clock


def _oracle(rows: Sequence[Row]) -> stats.Clock:
    """Steps -> gradient evaluations x examples."""
    price = np.array([row["oracle_per_step"] for row in rows])
    return lambda steps: steps * price


def _counted(rows: Sequence[Row]) -> bool:
    return all(row["flops_per_step"] is not None and row["method_flops"] is not None for row in rows)


def _flops(rows: Sequence[Row]) -> stats.Clock:
    """Steps -> flops of the oracle, and the transform's own while it was on."""
    oracle, own = (np.array([row[name] for row in rows]) for name in ("flops_per_step", "method_flops"))
    return switched(rows, oracle + own, oracle)


def rounds(timings: Sequence[Row]) -> list[dict[str, Row]]:
    """Trial -> its row of `timings`, by round: trials that took turns, on one host, device and number of threads.

    Those of the most trials first, among these the newest. What a machine does besides changes within hours by more
    than methods differ; within a round it strikes all alike.
    """
    found: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in timings:
        found.setdefault((row["at"], *_where(row)), {})[row["trial_id"]] = row
    return [found[key] for key in sorted(found, key=lambda key: (len(found[key]), key), reverse=True)]


def _where(row: Row) -> tuple[Any, ...]:
    return row["device"], row["threads"], row["host"]


def _timed(base: str, arm: str, timings: Sequence[Row]) -> tuple[Row, Row] | None:
    """Timings of both trials: of one round; without such the newest from one host, device and number of threads."""
    for one in rounds(timings):
        if base in one and arm in one:
            return one[base], one[arm]
    newest = sorted(timings, key=lambda row: (row["at"], _where(row)), reverse=True)
    for first in newest:
        if first["trial_id"] == base:
            for second in newest:
                if second["trial_id"] == arm and _where(second) == _where(first):
                    return first, second
    return None


def _version() -> str:
    try:
        return installed("grokscale")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
