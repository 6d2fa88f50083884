"""What people look at, in a real browser: Debian's Chromium, headless, driven by Playwright.

Screenshots stay in artifacts/ (which git ignores). Without a Chromium these tests are skipped with a word, and fail
where CI is set.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from grokscale import report, track
from grokscale.cli import app
from grokscale.store import Store
from tests import synthetic
from tests.test_cli import GROKSCALE, environment
from tests.test_stats_across import task

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[dev]'")
ROOT = Path(__file__).parent.parent
ARTIFACTS = ROOT / "artifacts"
PHONE = {"width": 390, "height": 844}
A4 = {"width": 680, "height": 960}  # between the page's margins, in CSS pixels
EVIL = "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'>"
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for all tests here."""
    program = shutil.which("chromium")
    if program is None:
        said = "NOT TESTED IN A BROWSER: no chromium here; apt-get install chromium"
        pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, headless=True, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page that was opened, with what its console, its scripts and its requests said."""

    def __init__(self, browser: Any, url: str, viewport: dict[str, int], **options: Any) -> None:
        self.page = browser.new_page(viewport=viewport, **options)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def overflow(self) -> int:
        """Pixels by which the document is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def boxes(self, what: str) -> list[dict[str, float]]:
        return [found for one in self.page.locator(what).all() if (found := one.bounding_box()) is not None]

    def keep(self, name: str) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        path = ARTIFACTS / f"{name}.png"
        self.page.screenshot(path=path, full_page=True)
        assert path.stat().st_size > 10_000


Open = Callable[..., Visit]


@pytest.fixture
def visit(chromium: Any) -> Iterator[Open]:
    """Opens a page, and closes it after the test."""
    opened: list[Visit] = []

    def opens(url: str, viewport: dict[str, int], **options: Any) -> Visit:
        opened.append(Visit(chromium, url, viewport, **options))
        return opened[-1]

    yield opens
    for one in opened:
        one.page.close()


