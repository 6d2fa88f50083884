"""One self-contained HTML page: the answer, the tables, the figures. No script, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from grokscale.report import asked, beside, figures, landscape, origins, text
from grokscale.report.pictures import Picture, pictures
from grokscale.report.view import SweepView
from grokscale.report.words import count, knobs, number

if TYPE_CHECKING:
    from grokscale.store import Store

CSS = """
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;padding:1rem;
max-width:68rem;overflow-wrap:anywhere}h1,p{max-width:60rem}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
.id{opacity:.75;margin:0}.answer{border-left:4px solid var(--a0);padding:.4rem .9rem;font-size:1.1rem}
.warning{border-left:4px solid var(--a1);padding:.4rem .9rem}
.scroll{overflow-x:auto;background:linear-gradient(90deg,var(--paper) 40%,transparent) 0/2rem 100% no-repeat local,
linear-gradient(270deg,var(--paper) 40%,transparent) 100%/2rem 100% no-repeat local,
linear-gradient(90deg,var(--rule),transparent) 0/.7rem 100% no-repeat,
linear-gradient(270deg,var(--rule),transparent) 100%/.7rem 100% no-repeat}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}
th:first-child,td:first-child,th.left,td.left{text-align:left}
td.long{white-space:normal;min-width:10rem}th{vertical-align:bottom}
figure{margin:1rem 0;max-width:42rem}figure svg{width:100%;height:auto;display:block}
figcaption{font-size:.9rem;opacity:.85}.note{font-size:.9rem;margin:.3rem 0}
.exploratory{border-left:4px dashed var(--a1);padding-left:.7rem}
.badge{color:var(--a1);font-weight:700;font-size:.8rem;letter-spacing:.05em}
a{color:var(--a0)}details{margin:.5rem 0}summary{cursor:pointer}
pre{white-space:pre-wrap;font-size:.8rem;border:1px solid var(--rule);padding:.5rem}
dl{display:grid;grid-template-columns:minmax(6rem,max-content) 1fr;gap:.2rem .9rem}
dd{margin:0}dt{font-weight:600}
@media(max-width:30rem){th,td{padding:.25rem .4rem}table{font-size:.85rem}dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:.4rem}}
@page{margin:15mm}
@media print{body{font-size:10pt;max-width:none;padding:0}h1{font-size:16pt}h2{font-size:12pt;break-after:avoid}
.scroll{overflow:visible;background:none}table{font-size:8pt}
th,td{padding:.1rem .3rem;white-space:normal;overflow-wrap:normal}
td.long{min-width:0;overflow-wrap:anywhere}
figure{max-width:125mm}figure,tr,.answer{break-inside:avoid}thead{display:table-header-group}
details::details-content{content-visibility:visible;block-size:auto}summary{list-style:none}a{color:inherit}}
"""
BADGE = '<span class="badge">EXPLORATORY</span> '


def render(store: Store, view: SweepView) -> str:
    """The page of a sweep. Everything that came from a file or a user is escaped."""
    rest = text.without_cells(view)
    drawn = pictures(store, view)
    facts = _list(text.footer(view))
    parts = [
        f'<p class="id">{escape(view.sweep_id)}</p><h1>{escape(view.question or view.name)}</h1>',
        f'<p class="answer">{escape(text.answer(view))}</p>',
        *_warnings(view),
        *_section("Map (exploratory)", _of(drawn, "map")),
        *_confirmed(rest, drawn),
        *_section("Accuracy", _of(drawn, "accuracy")),
        *_search(rest, drawn),
        *_section("Trajectories (exploratory)", _of(drawn, "trajectories")),
        f"<h2>Measured under</h2>{facts}",
        *_configurations(store, view),
        f"<h2>Provenance</h2>{_list(origins.provenance(view))}",
        f"<details><summary>Specification</summary><pre>{escape(origins.specification(view))}</pre></details>",
    ]
    return document(f"{view.name}: {view.question}", parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A page of these parts, which are HTML already; the title is not."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{figures.colours()}{CSS}</style>"
        f"</head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def _warnings(view: SweepView) -> list[str]:
    if not any(arm.spec.get("monitor") == "test" for arm in view.arms):
        return []
    return ['<p class="warning">monitor = test: search and methods saw the test split.</p>']


def _section(title: str, parts: Sequence[str]) -> list[str]:
    """Nothing without parts."""
    return [f"<h2>{escape(title)}</h2>", *parts] if parts else []


def _of(drawn: Sequence[Picture], section: str) -> list[str]:
    return [_figure(one, f"{section[0]}{i}-") for i, one in enumerate(drawn) if one.section == section]


def _confirmed(view: SweepView, drawn: Sequence[Picture]) -> list[str]:
    parts = []
    if view.speedups:
        table = tabled(text.speedup_table(view), left=(1,))
        parts.append(f"<h2>Speed-up over {escape(view.baseline)}</h2>{table}")
        parts += [f'<p class="note">{escape(note)}</p>' for note in text.speedup_notes(view)]
        parts += _of(drawn, "speedups")
    parts += _asked(view)
    if any(arm.rows for arm in view.arms):
        parts += _section("Time to grok", _of(drawn, "survival"))
        if view.speedups:
            parts.append(f"<h2>Beside it, in steps</h2>{tabled(beside.beside_table(view))}")
            if (saved := beside.delay_table(view))[1]:
                parts.append(f"<h2>{escape(text.delay_title(view))}</h2>{tabled(saved)}")
                parts.append('<p class="note">Paired over the seeds where both sides grokked.</p>')
        parts.append(f"<h2>Outcomes by {number(view.tau)} steps</h2>{tabled(beside.outcome_table(view))}")
        parts.append(f"<h2>Medians (Kaplan-Meier)</h2>{tabled(beside.time_table(view))}")
    if view.arms:
        flags = text.edges(view)
        rows = [[arm.name, knobs(view.settings(arm)), flags.get(arm.name, ""), arm.trial_id] for arm in view.arms]
        table = tabled((["arm", "settings", "flags" if flags else "", "trial"], rows), left=(1, 2))
        parts.append(f"<h2>Settings</h2>{table}")
    return parts


def _asked(view: SweepView) -> list[str]:
    """What the experiment asked besides: the practice baseline, endpoints, published values."""
    parts = []
    if over := text.practice_view(view):
        parts.append(f"<h2>Speed-up over {escape(over.baseline)}, in practice</h2>")
        parts.append(tabled(text.speedup_table(over), left=(1,)))
        parts += [f'<p class="note">{escape(note)}</p>' for note in text.censoring_notes(over)]
    if isinstance(view.endpoints, str):
        parts.append(f'<p class="note">Endpoints: not yet. {escape(view.endpoints)}</p>')
    else:
        for baseline in dict.fromkeys(row["baseline"] for row in view.endpoints):
            table = asked.endpoint_table([row for row in view.endpoints if row["baseline"] == baseline])
            parts.append(f"<h2>Endpoints over {escape(baseline)}</h2>{tabled(table, left=(1, 2, 5))}")
            parts.append('<p class="note">Above 0, or above 1x, is better.</p>')
    if view.papers:
        header, rows = asked.paper_table(view.papers)
        lines = [[row["id"], row["source"], *cells[1:]] for row, cells in zip(view.papers, rows, strict=True)]
        table = tabled(([header[0], "source", *header[1:]], lines), left=(1, len(header)))
        parts.append(f"<h2>Published values</h2>{table}")
        parts += [f'<p class="note">{escape(row["id"])}: {escape(row["why"])}</p>' for row in view.papers if row["why"]]
    return parts


def _search(view: SweepView, drawn: Sequence[Picture]) -> list[str]:
    """The best trial of each arm's search and the landscape, labelled as what they are."""
    header, rows = text.search_table(view)
    if not rows:
        return _tuning(view)
    note = f'<p class="note">{BADGE}The best trial of each arm, on the seeds that chose it: no speed-up here.</p>'
    found = _of(drawn, "search")
    more = [f'<p class="note">{BADGE}{escape(landscape.NOTE)}</p>', *found] if found else []
    return [f"<h2>Search (exploratory)</h2>{note}{tabled((header, rows))}", *more, *_tuning(view)]


