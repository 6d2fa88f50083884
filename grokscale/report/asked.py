"""What an experiment asked besides grok steps, as tables: endpoints of other metrics, published values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grokscale import answers
from grokscale.answers.curves import summary
from grokscale.errors import GrokscaleError
from grokscale.report.words import grid, number, plain, ratio, retained, short

if TYPE_CHECKING:
    from grokscale.store import Store

NARROW = 16  # of two names in one line
Rows = Sequence[Mapping[str, Any]]
Table = tuple[list[str], list[list[str]]]


def endpoints(store: Store, sweep_id: str) -> Rows | str:
    """The rows of `answers.endpoints`, or why there are none to be had."""
    try:
        return answers.endpoints(store, sweep_id)
    except GrokscaleError as error:  # a report of a sweep under way stands without them
        return str(error)


def endpoint_table(rows: Rows) -> Table:
    """A line per endpoint and arm: means of both sides, and the difference or ratio with its interval."""
    cells = [
        [short(row["endpoint"], NARROW), row["metric"], short(row["arm"], NARROW), plain(row["mine"]),
         plain(row["base"]), summary(row)]
        for row in rows
    ]  # fmt: skip
    return ["endpoint", "metric", "arm", "mean", "over", "95 % interval"], cells


def paper_table(rows: Rows) -> Table:
    """A line per published value: ours with its prediction interval, the percentile and the verdict."""
    cells = []
    for row in rows:
        show = number if row["claim"] == "time" and row["claimed"] >= 100 else (lambda value: ratio(value, 2))
        if row["claim"] == "endpoint":
            show = plain
        lo, hi = row["lo"], row["hi"]
        ours = "-" if row["median"] is None else show(row["median"])
        interval = "-" if lo is None or lo == 0 else f"{show(lo)} to {show(hi)}"
        rank = "-" if row["percentile"] is None else f"{row['percentile']:.0f}"
        kept = "" if row["retained"] is None else f", retained {retained(row)}"
        shown = [show(row["claimed"]), ours, str(row["n"]), interval, rank, row["verdict"] + kept]
        cells.append([short(row["id"]), *shown])
    return ["published", "paper", "our median", "n", "95 % prediction", "percentile", "verdict"], cells


def blocks(rows: Rows | str, papers: Rows) -> list[str]:
    """The tables as text, those that have a row."""
    found = []
    if isinstance(rows, str):
        found.append(f"Endpoints: not yet. {rows}")
    else:
        for baseline in dict.fromkeys(row["baseline"] for row in rows):
            table = endpoint_table([row for row in rows if row["baseline"] == baseline])
            head = f"Endpoints over {baseline}, confirmed; above 0, or above 1x, is better"
            found.append(f"{head}\n{grid(*table, '<<<>><')}")
    if papers:
        why = [f"{short(row['id'])}: {row['why']}" for row in papers if row["why"]]
        found.append("\n".join(["Published values\n" + grid(*paper_table(papers), "<>>>>><"), *why]))
    return found
