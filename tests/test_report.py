"""The tables, the figures and the page, on rows in a real store."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from grokscale import answers, report, stats
from grokscale.errors import InputError
from grokscale.report import bars, beside, curves, figures, text, view, words
from grokscale.store import Store
from tests import synthetic
from tests.synthetic import NEVER, SEEDS, TAU, grok_steps


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("full"))
    synthetic.confirmed(store)
    return store


def cells(page: str, block: str, row: str) -> list[str]:
    """The cells of the row that starts with `row` in the block that starts with `block`."""
    found = next(part for part in page.split("\n\n") if part.startswith(block))
    line = next(line for line in found.splitlines() if line.startswith(row))
    return re.split(r"\s{2,}", line.strip())


# ---------------------------------------------------------------------------------------------- the text


def test_text_is_the_same_from_a_store_opened_again_and_says_nothing_that_may_differ(full: Store) -> None:
    page = report.results_text(full, "tiny")
    assert page == report.results_text(Store(full.root), "tiny-0123abcd") == report.results_text(full)
    assert max(map(len, page.splitlines())) <= 80
    assert page.endswith("\n") and not page.endswith("\n\n")
    assert not re.search(r"\d{4}-\d\d|\d\d:\d\d|/tmp|runs", page)
    assert all(line == line.rstrip() for line in page.splitlines())


def test_speed_ups_in_the_text_are_what_the_grok_steps_say(full: Store) -> None:
    page = report.results_text(full, "tiny")
    logs = np.log(grok_steps("plain")) - np.log(grok_steps("swift"))
    s = math.exp(logs.mean())
    reach = 2.3646 * logs.std(ddof=1) / math.sqrt(8)  # t with 7 degrees
    expected = f"{math.exp(logs.mean() - reach):.2f} to {math.exp(logs.mean() + reach):.2f}"
    arm, direction, shown, interval, n, censored, _ = cells(page, "Speed-up over plain", "swift")
    assert (arm, direction, shown, n) == ("swift", f"{s:.1f}x fewer steps", f"{s:.2f}", "8")
    assert interval == expected and censored == "0/0"
    seconds = cells(page, "Speed-up over plain", f"       {s * 4 / 6:.1f}x less time")
    assert seconds[1] == f"{s * 4 / 6:.2f}"
    assert (
        f"swift groks {s:.1f}x sooner than plain: 95 % interval {expected}, 8 paired seeds"
        in page.replace("\n", " ")
    )


def test_a_slower_arm_has_more_steps_and_its_censored_seeds_are_counted(full: Store) -> None:
    page = report.results_text(full, "tiny")
    _, direction, s, _, _, censored, _ = cells(page, "Speed-up over plain", "shaky")
    assert s.startswith("<= 0.") and direction.endswith("x more steps") and censored == "2/0"
    assert float(direction.split("x")[0].removeprefix(">= ")) == pytest.approx(1 / float(s[3:]), abs=0.06)
    assert "shaky: an upper bound, 2 of its seeds did not grok by 16,384." in page


def test_the_answer_says_of_an_upper_bound_that_it_is_one(store: Store) -> None:
    synthetic.confirmed(store, times={"swift": [NEVER, *[t // 8 for t in grok_steps("swift")[1:]]]})
    said = report.results_text(store, "tiny").split("\n\n")[1].replace("\n", " ")
    best = next(row for row in view.collect(store).speedups if (row["arm"], row["clock"]) == ("swift", "steps"))
    assert best["lo"] > 1 and said.startswith(f"swift groks at most {words.ratio(best['s'])}x sooner than plain")


def test_outcomes_and_medians(full: Store) -> None:
    page = report.results_text(full, "tiny")
    lo, hi = stats.wilson(6, 8)
    assert cells(page, "Outcomes", "shaky") == [
        "shaky", "8", "6", "1", "0", "1", f"75 % [{100 * lo:.0f}, {100 * hi:.0f}]"]  # fmt: skip
    middle = sorted(grok_steps("swift"))[3]
    assert cells(page, "Medians", "swift") == [
        "swift", f"{middle:,.0f}", "1,300", f"{middle - 1300:,.0f}", "0.6 ms", f"{middle * 6e-4:.3g} s"]  # fmt: skip


def test_settings_name_the_knob_that_ended_at_an_edge_of_its_range(full: Store) -> None:
    page = report.results_text(full, "tiny")
    assert "swift  lr 0.0101, wd 0.01, floor 0.01  (range-limited: lr)" in page
    assert "plain  lr 0.0416, wd 0.01\n" in page


def test_settings_name_where_an_arm_departs_from_the_baseline(full: Store) -> None:
    seen = view.collect(full, "tiny")
    swift = seen.arm("swift")
    spec = {**swift.spec, "model": {**swift.spec["model"], "scale": 0.5}, "task": {**swift.spec["task"], "n": 60.0001}}
    spec["optimiser"] = {**swift.spec["optimiser"], "name": "adamw", "lr": 0.0101, "batch": 64}
    assert seen.settings(swift) == swift.settings
    assert seen.settings(replace(swift, spec=spec)) == {
        **swift.settings, "task.n": "60.0001", "model.scale": 0.5, "optimiser.name": "adamw", "optimiser.batch": 64}


def test_conditions_are_named(full: Store) -> None:
    page = report.results_text(full, "tiny")
    for said in (
        "horizon    tau = 16,384 steps, of the search 20,000",
        "task       toy (k 3, n 60)",
        "optimiser  sgd (batch 32, decay inside)",
        "grokked    test accuracy >= 0.95",
        "every max(25, 2 %) steps on 1,024 examples",
        "search 4 trials an arm x 3 seeds",
        "on cpu (1 thread)",
    ):
        assert said in page
    assert "monitor" not in page and "EXPLORATORY: the best trial" not in page


def test_a_monitor_on_test_is_marked(store: Store) -> None:
    spec = synthetic.SPEC | {"monitor": "test", "validation": 0}
    synthetic.confirmed(store, spec_json=text.json.dumps(spec), monitor="test")
    assert "! monitor  test: search and methods saw the test split" in report.results_text(store, "tiny")
    assert 'class="warning"' in report.html(store, "tiny")


def test_before_the_confirmation_everything_is_exploratory(store: Store) -> None:
    synthetic.searched(store)
    page = report.results_text(store, "tiny")
    assert page.split("\n\n")[1].startswith("No answer yet: nothing has been confirmed.")
    assert cells(page, "EXPLORATORY", "swift") == ["swift", "3/4", "0", "1,500"]
    assert "Settings (exploratory)" in page and "Speed-up" not in page and "fewer" not in page


def test_a_confirmation_under_way_shows_counts_and_no_speed_up(store: Store) -> None:
    synthetic.confirmed(store, seeds=5, timed=False, answered=False)
    page = report.results_text(store, "tiny")
    assert "No answer yet: 9 confirmation replicas to go." in page and "Speed-up over" not in page
    assert cells(page, "Outcomes", "plain")[1] == "5 of 8"
    assert cells(page, "Medians", "plain")[4:] == ["-", "-"]
    assert Page(report.html(store, "tiny")).tags.count("figure") == 4


def test_a_sweep_that_has_only_begun(store: Store) -> None:
    store.append("sweeps", [{
        "sweep_id": "new-00000000", "name": "new", "question": "", "baseline": "plain", "horizon": 10,
        "experiment_json": "{}", "version": "0"}])  # fmt: skip
    assert "No trial of the search has ended yet." in report.results_text(store, "new")
    assert "<h1>new</h1>" in report.html(store, "new")


def test_unknown_sweeps_are_refused(full: Store) -> None:
    with pytest.raises(InputError, match="tiny"):
        report.results_text(full, "tinny")


def test_a_bound_where_only_the_baseline_is_censored(store: Store) -> None:
    synthetic.confirmed(store, times={"plain": [NEVER, *grok_steps("plain")[1:]]})
    page = report.results_text(store, "tiny")
    _, direction, s, *_ = cells(page, "Speed-up", "swift")
    assert direction.startswith(">= ") and s.startswith(">= ")
    assert "swift groks at least " in page
    assert "swift: a lower bound, 1 of the baseline's seeds did not grok by 16,384." in page.replace(
        "\n  ", " "
    )


@pytest.mark.parametrize(("bound", "s", "said"), [
    (">=", 2.0, ">= 2.0x less time"), (">=", 0.5, "<= 2.0x more time"),
    ("<=", 2.0, "<= 2.0x less time"), ("<=", 0.5, ">= 2.0x more time"), ("=", 0.5, "2.0x more time"),
])  # fmt: skip
def test_a_bound_is_one_in_either_direction(bound: str, s: float, said: str) -> None:
    row = {"clock": "seconds", "s": s, "bound": bound, "success_base": 1, "success_arm": 2}
    assert text.direction(row) == said


def test_both_censored_show_s_at_half_the_horizon(store: Store) -> None:
    synthetic.confirmed(store, times={"plain": [NEVER, *grok_steps("plain")[1:]]})
    page = report.results_text(store, "tiny").replace("\n  ", " ")
    assert re.search(
        r"shaky: 2 of its seeds and 1 of the baseline's did not grok by 16,384; at tau/2 S is \d", page
    )


def test_nothing_sooner_is_said_so(store: Store) -> None:
    slow = [2 * t for t in grok_steps("plain")]
    slow = [t if t <= TAU else NEVER for t in slow]
    synthetic.confirmed(store, times={"swift": slow})
    said = report.results_text(store, "tiny").split("\n\n")[1].replace("\n", " ")
    assert said.startswith("No arm is shown to grok sooner than plain: no 95 % interval lies above 1")
    assert "swift groks later." in said


def test_an_interval_above_1_that_holm_does_not_confirm_is_qualified(store: Store) -> None:
    plan = SEEDS[:3]
    times = {arm: [t if t < NEVER else 9000.0 for t in grok_steps(arm)] for arm in synthetic.ARMS}
    times["swift"] = [t / 8 for t in times["plain"]]
    synthetic.confirmed(store, times=times, answered=False)
    rows = synthetic.answers.compute(store, "tiny-0123abcd")
    for row in rows:
        row.update(n=len(plan), p=0.25)
    store.append("speedups", rows)
    said = report.results_text(store, "tiny").split("\n\n")[1].replace("\n", " ")
    assert said.endswith("But p = 0.500 over all arms: chance alone may do that.")


def test_fixed_settings_of_one_arm_alone(store: Store) -> None:
    """A reproduction: no search, nothing to compare with, and what the file fixes is shown."""
    store.append("sweeps", [{
        "sweep_id": "one-00000000", "name": "one", "question": "When?", "baseline": "plain", "horizon": TAU,
        "experiment_json": "{}", "version": "0"}])  # fmt: skip
    chosen = {"plain": {"trial_id": synthetic.trial_id("plain"), "params": {}, "number": 0}}
    store.append("plans", [{
        "sweep_id": "one-00000000", "block": 0, "tau": TAU, "seeds": SEEDS, "key": "k",
        "winners_json": text.json.dumps(chosen)}])  # fmt: skip
    pairs = zip(SEEDS, grok_steps("plain"), strict=True)
    store.append("replicas", [synthetic.replica("plain", seed, step) for seed, step in pairs])
    page = report.results_text(store, "one")
    assert "Only plain ran: there is nothing to compare it with." in page and "EXPLORATORY" not in page
    assert "plain  lr 0.0416, wd 0.01\n" in page and "no search: settings as the file fixes them" in page
    assert cells(page, "Medians", "plain")[1] == f"{sorted(grok_steps('plain'))[3]:,.0f}"


def test_nothing_grokked_anywhere(store: Store) -> None:
    synthetic.confirmed(store, times=dict.fromkeys(synthetic.ARMS, [NEVER] * 8))
    page = report.results_text(store, "tiny")
    assert cells(page, "Speed-up", "swift")[3] == "-"  # no interval
    assert cells(page, "Medians", "swift")[1] == "> 16,384"
    assert "No arm is shown to grok sooner" in page
    report.html(store, "tiny")


def test_long_labels_stay_apart_and_within_the_width(store: Store) -> None:
    labels = [f"arm-{'x' * 50}-{i}" for i in range(2)]
    assert len({words.short(label) for label in labels}) == 2
    assert max(len(words.short(label)) for label in labels) <= words.NAME


def test_later_events_do_not_count() -> None:
    row = {"grok_step": 120, "fit_step": 90, "diverged_step": 130}
    assert [view.outcome_by(row, tau) for tau in (50, 100, 200)] == ["unfitted", "memorised", "grokked"]
    assert view.outcome_by(row | {"grok_step": None}, 200) == "diverged"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.03, "1.03"), (1.94, "1.9"), (0.96, "0.96"), (12.34, "12"), (1234.0, "1,234"), (math.inf, "-"),
        (0.0046, "0.0046"), (0.0612, "0.061"), (0.0, "0.0"),
    ],
)
def test_ratios(value: float, said: str) -> None:
    assert words.ratio(value) == said


def test_a_search_that_goes_on_does_not_change_the_answer_it_gave(store: Store) -> None:
    """More trials than the plan knew, before the longer search has a confirmation of its own."""

    def answer() -> tuple[str, object, object]:
        return " ".join(report.results_text(store).split()), answers.flags(store), answers.budget(store)

    sweep_id = synthetic.confirmed(store)
    text_, *before = answer()
    (last,) = store.rows("trials", sweep_id=sweep_id, phase="search", arm="swift", number=3)
    ended = {**last, "trial_id": "better", "value": 1.0, "state": "ended", "at": None}
    store.append("trials", [{**ended, "number": 4 + i} for i in range(3)])
    store.append("trials", [{**last, "number": 7, "at": None}])
    said, *after = answer()
    assert said.replace("; 3 more trials since, of which this answer knows nothing", "", 1) == text_ != said
    assert after == before


def test_records_of_a_query() -> None:
    assert (
        words.records(["arm", "n"], [("a", 1), (None, 20)])
        == "arm   n\n-------\na     1\n     20\n(2 rows)\n"
    )
    assert words.records(["arm"], []) == "arm\n---\n(0 rows)\n"


# ---------------------------------------------------------------------------------------------- the figures


def test_survival_is_kaplan_meiers(full: Store) -> None:
    axes = report.survival_figure(full, "tiny").axes[0]
    lines = {str(line.get_label()).split(":")[0]: line for line in axes.lines}
    drawn = np.asarray(lines["shaky"].get_xydata())
    times = np.array(grok_steps("shaky"))
    event = times < NEVER
    curve = stats.kaplan_meier(np.where(event, times, TAU), event)
    assert drawn[1:-1, 0].tolist() == curve.times.tolist()
    assert drawn[1:-1, 1].tolist() == curve.share.tolist()
    assert drawn[-1].tolist() == [TAU, 0.25] and drawn[0, 1] == 1
    assert axes.get_xscale() == "log" and axes.get_xlim()[1] == TAU
    ticks = [line for line in axes.lines if line.get_marker() == "|"]
    assert [np.asarray(line.get_xydata())[0].tolist() for line in ticks] == [[TAU, 0.25]]  # shaky's censored seeds
    assert len(axes.collections) == 3  # a band an arm


def test_methods_are_drawn_as_median_and_quartiles_of_their_seeds(full: Store) -> None:
    axes = report.drawings(full, "tiny")["accuracy-swift"].axes[0]
    _, band_test = axes.collections
    test = {str(line.get_label()): line for line in axes.lines}["test"]
    stored = full.curves(trial_id=synthetic.trial_id("swift"))
    step = int(np.asarray(test.get_xdata())[30])
    at = [row["test_acc"] for row in stored.to_pylist() if row["step"] == step]
    lo, middle, hi = np.quantile(at, (0.25, 0.5, 0.75))
    assert np.asarray(test.get_ydata())[30] == pytest.approx(middle)
    (path,) = band_test.get_paths()
    corners = np.asarray(path.vertices)
    edge = corners[corners[:, 0] == step][:, 1]
    assert sorted(set(edge.round(9).tolist())) == pytest.approx([lo, hi])
    others = [report.drawings(full, "tiny")[f"accuracy-{arm}"].axes[0] for arm in ("plain", "shaky")]
    assert {axes.get_xlim() for axes in [axes, *others]} == {axes.get_xlim()}  # arms can be laid side by side


def test_a_replica_that_ended_keeps_its_last_value_in_the_median() -> None:
    long = {"step": np.array([1, 10, 100]), "test_acc": np.array([0.0, 0.1, 0.2])}
    short = {"step": np.array([1, 10]), "test_acc": np.array([0.0, 0.9])}
    found = curves.spread({0: long, 1: short, 2: short}, "test_acc")
    assert found.steps.tolist() == [1, 10, 100] and found.middle.tolist() == [0, 0.9, 0.9]
    dense = {"step": np.arange(1, 5001), "test_acc": np.linspace(0, 1, 5000)}
    thin = curves.spread({0: dense}, "test_acc")
    assert len(thin.steps) <= curves.POINTS and thin.steps[-1] == 5000 and (np.diff(thin.steps) > 0).all()
    assert len(curves.spread({}, "test_acc").steps) == 0


def test_bars_are_the_stored_speed_ups_with_what_was_published(store: Store) -> None:
    paper = [
        {"id": "ratio", "claim": "speedup", "value": 5.0, "clock": "epochs", "arm": "swift", "source": "table 1"},
        {"id": "times", "claim": "time", "value": 400.0, "arm": "shaky", "against": "plain", "against_value": 1000.0,
         "source": "table <2>"},
        {"id": "alone", "claim": "time", "value": 7.0, "arm": "swift", "source": "text"},
        {"id": "other", "claim": "speedup", "value": 9.0, "arm": "swift", "against": "shaky", "source": "text"},
    ]  # fmt: skip
    synthetic.confirmed(store, experiment=synthetic.EXPERIMENT | {"paper": paper})
    shown = view.collect(store)
    assert [(c.id, c.arm, c.clock, c.s) for c in bars.claims(shown)] == [
        ("ratio", "swift", "steps", 5.0), ("times", "shaky", "steps", 2.5)]  # fmt: skip
    axes = report.speedup_figure(store).axes[0]
    stored = {(row["arm"], row["clock"]): row for row in shown.speedups}
    widths = [1 + patch.get_width() for patch in axes.patches]  # pyright: ignore[reportAttributeAccessIssue]
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    assert ticks == ["swift", "in seconds", "shaky", "in seconds"]
    order = [(arm, clock) for arm in ("swift", "shaky") for clock in ("steps", "seconds")]
    assert widths == pytest.approx([stored[key]["s"] for key in order])
    whiskers = [np.asarray(line.get_xdata()).tolist() for line in axes.lines if line.get_marker() == "|"]
    assert whiskers == [[stored[key]["lo"], stored[key]["hi"]] for key in order]
    diamonds = [line.get_xydata() for line in axes.lines if line.get_marker() == "D"]
    assert np.concatenate(diamonds).tolist() == [[5.0, 0.0], [2.5, 2.0]]  # pyright: ignore[reportArgumentType]
    ends = [max(stored["swift", "steps"]["hi"], 5.0), stored["swift", "seconds"]["hi"]]
    assert [one.xy[0] for one in axes.texts][:2] == ends  # a number stands clear of a diamond  # pyright: ignore
    page = Page(report.html(store))
    assert "Published values" in page.text and "table <2>" in page.text
    for row in shown.papers:
        assert row["id"] in page.text and row["verdict"] in page.text


def test_numbers_beside_bars_of_two_decades_stay_off_the_names(store: Store) -> None:
    times = {"plain": [2000] * 8, "swift": [10] * 8, "shaky": [2400] * 8}
    synthetic.confirmed(store, times=times)
    axes = report.speedup_figure(store).axes[0]
    frame = axes.get_window_extent()
    drawn = [one.get_window_extent() for one in axes.texts]
    assert "0.83" in [one.get_text() for one in axes.texts]
    assert all(frame.x0 <= one.x0 and one.x1 <= frame.x1 for one in drawn)


def test_the_page_has_the_practice_baseline_and_the_endpoints_of_the_text(store: Store) -> None:
    endpoint = {"name": "final", "metric": "test_acc"}
    changes = {"endpoint": [endpoint], "practice": ["shaky"]}
    synthetic.confirmed(store, experiment=synthetic.EXPERIMENT | changes, practice="shaky")
    page = Page(report.html(store)).text
    assert "Speed-up over shaky, in practice" in page and "Endpoints over plain" in page
    shown = view.collect(store)
    assert shown.over_practice and not isinstance(shown.endpoints, str)
    over = text.practice_view(shown)
    assert over is not None
    for row in text.speedup_table(over)[1]:
        assert all(cell in page for cell in row)


@pytest.mark.parametrize(("arm", "end", "marker"), [("plain", "hi", ">"), ("swift", "lo", "<")])
def test_the_arrow_of_a_bound_points_to_where_s_may_lie(arm: str, end: str, marker: str, store: Store) -> None:
    """On the interval's end. With the baseline censored S may be more, with the arm censored less."""
    synthetic.confirmed(store, times={"shaky": grok_steps("plain"), arm: [NEVER, *grok_steps(arm)[1:]]})
    axes = report.speedup_figure(store).axes[0]
    arrows = [line for line in axes.lines if line.get_marker() in ("<", ">")]
    rows = [row for row in view.collect(store).speedups if row["arm"] == "swift" or arm == "plain"]
    assert arrows and all(line.get_marker() == marker for line in arrows)
    assert sorted(float(np.asarray(line.get_xdata())[0]) for line in arrows) == pytest.approx(
        sorted(row[end] for row in rows if row["clock"] in bars.CLOCKS)
    )


