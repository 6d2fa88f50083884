"""One self-contained HTML page: the answer, the tables, the figures. No script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from grokscale.report import figures, maps, paths, text
from grokscale.report.view import SweepView, curves_of
from grokscale.report.words import knobs, number

if TYPE_CHECKING:
    from grokscale.store import Store

CSS = """
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;padding:1rem;
max-width:60rem;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.id{opacity:.75;margin:0}.answer{border-left:4px solid var(--a0);padding:.4rem .9rem;font-size:1.1rem}
.warning{border-left:4px solid var(--a1);padding:.4rem .9rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:first-child,td:first-child,th.left,td.left{text-align:left}
td.long{white-space:normal;min-width:12rem}th{vertical-align:bottom}
figure{margin:1rem 0;max-width:42rem}figure svg{width:100%;height:auto;display:block}
figcaption{font-size:.9rem;opacity:.85}.note{font-size:.9rem;margin:.3rem 0}
dl{display:grid;grid-template-columns:minmax(6rem,max-content) 1fr;gap:.2rem .9rem}
dd{margin:0}dt{font-weight:600}
@media(max-width:30rem){th,td{padding:.25rem .4rem}table{font-size:.85rem}}
"""
SURVIVAL = (
    "Share of confirmation seeds that have not grokked yet: Kaplan-Meier with 95 % bands. "
    "A tick at the right end: seeds that did not, or diverged."
)


def render(store: Store, view: SweepView) -> str:
    """The page of a sweep. Everything that came from a file or a user is escaped."""
    rest = text.without_cells(view)
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in text.footer(view))
    parts = [
        f'<p class="id">{escape(view.sweep_id)}</p><h1>{escape(view.question or view.name)}</h1>',
        f'<p class="answer">{escape(text.answer(view))}</p>',
        *_warnings(view),
        *_maps(view),
        *_confirmed(rest),
        *_search(rest),
        *_accuracy(store, rest),
        *_trajectories(store, rest),
        f"<h2>Measured under</h2><dl>{facts}</dl>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(view.name)}: {escape(view.question)}</title><style>{figures.colours()}{CSS}</style>"
        f"</head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _warnings(view: SweepView) -> list[str]:
    if not any(arm.spec.get("monitor") == "test" for arm in view.arms):
        return []
    return ['<p class="warning">monitor = test: search and methods saw the test split.</p>']


def _maps(view: SweepView) -> list[str]:
    parts = []
    for i, one in enumerate(maps.maps(view)):
        drawing = figures.svg(maps.draw(one), f"Median grok step of {one.arm} over the grid", f"m{i}-")
        parts.append(_figure(drawing, f"{one.arm}. {maps.NOTE}"))
    return ["<h2>Map (exploratory)</h2>", *parts] if parts else []


def _confirmed(view: SweepView) -> list[str]:
    parts = []
    if view.speedups:
        table = _table(text.speedup_table(view), left=1)
        parts.append(f"<h2>Speed-up over {escape(view.baseline)}</h2>{table}")
        parts += [f'<p class="note">{escape(note)}</p>' for note in text.speedup_notes(view)]
    if any(arm.rows for arm in view.arms):
        drawing = figures.svg(figures.draw_survival(view), "Share of seeds not yet grokked by step", "s-")
        parts.append(_figure(drawing, SURVIVAL))
        if view.speedups:
            parts.append(f"<h2>Beside it, in steps</h2>{_table(text.beside_table(view))}")
        parts.append(f"<h2>Outcomes by {number(view.tau)} steps</h2>{_table(text.outcome_table(view))}")
        parts.append(f"<h2>Medians (Kaplan-Meier)</h2>{_table(text.time_table(view))}")
    if view.arms:
        flags = text.edges(view)
        rows = [[arm.name, knobs(arm.settings), flags.get(arm.name, ""), arm.trial_id] for arm in view.arms]
        table = _table((["arm", "settings", "", "trial"], rows), left=1)
        parts.append(f"<h2>Settings</h2>{table}")
    return parts


def _search(view: SweepView) -> list[str]:
    """The best trial of each arm's search, labelled as what it is."""
    header, rows = text.search_table(view)
    if not rows:
        return []
    note = '<p class="note">The best trial of each arm, on the seeds that chose it: no speed-up here.</p>'
    return [f"<h2>Search (exploratory)</h2>{note}{_table((header, rows))}"]


def _accuracy(store: Store, view: SweepView) -> list[str]:
    parts = []
    for i, arm in enumerate(arm for arm in view.arms if arm.rows):
        curves = curves_of(store, arm.trial_id, [row["seed"] for row in arm.rows])
        if curves:
            drawn = figures.draw_curves(curves, arm.name, figures.look(view, arm)[0])
            svg = figures.svg(drawn, f"Accuracy of {arm.name} by step", f"c{i}-")
            parts.append(_figure(svg, f"{arm.name}: a line per confirmation seed."))
    return ["<h2>Accuracy</h2>", *parts] if parts else []


def _trajectories(store: Store, view: SweepView) -> list[str]:
    went = paths.paths(store, view)
    if went is None:
        return []
    drawing = figures.svg(paths.draw(view, went), "Where training went, on the plane of the baseline", "t-")
    return ["<h2>Trajectories (exploratory)</h2>", _figure(drawing, paths.NOTE)]


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(table: text.Table, left: int | None = None) -> str:
    """left: a column of words, wrapped where it is long."""

    def row(cells: Sequence[str], tag: str) -> str:
        out = []
        for i, cell in enumerate(cells):
            kind = "" if i != left else ' class="left long"' if len(cell) > 30 else ' class="left"'
            out.append(f"<{tag}{kind}>{escape(cell)}</{tag}>")
        return f"<tr>{''.join(out)}</tr>"

    header, rows = table
    body = "".join(row(cells, "td") for cells in rows)
    return f'<div class="scroll"><table><thead>{row(header, "th")}</thead><tbody>{body}</tbody></table></div>'
