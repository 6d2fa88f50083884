"""The answer of a sweep as plain text: the same bytes whenever the store says the same.

At most 100 columns, no colours, no clock times, no paths. Everything earlier than the confirmation is labelled
exploratory: it was chosen on the seeds that it is shown on.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from grokscale import stats
from grokscale.report.view import NEVER, OUTCOMES, ArmView, Row, SweepView, best_trials, collect

if TYPE_CHECKING:
    from grokscale.store import Store

WIDTH = 80  # of prose; tables may take up to LIMIT
LIMIT = 100
NAME = 24  # of an arm's name in a table
CLOCKS = {
    "steps": ("steps", "fewer", "more"),
    "seconds": ("time", "less", "more"),
    "oracle": ("examples", "fewer", "more"),
}


def results_text(store: Store, sweep: str | None = None) -> str:
    """What `grokscale sweep` prints at its end and `grokscale results` prints again.

    store: where the sweep is.  sweep: its id, or its name for the latest of that name; None: the latest of all.
    Raises InputError for a sweep that the store does not know.
    """
    return render(collect(store, sweep))


def render(view: SweepView) -> str:
    """`results_text` of a view already gathered."""
    blocks = [view.sweep_id + "\n" + "\n".join(textwrap.wrap(view.question, WIDTH)), _wrapped(answer(view))]
    if view.speedups:
        blocks += [_speedups(view), _beside(view)]
    if any(arm.rows for arm in view.arms):
        blocks += [_outcomes(view), _times(view)]
    if view.arms:
        blocks.append(_settings("Chosen settings", {a.name: a.params for a in view.arms}, _edges(view)))
    if not view.speedups:
        blocks.append(_exploratory(view))
    blocks.append(_footer(view))
    return "\n\n".join(block for block in blocks if block) + "\n"


def answer(view: SweepView) -> str:
    """The answer in one sentence, with the interval, the seeds and the censoring beside it."""
    rows = of_clock(view, "steps")
    if not rows:
        missing = sum(arm.wanted - len(arm.rows) for arm in view.arms)
        todo = (
            f"{missing} confirmation replicas are missing"
            if missing
            else "the confirmation has not been compared"
        )
        todo = todo if view.plan is not None else "nothing has been confirmed"
        return f"No answer yet: {todo}. What follows is exploratory and shows no speed-up."
    sooner = [row for row in rows if row["lo"] > 1 and sound(row)]
    tau = number(view.tau)
    if not sooner:
        slower = [row["arm"] for row in rows if row["hi"] < 1 and sound(row)]
        also = f" {listing(slower)} {'groks' if len(slower) == 1 else 'grok'} later." if slower else ""
        return (
            f"No arm is shown to grok sooner than {view.baseline}: no 95 % interval lies above 1 "
            f"({rows[0]['n']} paired seeds, tau = {tau} steps).{also}"
        )
    best = sooner[0]
    least = "at least " if best["bound"] == ">=" else ""
    text = (
        f"{best['arm']} groks {least}{ratio(best['s'])}x sooner than {view.baseline}: 95 % interval {interval(best)}, "
        f"{best['n']} paired seeds, {_censored(best)}."
    )
    seconds = next((row for row in of_clock(view, "seconds") if row["arm"] == best["arm"]), None)
    if seconds is not None:
        text += f" Counted in seconds: {words(seconds)}, {interval(seconds)}."
    if holm(rows)[best["arm"]] >= 0.05:
        text += f" But p = {pvalue(holm(rows)[best['arm']])} over all arms: chance alone may do that."
    return text


def _censored(row: Row) -> str:
    arm, base = row["censored_arm"], row["censored_base"]
    return f"{arm} censored, {base} of the baseline's" if arm or base else "none censored on either side"


def of_clock(view: SweepView, clock: str) -> list[Row]:
    """The speed-ups on one clock, the greatest first."""
    return sorted(
        (row for row in view.speedups if row["clock"] == clock), key=lambda row: (-row["s"], row["arm"])
    )


def sound(row: Row) -> bool:
    """Is the interval a number? (It takes two pairs at least.)"""
    return math.isfinite(row["lo"]) and math.isfinite(row["hi"])


def holm(rows: Sequence[Row]) -> dict[str, float]:
    """Arm -> p corrected for the number of arms (Holm) within the rows of one clock."""
    return dict(zip((row["arm"] for row in rows), stats.holm([row["p"] for row in rows]), strict=True))


# ---------------------------------------------------------------------------------------------- blocks


def _speedups(view: SweepView) -> str:
    table, notes = speedup_rows(view), speedup_notes(view)
    head = f"Speed-up over {view.baseline}, confirmed on {view.speedups[0]['n']} fresh seeds, paired"
    wrapped = [line for note in notes for line in textwrap.wrap(note, WIDTH, subsequent_indent="  ")]
    return "\n".join([head, grid(speedup_header(view), table, "<<><>>>"), *wrapped])


def speedup_header(view: SweepView) -> list[str]:
    several = len({row["arm"] for row in view.speedups}) > 1
    return ["arm", "", "S", "95 % interval", "n", "censored", "p (Holm)" if several else "p"]


def speedup_rows(view: SweepView) -> list[list[str]]:
    """A line per arm and clock: arm, ratio with its direction, S, interval, pairs, censored arm/baseline, p."""
    table = []
    for arm in [row["arm"] for row in of_clock(view, "steps")]:
        for clock in CLOCKS:
            rows = of_clock(view, clock)
            row = next((r for r in rows if r["arm"] == arm), None)
            if row is None or (clock == "oracle" and _as_steps(view, row)):
                continue
            table.append([
                short(arm) if clock == "steps" else "", words(row), _bound(row) + ratio(row["s"], 2), interval(row),
                str(row["n"]), f"{row['censored_arm']}/{row['censored_base']}", pvalue(holm(rows)[arm]),
            ])  # fmt: skip
    return table


def speedup_notes(view: SweepView) -> list[str]:
    """What has to stand beside S: what it is, and the second horizon where both sides are censored."""
    lines = ["S: geometric mean over seeds of baseline/arm, each at most tau; censored: arm/baseline."]
    for row in of_clock(view, "steps"):
        if row["censored_base"] and row["censored_arm"]:
            half = (
                ""
                if row["s_half"] is None
                else f"; at tau/2 = {number(view.tau / 2)} S is {ratio(row['s_half'], 2)}"
            )
            lines.append(
                f"{short(row['arm'])}: {row['censored_arm']} of its seeds and {row['censored_base']} of the "
                f"baseline's did not grok by tau = {number(view.tau)}{half}."
            )
        elif row["bound"] == ">=":
            lines.append(
                f"{short(row['arm'])}: a bound, since {row['censored_base']} of the baseline's seeds did not grok "
                f"by tau = {number(view.tau)}."
            )
    return lines


def _as_steps(view: SweepView, row: Row) -> bool:
    """Does counting examples say what counting steps says? (One gradient a step, equal batches.)"""
    steps = next((r for r in of_clock(view, "steps") if r["arm"] == row["arm"]), None)
    return steps is not None and math.isclose(steps["s"], row["s"], rel_tol=1e-9)


def _beside(view: SweepView) -> str:
    header, table = beside_table(view)
    return "Beside it, in steps\n" + grid(header, table, "<>>>>")


def beside_table(view: SweepView) -> tuple[list[str], list[list[str]]]:
    """RMST ratio with its interval, P(sooner), log-rank p and the pairs' correlation, a line per arm."""
    table = []
    for row in of_clock(view, "steps"):
        cost = "-" if row["rmst_ratio"] is None else ratio(row["rmst_ratio"], 2)
        if row["rmst_lo"] is not None and row["rmst_hi"] is not None:
            cost += f" [{ratio(row['rmst_lo'], 2)}, {ratio(row['rmst_hi'], 2)}]"
        table.append(
            [
                short(row["arm"]),
                cost,
                f"{row['p_sooner']:.2f}",
                pvalue(row["logrank_p"]),
                "-" if row["corr"] is None else f"{row['corr']:.2f}",
            ]
        )
    return ["arm", "mean cost (RMST) ratio", "P(sooner)", "log-rank p", "pairs' correlation"], table