def test_bars_without_an_interval_are_pale_and_a_sweep_without_any_is_refused(store: Store) -> None:
    synthetic.confirmed(store, times=dict.fromkeys(synthetic.ARMS, [NEVER] * 8))
    axes = report.speedup_figure(store).axes[0]
    assert {patch.get_alpha() for patch in axes.patches} == {bars.FAINT}
    synthetic.searched(store, "begun-00000002", synthetic.EXPERIMENT | {"name": "begun"})
    with pytest.raises(InputError, match="begun-00000002: no speed-up yet"):
        report.speedup_figure(store, "begun")


def test_curves_are_drawn_for_every_seed(full: Store) -> None:
    axes = report.curve_figure(full, synthetic.trial_id("swift")).axes[0]
    assert len(axes.lines) == 2 * len(SEEDS)
    stored = full.curves(trial_id=synthetic.trial_id("swift"), seed=SEEDS[0])
    assert np.asarray(axes.lines[1].get_ydata()).tolist() == stored["test_acc"].to_pylist()


def test_curves_of_a_trial_without_any(full: Store) -> None:
    assert len(report.curve_figure(full, "nothing").axes[0].lines) == 0


def test_figures_as_files_are_the_same_twice_and_fit_for_a_paper(full: Store) -> None:
    first, second = (report.figure_files(full, "tiny") for _ in range(2))
    assert first == second
    assert set(first) == {
        f"tiny-{what}.{kind}"
        for what in ("speedups", "survival", "accuracy-plain", "accuracy-swift", "accuracy-shaky")
        for kind in ("svg", "png")
    }
    for name, data in first.items():
        if name.endswith(".svg"):
            root = ElementTree.fromstring(data)
            assert root.get("viewBox") and str(root.get("width")).endswith("pt") and root.get("aria-label")
            assert b"var(" not in data and b"<text" in data  # real colours, and letters that can be edited
    header = first["tiny-survival.png"]
    assert int.from_bytes(header[16:20]) == round(5.2 * 300)


