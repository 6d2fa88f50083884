"""Every published value of a folder of experiments beside what was measured: a row per [[paper]] table.

The folder's `scoreboard.toml` gives the order: [[section]] tables with a title and the names of files. Files with
[[paper]] tables that it does not name come last.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokscale import answers
from grokscale.answers.sides import newest_plan, side
from grokscale.errors import InputError
from grokscale.report.words import factor, number, plain, ratio, retained
from grokscale.stats.published import VERDICTS

if TYPE_CHECKING:
    from grokscale.store import Store

ORDER, REST = "scoreboard.toml", "Further"
COST = re.compile(r"^# Cost.*; (?P<cost>[^;\n]+) on two cores\b", re.MULTILINE)
COLUMNS = {  # of the Parquet file
    **dict.fromkeys(["section", "file", "id", "claim", "source", "clock", "endpoint", "arm", "against"], "string"),
    **dict.fromkeys(["value", "claimed", "threshold"], "float64"), "m": "int64", "unit": "int64",
    **dict.fromkeys(["median", "percentile", "lo", "hi", "s", "s_lo", "s_hi", "s_claimed", "retained"], "float64"),
    "n": "int64", "censored": "int64",
    "bound": "string", "censored_arm": "int64", "censored_base": "int64", "horizon": "float64", "s_half": "float64",
    **dict.fromkeys(["verdict", "why", "cost", "sweep_id", "settings", "device"], "string"),
    **dict.fromkeys(["numerics", "date", "git_sha"], "string"),
}  # fmt: skip
HEAD = ["published", "arm", "paper", "our median", "n", "percentile", "95 % prediction", "speed-up", "verdict", "ran"]
ALIGN = "<<>>>>><<<"


def rows(store: Store, folder: Path) -> list[dict[str, Any]]:
    """A row per [[paper]] table of the folder's files, in the order of the board; its columns are COLUMNS.

    value: as printed.  unit: steps of one of its units (of an epoch, else 1); claimed, median, lo, hi are in steps of
    the clock.  cost: of the whole file, as it states it.  settings: the arm's trial as JSON.  device, numerics, date,
    git_sha: of its replicas.
    The rest as in `answers.verdicts`. A file that no sweep in the store has asked gives rows that are not run.
    Raises InputError for a file that cannot be read and for an order that names one that is not there.
    """
    from grokscale.spec import load

    found = []
    for section, path in _ordered(folder):
        x = load(path)
        if not x.paper:
            continue
        tables = [one.model_dump(exclude_none=True) for one in x.paper]
        cost = COST.search(path.read_text())
        about = {"section": section, "file": path.stem, "cost": cost["cost"] if cost else None}
        try:
            judged = answers.verdicts(store, x.name, tables)
        except InputError:  # no sweep of that name
            judged = [_not_run(table, x.baseline) for table in tables]
        for table, row in zip(tables, judged, strict=True):
            unit = table.get("steps_per_epoch") or 1
            whole = {**about, "value": table["value"], "unit": unit, **row, **_origin(store, row)}
            found.append({name: whole.get(name) for name in COLUMNS})
    return found


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The board as a page of Markdown: what it says in one line, then a table per section."""
    counts = Counter(row["verdict"] for row in found)
    run = len(found) - counts["not run"]
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS[:-1] if counts[verdict])
    lines = [
        "# Published against measured", "",
        f"{len(found)} published values, {run} of them run{': ' + told if told else ''}. Written by",
        "`grokscale report --scoreboard` from [results](results); a verdict is that of",
        "[evaluation.md](../docs/evaluation.md), section 5: could the published value be one more of our runs?",
        "Times are first crossings, in the paper's clock; the prediction interval is that of one more run. Speed-up:",
        "ours on sustained crossings with its 95 % interval, of other endpoints how many times better they are; the",
        "paper's, and the share of its logarithm that is left. Seeds that never crossed, or never for good, count",
        "with the horizon: `>=` where they are the other arm's alone, `<=` where they are the arm's, `2/5 never` where",
        "two of the arm's are and five of the other's.", "",
        *_table(["section", "published", "run", *VERDICTS[:-1]], "<" + ">" * (len(VERDICTS) + 1), _sums(found)),
    ]  # fmt: skip
    for section in dict.fromkeys(row["section"] for row in found):
        mine = [row for row in found if row["section"] == section]
        lines += ["", f"## {section}", "", *_table(HEAD, ALIGN, map(_cells, mine)), *_notes(mine)]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], align: str, cells: Iterable[Sequence[str]]) -> Iterator[str]:
    rule = [{"<": ":--", ">": "--:"}[side] for side in align]
    return ("| " + " | ".join(line) + " |" for line in (head, rule, *cells))