def _outcomes(view: SweepView) -> str:
    header, table = outcome_table(view)
    return f"Outcomes by tau = {number(view.tau)} steps\n" + grid(header, table, "<>>>>>>")


def outcome_table(view: SweepView) -> tuple[list[str], list[list[str]]]:
    """How many seeds of an arm ended how, and the share that grokked with Wilson's interval."""
    table = []
    for arm in view.arms:
        counts, n = arm.outcomes(view.tau), len(arm.rows)
        lo, hi = stats.wilson(counts["grokked"], n) if n else (0.0, 1.0)
        share = f"{100 * counts['grokked'] / n:.0f} % [{100 * lo:.0f}, {100 * hi:.0f}]" if n else "-"
        asked = "" if n == arm.wanted else f" of {arm.wanted}"
        table.append([short(arm.name), f"{n}{asked}", *(str(counts[o]) for o in OUTCOMES), share])
    return ["arm", "n", *OUTCOMES, "success (95 %)"], table


def _times(view: SweepView) -> str:
    header, table = time_table(view)
    return "Medians (Kaplan-Meier)\n" + grid(header, table, "<>>>>>>")


def time_table(view: SweepView) -> tuple[list[str], list[list[str]]]:
    """Median steps to fit, from fit to grok, and to grok; seconds a step alone on the timing device."""
    tau, table = view.tau, []
    for arm in view.arms:
        if not arm.rows:
            continue
        grok = median(arm.times("grok_step", tau))
        on = None if arm.timing is None else arm.timing["seconds_on"]
        took = "-" if on is None or grok is None else f"{grok * on:,.3g} s"
        table.append([
            short(arm.name), *(_or_beyond(m, tau) for m in (
                grok, median(arm.times("fit_step", tau)), median(arm.delays(tau)))),
            "-" if on is None else f"{1e3 * on:.3g} ms", took,
        ])  # fmt: skip
    return ["arm", "grok step", "fit step", "delay", "time a step", "time to grok"], table


