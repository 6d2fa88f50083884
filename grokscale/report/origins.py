"""Where the numbers come from: every configuration with its MLflow run, and what made and measured it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from grokscale.report.view import NEVER, OUTCOMES, Row, SweepView, outcome_by
from grokscale.report.words import count, knobs, listing, number

if TYPE_CHECKING:
    from grokscale.store import Store

LINKS = "mlflow.json"  # beside the sweep's log: which run of which server mirrors a trial
MOST = 400  # rows of the table of configurations
PHASES = ("confirm", "race", "search")
HEAD = ["arm", "phase", "no.", "settings", "seeds", "outcome", "grok step", "trial"]

Configurations = list[tuple[list[str], str | None]]


def links(store: Store, sweep_id: str) -> dict[str, str]:
    """ "arm/phase/number/trial_id" -> address of its MLflow run, and "" -> that of the sweep; {} where there is none.

    Written by the mirror for a tracking server on http(s) only: a database has no address.
    """
    if store.local is None:
        return {}
    path = store.local / "sweeps" / sweep_id / LINKS
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # not tracked, or cut off while it was written: no links
        return {}
    return {key: url for key, url in found.items() if str(url).startswith(("http://", "https://"))}


def key_of(trial: Row) -> str:
    """What names a trial's run in `links`."""
    return "/".join(str(trial[name]) for name in ("arm", "phase", "number", "trial_id"))


def configurations(store: Store, view: SweepView) -> tuple[Configurations, int]:
    """A line per trial, the confirmed first: its cells and the address of its run; and how many lines are left out.

    The grok step is the geometric mean over its seeds, each at most tau (confirmed) or the horizon: on test for
    those confirmed, on validation for what the search told.
    """
    found = links(store, view.sweep_id)
    place = {name: i for i, name in enumerate(view.order())}
    order = sorted(
        (t for t in view.trials if t["phase"] in PHASES),
        key=lambda t: (PHASES.index(t["phase"]), place.get(t["arm"], len(place)), t["number"]),
    )
    shown = order[:MOST]
    known = store.answered({trial["trial_id"] for trial in shown}) if shown else {}
    lines: Configurations = []
    for trial in shown:
        rows = [row for seed in trial["seeds"] if (row := known.get((trial["trial_id"], seed))) is not None]
        params = json.loads(trial["params_json"])
        if trial["phase"] == "confirm" and rows:
            params = {**json.loads(rows[0]["params_json"]), **params}
        lines.append(([
            trial["arm"], trial["phase"], str(trial["number"]), knobs(params), str(len(trial["seeds"])),
            _outcome(trial, rows, view), _steps(trial, rows, view), trial["trial_id"],
        ], found.get(key_of(trial))))  # fmt: skip
    return lines, len(order) - len(shown)


def _outcome(trial: Row, rows: Sequence[Row], view: SweepView) -> str:
    if trial["state"] != "ended":
        return trial["state"]
    tau = view.tau if trial["phase"] == "confirm" else trial["cap"]
    ended = [outcome_by(row, tau) for row in rows]
    return ", ".join(f"{ended.count(name)} {name}" for name in OUTCOMES if name in ended) or "-"


def _steps(trial: Row, rows: Sequence[Row], view: SweepView) -> str:
    if trial["phase"] == "confirm" and rows and trial["state"] == "ended":
        grok = [row["grok_step"] if row["grok_step"] is not None else NEVER for row in rows]
        logs = [math.log(max(1.0, min(float(step), view.tau))) for step in grok]
        return number(math.exp(sum(logs) / len(logs)))
    return "-" if trial["value"] is None else number(math.exp(trial["value"]))


def provenance(view: SweepView) -> list[tuple[str, str]]:
    """(what, text): commit, versions, device, numerics and the commands, from the confirmed replicas."""
    rows = [row for arm in view.arms for row in arm.rows]
    facts = [("sweep", view.sweep_id)]
    if rows:
        facts += [
            ("commit", _several(row["git_sha"] or "not a checkout" for row in rows)),
            ("grokscale", _several(row["version"] for row in rows)),
            ("torch", _several(row["torch"] for row in rows)),
            ("device", _several(f"{row['device']}, {row['precision']}" for row in rows)),
            ("numerics", _several(row["numerics"] for row in rows)),
            ("machine", _several(row["host"] for row in rows)),
            ("training", f"{sum(row['wall_s'] for row in rows):,.0f} s of the confirmed packs, "
                         f"{count(len(rows), 'replica')}"),
        ]  # fmt: skip
        days = sorted({row["at"].date().isoformat() for row in rows})
        facts.append(("dates", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"))
    facts += [
        ("run it", f"grokscale sweep {view.name}.json, with the specification below as {view.name}.json"),
        ("this page", f"grokscale report {view.sweep_id}"),
    ]
    return facts


def specification(view: SweepView) -> str:
    """The experiment as the store has it, as JSON that `grokscale sweep` reads."""
    return json.dumps(_without_nothing(view.experiment), indent=1, ensure_ascii=False, sort_keys=False)


def _without_nothing(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nothing(one) for key, one in value.items() if one is not None and one != {}}
    if isinstance(value, list):
        return [_without_nothing(one) for one in value]
    return value


def _several(values: Any) -> str:
    return listing(sorted(set(values)))
