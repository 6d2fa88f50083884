"""What the text report says of the practice baseline, A/A checks and flags."""

from __future__ import annotations

from html import escape
from pathlib import Path

from grokscale.report import html, results_text
from grokscale.store import Store
from tests import synthetic


def test_the_practice_baseline_has_a_table_and_a_sentence(tmp_path: Path):
    store = Store(tmp_path)
    experiment = {**synthetic.EXPERIMENT, "practice": ["plain", "shaky"]}
    synthetic.confirmed(store, practice="shaky", experiment=experiment)
    text = results_text(store)
    assert "Speed-up over shaky, in practice the best of plain and shaky" in text
    assert "Over shaky, the practice baseline: " in " ".join(text.split())
    table = text.partition("Speed-up over shaky")[2].partition("\n\n")[0].splitlines()[3:]
    arm, bound = [line for line in table if not line.startswith(" ")]
    assert arm.split()[:2] == ["swift", ">="]  # and no other: plain was a candidate
    assert bound == "swift: a lower bound, 2 of the baseline's seeds did not grok by 16,384."
    assert "Speed-up over plain" in html(store) and escape(bound) in html(store)


def test_what_both_sides_lose_stands_beside_s_over_the_practice_baseline_too(tmp_path: Path):
    store = Store(tmp_path)
    times = {"swift": [synthetic.NEVER, *synthetic.grok_steps("swift")[1:]]}
    experiment = {**synthetic.EXPERIMENT, "practice": ["plain", "shaky"]}
    synthetic.confirmed(store, practice="shaky", experiment=experiment, times=times)
    over = results_text(store).partition("Speed-up over shaky")[2].partition("\n\n")[0]
    said = "swift: 1 of its seeds and 2 of the baseline's did not grok by 16,384; at tau/2 S is "
    assert said in " ".join(over.split()) and escape(said) in html(store)


def test_an_aa_check_says_that_it_is_one(tmp_path: Path):
    store = Store(tmp_path)
    synthetic.twins(store)
    text = results_text(store)
    assert "Speed-up over left, confirmed on 4 fresh seeds on either side, unpaired" in text
    words = " ".join(text.split())
    assert "A/A: one method against itself on seeds of its own" in words and "4 unpaired seeds" in words
    outcomes = [line.split()[:3] for line in text.splitlines() if line.startswith(("left ", "right "))]
    assert ["left", "4", "4"] in outcomes and ["right", "4", "4"] in outcomes
    assert "shared out among the arms" in text


def test_endpoints_and_published_values_have_tables(tmp_path: Path):
    store = Store(tmp_path)
    named = [{"name": "final", "metric": "test_acc", "margin": 0.005},
             {"name": "to-half", "kind": "time_to", "metric": "test_acc", "threshold": 0.6}]  # fmt: skip
    papers = [{"id": "table-1", "claim": "time", "value": 1400, "arm": "swift", "source": "x"},
              {"id": "table-2", "claim": "speedup", "value": 40, "arm": "swift", "source": "x"},
              {"id": "table-3", "claim": "time", "value": 9, "arm": "gone", "source": "x"}]  # fmt: skip
    synthetic.confirmed(store, experiment={**synthetic.EXPERIMENT, "endpoint": named, "paper": papers})
    text = results_text(store)
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("table-")}
    assert "inconclusive" in lines["table-1"]  # seeds spread so much that a lot would fit
    assert "smaller, retained" in lines["table-2"] and "not run" in lines["table-3"]
    assert "no confirmed arm 'gone'" in text
    assert [line.split()[:3] for line in text.splitlines() if line.startswith(("final ", "to-half "))] == [
        ["final", "test_acc", "swift"], ["final", "test_acc", "shaky"],
        ["to-half", "test_acc", "swift"], ["to-half", "test_acc", "shaky"]]  # fmt: skip
    assert "+0 [+0, +0], loss < 0.005\n" in text and "loss < 0.005 not shown" in text
    assert max(map(len, text.splitlines())) <= 100


def test_endpoints_of_a_sweep_under_way_are_not_there_yet(tmp_path: Path):
    store = Store(tmp_path)
    named = [{"name": "final", "metric": "test_acc"}]
    synthetic.confirmed(store, seeds=3, answered=False, experiment={**synthetic.EXPERIMENT, "endpoint": named})
    assert "Endpoints: not yet. tiny-0123abcd: arm 'plain' has no result for 5 of 8" in results_text(store)