def _settings(title: str, settings: Mapping[str, Mapping[str, Any]], flags: Mapping[str, str]) -> str:
    width = max(len(short(name)) for name in settings) + 2
    lines = [title]
    for name, params in settings.items():
        text = knobs(params) + (f"  ({flags[name]})" if flags.get(name) else "")
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=f"{short(name):<{width}}", subsequent_indent=" " * width
        )
    return "\n".join(lines)


def _edges(view: SweepView) -> dict[str, str]:
    """Arm -> a flag where a shared knob ended within 5 % of an edge of its range: the range may be too narrow."""
    flags = {}
    for arm in view.arms:
        narrow = []
        for key, value in arm.params.items():
            knob = view.experiment.get("space", {}).get(key)
            if not isinstance(knob, Mapping) or isinstance(value, (str, bool)) or knob.get("low") is None:
                continue
            low, high, at = float(knob["low"]), float(knob["high"]), float(value)
            if knob.get("log") and at > 0:
                low, high, at = math.log(low), math.log(high), math.log(at)
            if at <= low + 0.05 * (high - low) or at >= high - 0.05 * (high - low):
                narrow.append(key)
        if narrow:
            flags[arm.name] = f"range-limited: {', '.join(narrow)}"
    return flags


def _exploratory(view: SweepView) -> str:
    best = best_trials(view)
    if not best:
        return "No trial of the search has ended yet."
    table = []
    for trial in best:
        mine = [t for t in view.trials if t["arm"] == trial["arm"] and t["phase"] == "search"]
        ended = sum(t["state"] == "ended" for t in mine)
        table.append(
            [short(trial["arm"]), f"{ended}/{len(mine)}", str(trial["number"]), number(steps_of(trial))]
        )
    head = "EXPLORATORY: the best trial of the search, on the seeds that chose it"
    settings = {t["arm"]: json.loads(t["params_json"]) for t in best}
    return "\n".join(
        [
            head,
            grid(["arm", "ended", "trial", "steps (geometric mean)"], table, "<>>>"),
            "",
            _settings("Settings (exploratory)", settings, {}),
        ]
    )


def _footer(view: SweepView) -> str:
    lines = []
    for key, text in footer(view):
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"{key:<11}", subsequent_indent=" " * 11) or [key]
    return "\n".join(lines)


def footer(view: SweepView) -> list[tuple[str, str]]:
    """(what, text): the conditions under which the numbers hold."""
    spec = next((arm.spec for arm in view.arms if arm.name == view.baseline and arm.spec), None)
    spec = spec or next((arm.spec for arm in view.arms if arm.spec), {})
    searched = (
        f", search {number(view.horizon)}" if view.plan is not None and view.tau != view.horizon else ""
    )
    out = [("horizon", f"tau = {number(view.tau)} steps{searched}")]
    if spec:
        grokked = f"test accuracy >= {spec['threshold']:g}, held to 1.1 x its step and for 3 evaluations"
        out += [
            ("task", named(spec["task"])),
            ("model", named(spec["model"])),
            ("optimiser", _optimiser(spec)),
            ("grokked", grokked),
            ("evaluated", _schedule(spec["eval"])),
        ]
        if spec["monitor"] == "test":
            out.append(
                ("! monitor", "test: search and methods looked at the test split; no held-out split was kept")
            )
    out.append(("budget", _budget(view)))
    if view.plan is not None:
        out.append(
            (
                "seeds",
                f"confirm block {view.plan['block']}: {len(view.plan['seeds'])} seeds, read by no search",
            )
        )
    clocks = {(a.timing["device"], a.timing["threads"]) for a in view.arms if a.timing is not None}
    if clocks:
        devices = listing(
            [
                f"{device} ({threads} {'thread' if threads == 1 else 'threads'})"
                for device, threads in sorted(clocks)
            ]
        )
        out.append(("seconds", f"steps x seconds of one replica alone per step on {devices}"))
    return out