# ---------------------------------------------------------------------------------------------- the report


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the report of a finished sweep whose name and question are an attack."""
    root = tmp_path_factory.mktemp("report")
    store = Store(root / "runs")
    paper = {"id": "evil", "claim": "speedup", "value": 5.0, "arm": "swift", "source": EVIL}
    changes = {"name": EVIL, "question": f"Which groks sooner? {EVIL}", "paper": [paper]}
    varied(store)  # before the plan, which rests on them
    synthetic.confirmed(store, experiment=synthetic.EXPERIMENT | changes, git_sha=EVIL)
    path = root / "report.html"
    path.write_text(report.html(store))
    return path.as_uri()


def varied(store: Store, sweep_id: str = "tiny-0123abcd", arm: str = "swift") -> None:
    """Adds trials to the search of an arm that differ in their settings, one of them capped."""
    points = [(0.02, 0.001, 2000.0), (0.04, 0.02, 900.0), (0.08, 0.004, None)]
    store.append("trials", [
        {
            "sweep_id": sweep_id, "arm": arm, "phase": "search", "number": 10 + i, "trial_id": f"v{i}", "seeds": [1],
            "params_json": synthetic.json.dumps({"lr": lr, "wd": wd}), "state": "ended",
            "cap": synthetic.HORIZON if steps else 1800, "value": synthetic.math.log(steps or synthetic.HORIZON),
        }
        for i, (lr, wd, steps) in enumerate(points)
    ])  # fmt: skip


def test_a_report_on_a_phone(written: str, visit: Open) -> None:
    seen = visit(written, PHONE)
    assert seen.errors == [] and seen.requests == [written]
    assert seen.overflow() == 0
    figures = seen.boxes("figure > svg")
    assert len(figures) == 7  # bars, survival, three accuracies, the search and its pairs
    for box in figures:
        assert box["width"] > 250 and box["height"] > 100 and box["x"] + box["width"] <= PHONE["width"]
    smallest = min(box["height"] for box in seen.boxes("figure svg text"))
    assert smallest >= 7  # letters that can be read
    assert seen.page.locator("figure.exploratory").count() == 2
    assert seen.page.locator("figure.exploratory .badge").first.is_visible()
    seen.keep("report-phone")


def test_a_report_says_what_it_was_asked_and_runs_none_of_it(written: str, visit: Open) -> None:
    seen = visit(written, PHONE)
    assert seen.page.locator("h1").inner_text() == f"Which groks sooner? {EVIL}"
    assert seen.page.title().startswith(EVIL)
    assert seen.page.evaluate("[window.hit === undefined, document.scripts.length, document.images.length]") == [
        True, 0, 0]  # fmt: skip


def test_a_report_is_light_and_dark(written: str, visit: Open) -> None:
    def shades(scheme: str) -> list[str]:
        seen = visit(written, {"width": 1200, "height": 800}, color_scheme=scheme)
        assert seen.errors == [] and seen.overflow() == 0
        seen.keep(f"report-{scheme}")
        style = "getComputedStyle(document.querySelector('{}')).{}"
        return [seen.page.evaluate(style.format("body", name)) for name in ("backgroundColor", "color")] + [
            seen.page.evaluate(style.format("figure svg text", "fill"))]  # fmt: skip

    assert shades("light") == ["rgb(254, 254, 254)", "rgb(27, 31, 36)", "rgb(27, 31, 36)"]
    assert shades("dark") == ["rgb(20, 23, 28)", "rgb(232, 234, 237)", "rgb(232, 234, 237)"]


def test_a_report_on_paper(written: str, visit: Open) -> None:
    """Dark on white whatever the screen is like, with every table whole and what is folded away unfolded."""
    seen = visit(written, A4, color_scheme="dark")
    assert not seen.page.locator("details pre").is_visible()
    seen.page.emulate_media(media="print")
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(254, 254, 254)"
    assert seen.overflow() == 0
    for table in seen.boxes("table"):
        assert table["x"] + table["width"] <= A4["width"]
    assert seen.page.locator("details pre").is_visible()
    seen.keep("report-paper")
    assert seen.page.pdf(format="A4").startswith(b"%PDF")


# ---------------------------------------------------------------------------------------------- several sweeps


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the page that `grokscale report SWEEP SWEEP ...` writes of eight tasks, one arm named by an attack."""
    root = tmp_path_factory.mktemp("several")
    store, speeds = Store(root / "runs"), (4, 2, 0.5, None, 3, 1.5, 2.2, 6)
    ids = [task(store, i, speed, arms=("swift", EVIL)) for i, speed in enumerate(speeds)]
    done = CliRunner().invoke(app, ["report", *ids, "--store", str(root / "runs"), "-o", str(root / "tasks.html")])
    assert done.exit_code == 0, done.output
    return (root / "tasks.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_a_report_of_several_tasks(several: str, visit: Open, width: int, scheme: str) -> None:
    seen = visit(several, {"width": width, "height": 844}, color_scheme=scheme)
    assert seen.errors == [] and seen.requests == [several] and seen.overflow() == 0
    (figure,) = seen.boxes("figure > svg")
    assert figure["width"] > 250 and figure["height"] > 150 and figure["x"] + figure["width"] <= width
    assert min(box["height"] for box in seen.boxes("figure svg text")) >= 7
    colour = {"light": "rgb(254, 254, 254)", "dark": "rgb(20, 23, 28)"}[scheme]
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == colour
    assert EVIL in seen.page.locator("main").inner_text()
    assert seen.page.evaluate("[window.hit === undefined, document.scripts.length]") == [True, 0]
    seen.keep(f"tasks-{scheme}-{width}")


# ---------------------------------------------------------------------------------------------- MLflow's pages


@contextmanager
def served(sweep: str, root: Path) -> Iterator[str]:
    """The address that `grokscale ui SWEEP` prints, while it serves."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*GROKSCALE, "ui", sweep, "--port", str(port), "--store", str(root)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
    assert server.stdout is not None
    try:
        yield next(line.split()[0] for line in server.stdout if line.startswith("http"))
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address that `grokscale ui` prints for a small sweep."""
    root = tmp_path_factory.mktemp("ui")
    store, experiment = Store(root / "runs"), synthetic.EXPERIMENT | {"task": {"name": "toy"}}
    synthetic.confirmed(store, experiment=experiment)
    uri = track.default_uri(store)
    assert uri is not None
    synthetic.confirmed(other := Store(root / "other"), "tiny-99999999", experiment=experiment)
    track.sync(other, "tiny-99999999", uri)  # of the same name, so in the same list
    with served("tiny", root / "runs") as address:
        yield address


def test_mlflow_lists_trials_as_results(pages: str, visit: Open) -> None:
    """The list, its columns, the description and a figure, as `grokscale ui` serves them, and from here only."""
    seen = visit(pages, {"width": 1900, "height": 1000})
    page, parent = seen.page, "tiny-0123abcd: swift groks 4.4x sooner than plain"
    page.set_default_timeout(60_000)
    page.get_by_text(parent).first.wait_for()
    page.get_by_role("gridcell").filter(has_text=parent).get_by_role("button").first.click()  # its trials are folded
    page.get_by_text("swift lr=0.0101 wd=0.01 floor=0.01: 8/8 grokked, 1360 steps (confirmed)").first.wait_for()
    page.get_by_text("shaky lr=0.05 wd=0.002 alpha=0.98: 6/8 grokked").first.wait_for()
    header = " ".join(page.locator("[role=columnheader]").all_inner_texts()).split()
    assert {"lr", "wd", "floor", "alpha", "grokked", "median_grok_step", "outcome"} <= set(header)
    assert page.get_by_text("tiny-99999999").count() == 0
    seen.keep("mlflow-list")
    address = pages.partition("/#")[0] + "/" + page.get_by_role("link", name=parent).first.get_attribute("href")
    page.goto(address)
    page.get_by_text("Which of two made-up methods groks <sooner>?").first.wait_for()
    page.get_by_text("swift groks 4.4x sooner than plain: 95 % interval").first.wait_for()
    seen.keep("mlflow-sweep")
    page.goto(f"{address}/artifacts/figures/survival.png")
    page.wait_for_function("[...document.images].some(i => i.src.startsWith('blob:') && i.naturalWidth >= 500)")
    seen.keep("mlflow-figure")
    assert {urlsplit(url).hostname for url in seen.requests if url.startswith("http")} == {"127.0.0.1"}
    # MLflow asks who is logged in, which a server without logins answers with 404.
    assert [said for said in seen.errors if "404" not in said] == []


# ---------------------------------------------------------------------------------------------- the quickstart

SHORT = {"search.trials": 1, "search.seeds": 1, "race.seeds": 0, "confirm.seeds": 2, "horizon": 700}


def test_the_quickstarts_report_and_its_runs(tmp_path: Path, visit: Open) -> None:
    """The first experiment of the README, short of seeds and steps: swept, reported and served as a user would."""
    runs, page = tmp_path / "runs", tmp_path / "report.html"
    words = [word for key, value in SHORT.items() for word in ("--set", f"{key}={value}")]
    for command in (["sweep", "experiments/quickstart.toml", *words], ["report", "quickstart", "-o", str(page)]):
        done = subprocess.run(
            [*GROKSCALE, *command, "--store", str(runs)], cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    seen = visit(page.as_uri(), PHONE)
    assert seen.errors == [] and seen.requests == [page.as_uri()] and seen.overflow() == 0
    assert "tuned SGD?" in seen.page.locator("h1").inner_text()
    shown = seen.page.locator(".answer").inner_text()
    assert shown.startswith(("egd", "No arm is shown"))  # two seeds may be too few, and say so
    figures = seen.boxes("figure > svg")
    assert len(figures) == 2 + 4  # bars, survival, the accuracies of four arms; one trial makes no landscape
    assert all(box["width"] > 250 and box["height"] > 100 for box in figures)
    seen.keep("quickstart-report")
    with served("quickstart", runs) as address:
        seen = visit(address, {"width": 2600, "height": 1000})  # a column that is out of sight is not in the page
        seen.page.set_default_timeout(60_000)
        seen.page.get_by_text("quickstart-").first.wait_for()
        seen.page.get_by_role("gridcell").filter(has_text="quickstart-").get_by_role("button").first.click()
        seen.page.get_by_text("egd-colnorm lr=0.0416 wd=0.01").first.wait_for()
        header = " ".join(seen.page.locator("[role=columnheader]").all_inner_texts()).split()
        assert {"lr", "wd", "grokked", "median_grok_step", "outcome"} <= set(header)
        seen.keep("quickstart-runs")
