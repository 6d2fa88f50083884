"""Every S with an interval that README and FINDINGS print is one that the committed rows give.

That it is the one which the sentence means a reader has to see: what is found here are numbers that no rows give, or
no longer.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from grokscale import stats
from grokscale.answers.compare import clocks_of, times
from grokscale.answers.sides import Side, newest_plan, side
from grokscale.errors import GrokscaleError
from grokscale.store import Store

ROOT = Path(__file__).parent.parent
KEPT = Store(ROOT / "experiments/results")
NUMBER = r"(\d[\d,]*(?:\.\d+)?)"
PRINTED = re.compile(rf"{NUMBER},? \(?{NUMBER} to {NUMBER}")
MANY = 14  # arms of a map: these are compared with its baseline alone
ROUNDED = 0.51  # units of the last digit
NOT_KEPT = {  # said there to be of a sweep whose rows are not here
    "experiments/FINDINGS.md": ["9.3 (7.5 to 11.5", "6.2 (4.6 to 8.5", "3.99 (3.46 to 4.61"],
    "README.md": [],
}
Interval = tuple[float, float, float]


def of_sweep(sweep_id: str) -> Iterator[Interval]:
    """S of every arm over every other on all clocks, of sustained and of first crossings."""
    if (plan := newest_plan(KEPT, sweep_id)) is None:
        return
    sides: list[Side] = []
    for name in json.loads(plan["winners_json"]):
        with suppress(GrokscaleError):  # an arm that has not been run
            sides.append(side(KEPT, sweep_id, name, plan))
    timings = KEPT.rows("timings", trial_id=[one.trial_id for one in sides])
    baseline = KEPT.rows("sweeps", sweep_id=sweep_id)[0]["baseline"]
    for base, arm in itertools.permutations(sides, 2):
        if len(sides) > MANY and baseline not in (base.arm, arm.arm):
            continue
        for event in ("grok_step", "first_step"):
            x, y = (stats.clamped(times(one, event), one.tau)[0] for one in (base, arm))
            for of_base, of_arm in clocks_of(base, arm, timings).values():
                log = stats.mean_interval(np.log(of_base(x)) - np.log(of_arm(y)))
                yield float(np.exp(log.value)), float(np.exp(log.lo)), float(np.exp(log.hi))


@pytest.fixture(scope="module")
def given() -> np.ndarray:
    """(n, 3) every interval: S, and the endpoints that sweeps stored."""
    found = [interval for sweep_id in KEPT.sweeps() for interval in of_sweep(sweep_id)]
    found += [(row["value"], row["lo"], row["hi"]) for row in KEPT.rows("endpoints")]
    return np.array(found, dtype=float)


def unit(text: str) -> float:
    """Of the last digit that is printed."""
    return 10.0 ** -len(text.partition(".")[2])


@pytest.mark.parametrize("name", NOT_KEPT)
def test_a_printed_interval_is_one_of_the_rows(name: str, given: np.ndarray) -> None:
    text = " ".join((ROOT / name).read_text().split())
    printed, lost = list(PRINTED.finditer(text)), []
    assert len(printed) > 30
    for one in printed:
        wanted = np.array([float(part.replace(",", "")) for part in one.groups()])
        slack = ROUNDED * np.array([unit(part) for part in one.groups()])
        if not (np.abs(given - wanted) <= slack).all(axis=1).any():
            lost.append(one.group())
    assert lost == NOT_KEPT[name]
