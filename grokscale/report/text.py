"""The answer of a sweep as plain text: the same bytes whenever the store says the same.

At most 100 columns, no colours, no clock times, no paths. What is earlier than the confirmation is labelled
exploratory: it was chosen on the seeds on which it is shown.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from grokscale import stats
from grokscale.answers import undetermined
from grokscale.report import asked, maps
from grokscale.report.beside import beside_table, delay_table, outcome_table, time_table
from grokscale.report.view import Row, SweepView, best_trials, collect, of_clock
from grokscale.report.words import (
    WIDTH,
    bounded,
    count,
    factor,
    grid,
    knobs,
    listing,
    named,
    number,
    pvalue,
    ratio,
    short,
    span,
)

if TYPE_CHECKING:
    from grokscale.store import Store

BUDGETS = 4  # columns of the table of budgets, besides the defaults and all trials
Table = tuple[list[str], list[list[str]]]
CLOCKS = {  # unit, and the words for S above and below 1
    "steps": ("steps", "fewer", "more"),
    "seconds": ("time", "less", "more"),
    "oracle": ("examples", "fewer", "more"),
    "flops": ("flops", "fewer", "more"),
}


def results_text(store: Store, sweep: str | None = None) -> str:
    """What `grokscale sweep` prints at its end and `grokscale results` prints again.

    store: where the sweep is.  sweep: its id, or its name (the latest of that name); None: the latest of all.
    Raises InputError for a sweep that the store does not know.
    """
    return render(collect(store, sweep))


def render(view: SweepView) -> str:
    """`results_text` of a view already gathered."""
    blocks = ["\n".join([view.sweep_id, *wrapped(view.question)]), "\n".join(wrapped(answer(view)))]
    blocks += maps.blocks(view)
    view = without_cells(view)
    if view.speedups:
        head = f"Speed-up over {view.baseline}, confirmed on {_pairs(view.speedups[0])}"
        notes = [line for note in speedup_notes(view) for line in wrapped(note, "  ")]
        blocks.append("\n".join([_titled(head, speedup_table(view), "<<><>>>"), *notes]))
        blocks.append(_titled("Beside it, in steps", beside_table(view), "<>>>>"))
        if (saved := delay_table(view))[1]:
            blocks.append(_titled(f"{delay_title(view)}, where both of a pair grokked", saved, "<>>>"))
    if over := practice_view(view):
        head = f"Speed-up over {over.baseline}, in practice the best of {listing(view.experiment['practice'])}"
        notes = [line for note in censoring_notes(over) for line in wrapped(note, "  ")]
        blocks.append("\n".join([_titled(head, speedup_table(over), "<<><>>>"), *notes]))
    blocks += asked.blocks(view.endpoints, view.papers)
    if any(arm.rows for arm in view.arms):
        blocks.append(_titled(f"Outcomes by tau = {number(view.tau)} steps", outcome_table(view), "<>>>>>>"))
        blocks.append(_titled("Medians (Kaplan-Meier)", time_table(view), "<>>>>>"))
    if view.arms:
        blocks.append(_settings("Settings", {a.name: view.settings(a) for a in view.arms}, edges(view)))
    if not view.speedups:
        blocks += _exploratory(view)
    blocks += search_blocks(view)
    lines = []
    for key, text in footer(view):
        lines += textwrap.wrap(f"{key:<11}{text}", WIDTH, subsequent_indent=" " * 11, break_on_hyphens=False)
    return "\n\n".join([*blocks, "\n".join(lines)]) + "\n"


def answer(view: SweepView) -> str:
    """The answer in a sentence or two, with the interval, the seeds and the censoring beside it."""
    rows = of_clock(view, "steps")
    if view.experiment.get("grid"):
        return maps.answer(view)
    if not rows:
        if [arm.wanted - len(arm.rows) for arm in view.arms] == [0]:
            return f"Only {view.arms[0].name} ran: there is nothing to compare it with."
        return f"No answer yet: {_missing(view)}. What follows is exploratory and shows no speed-up."
    best = next((row for row in rows if sound(row) and row["lo"] > 1), None)
    if best is None:
        slower = [row["arm"] for row in rows if sound(row) and row["hi"] < 1]
        later = f" {listing(slower)} {'groks' if len(slower) == 1 else 'grok'} later." if slower else ""
        return (
            f"No arm is shown to grok sooner than {view.baseline}: no 95 % interval lies above 1 "
            f"({count(rows[0]['n'], _seed(rows[0]))}, tau = {number(view.tau)} steps).{later}"
        )
    bound = {">=": "at least ", "<=": "at most "}.get(best["bound"], "")
    text = (
        f"{best['arm']} groks {bound}{ratio(best['s'])}x sooner than {view.baseline}: 95 % interval "
        f"{interval(best)}, {count(best['n'], _seed(best))}, {_censored(best)}."
    )
    seconds = next((row for row in of_clock(view, "seconds") if row["arm"] == best["arm"]), None)
    if seconds is not None:
        text += f" Counted in seconds: {direction(seconds)}, S {interval(seconds)}."
    if over := practice_view(view):
        row = next((row for row in of_clock(over, "steps") if row["arm"] == best["arm"]), None)
        text += f" Over {over.baseline}, the practice baseline: {direction(row)}, S {interval(row)}." if row else ""
    if (p := holm(rows)[best["arm"]]) >= 0.05:
        over = " over all arms" if len(rows) > 1 else ""
        text += f" But p = {pvalue(p)}{over}: chance alone may do that."
    return text


def practice_view(view: SweepView) -> SweepView | None:
    """The view with the practice baseline in place of the baseline; None where nothing was compared with it."""
    rows = view.over_practice
    return replace(view, speedups=rows, baseline=rows[0]["baseline"]) if rows else None


def _pairs(row: Row) -> str:
    how = "fresh seeds, paired" if row["paired"] is not False else "fresh seeds on either side, unpaired"
    return f"{row['n']} {how}"


def without_cells(view: SweepView) -> SweepView:
    """The view without the arms that the maps show: what else there is, the baseline above all."""
    cells = {cell.arm for one in maps.maps(view) for cell in one.cells}
    arms = tuple(arm for arm in view.arms if arm.name not in cells)
    return replace(view, arms=arms, speedups=[row for row in view.speedups if row["arm"] not in cells])


def _seed(row: Row) -> str:
    return "paired seed" if row["paired"] is not False else "unpaired seed"


def _missing(view: SweepView) -> str:
    if view.plan is None:
        return "nothing has been confirmed"
    left = sum(arm.wanted - len(arm.rows) for arm in view.arms)
    return f"{count(left, 'confirmation replica')} to go" if left else "the arms have not been compared"


def _censored(row: Row) -> str:
    arm, base = row["censored_arm"], row["censored_base"]
    return f"{arm} censored, {base} of the baseline's" if arm or base else "none censored on either side"


def sound(row: Row) -> bool:
    """Is the interval more than (0, inf)? It takes two pairs at least, and something that grokked."""
    return row["lo"] > 0 and math.isfinite(row["hi"])


def _s(row: Row) -> str:
    return "-" if undetermined(row) else factor(row["s"], row["bound"])


def holm(rows: Sequence[Row]) -> dict[str, float]:
    """Arm -> p corrected for the number of arms (Holm) within the rows of one clock."""
    return dict(zip((row["arm"] for row in rows), stats.holm([row["p"] for row in rows]), strict=True))


# ---------------------------------------------------------------------------------------------- tables


def speedup_table(view: SweepView) -> Table:
    """A line per arm and clock: ratio with its direction, S, interval, pairs, censored arm/baseline, p."""
    arms = [row["arm"] for row in of_clock(view, "steps")]
    rows = []
    for arm in arms:
        for clock in CLOCKS:
            of_all = of_clock(view, clock)
            row = next((r for r in of_all if r["arm"] == arm), None)
            if row is None or (clock in ("oracle", "flops") and _as_steps(view, row)):
                continue
            rows.append([
                short(arm) if clock == "steps" else "", direction(row), _s(row),
                interval(row), str(row["n"]), f"{row['censored_arm']}/{row['censored_base']}",
                "-" if undetermined(row) else pvalue(holm(of_all)[arm]),
            ])  # fmt: skip
    return ["arm", "", "S", "95 % interval", "n", "censored", "p (Holm)" if len(arms) > 1 else "p"], rows


def delay_title(view: SweepView) -> str:
    return f"Delay from fitting to grokking, saved over {short(view.baseline)}"


def _as_steps(view: SweepView, row: Row) -> bool:
    """Do examples say what steps say? They do for one gradient a step on equal batches."""
    steps = next((r for r in of_clock(view, "steps") if r["arm"] == row["arm"]), None)
    return steps is not None and math.isclose(steps["s"], row["s"], rel_tol=1e-9)


def speedup_notes(view: SweepView) -> list[str]:
    """What has to stand beside S: what it is, and what censoring does to it."""
    notes = ["S: geometric mean over seeds of baseline / arm, each at most tau. censored: arm/baseline."]
    if view.experiment.get("aa"):
        notes.append("A/A: one method against itself on seeds of its own, so the interval should cover 1.")
    return notes + censoring_notes(view)


def censoring_notes(view: SweepView) -> list[str]:
    """Which S are bounds, and S at half the horizon with both counts where both sides are censored."""
    tau, notes = number(view.tau), []
    for row in of_clock(view, "steps"):
        arm, ours, theirs = short(row["arm"]), row["censored_arm"], row["censored_base"]
        if ours and theirs:
            half = "" if row["s_half"] is None or undetermined(row) else f"; at tau/2 S is {ratio(row['s_half'], 2)}"
            both = f"{ours} of its seeds and {theirs} of the baseline's"
            notes.append(f"{arm}: {both} did not grok by {tau}{half}.")
        elif row["bound"] == ">=":
            notes.append(f"{arm}: a lower bound, {theirs} of the baseline's seeds did not grok by {tau}.")
        elif row["bound"] == "<=":
            notes.append(f"{arm}: an upper bound, {ours} of its seeds did not grok by {tau}.")
    return notes


def search_table(view: SweepView) -> Table:
    """The best trial of each arm's search: what it reached on the seeds that chose it. Exploratory."""
    rows = []
    for trial in best_trials(view):
        mine = [t for t in view.trials if t["arm"] == trial["arm"] and t["phase"] == "search"]
        ended = sum(t["state"] == "ended" for t in mine)
        steps = number(math.exp(trial["value"]))  # the objective is a mean of logs
        rows.append([short(trial["arm"]), f"{ended}/{len(mine)}", str(trial["number"]), steps])
    return ["arm", "ended", "trial", "steps (geometric mean)"], rows


