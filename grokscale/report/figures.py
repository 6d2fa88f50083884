"""The figures, drawn without pyplot: no global state, no display, the same bytes for the same numbers.

Colours are drawn as the light values of PALETTE; `svg` turns them into CSS variables, so that one picture
serves a light and a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from grokscale import stats
from grokscale.report.view import ArmView, SweepView
from grokscale.report.words import number, short

# name: (light, dark). The baseline is drawn in ink, the arms in colours that colour-blind eyes tell apart.
PALETTE = {
    "paper": ("#fefefe", "#14171c"),
    "ink": ("#1b1f24", "#e8eaed"),
    "rule": ("#d0d4d9", "#3a414b"),
    "a0": ("#0068b4", "#5db3f5"),
    "a1": ("#c4500a", "#ff9a5c"),
    "a2": ("#00815e", "#44cfa6"),
    "a3": ("#a8327f", "#f08fd0"),
    "a4": ("#7a6a00", "#dcc849"),
    "a5": ("#5a4fcf", "#ada6ff"),
    "a6": ("#8a1c1c", "#ff8080"),
}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), PALETTE["ink"][0]),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), PALETTE["rule"][0]),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), PALETTE["paper"][0]),
}
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)))


def draw_survival(view: SweepView) -> Figure:
    """Share of the confirmation seeds that have not grokked by step: Kaplan-Meier, 95 % bands, log axis.

    A seed that had not grokked by tau (or diverged) is censored there, drawn as a tick at the right end.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.2, 3.7)
        tau = view.tau
        left = tau
        for arm in (a for a in view.arms if a.rows):
            times = arm.times("grok_step", tau)
            left = min(left, *times[np.isfinite(times)], tau)
            _survival(axes, arm, times, tau, *look(view, arm))
        log_steps(axes, _round_down(left / 1.2 if left < tau else tau / 10), tau)
        axes.set_ylim(-0.02, 1.04)
        axes.set_ylabel("share of seeds not yet grokked")
        axes.grid(axis="y", linewidth=0.6)
        if any(arm.rows for arm in view.arms):
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=2.6)
        return figure