def _budget(view: SweepView) -> str:
    parts = []
    for phase in ("search", "race"):
        rows = [t for t in view.trials if t["phase"] == phase]
        if rows:
            counts = sorted({sum(t["arm"] == arm for t in rows) for arm in {t["arm"] for t in rows}})
            seeds = sorted({len(t["seeds"]) for t in rows})
            parts.append(f"{phase} {_span(counts)} trials an arm x {_span(seeds)} seeds")
    failed = sum(t["state"] == "failed" for t in view.trials)
    if failed:
        parts.append(f"{failed} trials failed")
    return "; ".join(parts) or "no search: settings as the file fixes them"


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _optimiser(spec: Mapping[str, Any]) -> str:
    """The optimiser's settings that it reads, without those that the arms choose."""
    from grokscale.spec.settings import ALWAYS, OPTIMISERS

    table = spec["optimiser"]
    read = {*ALWAYS, *OPTIMISERS.get(table["name"], table), "name"} - {"lr", "wd"}
    return named(
        {k: v for k, v in table.items() if k in read and not (k in ("momentum", "warmup") and not v)}
    )


def _schedule(every: Mapping[str, Any]) -> str:
    if every.get("epoch"):
        return "every epoch on the full splits"
    return (
        f"every max({every['min']}, {100 * every['every']:g} %) steps on {every['examples']:,} examples of each split, "
        "in full at a crossing and at the end"
    )


# ---------------------------------------------------------------------------------------------- words and numbers


def words(row: Row) -> str:
    """A speed-up with its direction: "1.9x fewer steps"."""
    unit, fewer, more = CLOCKS[row["clock"]]
    s = row["s"]
    return f"{_bound(row)}{ratio(s)}x {fewer} {unit}" if s >= 1 else f"{ratio(1 / s)}x {more} {unit}"


def interval(row: Row) -> str:
    return f"{ratio(row['lo'], 2)} to {ratio(row['hi'], 2)}" if sound(row) else "-"


def ratio(value: float, places: int = 1) -> str:
    """A factor to a place that means something: 1.03, 1.9, 12, 1,234."""
    if not math.isfinite(value):
        return "-"
    if value >= 10:
        return f"{value:,.{places - 1}f}" if value < 100 else f"{value:,.0f}"
    return f"{value:.{places}f}" if abs(value - 1) >= 0.095 else f"{value:.2f}"


def number(value: float) -> str:
    return f"{value:,.0f}"


def pvalue(p: float | None) -> str:
    if p is None or not math.isfinite(p):
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def steps_of(trial: Row) -> float:
    """The geometric mean of a search trial's clamped steps, out of its objective."""
    return math.exp(trial["value"])


def median(times: np.ndarray) -> float | None:
    """Kaplan-Meier's median of times that are inf where never; None if fewer than half got there."""
    event = np.isfinite(times)
    return stats.median(np.where(event, times, np.max(times[event], initial=1.0)), event)


def knobs(params: Mapping[str, Any]) -> str:
    return (
        ", ".join(
            f"{key} {plain(value)}" for key, value in sorted(params.items(), key=lambda kv: _rank(kv[0]))
        )
        or "-"
    )


def plain(value: Any) -> str:
    """A setting as people write it: four digits are enough to read, the store keeps all."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def named(table: Mapping[str, Any]) -> str:
    """ "parity (k 3, n 60)" of a table with a name and options."""
    rest = ", ".join(f"{k} {plain(v)}" for k, v in sorted(table.items()) if k != "name" and v is not None)
    return f"{table['name']} ({rest})" if rest else str(table["name"])


def listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def short(name: str) -> str:
    return name if len(name) <= NAME else name[: NAME - 1] + "…"


def _rank(key: str) -> tuple[int, str]:
    return ({"lr": 0, "wd": 1}.get(key, 2), key)


def _bound(row: Row) -> str:
    return ">= " if row["bound"] == ">=" else ""


def _or_beyond(value: float | None, tau: float) -> str:
    return f"> {number(tau)}" if value is None or value == NEVER else number(value)


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH))


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, limit: int = LIMIT) -> str:
    """A table in fixed width, columns two blanks apart, a rule under the header; "<" and ">" align the columns."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(f"{c:{a}{w}}" for c, a, w in zip(row, align, widths, strict=False)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "-" * min(limit, sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def records(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of a query as a table in fixed width, numbers to the right."""
    cells = [[_cell(row[name]) for name in names] for row in rows]
    numeric = [any(isinstance(row[name], (int, float)) for row in rows) for name in names]
    body = grid(list(names), cells, "".join("<>"[is_number] for is_number in numeric), limit=10_000)
    return f"{body}\n({len(rows)} row{'' if len(rows) == 1 else 's'})\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
