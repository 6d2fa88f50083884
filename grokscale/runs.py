"""What runs in MLflow are called, tagged and described by, so that a list of them reads like a table of results."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grokscale import stats
from grokscale.report import SweepView, text
from grokscale.report.view import OUTCOMES, outcome_by
from grokscale.report.words import factor

Row = Mapping[str, Any]
NAME = 180  # characters of a run's name; MLflow takes 250
NOTE = 7500  # characters of a description; MLflow takes 8000
COLUMNS = 12  # of knobs in a list of runs
DONE_AS = {"confirm": " (confirmed)", "race": " (race, exploratory)", "search": " (exploratory)"}


def compact(value: Any) -> str:
    """A setting in few letters: 0.7, 1e-4, 0.0416, 2.5e-6, true."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.2e}"
    digits, e, power = short.partition("e")
    if not e:
        return digits
    return f"{digits.rstrip('0').rstrip('.') if '.' in digits else digits}e{int(power)}"


def setting(arm: str, params: Mapping[str, Any]) -> str:
    """ "egd lr=0.7 wd=1e-4": the shared settings first."""
    return " ".join([arm, *(f"{key}={compact(params[key])}" for key in by_rank(params))])


def by_rank(knobs: Iterable[str]) -> list[str]:
    """Knobs in the order in which people look for them."""
    rank = {"lr": 0, "wd": 1}
    return sorted(knobs, key=lambda key: (rank.get(key, 2), key))


def name(row: Row, replicas: Sequence[Row] = ()) -> str:
    """ "egd lr=0.7 wd=1e-4: 5/5 grokked, 1044 steps (confirmed)" of a row of `trials`; before its end the settings.

    The steps are Kaplan-Meier's median by the cap. Without one the name says how long was watched.
    """
    said = setting(row["arm"], json.loads(row["params_json"]))
    end = phase = ""
    if row["state"] == "failed":
        end = ": failed"
    elif row["state"] == "ended" and replicas:
        phase = DONE_AS.get(row["phase"], "")
        cap = row["cap"]
        times = [_by(r["grok_step"], cap) for r in replicas]
        there = [time < math.inf for time in times]
        middle = stats.median([min(time, cap) for time in times], there)
        by = f" by {cap}" if middle is None else f", {middle:.0f} steps"
        end = f": {sum(there)}/{len(times)} grokked{by}"
    room = NAME - len(end) - len(phase)
    return f"{said if len(said) <= room else said[: room - 1] + '…'}{end}{phase}"


def outcome(row: Row, replicas: Sequence[Row]) -> str:
    """One word to filter by: grokked where every seed did, partly where some did, else how most of them ended."""
    if row["state"] == "failed" or not replicas:
        return row["state"]
    ended = [outcome_by(r, row["cap"]) for r in replicas]
    if "grokked" in ended:
        return "grokked" if set(ended) == {"grokked"} else "partly"
    return max(OUTCOMES, key=lambda one: (ended.count(one), one))


def tags(row: Row, replicas: Sequence[Row]) -> dict[str, str]:
    """method, task and outcome of a trial; what its request says (arm, phase, number) is tagged from the start."""
    found = {"outcome": outcome(row, replicas)}
    return found if not replicas else {**found, "method": replicas[0]["method"], "task": replicas[0]["task"]}


def params(row: Row) -> dict[str, str]:
    """The knobs that were searched, six digits of each: enough to tell any two apart, and to type again."""
    found = json.loads(row["params_json"])
    return {key: f"{v:.6g}" if isinstance(v, float) else _word(v) for key, v in found.items()}


def metrics(row: Row, replicas: Sequence[Row]) -> dict[str, float]:
    """What is worth a chart by plain names, which MLflow puts first; the rest under detail/.

    The first is the one that a comparison of runs opens with.
    """
    cap = row["cap"]
    times = [time for r in replicas if (time := _by(r["grok_step"], cap)) < math.inf]
    found: dict[str, float | None] = {
        "median_grok_step": stats.median(times, [True] * len(times)) if times else None,
        "grokked": len(times) / len(replicas) if replicas else None,
        "detail/seeds": len(replicas), "detail/grokked_seeds": len(times), "detail/cap": cap,
        "detail/objective": row["value"],
    }  # fmt: skip
    return {key: float(value) for key, value in found.items() if value is not None}


def headline(view: SweepView) -> str:
    """Name of a sweep's run: its id and the answer in some words."""
    return f"{view.sweep_id}: {text.answer(view).partition(': ')[0]}"[:NAME]


def note(view: SweepView) -> str:
    """Description of a sweep's run in Markdown: question, answer, speed-ups as a table, the whole text below."""
    parts = [f"### {markdown(view.question or view.name)}", f"**{markdown(text.answer(view))}**"]
    if view.speedups:
        header, rows = text.speedup_table(view)
        lines = [header, ["---"] * len(header), *rows]
        parts.append("\n".join(f"| {' | '.join(markdown(cell) for cell in line)} |" for line in lines))
    whole = "\n\n".join(parts)[:NOTE]
    body = text.render(view).replace("```", "'''")[: max(0, NOTE - len(whole) - 10)]
    return f"{whole}\n\n```\n{body}\n```" if body else whole


def answers(view: SweepView) -> dict[str, float]:
    """S of every arm in steps and seconds by plain names, the intervals and other clocks under detail/."""
    found, rest = {}, {}
    for row in view.speedups:
        plain = f"S.{row['arm']}.{row['clock']}"
        if row["clock"] in ("steps", "seconds"):
            found[plain] = row["s"]
        else:
            rest[f"detail/{plain}"] = row["s"]
        rest |= {f"detail/{plain}.{end}": row[end] for end in ("lo", "hi")}
    return {key: value for key, value in {**found, **rest}.items() if math.isfinite(value)}


def summary(view: SweepView) -> dict[str, str]:
    """Tags of a sweep's run: how many arms, what groks soonest and by how much, while there is an answer."""
    rows = [row for row in text.of_clock(view, "steps") if text.sound(row) and row["lo"] > 1]
    best = f"{rows[0]['arm']} {factor(rows[0]['s'], rows[0]['bound'])}x" if rows else "none shown"
    return {"baseline": view.baseline, "outcome": best} if view.speedups else {"baseline": view.baseline}


def columns(trials: Sequence[Row]) -> list[str]:
    """What a list of the trials' runs shows beside their names, in MLflow's words: outcome, phase, results, knobs."""
    knobs = {key for row in trials for key in json.loads(row["params_json"])}
    return [
        *(f"tags.`{key}`" for key in ("outcome", "phase")),
        *(f"metrics.`{key}`" for key in ("grokked", "median_grok_step")),
        *(f"params.`{key}`" for key in by_rank(knobs)[:COLUMNS]),
    ]


def view(sweep_id: str) -> str:
    """Key of the view that shows the runs of one sweep: those of a name share a list."""
    return f"grokscale-{sweep_id}"


def view_state(trials: Sequence[Row]) -> str:
    """The state of MLflow's list of runs that shows `columns`, as its pages keep one.

    A page of another version, which knows no such state, shows its usual list.
    """
    sweep_id = trials[0]["sweep_id"] if trials else ""
    state = {"selectedColumns": columns(trials), "searchFilter": f"tags.sweep_id = '{sweep_id}'"}
    return f"deflate;{base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()}"


def _by(step: float | None, cap: float) -> float:
    return math.inf if step is None or step > cap else float(step)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def markdown(said: str) -> str:
    """Text that Markdown leaves as it is."""
    escaped = re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", " ".join(said.split()))
    return escaped.replace("<", "&lt;")