# ---------------------------------------------------------------------------------------------- the page


class Page(HTMLParser):
    """Collects what a browser would fetch or run, the ids, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_needs_nothing_beside_itself(full: Store) -> None:
    source = report.html(full, "tiny")
    page = Page(source)
    assert page.links == [] and "script" not in page.tags and "@import" not in source
    assert re.findall(r"url\((?!#)", source) == []
    assert len(page.ids) == len(set(page.ids))
    assert source == report.html(Store(full.root), "tiny")
    assert 'name="viewport"' in source and "prefers-color-scheme:dark" in source
    assert page.tags.count("svg") == 5


def test_page_escapes_names_and_shows_the_numbers_of_the_text(full: Store) -> None:
    source = report.html(full, "tiny")
    assert "groks &lt;sooner&gt;?" in source and "<sooner>" not in source
    shown = view.collect(full, "tiny")
    page = Page(source)
    for row in text.speedup_table(shown)[1] + beside.outcome_table(shown)[1] + beside.time_table(shown)[1]:
        for cell in row:
            assert cell in page.text
    assert "Search (exploratory)" in page.text


def test_colours_hold_for_many_arms(full: Store) -> None:
    shown = view.collect(full, "tiny")
    arms = [view.ArmView(f"arm{i}", "", {}, 0, {}, (), 0, None) for i in range(20)]
    many = view.SweepView(**{**shown.__dict__, "arms": arms})
    looks = {figures.look(many, arm)[:2] for arm in arms}
    assert len(looks) == 20


# ---------------------------------------------------------------------------------------------- what it needs


def test_results_need_no_torch_ray_mlflow_optuna_or_matplotlib(full: Store) -> None:
    code = (
        "import sys; from grokscale import report; from grokscale.store import Store\n"
        "assert 'Speed-up' in report.results_text(Store(sys.argv[1]), 'tiny')\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'matplotlib', 'duckdb'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, full.root], check=True)