# ---------------------------------------------------------------------------------------------- blocks


def _settings(title: str, settings: Mapping[str, Mapping[str, Any]], flags: Mapping[str, str]) -> str:
    width = max(len(short(name)) for name in settings) + 2
    lines = [title]
    for name, params in settings.items():
        text = knobs(params) + (f"  ({flags[name]})" if name in flags else "")
        lines += textwrap.wrap(f"{short(name):<{width}}{text}", WIDTH, subsequent_indent=" " * width)
    return "\n".join(lines)


def edges(view: SweepView) -> dict[str, str]:
    """Arm -> its flags, range-limited and still improving, in one line."""
    return {arm: "; ".join(said) for arm, said in view.flags.items()}


def budget_table(view: SweepView) -> Table:
    """S over the baseline's search by the trials that either may tune with: the defaults, then k doubling to all."""
    known = sorted({row["k"] for row in view.budget})
    if len(known) < 2:
        return [], []
    kept = [k for k in known if k & (k - 1) == 0][1:][-BUDGETS:]
    kept += [known[-1]] if known[-1] not in kept else []
    rows = []
    for arm in (name for name in view.order() if any(row["arm"] == name for row in view.budget)):
        mine = {row["k"]: row for row in view.budget if row["arm"] == arm}
        first = mine[1]["s_asked"]
        cells = [ratio(mine[k]["s"], 2) if k in mine else "-" for k in kept]
        rows.append([short(arm), "-" if first is None else ratio(first, 2), *cells])
    return ["arm", "defaults", *(f"k = {k}" for k in kept)], rows


