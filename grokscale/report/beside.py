"""What stands beside a speed-up, as tables: costs, outcomes, medians, delays."""

from __future__ import annotations

import math

import numpy as np

from grokscale import stats
from grokscale.report.view import NEVER, OUTCOMES, ArmView, SweepView, of_clock
from grokscale.report.words import number, pvalue, ratio, short

Table = tuple[list[str], list[list[str]]]


def beside_table(view: SweepView) -> Table:
    """RMST ratio with its interval, P(sooner), log-rank p and the pairs' correlation, a line per arm."""
    rows = []
    for row in of_clock(view, "steps"):
        cost = "-" if row["rmst_ratio"] is None else ratio(row["rmst_ratio"], 2)
        lo, hi = row["rmst_lo"], row["rmst_hi"]
        if lo is not None and hi is not None and math.isfinite(hi):
            cost += f" [{ratio(lo, 2)}, {ratio(hi, 2)}]"
        corr = "-" if row["corr"] is None else f"{row['corr']:.2f}"
        rows.append([short(row["arm"]), cost, f"{row['p_sooner']:.2f}", pvalue(row["logrank_p"]), corr])
    return ["arm", "mean cost (RMST) ratio", "P(sooner)", "log-rank p", "pairs' correlation"], rows


def outcome_table(view: SweepView) -> Table:
    """How many seeds of an arm ended how, and the share that grokked with Wilson's interval."""
    rows = []
    for arm in view.arms:
        counts, n, share = arm.outcomes(view.tau), len(arm.rows), "-"
        if n:
            lo, hi = stats.wilson(counts["grokked"], n)
            share = f"{100 * counts['grokked'] / n:.0f} % [{100 * lo:.0f}, {100 * hi:.0f}]"
        asked = "" if n == arm.wanted else f" of {arm.wanted}"
        rows.append([short(arm.name), f"{n}{asked}", *(str(counts[outcome]) for outcome in OUTCOMES), share])
    return ["arm", "n", *OUTCOMES, "success (95 %)"], rows


def time_table(view: SweepView) -> Table:
    """Median steps to grok, to fit, and between the two; time of a step alone with the method on; median time to grok.

    The time charges a method while it is on, as S in seconds does.
    """
    rows = []
    for arm in (arm for arm in view.arms if arm.rows):
        middle = [median(arm.times(event, view.tau)) for event in ("grok_step", "fit_step")]
        on = None if arm.timing is None else arm.timing["seconds_on"]
        steps = [f"> {number(view.tau)}" if m is None else number(m) for m in middle] + [_delay(arm, view.tau)]
        step = "-" if on is None else f"{1e3 * on:.3g} ms"
        took = None if on is None else median(arm.seconds(view.tau))
        rows.append([short(arm.name), *steps, step, "-" if took is None else f"{took:,.3g} s"])
    return ["arm", "grok step", "fit step", "delay", "time a step", "time to grok"], rows


def _delay(arm: ArmView, tau: float) -> str:
    """Kaplan-Meier's median delay over the seeds that fitted; one that fitted at 1,200 and had not grokked by a
    tau of 2,000 has waited for 800 and no longer. "> 800" where it is not reached.
    """
    grok, fit = arm.times("grok_step", tau), arm.times("fit_step", tau)
    fitted = fit < NEVER
    if not fitted.any():
        return "-"
    event = grok[fitted] < NEVER
    waited = np.maximum(0, np.minimum(grok[fitted], tau) - fit[fitted])
    middle = stats.median(waited, event)
    return f"> {number(waited.max())}" if middle is None else number(middle)


def delay_table(view: SweepView) -> Table:
    """How many steps of delay an arm saves, paired over the seeds where both sides grokked, with the t interval.

    No lines where no pair did, or the baseline is not there.
    """
    base = next((arm for arm in view.arms if arm.name == view.baseline), None)
    rows = []
    for row in of_clock(view, "steps"):
        arm = view.arm(row["arm"])
        if base is None or row["paired"] is False:
            continue
        left, right = (
            {r["seed"]: d if d < NEVER else math.nan for r, d in zip(a.rows, a.delays(view.tau), strict=True)}
            for a in (base, arm)
        )
        seeds = [seed for seed in left if seed in right]
        saved = stats.paired_difference([left[seed] for seed in seeds], [right[seed] for seed in seeds])
        if saved.n:
            known = math.isfinite(saved.hi)
            interval = f"{number(saved.lo)} to {number(saved.hi)}" if known else "-"
            rows.append([short(arm.name), number(saved.value), interval, f"{saved.n} of {len(seeds)}"])
    return ["arm", "steps saved", "95 % interval", "pairs"], rows


def median(times: np.ndarray) -> float | None:
    """Kaplan-Meier's median of times that are inf where never; None if fewer than half got there."""
    event = times < NEVER
    return stats.median(np.where(event, times, np.max(times[event], initial=1.0)), event)
