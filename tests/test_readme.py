"""The README cannot rot: its commands, its tree, its queries and its example of a method are run or compared."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from grokscale.answers.compare import speedups
from grokscale.cli import app
from grokscale.report.words import ratio
from grokscale.spec import parse
from grokscale.store import Store
from tests import synthetic
from tests.test_cli import GROKSCALE, environment

ROOT = Path(__file__).parent.parent
FOLDERS = (".", "docs", "experiments", "benchmarks", "tests/faults")
PAGES = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for found, text in fenced if found == language]


def commands() -> list[list[str]]:
    """The words of every command of the sh blocks."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return [shlex.split(line, comments=True) for line in lines]


def typed() -> list[list[str]]:
    """The words of every command of the transcripts."""
    lines = [line for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line[2:]) for line in lines]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store `runs` holds a sweep by the name of the README's."""
    folder = tmp_path_factory.mktemp("readme")
    synthetic.confirmed(Store(folder / "runs"), experiment=synthetic.EXPERIMENT | {"name": "quickstart"})
    return folder


@pytest.fixture
def here(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(quickstart)
    monkeypatch.delenv("GROKSCALE_STORE", raising=False)
    return quickstart


# ---------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("words", [*commands(), *typed()], ids=" ".join)
def test_commands_are_understood_and_their_files_are_there(words: list[str]) -> None:
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
        return
    assert words[0] == "grokscale"
    command = typer.main.get_command(app)
    context = command.make_context("grokscale", ["methods"])
    name, *rest = words[1:]
    verb = command.commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    if hasattr(verb, "commands"):
        verb, rest = verb.commands[rest[0]], rest[1:]
    verb.make_context(name, rest, parent=context)  # refuses unknown options and missing arguments
    for word in rest:
        if word.endswith(".toml") and word != "mine.toml":
            assert (ROOT / word).exists()


READING = [words for words in commands() if words[1] in ("results", "sql", "report", "associations")]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_commands_that_read_results_run(words: list[str], here: Path) -> None:
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, result.output
    if words[1] == "sql":
        assert not result.stdout.endswith("(0 rows)\n")


def test_every_verb_is_in_the_readme_and_has_help() -> None:
    command = typer.main.get_command(app)
    for name, verb in command.commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        assert re.search(rf"grokscale {name}\b", README), name
        assert verb.help, name


def test_a_transcript_shows_a_sweep_on_a_cluster() -> None:
    """Submitted, looked at, stopped, resumed, as it was printed: one sweep throughout, and no path of a machine."""
    assert [words[1] for words in typed()] == ["submit", "status", "stop", "stop", "list", "resume", "status", "submit"]
    [transcript] = blocks("console")
    [sweep_id] = set(re.findall(r"quickstart-[0-9a-f]{8}", transcript))
    assert transcript.count(f"{sweep_id}: ") == 7 and not re.search(r"(^|\s)/\w", transcript)


def test_python_queries_run(here: Path) -> None:
    [queries] = [block for block in blocks("python") if "gs.Store" in block]
    scope: dict[str, object] = {}
    for line in queries.splitlines():
        if line.startswith(("import", "store =")):
            exec(line, scope)
        elif line.strip():
            code = line.partition("#")[0].replace('"none"', '"plain"')  # the drawn sweep's baseline
            assert len(eval(code, scope)) > 0, line  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------------------------------------- the first screen


def test_shown_output_is_how_the_quickstart_began() -> None:
    shown = re.search(r"<!-- demo:.*?-->\n```\n(.*?)```\n<!-- /demo -->", README, re.DOTALL)
    assert shown is not None
    assert "Speed-up over none" in shown[1]
    assert (ROOT / "experiments/results/quickstart.txt").read_text().startswith(shown[1])


KEPT = ROOT / "experiments/results"


@pytest.mark.parametrize("name", sorted(path.stem for path in KEPT.glob("*.txt")))
def test_a_kept_answer_is_what_the_committed_rows_say(name: str) -> None:
    assert CliRunner().invoke(app, ["results", name, "--store", str(KEPT)]).stdout == (KEPT / f"{name}.txt").read_text()


def test_the_study_shown_is_what_the_committed_rows_say() -> None:
    shown = re.search(r"<!-- study: ([\w, -]+) -->\n(.*?)\n<!-- /study -->", README, re.DOTALL)
    assert shown is not None
    store = Store(KEPT)
    cells = [
        {(row["arm"], row["clock"]): row for row in speedups(store, name, baseline="adamw").to_pylist()}
        for name in shown[1].split(", ")
    ]
    lines = [line.strip("| ").split(" | ") for line in shown[2].splitlines() if not line.startswith("| :--")]
    for of in cells:
        assert {"adamw", "none", *(arm for arm, *_ in lines[1:])} == {arm for arm, _ in of} | {"adamw"}
    for arm, *figures in lines[1:]:
        rows = [of[arm, clock] for of in cells for clock in ("steps", "seconds")]
        assert figures == [
            f"{'' if row['bound'] == '=' else row['bound'] + ' '}{ratio(row['s'], 2)} "
            f"({ratio(row['lo'], 2)} to {ratio(row['hi'], 2)})"
            for row in rows
        ], arm


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        place, _, heading = target.partition("#")
        path = (ROOT / page).parent / place if place else ROOT / page
        assert path.exists(), target
        assert not heading or heading in anchors(path.read_text()), target


def anchors(text: str) -> set[str]:
    """What a page's headings are called in links, a second one of a name with -1 behind it."""
    names = [
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.M)
    ]
    return {f"{name}-{n}" if (n := names[:i].count(name)) else name for i, name in enumerate(names)}