def draw_curves(
    curves: Mapping[int, Mapping[str, np.ndarray]], title: str, colour: str = PALETTE["a0"][0]
) -> Figure:
    """Accuracy against the step, a line per seed: test in colour, train in ink, thin and dashed.

    curves: seed -> columns step, train_acc, val_acc, test_acc.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(5.2, 2.6)
        for i, curve in enumerate(curves.values()):
            axes.plot(
                curve["step"],
                curve["train_acc"],
                color=PALETTE["ink"][0],
                alpha=0.35,
                linewidth=0.8,
                linestyle=LINES[1],
                label="train" if i == 0 else None,
            )
            axes.plot(
                curve["step"],
                curve["test_acc"],
                color=colour,
                alpha=0.8,
                linewidth=1.0,
                label="test" if i == 0 else None,
            )
        steps = [c["step"] for c in curves.values() if len(c["step"])]
        if steps:
            low, high = min(s[0] for s in steps), max(s[-1] for s in steps)
            log_steps(axes, max(1, low), max(high, 10 * low if high <= low else high))
            axes.legend(loc="lower right", frameon=False, fontsize=9)
        axes.set_ylim(-0.02, 1.04)
        axes.set_ylabel("accuracy")
        axes.set_title(title, fontsize=10, loc="left")
        axes.grid(axis="y", linewidth=0.6)
        return figure


def look(view: SweepView, arm: ArmView) -> tuple[str, object, float]:
    """(colour, line style, width) of an arm: the baseline in ink, the others in turn."""
    if arm.name == view.baseline:
        return PALETTE["ink"][0], "-", 2.0
    arms = [a.name for a in view.arms if a.name != view.baseline]
    i = arms.index(arm.name)
    colours = [light for name, (light, _) in PALETTE.items() if name.startswith("a")]
    return colours[i % len(colours)], LINES[i // len(colours) % len(LINES)], 1.8


def svg(figure: Figure, label: str, prefix: str = "", standalone: bool = False) -> str:
    """The figure as SVG text that follows the page between light and dark.

    label: what it shows, for those who cannot see it.  prefix: of its ids, unique in the page.
    standalone: a file of its own, in the light colours as they are: what papers are set with knows no CSS variables.
    """
    out = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "grokscale"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    if not standalone:
        for name, (light, _) in PALETTE.items():
            text = text.replace(light, f"var(--{name})")
        text = re.sub(r"'DejaVu Sans'(, sans-serif)?", "system-ui, sans-serif", text)
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    text = re.sub(r'xlink:href="#', f'xlink:href="#{prefix}', text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    width, height = (72 * side for side in figure.get_size_inches())
    head = f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}"'
    size = f' width="{width:g}pt" height="{height:g}pt"' if standalone else ""
    head += f'{size} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + text[text.index(">") + 1 :]


def png(figure: Figure, dpi: int = 300) -> bytes:
    """The figure as PNG, in the light colours."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def colours() -> str:
    """CSS that defines the palette's variables: light, dark on a screen that asks for it, never dark on paper."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    return f":root{{color-scheme:light dark;{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


# ---------------------------------------------------------------------------------------------- inside


class Drawing(Figure):
    """A figure that a notebook shows when a cell returns it, with no backend and no pyplot."""

    def _repr_png_(self) -> bytes:
        return png(self, dpi=110)


def blank(width: float, height: float) -> Drawing:
    """An empty figure, in inches."""
    figure = Drawing(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def canvas(width: float, height: float) -> tuple[Drawing, Axes]:
    """A figure with one pair of axes, in inches."""
    figure = blank(width, height)
    return figure, figure.add_subplot()


def mark(figure: Figure, what: str = "") -> Figure:
    """Writes EXPLORATORY, and what it is, over a figure: it says so wherever it is copied to."""
    with matplotlib.rc_context(STYLE):
        said = f"{what and what + ', '}EXPLORATORY"
        figure.suptitle(said, x=0.99, ha="right", fontsize=8, fontweight="bold", color=PALETTE["a1"][0])
    return figure


def log_axis(axes: Axes, axis: str, low: float, high: float) -> None:
    """A log scale for numbers from low to high, with few and readable ticks."""
    getattr(axes, f"set_{axis}scale")("log")
    getattr(axes, f"set_{axis}lim")(low, high)
    one = getattr(axes, f"{axis}axis")
    one.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low <= 100 else (1,), numticks=12))
    one.set_minor_formatter(NullFormatter())


def _survival(
    axes: Axes, arm: ArmView, times: np.ndarray, tau: float, colour: str, line: object, width: float
) -> None:
    event = np.isfinite(times)
    curve = stats.kaplan_meier(np.where(event, times, tau), event)
    steps = np.concatenate([[1.0], curve.times, [tau]])

    def stairs(values: np.ndarray, first: float) -> np.ndarray:
        return np.concatenate([[first], values, values[-1:] if len(values) else [first]])

    share = stairs(curve.share, 1.0)
    grokked = int(np.isfinite(times).sum())
    axes.fill_between(
        steps,
        stairs(curve.lo, 1.0),
        stairs(curve.hi, 1.0),
        step="post",
        color=colour,
        alpha=0.13,
        linewidth=0,
    )
    axes.step(
        steps,
        share,
        where="post",
        color=colour,
        linestyle=line,
        linewidth=width,  # pyright: ignore[reportArgumentType]
        label=f"{short(arm.name)}: {grokked} of {len(times)}",
    )
    if grokked < len(times):
        axes.plot(
            [tau], [share[-1]], marker="|", markersize=11, markeredgewidth=1.6, color=colour, clip_on=False
        )


def log_steps(axes: Axes, low: float, high: float) -> None:
    """A log axis of steps across."""
    log_axis(axes, "x", low, high)
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _round_down(value: float) -> float:
    """The largest 1, 2 or 5 x 10^k at or below the value, 1 at least."""
    decade = 10.0 ** np.floor(np.log10(max(1.0, value)))
    return float(max(s * decade for s in (1, 2, 5) if s * decade <= max(1.0, value)))