def importance_table(view: SweepView) -> Table:
    """Which knobs the better half of the trials hung on, a line per arm that a search says something about."""
    rows = [
        [name, ", ".join(f"{knob} {100 * share:.0f} %" for knob, share in shares.items())]
        for name, shares in view.importances.items()
    ]
    return ["arm", "knobs"], rows


def search_blocks(view: SweepView) -> list[str]:
    """What tuning did: S by the budget, and which knobs mattered. Exploratory."""
    blocks = []
    header, rows = budget_table(view)
    if rows:
        head = f"EXPLORATORY: S over {view.baseline} by trials of tuning, on the seeds of the search"
        blocks.append(_titled(head, (header, rows), "<" + ">" * (len(header) - 1)))
    if shares := importance_table(view)[1]:
        width = max(len(short(name)) for name, _ in shares) + 2
        lines = ["EXPLORATORY: what tells the better half of an arm's trials from all, by knob"]
        for name, text in shares:
            lines += textwrap.wrap(f"{short(name):<{width}}{text}", WIDTH, subsequent_indent=" " * width)
        blocks.append("\n".join(lines))
    return blocks


def _exploratory(view: SweepView) -> list[str]:
    best = best_trials(view)
    if not best:
        return [] if view.plan is not None else ["No trial of the search has ended yet."]
    head = "EXPLORATORY: the best trial of each arm's search, on the seeds that chose it"
    settings = {trial["arm"]: json.loads(trial["params_json"]) for trial in best}
    return [_titled(head, search_table(view), "<>>>"), _settings("Settings (exploratory)", settings, edges(view))]