# ---------------------------------------------------------------------------------------------- layout


def test_layout_is_the_tree() -> None:
    [tree] = [block for block in blocks("") if block.startswith("grokscale/")]
    listed = set(re.findall(r"^  ([\w.]+)/?\s", tree, re.MULTILINE))
    there = {path.name for path in (ROOT / "grokscale").iterdir()} - {"__init__.py", "__pycache__", "py.typed"}
    assert listed == there
    for folder in re.findall(r"^(\w+)/", tree, re.MULTILINE):
        assert (ROOT / folder).is_dir()
    for name in re.findall(r"^  (\w+)/", tree, re.MULTILINE):
        assert (ROOT / "grokscale" / name).is_dir()


# ---------------------------------------------------------------------------------------------- the method


def test_the_method_of_the_readme_trains(tmp_path: Path) -> None:
    [module] = [block for block in blocks("python") if block.startswith("# normalised.py")]
    _, experiment = blocks("toml")
    (tmp_path / "normalised.py").write_text(module)
    (tmp_path / "mine.toml").write_text(experiment)
    [words] = [words for words in commands() if words[1] == "run" and "mine.toml" in words]
    done = subprocess.run(
        [*GROKSCALE, *words[1:], "--set", "horizon=200", "--no-store"],
        cwd=tmp_path, capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "normalised on parity" in done.stdout and "floor 0.001" in done.stdout


def test_the_resources_of_the_readme_are_understood() -> None:
    resources, experiment = blocks("toml")
    x = parse(tomllib.loads(experiment.replace('plugin = "normalised"', "") + resources), source="README")
    assert (x.resources.gpus, x.resources.lanes, x.resources.memory) == (0.25, 0, 8e9)
    assert (x.limits.hours, x.limits.trials, x.limits.device_hours) == (12, 200, 40)


def test_the_method_of_the_readme_is_what_it_says(tmp_path: Path) -> None:
    """In a process of its own, so that the registry of this one stays as it is."""
    [module] = [block for block in blocks("python") if block.startswith("# normalised.py")]
    (tmp_path / "normalised.py").write_text(module)
    check = """
import torch, normalised
from grokscale.methods import METHODS
method = METHODS["normalised"]
grads = {"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([1e-6])}
for floor in (1e-3, torch.tensor(1e-3)):
    out, _ = method.factory(floor=floor).update(grads, (), grads, step=1)
    assert torch.allclose(out["w"], torch.tensor([0.6, 0.8])) and torch.allclose(out["b"], torch.tensor([1e-3]))
assert all(method.space[knob]._contains(value) for knob, value in method.defaults.items())
"""
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True, env=environment())
