"""Several sweeps as one page: S by task, over tasks, and Dolan and More's performance profile."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.ticker import FuncFormatter

from grokscale import answers
from grokscale.report import figures
from grokscale.report.page import document, tabled
from grokscale.report.words import factor, ratio, short
from grokscale.stats.across import TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from grokscale.answers import Across
    from grokscale.store import Store

NOTE = (
    "Share of tasks on which the arm's geometric mean cost is within a factor of the best arm's (Dolan and Moré's "
    "performance profile): higher is better, at 1 it is the share of tasks where the arm is the best. A task that an "
    "arm never grokked counts against it."
)


def draw(found: Across) -> Figure:
    """Performance profiles as steps on a log axis, the baseline in ink."""
    colours = [name for name in figures.PALETTE if name.startswith("a")]
    arms = [found.baseline, *(row["arm"] for row in found.arms)]
    far = max((float(one.ratio[-1]) for one in found.profiles.values() if len(one.ratio)), default=1.0)
    right = max(2.0, 1.3 * far)
    with matplotlib.rc_context(figures.STYLE):
        figure, axes = figures.canvas(5.2, 3.7)
        for i, arm in enumerate(arms):
            one = found.profiles[arm]
            colour = figures.PALETTE["ink" if i == 0 else colours[(i - 1) % len(colours)]][0]
            line = figures.LINES[(max(0, i - 1) // len(colours)) % len(figures.LINES)]
            x = [1.0, *one.ratio.tolist(), right]
            y = [one.at(1), *one.share.tolist(), one.at(right)]
            axes.step(x, y, where="post", color=colour, linestyle=line, linewidth=1.8, label=short(arm))
        figures.log_axis(axes, "x", 1.0, right)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.set_ylim(-0.02, 1.04)
        axes.set_xlabel(f"cost in {found.clock}, times the best arm's")
        axes.set_ylabel("share of tasks")
        axes.grid(axis="y", linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=2.6)
        return figure


def table(found: Across) -> tuple[list[str], list[list[str]]]:
    """S of every arm over the tasks: geometric mean, interval (from eight tasks on), Holm's p, the worst task."""
    rows = []
    for row in sorted(found.arms, key=lambda one: -one["s"]):
        known = row["lo"] is not None
        rows.append([
            row["arm"], factor(row["s"], row["bound"]),
            f"{ratio(row['lo'], 2)} to {ratio(row['hi'], 2)}" if known else "-",
            "-" if row["p_holm"] is None else f"{row['p_holm']:.3g}", str(row["n"]),
            f"{factor(row['worst'], row['worst_bound'])} ({row['worst_sweep']})",
        ])  # fmt: skip
    return ["arm", "S (geometric mean)", "95 % interval", "p (Holm)", "tasks", "worst task"], rows


def html(store: Store, sweeps: Sequence[str], clock: str = "steps") -> str:
    """The page of several sweeps, a task each."""
    found = answers.across(store, sweeps, clock)
    by_task = ["arm", *found.sweeps], [
        [row["arm"], *map(factor, row["by_sweep"], row["by_sweep_bound"])] for row in found.arms
    ]  # fmt: skip
    label = f"Performance profiles over {len(found.sweeps)} tasks"
    notes = [f"{arm}: left out, not confirmed by {', '.join(ids)}" for arm, ids in found.left_out.items()]
    notes += [
        f"{row['arm']}: {_mixed(row, found.baseline)}" for row in found.arms if row["bound"] == "mixed"
    ]  # fmt: skip
    if len(found.sweeps) < TASKS:
        notes.insert(0, f"No interval and no test below {TASKS} tasks.")
    parts = [
        f"<h1>{escape(found.baseline)} and others over {len(found.sweeps)} tasks</h1>",
        f'<p class="answer">{escape(_answer(found))}</p>',
        f"<h2>Performance profile</h2><figure>{figures.svg(draw(found), label, 'p0-')}"
        f"<figcaption>{escape(NOTE)}</figcaption></figure>",
        f"<h2>S over {escape(found.baseline)}, all tasks</h2>{tabled(table(found))}",
        *(f'<p class="note">{escape(note)}</p>' for note in notes),
        f"<h2>S by task</h2>{tabled(by_task)}",
        f"<h2>Provenance</h2><p>{escape('grokscale report ' + ' '.join(found.sweeps))}; a page of its own says of "
        "each sweep how it was run.</p>",
    ]
    return document(f"{len(found.sweeps)} tasks: performance profile", parts)


def _mixed(row: dict[str, Any], baseline: str) -> str:
    """Why the mean over tasks is no bound."""
    if open_ := row["by_sweep_bound"].count("neither"):
        return f"neither it nor {baseline} groks on {open_} of {row['n']} tasks, which count as S = 1"
    return "on some tasks S is an upper bound and on others a lower one, so their mean is neither"


def _answer(found: Across) -> str:
    """The arm with the largest geometric mean, with its interval or that there is none, and its worst task."""
    best = max(found.arms, key=lambda row: row["s"], default=None)
    over = f"Over {len(found.sweeps)} tasks"
    if best is None:
        return "No arm is confirmed on every task."
    if best["s"] <= 1:
        return f"{over} no arm takes fewer {found.clock} than {found.baseline}."
    known = best["lo"] is not None
    between = f"95 % interval {ratio(best['lo'], 2)} to {ratio(best['hi'], 2)}" if known else "too few for an interval"
    open_ = ", which includes 1: no speed-up is shown" if known and best["lo"] <= 1 else ""
    worst = factor(best["worst"], best["worst_bound"])
    return (
        f"{over} {best['arm']} takes {factor(best['s'], best['bound'])}x fewer {found.clock} than "
        f"{found.baseline} (geometric mean; {between}{open_}); on the worst, {best['worst_sweep']}, "
        f"{worst if best['worst_bound'] == 'neither' else f'S is {worst}'}."
    )


def files(store: Store, sweeps: Sequence[str], clock: str = "steps") -> dict[str, bytes]:
    """The profile as a file fit for a paper, SVG and PNG."""
    found = answers.across(store, sweeps, clock)
    drawn = draw(found)
    stem = re.sub(r"[^\w+,:=.-]", "_", f"profile-{found.clock}")
    label = f"Performance profiles over {len(found.sweeps)} tasks"
    return {f"{stem}.svg": figures.svg(drawn, label, standalone=True).encode(), f"{stem}.png": figures.png(drawn)}
