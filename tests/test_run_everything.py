"""`grokscale run` of every task at a tiny size under every method: a few steps each, from an experiment file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grokscale import data
from grokscale.cli import app
from tests import datafiles, test_data_tasks
from tests.test_tasks_train import NAMES, SMALL
from tests.trials import KNOBS, OWN_RATE, REGISTRY

METHODS = sorted(n for n, m in REGISTRY.methods.items() if m.factory.__module__.startswith("grokscale.methods."))
HORIZON = 4
FILES = {
    name: (options, {k: v for k, v in test_data_tasks.MODELS[name].items() if k != "name"}, {
        "lr": test_data_tasks.LR[name], "batch": test_data_tasks.BATCH[name]})
    for name, (_, options) in test_data_tasks.TASKS.items()
}  # fmt: skip
# One layer is a decoder too; four are trained in test_tasks_train.
DECODERS = {
    name: (options, {"dim": 8, "heads": 2, "layers": 1}, optimiser)
    for name, (options, _, optimiser) in SMALL.items() if REGISTRY.tasks[name].model["name"] == "decoder"
}  # fmt: skip
TINY = {**SMALL, **DECODERS, **FILES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = datafiles.write_all(tmp_path_factory.mktemp("files"))
    data.use(folder)
    yield folder
    data.use(None)


def table(name: str, values: Mapping[str, Any]) -> str:
    """A table of TOML; JSON's words, numbers and lists are TOML's too."""
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""])


def fits(method: str, task: str) -> bool:
    """Does the method work on what the task gives?"""
    entry, allowed = REGISTRY.tasks[task], REGISTRY.methods[method].inputs
    return not allowed or entry.factory(**{**entry.defaults, **TINY[task][0]}).inputs.kind in allowed


def experiment(task: str, methods: Sequence[str]) -> str:
    """The file of a task with these methods as arms."""
    options, model, optimiser = TINY[task]
    head = {"name": "everything", "question": "Does it run?", "baseline": "none", "horizon": HORIZON}
    parts = [f"{k} = {json.dumps(v)}" for k, v in head.items()]
    parts += [table("eval", {"every": "2%", "min": 2, "examples": 32}), table("task", {"name": task, **options})]
    parts += [table("model", model), table("optimiser", optimiser)]
    for method in methods:
        own = OWN_RATE if REGISTRY.methods[method].optimiser else {}
        knobs = {**own, **KNOBS.get(method, {})}
        parts.append(f"[[arm]]\nname = {json.dumps(method)}\n" + (table("arm.set", knobs) if knobs else ""))
    return "\n".join(parts)


def test_every_task_is_here() -> None:
    assert set(NAMES) == set(TINY)


@pytest.mark.parametrize("task", sorted(TINY))
def test_it_runs_under_every_method(task: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("all.toml").write_text(experiment(task, [method for method in METHODS if fits(method, task)]))
    for method in METHODS:
        if not fits(method, task):
            Path("one.toml").write_text(experiment(task, ["none", method]))
            words = ["run", "one.toml", "--arm", "none", "--no-store", "--data", str(folder)]
            refused = CliRunner().invoke(app, words, prog_name="grokscale")
            assert refused.exit_code == 2, f"{method}: {refused.output}"
            assert f"{method} works on tasks whose rows are " in refused.output
            continue
        words = ["run", "all.toml", "--arm", method, "--no-store", "--seed-list", "3,4", "--data", str(folder)]
        result = CliRunner().invoke(app, words, prog_name="grokscale")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, f"{method}: {result.output}"
        rows = [line.split() for line in result.stdout.splitlines() if line.startswith(("3 ", "4 "))]
        assert [row[0] for row in rows] == ["3", "4"], f"{method}: {result.stdout}"
        assert all(row[1] in ("unfitted", "memorised", "grokked") for row in rows), f"{method}: {rows}"
