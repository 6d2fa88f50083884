"""What a notebook sees: tables and figures that show themselves, and the notebook of the docs, run as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import grokscale as gs
from grokscale import report
from tests import notebooks, synthetic
from tests.test_report import Page

NOTEBOOK = Path(__file__).parent.parent / "docs/results.ipynb"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> gs.Store:
    store = gs.Store(tmp_path_factory.mktemp("notebook") / "runs")
    synthetic.confirmed(store, experiment=synthetic.EXPERIMENT | {"name": "quickstart"})
    return store


def test_a_store_shows_its_sweeps(store: gs.Store, tmp_path: Path) -> None:
    page = Page(store._repr_html_())
    assert page.text.startswith("Store runs: sweeps") and "Which of two made-up methods groks <sooner>?" in page.text
    assert "tiny-0123abcd" in page.text and "script" not in page.tags
    assert "sweep_id" in gs.Store(tmp_path)._repr_html_()  # an empty one too


def test_a_table_shows_its_rows_and_how_many_more_there_are(store: gs.Store) -> None:
    table = gs.speedups(store, sweep="quickstart").select(["arm", "clock", "s"])
    page = Page(gs.show(table)._repr_html_())
    assert page.tags.count("tr") == 1 + table.num_rows and page.tags.count("th") == 3
    swift = next(row for row in table.to_pylist() if row["arm"] == "swift" and row["clock"] == "steps")
    assert f"swiftsteps{swift['s']:.4g}" in page.text
    short = gs.show(table, rows=2)
    assert f"<p>{table.num_rows - 2} more rows</p>" in short._repr_html_()
    assert repr(short).splitlines()[0].split() == ["arm", "clock", "s"] and repr(short).endswith("more rows")


def test_figures_are_returned_and_not_shown(store: gs.Store) -> None:
    for figure in (report.survival_figure(store), *report.drawings(store).values()):
        assert figure._repr_png_().startswith(b"\x89PNG")  # pyright: ignore[reportAttributeAccessIssue]
    for path in Path(report.__file__).parent.glob("*.py"):  # pyplot would draw a second time, or open a window
        assert not re.search(r"import .*pyplot|matplotlib\.pyplot", path.read_text()), path


def test_the_notebook_of_the_docs_runs_and_shows_what_it_holds(
    store: gs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = NOTEBOOK.read_text()
    notebook = json.loads(text)
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    spoken = re.sub(r'"image/[^"]*": "[^"]*"', "", text)
    paths = re.findall(r"(?<![\w:/.<])/\w[\w.-]*/\w[^\s\"]*", spoken)
    assert not paths, f"of a machine: {paths}"
    kept = [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    monkeypatch.setenv("GROKSCALE_STORE", store.root)
    found = notebooks.run(notebook)

    def kinds(outputs: list[dict[str, object]]) -> list[object]:
        return [sorted(one["data"]) if "data" in one else one["name"] for one in outputs]  # type: ignore[call-overload]

    assert [kinds(one) for one in found] == [kinds(one) for one in kept]  # executed, and of today's kinds
    assert sum("image/png" in str(kinds(one)) for one in kept) == 3
