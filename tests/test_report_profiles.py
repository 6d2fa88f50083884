"""The page of several sweeps: the profile is drawn as it is computed, and what cannot be joined is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from grokscale import answers, report
from grokscale.cli import app
from grokscale.errors import GrokscaleError
from grokscale.report import profiles
from grokscale.store import Store
from tests.test_stats_across import never, task


def test_profiles_are_drawn_as_they_are_computed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ids = [task(store, i, speed) for i, speed in enumerate((4, 2, 0.5, None))]
    found = answers.across(store, ids)
    (axes,) = profiles.draw(found).axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}
    assert set(lines) == {"plain", "swift"}
    for arm, points in lines.items():
        assert points[:, 1].tolist() == [found.profiles[arm].at(x) for x in points[:, 0]]
    assert lines["swift"][-1, 1] == pytest.approx(3 / 4)  # one task was never solved
    assert lines["plain"][-1, 1] == 1


def test_the_page_and_the_files_of_the_command(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    ids = [task(store, i, speed, arms=("swift", "<script>") if i else ("swift",)) for i, speed in enumerate((4, 2, 1))]
    page, figures = tmp_path / "page.html", tmp_path / "figures"
    words = ["report", *ids, "--store", str(tmp_path / "runs"), "-o", str(page), "--figures", str(figures)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    said = page.read_text()
    assert "Performance profile" in said and "2.00" in said and "No interval and no test below 8 tasks" in said
    assert f"&lt;script&gt;: left out, not confirmed by {ids[0]}" in said and "<script" not in said
    assert "too few for an interval" in said and "http" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", said)
    assert sorted(path.name for path in figures.iterdir()) == ["profile-steps.png", "profile-steps.svg"]


def test_an_arm_that_never_grokked_on_a_task_has_bounds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    page = report.profile_page(store, [task(store, 1, 4), task(store, 2, None)])
    s = (4 * 8000 / 20_000) ** 0.5
    assert f"swift takes &lt;= {s:.2f}x fewer steps" in page and "S is &lt;= 0.40." in page
    assert page.count("&lt;= 0.40") == 3  # in the sentence, as the worst, and on its task


def test_a_task_on_which_neither_side_groks_is_no_tie(tmp_path: Path) -> None:
    store = Store(tmp_path)
    page = report.profile_page(store, [task(store, 1, 4), never(store, 2)])
    assert "on the worst, s2-00000002, neither groks." in page and "1.00" not in page
    assert "swift: neither it nor plain groks on 1 of 2 tasks, which count as S = 1" in page


def test_one_task_twice_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = task(store, 0, 4)
    with pytest.raises(GrokscaleError, match="is named twice: a task counts once"):
        report.profile_page(store, [one, one])
