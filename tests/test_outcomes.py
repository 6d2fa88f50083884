"""Crossings and outcomes at their edges (evaluation.md section 1), and against the slow definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grokscale.outcomes import Crossing, answers, clamp, crossing, finished, judge
from tests import reference as ref


def line(text: str) -> np.ndarray:
    """'..##' -> accuracies below and above every threshold used here."""
    return np.array([1.0 if c == "#" else 0.5 for c in text])


def curve(test: str, *, train: str | None = None, val: str | None = None, every: int = 100) -> dict[str, np.ndarray]:
    """A curve looked at every `every` steps; '#' is above, '.' below."""
    steps = np.arange(1, len(test) + 1) * every
    return {
        "step": steps,
        "train_acc": line(train or "#" * len(test)),
        "val_acc": line(val or test),
        "test_acc": line(test),
    }


def crossed(text: str, every: int = 100) -> tuple[int | None, int | None, int | None]:
    c = crossing(np.arange(1, len(text) + 1) * every, line(text), 0.95)
    return c.first, c.sustained, c.pending


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (None, None, None)),
        (".....", (None, None, None)),
        ("###", (100, 100, None)),
        ("##", (100, None, 100)),  # only two evaluations: not decided
        ("#", (100, None, 100)),
        ("..###", (300, 300, None)),
        ("..##", (300, None, 300)),
        ("..##.", (300, None, None)),  # the third look is below: three are needed even past 1.1 t
        ("..#.###", (300, 500, None)),
        ("..#.##", (300, None, 500)),
        ("#.#.#.", (100, None, None)),
        ("..........###", (1100, 1100, None)),
        ("...............................###", (3200, None, 3200)),  # 3400 < 3520
        ("...............................#####", (3200, 3200, None)),
    ],
)
def test_crossings(text: str, expected: tuple[int | None, int | None, int | None]) -> None:
    assert crossed(text) == expected


def test_a_dip_inside_a_tenth_undoes_a_crossing() -> None:
    """First at 1000, looked at every 10 steps: 1000 to 1100 has to hold."""
    before = "." * 99
    assert crossed(before + "#" * 10 + "." + "#" * 5, every=10) == (1000, None, 1110)
    assert crossed(before + "#" * 10 + "." + "#" * 20, every=10) == (1000, 1110, None)
    assert crossed(before + "#" * 11 + "." + "#" * 20, every=10) == (1000, 1000, None)


@pytest.mark.parametrize("t", [10, 50, 90, 110, 1000, 30_000])
def test_a_tenth_is_counted_in_whole_numbers(t: int) -> None:
    """1.1 * 50 is 55.00000000000001 in floating point; the evaluation at 55 is the last that counts."""
    tenth = t // 10
    steps = np.array([t, t + tenth // 2, t + tenth, t + 2 * tenth])
    assert crossing(steps[:3], np.ones(3), 0.95) == Crossing(t, t, None)
    assert crossing(steps[:2], np.ones(2), 0.95) == Crossing(t, None, t)
    assert crossing(steps, np.array([1, 1, 1, 0]), 0.95) == Crossing(t, t, None)
    assert crossing(steps, np.array([1, 1, 0, 1]), 0.95) == Crossing(t, None, t + 2 * tenth)


def test_what_happens_beyond_a_tenth_does_not_undo() -> None:
    steps = np.array([100, 104, 108, 112, 116])
    assert crossing(steps, np.array([1, 1, 1, 0, 1]), 0.95).sustained == 100
    assert crossing(steps, np.array([1, 1, 0, 1, 1]), 0.95).sustained is None
    assert crossing(steps[:3], np.ones(3), 0.95) == Crossing(100, None, 100)


def test_the_threshold_itself_is_above() -> None:
    steps = np.array([100, 200, 300])
    assert crossing(steps, np.full(3, 95 / 100), 0.95).sustained == 100
    assert crossing(steps, np.full(3, 94.99 / 100), 0.95).first is None
    assert crossing(steps, np.full(3, np.nan), 0.95).first is None


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=40),
    st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_crossing_is_the_slow_definition(gaps: list[int], above: list[bool]) -> None:
    steps = np.cumsum(gaps)
    accuracy = np.array(above[: len(steps)], dtype=float)
    fast = crossing(steps, accuracy, 0.95)
    assert fast.sustained == ref.sustained_crossing(steps.tolist(), accuracy.tolist(), 0.95)
    assert fast.first == next((int(s) for s, a in zip(steps, accuracy, strict=True) if a), None)
    assert (fast.pending is not None) == (fast.sustained is None and bool(accuracy[-1]))


# ------------------------------------------------------------------------------------------------- outcomes


def test_grokked() -> None:
    out = judge(curve("....####", train=".#######", val="...#####"), threshold=0.95, observed_to=800)
    assert out.outcome == "grokked"
    assert (out.fit_step, out.grok_step, out.val_grok_step) == (200, 500, 400)
    assert (out.first_step, out.val_first_step) == (500, 400)
    assert (out.delay, out.comprehended) == (300, False)
    assert (out.stable_step, out.dips, out.dip_min) == (None, None, None), "not watched to 2 x grok_step"
    assert (out.observed_to, out.diverged_step) == (800, None)


def test_memorised_and_unfitted() -> None:
    assert judge(curve("........"), threshold=0.95, observed_to=800).outcome == "memorised"
    assert judge(curve("........", train="......##"), threshold=0.95, observed_to=800).outcome == "unfitted"
    out = judge(curve("..##....", train="........"), threshold=0.95, observed_to=800)
    assert (out.outcome, out.first_step, out.grok_step, out.delay) == ("unfitted", 300, None, None)


def test_without_a_single_evaluation() -> None:
    out = judge(curve(""), threshold=0.95, observed_to=0)
    assert (out.outcome, out.first_step, out.observed_to) == ("unfitted", None, 0)


def test_fit_needs_99_per_cent() -> None:
    c = curve("....") | {"train_acc": np.array([0.98, 0.99, 0.99, 0.99])}
    assert judge(c, threshold=0.95, observed_to=400).fit_step == 200


def test_comprehended_means_no_plateau() -> None:
    out = judge(curve(".####", train=".####"), threshold=0.95, observed_to=500)
    assert (out.delay, out.comprehended) == (0, True)
    sooner = judge(curve(".#####", train="..####"), threshold=0.95, observed_to=600)
    assert (sooner.delay, sooner.comprehended) == (0, True), "grokked before it fitted"
    tenth = judge(curve("." * 10 + "###", train="." * 9 + "####"), threshold=0.95, observed_to=1300)
    assert (tenth.fit_step, tenth.grok_step, tenth.comprehended) == (1000, 1100, True)
    never = judge(curve(".####", train="....."), threshold=0.95, observed_to=500)
    assert (never.outcome, never.delay, never.comprehended) == ("grokked", None, None)


def test_diverged_before_and_after_grokking() -> None:
    before = judge(curve("..##"), threshold=0.95, observed_to=437, diverged_step=437)
    assert (before.outcome, before.grok_step, before.diverged_step) == ("diverged", None, 437)
    assert before.observed_to == 437
    after = judge(curve("..####"), threshold=0.95, observed_to=650, diverged_step=650)
    assert (after.outcome, after.grok_step, after.diverged_step) == ("grokked", 300, 650)
    at_once = judge(curve(""), threshold=0.95, observed_to=1, diverged_step=1)
    assert at_once.outcome == "diverged"


@pytest.mark.parametrize(
    ("text", "stable", "dips", "lowest"),
    [
        ("..####", 300, 0, 1.0),
        ("..###.", None, 1, 0.5),  # below at the very end of the window: not stable within it
        ("..###.#", None, 1, 0.5),  # 700 lies outside the window 300 to 600
        ("...###.#", 800, 1, 0.5),
        ("...###.#.", 800, 1, 0.5),  # so does this dip at 900
        ("....###.#.", None, 2, 0.5),
        ("....###..#", 1000, 1, 0.5),
    ],
)
def test_stability_is_read_in_the_window_up_to_twice_the_grok_step(
    text: str, stable: int | None, dips: int, lowest: float
) -> None:
    out = judge(curve(text), threshold=0.95, observed_to=100 * len(text))
    assert out.grok_step is not None
    assert out.observed_to >= 2 * out.grok_step
    assert (out.stable_step, out.dips, out.dip_min) == (stable, dips, lowest)


# -------------------------------------------------------------------------------------- when a run may stop


def ends_at(text: str, horizon: int, until: str = "decided", **options: Any) -> int:
    """The step at which a run with this curve stops; the curve has to be long enough."""
    whole = curve(text, **options)
    for n in range(1, len(text) + 1):
        part = {k: v[:n] for k, v in whole.items()}
        if finished(part, threshold=0.95, step=n * 100, horizon=horizon, until=until):
            return n * 100
    raise AssertionError("never")


def test_a_run_ends_when_its_crossings_are_decided() -> None:
    assert ends_at("..########", 1000) == 500
    assert ends_at("..########", 1000, val=".....#####") == 800
    assert ends_at("..########", 1000, val="..........") == 1000
    assert ends_at("..........", 1000) == 1000


def test_a_crossing_pending_at_the_horizon_is_watched_until_it_is_decided() -> None:
    assert ends_at("........####", 1000) == 1100  # first at 900, third look at 1100
    assert ends_at("........##..", 1000) == 1100  # it fell back
    assert ends_at(".........###", 1000) == 1200  # exactly at the horizon
    assert ends_at("..........######", 1000) == 1000  # after it: too late
    assert judge(curve(".........###"), threshold=0.95, observed_to=1200).grok_step == 1000


def test_a_crossing_pending_at_the_horizon_needs_at_most_a_tenth_more() -> None:
    steps = np.arange(25, 12_000, 25)
    accuracy = (steps >= 9_990).astype(float)
    whole = {"step": steps, "train_acc": np.ones(len(steps)), "val_acc": accuracy, "test_acc": accuracy}
    for n in range(1, len(steps)):
        part = {k: v[:n] for k, v in whole.items()}
        if finished(part, threshold=0.95, step=int(steps[n - 1]), horizon=10_000, until="decided"):
            assert steps[n - 1] == 11_000
            break


def test_a_confirmed_replica_is_watched_to_twice_its_grok_step() -> None:
    assert ends_at("..########", 1000, "stable") == 600
    assert ends_at("........" + "#" * 20, 1000, "stable") == 1800, "beyond the horizon"
    assert ends_at("..........", 1000, "stable") == 1000
    assert ends_at("..........######", 1000, "stable") == 1000
    assert ends_at(".....#....", 1000, "stable") == 1000


def test_until_the_horizon_nothing_stops_before_it_and_what_groks_late_is_watched_as_long_as_ever() -> None:
    assert ends_at("..########", 1000, "horizon") == 1000
    assert ends_at("........" + "#" * 20, 1000, "horizon") == 1800
    assert ends_at("..........", 1000, "horizon") == 1000


# ------------------------------------------------------------------------------------------- clamp and reuse


def test_clamp() -> None:
    assert clamp(None, 500) == 500.0
    assert clamp(math.nan, 500) == 500.0
    assert clamp(math.inf, 500) == 500.0
    assert clamp(700, 500) == 500.0
    assert clamp(300, 500) == 300.0
    assert clamp(500, 500) == 500.0


@pytest.mark.parametrize(
    ("row", "horizon", "until", "answered"),
    [
        ({"grok_step": 300, "val_grok_step": 300, "observed_to": 400}, 1000, "decided", True),
        ({"grok_step": 300, "val_grok_step": 300, "observed_to": 400}, 1000, "stable", False),
        ({"grok_step": 300, "val_grok_step": 300, "observed_to": 600}, 1000, "stable", True),
        ({"grok_step": 300, "val_grok_step": None, "observed_to": 400}, 1000, "decided", False),
        ({"grok_step": 300, "val_grok_step": None, "observed_to": 1000}, 1000, "decided", True),
        ({"outcome": "memorised", "observed_to": 1000}, 1000, "decided", True),
        ({"outcome": "memorised", "observed_to": 1000}, 1001, "decided", False),
        ({"outcome": "memorised", "observed_to": 1000}, 500, "stable", True),
        ({"grok_step": 800, "val_grok_step": 800, "observed_to": 900}, 500, "stable", True),
        ({"outcome": "diverged", "diverged_step": 40, "observed_to": 40}, 1000, "decided", True),
        ({"outcome": "diverged", "diverged_step": 40, "observed_to": 40}, 1000, "horizon", True),
        ({"grok_step": 300, "val_grok_step": 300, "observed_to": 600}, 1000, "horizon", False),
        ({"grok_step": 300, "val_grok_step": 300, "observed_to": 1000}, 1000, "horizon", True),
        ({"grok_step": 800, "val_grok_step": 800, "observed_to": 1000}, 1000, "horizon", False),
        ({"grok_step": 800, "val_grok_step": 800, "observed_to": 1600}, 1000, "horizon", True),
    ],
)
def test_what_a_stored_row_answers(row: dict[str, Any], horizon: int, until: str, answered: bool) -> None:
    defaults = {"outcome": "grokked", "grok_step": None, "val_grok_step": None, "diverged_step": None}
    assert answers({**defaults, **row}, horizon, until) is answered
