"""What the text report says of the practice baseline, A/A checks and flags."""

from __future__ import annotations

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
    assert [line.split()[0] for line in table if not line.startswith(" ")] == ["swift"]  # plain was a candidate
    assert "Speed-up over plain" in html(store)


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