def _tuning(view: SweepView) -> list[str]:
    """What tuning did: S by the trials that either side may tune with, and which knobs mattered."""
    parts = []
    if (table := text.budget_table(view))[1]:
        said = f"S over {view.baseline} by trials of tuning, on the seeds of the search."
        parts.append(f'<p class="note">{BADGE}{escape(said)}</p>{tabled(table)}')
    if (table := text.importance_table(view))[1]:
        said = "What tells the better half of an arm's trials from all of them, by knob."
        parts.append(f'<p class="note">{BADGE}{said}</p>{tabled(table, left=(1,))}')
    return parts


def _configurations(store: Store, view: SweepView) -> list[str]:
    lines, more = origins.configurations(store, view)
    if not lines:
        return []
    urls = {cells[-1]: url for cells, url in lines if url is not None}
    table = tabled((origins.HEAD, [cells for cells, _ in lines]), left=(3,), urls=[url for _, url in lines])
    left = f'<p class="note">And {more:,} more: grokscale results {escape(view.sweep_id)} --rows trials.</p>'
    said = f"{count(len(lines), 'configuration')}{', each linked to its MLflow run' if urls else ''}"
    parts = [f"<h2>Configurations</h2><details><summary>{said}</summary>{table}{left if more else ''}</details>"]
    if (run := origins.links(store, view.sweep_id).get("")) is not None:
        parts.append(f'<p class="note"><a href="{escape(run)}">The sweep in MLflow</a></p>')
    return parts


def _list(facts: Sequence[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(key)}</dt><dd>{escape(value)}</dd>' for key, value in facts)}</dl>"


def _figure(one: Picture, prefix: str) -> str:
    kind, badge = (' class="exploratory"', BADGE) if one.exploratory else ("", "")
    svg = figures.svg(one.figure, one.label, prefix)
    return f"<figure{kind}>{svg}<figcaption>{badge}{escape(one.caption)}</figcaption></figure>"


def tabled(table: text.Table, left: Sequence[int] = (), urls: Sequence[str | None] = ()) -> str:
    """A table in HTML. left: columns of words, wrapped where they are long.  urls: of each row's last cell."""

    def row(cells: Sequence[str], tag: str, url: str | None = None) -> str:
        out = []
        for i, cell in enumerate(cells):
            kind = "" if i not in left else ' class="left long"' if len(cell) > 30 else ' class="left"'
            inner = escape(cell)
            if url is not None and i == len(cells) - 1:
                inner = f'<a href="{escape(url)}">{inner}</a>'
            out.append(f"<{tag}{kind}>{inner}</{tag}>")
        return f"<tr>{''.join(out)}</tr>"

    header, rows = table
    body = "".join(row(cells, "td", url) for cells, url in zip(rows, urls or [None] * len(rows), strict=True))
    return f'<div class="scroll"><table><thead>{row(header, "th")}</thead><tbody>{body}</tbody></table></div>'
