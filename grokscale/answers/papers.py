"""The published values of an experiment against its confirmed seeds: a row per [[paper]] table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscale import stats
from grokscale.answers.compare import clock_of, clocks_of, seeded, times
from grokscale.answers.curves import endpoints
from grokscale.answers.sides import Row, asked_for, newest_plan, paired, side, sweep_row
from grokscale.errors import GrokscaleError
from grokscale.stats import endpoints as ends
from grokscale.stats import published
from grokscale.store import Store

if TYPE_CHECKING:
    from grokscale.spec.claims import Paper

ABOUT = ("id", "claim", "source", "clock", "endpoint", "arm", "m", "threshold")
BESIDE = ("bound", "censored_arm", "censored_base", "horizon", "s_half")


def verdicts(
    store: Store, sweep: str | None = None, papers: Sequence[Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """A row per [[paper]] of the experiment: the published value, ours, and the verdict (`stats.published.judge`).

    sweep: id or name, the latest by default.  papers: tables in place of those that the sweep was started with.
    Columns: those of the table (ABOUT, and against), claimed in the unit of the clock (epochs are counted in steps) or
    of the endpoint, median, n, censored, percentile, lo, hi (prediction interval), s, s_lo, s_hi (sustained crossings
    on that clock, or how many times better the endpoint is; None without a comparison), what censoring makes of s
    (BESIDE, as in `stats.SpeedUp`; None where s is of no crossings), s_claimed, retained, verdict,
    and why where a row was not run.

    Our times are first crossings, which is what papers print, at most tau; S is that of sustained ones.
    """
    sweep_id = store.find_sweep(sweep)
    head, plan = sweep_row(store, sweep_id), newest_plan(store, sweep_id)
    asked = asked_for(head).get("paper", []) if papers is None else papers
    if not asked:
        return []
    from grokscale.spec.claims import Paper  # pydantic is only loaded where there is something to check

    winners = {} if plan is None else json.loads(plan["winners_json"])
    timings = store.rows("timings", trial_id=[winner["trial_id"] for winner in winners.values()])
    rows = []
    for paper in (Paper.model_validate(dict(table)) for table in asked):
        against = paper.against or (head["baseline"] if paper.relative else None)
        about = {name: getattr(paper, name) for name in ABOUT}
        row = {**about, "sweep_id": sweep_id, "against": against, "why": None}
        try:
            if paper.endpoint is not None:
                ended = endpoints(store, sweep_id)
                _watched(store, sweep_id, plan, paper, against, ended)
                judged = _judged_endpoint(ended, paper, against)
            else:
                judged = _judged(store, sweep_id, plan, paper, against, timings)
            rows.append({**row, **judged})
        except GrokscaleError as error:  # this row cannot be answered, and says why; the others can
            rows.append({**row, **_answer(paper, published.judge([], _claimed(paper))), "why": str(error)})
    return rows


def _claimed(paper: Paper) -> float:
    return paper.value * (paper.steps_per_epoch or 1 if paper.claim == "time" else 1)


def _judged(
    store: Store, sweep_id: str, plan: Row | None, paper: Paper, against: str | None, timings: Sequence[Row]
) -> dict[str, Any]:
    if plan is None:
        raise GrokscaleError(f"{sweep_id}: nothing is confirmed yet")
    mine = side(store, sweep_id, paper.arm, plan)
    clock = "steps" if paper.clock == "epochs" else paper.clock
    if paper.threshold not in (None, mine.rows[0]["threshold"]):
        counted = f"threshold: {paper.threshold:g} ('{paper.id}') against {mine.rows[0]['threshold']:g} ('{mine.arm}')"
        raise GrokscaleError(f"{sweep_id}: they differ in {counted}")
    first, of_mine = times(mine, "first_step"), clock_of(mine, clock, timings)
    if of_mine is None:
        raise GrokscaleError(f"{sweep_id}: the store has no {clock} of arm '{mine.arm}'")
    crossed, seen = stats.clamped(first, mine.tau)
    ours, censored = of_mine(crossed), int(np.sum(~seen))
    if against is None:
        judged = published.judge(ours, _claimed(paper), m=paper.m, seen=bool(seen.any()))
        return _answer(paper, judged, censored=censored)
    base = side(store, sweep_id, against, plan)
    paired(base, mine)
    both = clocks_of(base, mine, timings).get(clock)
    if both is None:
        raise GrokscaleError(f"{sweep_id}: the store has no {clock} of both '{base.arm}' and '{mine.arm}'")
    rng = seeded(f"{sweep_id}/{paper.id}")  # p is not shown, and drawn for many seeds
    found = stats.paired_speedup(times(base), times(mine), mine.tau, clock_base=both[0], clock_arm=both[1], rng=rng)
    s = stats.Interval(found.s, found.lo, found.hi, found.n)
    if paper.claim == "speedup":
        theirs, seen = stats.clamped(times(base, "first_step"), base.tau)
        ours, censored = both[0](theirs) / both[1](crossed), censored + int(np.sum(~seen))
    verdict = published.judge(
        ours, _claimed(paper), m=paper.m, s=s, s_claimed=_claimed_s(paper), bound=found.bound, relative=paper.relative
    )
    beside = {name: getattr(found, name) for name in BESIDE}
    return _answer(paper, verdict, s=s, censored=censored) | beside


def _watched(
    store: Store, sweep_id: str, plan: Row | None, paper: Paper, against: str | None, ended: Sequence[Row]
) -> None:
    """Raise GrokscaleError where a seed's last value is not that of the step at which the published one was read.

    ended: the endpoints that are to be judged; those that a sweep stored are older than seeds that it watches on.
    """
    if plan is None or paper.at is None:
        return
    if paper.at != plan["tau"]:
        raise GrokscaleError(f"{sweep_id}: published at step {paper.at:,}, and endpoints are read at {plan['tau']:,}")
    stored = [row["at"] for row in ended if row["endpoint"] == paper.endpoint and "at" in row]
    for arm in (paper.arm, against):
        rows = [] if arm is None else side(store, sweep_id, arm, plan).rows
        if stored and any(row["at"] > min(stored) for row in rows):
            raise GrokscaleError(
                f"{sweep_id}: seeds of arm '{arm}' were watched on since '{paper.endpoint}' was read; run the sweep to "
                "its end"
            )
        short = [row["observed_to"] for row in rows if row["diverged_step"] is None and row["observed_to"] < paper.at]
        if short:
            raise GrokscaleError(
                f"{sweep_id}: published at step {paper.at:,}, and {len(short)} of {len(rows)} seeds of arm '{arm}' "
                f"were watched less far, one to {min(short):,} only; confirm.until = \"horizon\" watches them on"
            )


def _judged_endpoint(rows: Sequence[Row], paper: Paper, against: str | None) -> dict[str, Any]:
    """S is how many times better the arm's endpoint is: a ratio above 1 speaks for it, whichever way is better."""
    of_arm: dict[str, Sequence[float]] = {}
    up = True
    for row in (row for row in rows if row["endpoint"] == paper.endpoint):
        up = row["up"]
        of_arm |= {row["baseline"]: row["base_values"], row["arm"]: row["mine_values"]}
    for arm in (paper.arm, against):
        if arm is not None and arm not in of_arm:
            raise GrokscaleError(f"'{paper.id}': nothing is known of endpoint '{paper.endpoint}' of arm '{arm}'")
    mine = np.array(of_arm[paper.arm])
    if against is None:
        return _answer(paper, published.judge(mine, paper.value, m=paper.m))
    base = np.array(of_arm[against])
    try:
        s = ends.log_ratio(base, mine, up=up)
    except ValueError as error:
        raise GrokscaleError(f"'{paper.id}': {error}") from None
    s_claimed = _claimed_s(paper)
    if paper.claim == "endpoint" and s_claimed is not None:
        s_claimed = 1 / s_claimed if up else s_claimed
    ours = (mine / base if up else base / mine) if paper.claim == "ratio" else mine
    return _answer(paper, published.judge(ours, paper.value, m=paper.m, s=s, s_claimed=s_claimed), s=s) | {
        "s_claimed": s_claimed,
    }


def _claimed_s(paper: Paper) -> float | None:
    """The ratio that a row claims, of itself or by the two values that it gives, the other's over its own."""
    if paper.relative:
        return paper.value
    return None if paper.against_value is None else paper.against_value / paper.value


def _answer(
    paper: Paper, verdict: published.Verdict, *, s: stats.Interval | None = None, censored: int = 0
) -> dict[str, Any]:
    bounds = (None, None, None) if s is None else (s.value, s.lo, s.hi)
    return {
        **asdict(verdict),
        "s_claimed": _claimed_s(paper),
        **dict(zip(("s", "s_lo", "s_hi"), bounds, strict=True)),
        **dict.fromkeys(BESIDE),
        "censored": censored,
    }
