"""Every experiment that ships: it reads, it resolves, its table lists it, and every kind of arm in it trains."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.feature_extraction.text  # noqa: F401, here: its import draws from Python's generator

from grokscale import data, registry
from grokscale.report import scoreboard
from grokscale.spec import Resolved, TrialSpec, load, resolve_file
from grokscale.store import Store
from grokscale.train import train
from tests import datafiles

FOLDER = Path(__file__).parent.parent / "experiments"
FILES = sorted(path for path in FOLDER.glob("*.toml") if path.name != scoreboard.ORDER)
LISTED = (FOLDER / "README.md").read_text()
STEPS = 12  # more than the warm-up of the learning rate, so that every arm moves

# Sizes at which a step costs a millisecond; options that are not here stay as the file has them.
TASKS: dict[str, dict[str, Any]] = {
    "parity": {"n": 12, "k": 2, "n_train": 60, "n_val": 40, "n_test": 40},
    "parity-relabelled": {
        "n": 12, "k": 2, "n_train": 60, "n_val": 40, "n_test": 40, "relabel": 4, "phases": 2},
    "modular-pairs": {"p": 11},
    "modular-tokens": {"p": 11},
    "modular-relabelled": {"p": 11, "relabel": 4, "phases": 2},
    "modular-curriculum": {"p": 11, "start": 6, "grow": 6},
    "modular-composite": {"p": 11},
    "modular-composite-5": {"p": 3},
    "sort": {"values": 3, "length": 3, "rows": 80},
    "reverse": {"values": 3, "length": 3, "rows": 80},
    "reachability": {"nodes": 4, "edges": 3, "rows": 80},
    "toy": {"n_train": 60, "n_val": 40, "n_test": 40},
    "mnist": {"n_train": 30, "n_val": 20, "side": 6},
    "imdb": {"rows": 80, "n_val": 30, "vocabulary": 12, "length": 8},
    "qm9": {"rows": 32, "n_val": 12, "atoms": 12},
}
MODELS: dict[str, dict[str, Any]] = {
    "mlp2": {"width": 8},
    "mlp": {"width": 7},
    "linear": {},
    "decoder": {"dim": 8, "heads": 2},
    "lstm": {"dim": 5, "width": 6},
    "graph": {"width": 6, "out": 4, "hidden": 5},
}
KNOBS: dict[str, Any] = {"window": 3, "two_stage": 2, "rank": 3, "width": 4, "depth": 1, "hidden": "4,4", "refresh": 2}
"""Sizes and delays within a method; a knob at which it is off, such as hidden = "", stays off."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datafiles.write_all(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def folder(files: Path) -> None:
    data.use(files)


@functools.cache
def resolved(path: Path) -> Resolved:
    """Of one file; the stand-ins for its data are the same for all tests."""
    return resolve_file(path, registry=registry.load)


def by_file(function: Any) -> Any:
    return pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)(function)


# ------------------------------------------------------------------------------------------ what they say


@by_file
def test_it_resolves_and_its_trials_travel(path: Path) -> None:
    x = resolved(path)
    assert load(path).name == path.stem == x.experiment.name
    for arm in x.arms:
        for point in arm.points:
            assert TrialSpec.from_json(x.trial(arm.name, point).canonical()) == x.trial(arm.name, point)


@by_file
def test_its_arms_can_be_compared(path: Path) -> None:
    """Another modulus, fraction or loss is another task, and comparisons across tasks are refused."""
    x = resolved(path)
    first, *others = (x.trial(arm.name) for arm in x.arms)
    for spec in others:
        assert (spec.task, spec.threshold, spec.eval) == (first.task, first.threshold, first.eval)


@by_file
def test_it_asks_a_question_of_enough_seeds(path: Path) -> None:
    x = resolved(path).experiment
    assert x.question.endswith("?")
    assert x.confirm.seeds >= 5
    if x.grid is not None or x.paper:
        assert x.search.trials == 0, "a grid and a published setting are run as they stand"
    crossings = [paper.threshold for paper in x.paper if paper.endpoint is None]
    assert set(crossings) <= {resolved(path).threshold}, "a row says what it counts"