def _sums(found: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """How many rows of a section are run, and what became of them."""
    for section in dict.fromkeys(row["section"] for row in found):
        counts = Counter(row["verdict"] for row in found if row["section"] == section)
        told = [counts.total(), counts.total() - counts["not run"], *(counts[verdict] for verdict in VERDICTS[:-1])]
        yield [section, *(str(count) if count else "-" for count in told)]


def _cells(row: Mapping[str, Any]) -> list[str]:
    def show(value: float | None) -> str:
        if value is None:
            return "-"
        if row["claim"] in ("speedup", "ratio"):
            return f"{ratio(value, 2)}x"
        if row["claim"] == "endpoint":
            return plain(value)
        printed = value / row["unit"]
        return number(printed) if printed >= 100 else ratio(printed, 2)

    lo, hi = row["lo"], row["hi"]
    wide = lo is None or not lo
    return [
        f"[{row['file']}]({row['file']}.toml) {row['id']}",
        row["arm"] + (f" over {row['against']}" if row["against"] else ""),
        f"{show(row['claimed'])} {row['endpoint'] or (row['clock'] if row['claim'] == 'time' else '')}".strip(),
        show(row["median"]) + (f" ({row['censored']} never)" if row["censored"] else ""),
        str(row["n"]),
        "-" if row["percentile"] is None else f"{row['percentile']:.0f}",
        "-" if wide else f"{show(lo)} to {show(hi)}",
        _speedup(row),
        f"**{row['verdict']}**",
        _ran(row),
    ]


def _speedup(row: Mapping[str, Any]) -> str:
    if row["s"] is None:
        return "-"
    never = f"; {row['censored_arm']}/{row['censored_base']} never" if _both_never(row) else ""
    ours = f"{factor(row['s'], row['bound'])}x ({ratio(row['s_lo'], 2)} to {ratio(row['s_hi'], 2)}{never})"
    if row["s_claimed"] is None:
        return ours
    kept = "" if row["retained"] is None else f", {retained(row)}"
    return f"{ours}; {ratio(row['s_claimed'], 2)}x{kept}"


def _both_never(row: Mapping[str, Any]) -> bool:
    return bool(row["censored_arm"] and row["censored_base"])


def _ran(row: Mapping[str, Any]) -> str:
    if row["verdict"] == "not run":
        return f"costs {row['cost']}" if row["cost"] else "-"
    return f"{row['date']}, {row['numerics']}, {row['git_sha'] or 'no git'}"


def _notes(mine: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why rows were not answered though their sweep ran, and what stands beside S where both sides are censored."""
    told = [f"- {row['id']}: {row['why']}" for row in mine if row["why"] and row["sweep_id"]]
    told += [
        f"- {row['file']} {row['id']}: {row['censored_arm']} of its seeds and {row['censored_base']} of the other "
        f"arm's did not grok for good by step {number(row['horizon'])}; at half of that S is {ratio(row['s_half'], 2)}"
        for row in mine if _both_never(row)
    ]  # fmt: skip
    return ["", *dict.fromkeys(told)] if told else []


def _ordered(folder: Path) -> Iterator[tuple[str, Path]]:
    files = {path.stem: path for path in sorted(folder.glob("*.toml")) if path.name != ORDER}
    order = folder / ORDER
    try:
        sections = tomllib.loads(order.read_text())["section"] if order.exists() else []
        named = [(section["title"], name) for section in sections for name in section["files"]]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{order}: wants [[section]] tables with a title and files: {error}") from None
    if missing := [name for _, name in named if name not in files]:
        raise InputError(f"{order}: no such file in {folder}: {', '.join(missing)}")
    last = [(REST, name) for name in files if name not in {name for _, name in named}]
    for title, name in named + last:
        yield title, files[name]


def _not_run(paper: Mapping[str, Any], baseline: str) -> dict[str, Any]:
    against = paper.get("against") or (baseline if paper["claim"] in ("speedup", "ratio") else None)
    claimed = paper["value"] * (paper.get("steps_per_epoch") or 1)
    return {**paper, "against": against, "claimed": claimed, "n": 0, "censored": 0, "verdict": "not run"}


def _origin(store: Store, row: Mapping[str, Any]) -> dict[str, Any]:
    """Where and when the arm's confirmed replicas were trained, and by which code."""
    if not row["n"]:
        return {}
    plan = newest_plan(store, row["sweep_id"])
    assert plan is not None, "what was judged was confirmed"
    replicas = side(store, row["sweep_id"], row["arm"], plan).rows
    return {
        "settings": "\n".join(sorted({one["spec_json"] for one in replicas})),
        "device": ", ".join(sorted({one["device"] for one in replicas})),
        "numerics": ", ".join(sorted({one["numerics"] for one in replicas})),
        "date": str(max(one["at"] for one in replicas).date()),
        "git_sha": ", ".join(sorted({one["git_sha"][:7] for one in replicas if one["git_sha"]})) or None,
    }
