"""One self-contained HTML page: the answer, the tables, the figures. No script, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from grokscale.report import text
from grokscale.report.view import SweepView, best_trials, curves_of

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
th:first-child,td:first-child,table.words td:nth-child(2),table.words th:nth-child(2){text-align:left}
td.wide,th.wide{white-space:normal;min-width:12rem;text-align:left}th{vertical-align:bottom}
figure{margin:1rem 0;max-width:42rem}figure svg{width:100%;height:auto;display:block}
figcaption{font-size:.9rem;opacity:.85}.note{font-size:.9rem;margin:.3rem 0}
dl{display:grid;grid-template-columns:minmax(6rem,max-content) 1fr;gap:.2rem .9rem}dd{margin:0}dt{font-weight:600}
@media(max-width:30rem){th,td{padding:.25rem .4rem}table{font-size:.85rem}}
"""


def render(store: Store, view: SweepView) -> str:
    """The page of a sweep. Everything that came from a file or a user is escaped."""
    from grokscale.report import figures

    parts = [
        f'<p class="id">{escape(view.sweep_id)}</p><h1>{escape(view.question)}</h1>',
        f'<p class="answer">{escape(text.answer(view))}</p>',
    ]
    if any(arm.spec.get("monitor") == "test" for arm in view.arms):
        parts.append('<p class="warning">monitor = test: search and methods looked at the test split.</p>')
    if view.speedups:
        parts.append(f"<h2>Speed-up over {escape(view.baseline)}</h2>")
        parts.append(_table(text.speedup_header(view), text.speedup_rows(view), "words"))
        parts += [f'<p class="note">{escape(note)}</p>' for note in text.speedup_notes(view)]
    if any(arm.rows for arm in view.arms):
        drawing = figures.svg(
            figures.draw_survival(view), "Share of seeds not yet grokked against the step", "s-"
        )
        parts.append(
            _figure(
                drawing,
                "Share of confirmation seeds that have not grokked yet (Kaplan-Meier, 95 % bands; a "
                "tick at the right end: seeds censored at the horizon or diverged).",
            )
        )
        if view.speedups:
            parts += ["<h2>Beside it, in steps</h2>", _table(*text.beside_table(view))]
        parts += [
            f"<h2>Outcomes by {text.number(view.tau)} steps</h2>",
            _table(*text.outcome_table(view)),
            "<h2>Medians</h2>",
            _table(*text.time_table(view)),
        ]
    if view.arms:
        rows = [[arm.name, text.knobs(arm.params), arm.trial_id] for arm in view.arms]
        parts += ["<h2>Chosen settings</h2>", _table(["arm", "settings", "trial"], rows, wide=1)]
    parts.append(_search(view))
    parts += _accuracy(store, view)
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in text.footer(view))
    parts += ["<h2>Measured under</h2>", f"<dl>{facts}</dl>"]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(view.name)}: {escape(view.question)}</title><style>{figures.colours()}{CSS}</style></head>"
        f"<body><main>{''.join(part for part in parts if part)}</main></body></html>\n"
    )


def _search(view: SweepView) -> str:
    """The best trial of each arm's search, labelled as what it is."""
    rows = []
    for trial in best_trials(view):
        mine = [t for t in view.trials if t["arm"] == trial["arm"] and t["phase"] == "search"]
        ended = sum(t["state"] == "ended" for t in mine)
        rows.append(
            [
                trial["arm"],
                text.number(text.steps_of(trial)),
                str(trial["number"]),
                f"{ended}/{len(mine)}",
                text.knobs(json.loads(trial["params_json"])),
            ]
        )
    if not rows:
        return ""
    head = '<h2>Search (exploratory)</h2><p class="note">The best trial of each arm, on the seeds that chose it.</p>'
    return head + _table(["arm", "steps (geometric mean)", "trial", "ended", "settings"], rows, wide=4)


def _accuracy(store: Store, view: SweepView) -> list[str]:
    from grokscale.report import figures

    parts = []
    for i, arm in enumerate(arm for arm in view.arms if arm.rows):
        curves = curves_of(store, arm.trial_id, [row["seed"] for row in arm.rows])
        if not curves:
            continue
        drawn = figures.draw_curves(curves, arm.name, figures.look(view, arm)[0])
        label = f"Accuracy of {arm.name} against the step"
        parts.append(_figure(figures.svg(drawn, label, f"c{i}-"), f"{arm.name}: a line per seed."))
    return ["<h2>Accuracy</h2>", *parts] if parts else []


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "", wide: int | None = None
) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        marks: Mapping[bool, str] = {True: ' class="wide"', False: ""}
        return (
            "<tr>"
            + "".join(f"<{tag}{marks[i == wide]}>{escape(c)}</{tag}>" for i, c in enumerate(cells))
            + "</tr>"
        )

    body = "".join(row(cells, "td") for cells in rows)
    css = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{css}><thead>{row(header, "th")}</thead><tbody>{body}</tbody></table></div>'
