"""What stands beside S: the delay that an arm saves, and seconds that charge a method only while it is on."""

from __future__ import annotations

from pathlib import Path

import pytest
import scipy.stats

from grokscale import report
from grokscale.report import beside, view
from grokscale.store import Store
from tests import synthetic
from tests.synthetic import NEVER

# Of eight seeds: the baseline loses the first, the arm the second, so six pairs are left.
BASE = [NEVER, 5000.0, 4000.0, 6000.0, 5500.0, 7000.0, 4500.0, 6500.0]
ARM = [2000.0, NEVER, 1900.0, 2500.0, 1200.0, 3000.0, 2200.0, 1800.0]
FIT = 1300


def lines(store: Store) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in beside.delay_table(view.collect(store))[1]}


def test_the_delay_saved_is_the_paired_difference_where_both_grokked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    synthetic.confirmed(store, times={"plain": BASE, "swift": ARM})
    left, right = ([max(0, t - FIT) for t in side[2:]] for side in (BASE, ARM))  # 1,200 is before it fits: no delay
    theirs = scipy.stats.ttest_rel(left, right)
    ends = theirs.confidence_interval()
    saved = sum(a - b for a, b in zip(left, right, strict=True)) / 6
    assert lines(store)["swift"] == [f"{saved:,.0f}", f"{ends.low:,.0f} to {ends.high:,.0f}", "6 of 8"]
    head = "Delay from fitting to grokking, saved over plain"
    assert f"{head}, where both of a pair grokked\n" in report.results_text(store)
    assert f"<h2>{head}</h2>" in report.html(store)


def test_a_delay_is_censored_at_what_was_left_of_the_horizon(tmp_path: Path) -> None:
    """Of eight seeds three wait 3,700 steps for grokking and five to the end of the horizon, which is later."""
    store, left = Store(tmp_path), synthetic.TAU - FIT
    synthetic.confirmed(store, times={"plain": [5000.0] * 3 + [NEVER] * 5, "swift": [5000.0] * 4 + [NEVER] * 4})
    table = {row[0]: row[1:4] for row in beside.time_table(view.collect(store))[1]}
    assert table["plain"] == [f"> {synthetic.TAU:,}", "1,300", f"> {left:,}"]
    assert table["swift"] == ["5,000", "1,300", "3,700"]


def test_what_nothing_grokked_on_has_no_s_on_any_clock(tmp_path: Path) -> None:
    """The ratio of the horizons in seconds would read as a speed-up."""
    store = Store(tmp_path)
    synthetic.confirmed(store, times={"plain": [NEVER] * 8, "swift": [NEVER] * 8})
    said = report.results_text(store).partition("Speed-up over plain")[2].partition("\n\n")[0]
    lines = [" ".join(line.split()) for line in said.splitlines()]
    at = next(i for i, line in enumerate(lines) if line.startswith("swift"))
    assert lines[at : at + 2] == ["swift neither groks - - 8 8/8 -", "neither groks - - 8 8/8 -"]
    assert "swift: 8 of its seeds and 8 of the baseline's did not grok by 16,384." in " ".join(lines)
    texts = [one.get_text() for one in report.speedup_figure(store).axes[0].texts]
    assert texts.count("neither groks") == 2


def test_one_pair_has_a_difference_and_no_interval_and_no_pair_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    synthetic.confirmed(store, times={"plain": [5000.0] + [NEVER] * 7, "swift": [2000.0] + [NEVER] * 7,
                                      "shaky": [NEVER] * 8})  # fmt: skip
    assert lines(store) == {"swift": ["3,000", "-", "1 of 8"]}


def test_an_aa_check_has_no_pairs_to_save_a_delay_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    synthetic.twins(store)
    assert lines(store) == {} and "Delay from fitting" not in report.results_text(store)


def test_time_to_grok_charges_a_method_while_it_is_on(tmp_path: Path) -> None:
    """On for 1,000 of 2,000 steps: 1,000 at 0.6 ms and 1,000 at 0.2 ms, where all of them at 0.6 ms would be 1.2 s."""
    store = Store(tmp_path)
    synthetic.confirmed(store, times={"swift": [2000.0] * 8}, active_steps=1000, timed=False)
    about = {"device": "cpu", "threads": 1, "torch": "2.13", "host": "here", "seconds_on": 6e-4}
    store.append("timings", [{**about, "trial_id": synthetic.trial_id("swift"), "seconds_off": 2e-4}])
    shown = view.collect(store)
    assert shown.arm("swift").seconds(shown.tau).tolist() == pytest.approx([0.8] * 8)
    table = {row[0]: row[-2:] for row in beside.time_table(shown)[1]}
    assert table["swift"] == ["0.6 ms", "0.8 s"] and table["plain"] == ["-", "-"]