@pytest.mark.parametrize("path", [path for path in FILES if path.stem.startswith("study-")], ids=lambda path: path.stem)
def test_a_study_tunes_every_arm_alike(path: Path) -> None:
    x = resolved(path)
    asked = x.experiment
    assert [arm.name for arm in x.arms] == [
        "none", "adamw", "grokfast-ma", "grokfast-ema", "egd", "egd-colnorm", "neuralgrok", "muon"]  # fmt: skip
    assert (asked.search.trials, asked.search.seeds, asked.race.top, asked.confirm.seeds) == (24, 4, 5, 20)
    assert asked.practice == ("none", "adamw")
    ranges = {(str(arm.space["lr"]), str(arm.space["wd"])) for arm in x.arms}
    assert len(ranges) == 1, "learning rate and weight decay have the same ranges in every arm"


# ------------------------------------------------------------------------------------------ the table of them


def test_the_table_lists_exactly_the_files() -> None:
    rows = re.findall(r"^\| [^|]+ \| \[([^\]]+)\]\(([^)]+)\) \|", LISTED, re.MULTILINE)
    assert all(target == f"{name}.toml" for name, target in rows)
    assert len({name for name, _ in rows}) == len(rows)
    assert {name for name, _ in rows} == {path.stem for path in FILES}


def test_every_row_has_its_costs_and_says_whether_it_was_run() -> None:
    kept = {row["name"] for row in Store(FOLDER / "results").rows("sweeps")}
    kept |= {path.stem for path in (FOLDER / "results").glob("*.txt")}
    for path in FILES:
        [row] = [line for line in LISTED.splitlines() if f"]({path.name})" in line]
        id_, _, sentence, cores, gpu, status = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert id_ and len(sentence) > 20
        assert re.fullmatch(r"[\d.]+ (min|h)", cores) and re.fullmatch(r"[\d.]+ (min|h)", gpu), row
        assert status.startswith("run") == (path.stem in kept), row


@by_file
def test_its_comment_names_its_own_command(path: Path) -> None:
    comment = path.read_text().partition("\nname = ")[0]
    assert all(line.startswith("#") for line in comment.splitlines() if line)
    assert f"experiments/{path.name}" in comment
    assert tomllib.loads(path.read_text())["name"] == path.stem


# ------------------------------------------------------------------------------------------ they train


def small(spec: TrialSpec) -> TrialSpec:
    """The same trial at a size that fits into a test."""
    task = {**spec.task, **{k: v for k, v in TASKS.get(spec.task["name"], {}).items() if k in spec.task}}
    model = {**spec.model, **MODELS[spec.model["name"]]}
    method = tuple(
        {k: KNOBS[k] if k in KNOBS and v and (k != "refresh" or v > 1) else v for k, v in part.items()}
        for part in spec.method
    )
    optimiser = {**spec.optimiser, "batch": 10}
    looks = spec.eval if "epoch" in spec.eval else {**spec.eval, "min": 4}  # else none before the end
    return replace(spec, task=task, model=model, method=method, optimiser=optimiser, eval=looks)


def kind(spec: TrialSpec) -> tuple[Any, ...]:
    """What decides which code an arm runs, numbers aside: two of a kind are trained once."""

    def words(table: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(sorted((k, v) for k, v in table.items() if isinstance(v, (str, bool))))

    return spec.model["name"], words(spec.task), words(spec.optimiser), tuple(words(part) for part in spec.method)


@functools.cache
def trained(canonical: str, names: tuple[str, ...]) -> bool:
    """Did two replicas of a trial go through STEPS steps with a finite loss? Once for all files that share it."""
    looks = list(train(TrialSpec.from_json(canonical), [1, 2], horizon=STEPS, metrics=names))
    return looks[-1].step >= STEPS and bool(np.isfinite(looks[0].metrics["train_loss"]).all())


@by_file
def test_every_kind_of_arm_trains(path: Path) -> None:
    x = resolved(path)
    kinds: dict[tuple[Any, ...], tuple[str, TrialSpec]] = {}
    for arm in x.arms:
        spec = x.trial(arm.name)
        kinds.setdefault(kind(spec), (arm.name, spec))  # the first of a kind: grids start where nothing diverges
    for label, spec in kinds.values():
        assert trained(small(spec).canonical(), x.experiment.metrics.names), label