def footer(view: SweepView) -> list[tuple[str, str]]:
    """(what, text): the conditions under which the numbers hold."""
    specs = {arm.name: arm.spec for arm in view.arms if arm.spec}
    spec = specs.get(view.baseline) or next(iter(specs.values()), None)
    longer = f", of the search {number(view.horizon)}" if view.tau != view.horizon else ""
    facts = [("horizon", f"tau = {number(view.tau)} steps{longer}")]
    if spec:
        held = "held to 1.1 x its step and for 3 evaluations"
        facts += [
            ("task", named(spec["task"])),
            ("model", named(spec["model"])),
            ("optimiser", _optimiser(spec["optimiser"])),
            ("grokked", f"test accuracy >= {spec['threshold']:g}, {held}"),
            ("evaluated", _schedule(spec["eval"])),
        ]
        if spec["monitor"] == "test":
            facts.append(("! monitor", "test: search and methods saw the test split, nothing was held out"))
    facts.append(("budget", _budget(view)))
    if view.plan is not None:
        block, n = view.plan["block"], len(view.plan["seeds"])
        own = ", shared out among the arms" if view.experiment.get("aa") else ""
        facts.append(("seeds", f"confirm, block {block}: {n}, read by no search{own}"))
    clocks = sorted({(a.timing["device"], a.timing["threads"]) for a in view.arms if a.timing is not None})
    if clocks:
        devices = listing([f"{device} ({count(threads, 'thread')})" for device, threads in clocks])
        facts.append(("seconds", f"steps x seconds per step of one replica alone on {devices}"))
    return facts


def _budget(view: SweepView) -> str:
    parts = []
    for phase in ("search", "race"):
        rows = [t for t in view.trials if t["phase"] == phase]
        if rows:
            arms = [t["arm"] for t in rows]
            each, seeds = span([arms.count(arm) for arm in arms]), span([len(t["seeds"]) for t in rows])
            plural = ["" if n == "1" else "s" for n in (each, seeds)]
            parts.append(f"{phase} {each} trial{plural[0]} an arm x {seeds} seed{plural[1]}")
    failed = sum(t["state"] == "failed" for t in view.trials)
    if failed:
        parts.append(f"{count(failed, 'trial')} failed")
    if view.later:
        parts.append(f"{count(view.later, 'more trial')} since, of which this answer knows nothing")
    return "; ".join(parts) or "no search: settings as the file fixes them"


def _optimiser(table: Mapping[str, Any]) -> str:
    """The settings that this optimiser reads, without those that the arms choose and those that are off."""
    from grokscale.spec.settings import ALWAYS, OPTIMISERS

    read = {"name", *ALWAYS, *OPTIMISERS.get(table["name"], table)} - {"lr", "wd"}
    off = {key for key in ("momentum", "warmup") if not table.get(key)}
    return named({key: value for key, value in table.items() if key in read - off})


def _schedule(every: Mapping[str, Any]) -> str:
    if every.get("epoch"):
        return "every epoch, on the full splits"
    steps = f"max({every['min']}, {100 * every['every']:g} %)" if every["every"] else str(every["min"])
    return (
        f"every {steps} steps on {every['examples']:,} examples of "
        "each split, in full at a crossing and at the end"
    )


# ---------------------------------------------------------------------------------------------- words


def direction(row: Row) -> str:
    """A speed-up with its direction: "1.9x fewer steps"."""
    unit, fewer, more = CLOCKS[row["clock"]]
    s = row["s"]
    if undetermined(row):
        return "neither groks"
    if s >= 1:
        return bounded(f"{ratio(s)}x {fewer} {unit}", row["bound"])
    return bounded(f"{ratio(1 / s)}x {more} {unit}", row["bound"], turned=True)


def interval(row: Row) -> str:
    """ "3.07 to 4.91", or - where there is none."""
    return f"{ratio(row['lo'], 2)} to {ratio(row['hi'], 2)}" if sound(row) else "-"


def wrapped(text: str, indent: str = "") -> list[str]:
    """The lines of a paragraph, the further ones indented."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent)


def _titled(title: str, table: Table, align: str) -> str:
    return f"{title}\n{grid(*table, align)}"
