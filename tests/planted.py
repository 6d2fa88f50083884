"""Secrets that were planted in an environment, looked for in everything that a sweep leaves behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from grokscale.store import SCHEMAS, Store
from tests.test_sweep import runs_of

NAMES = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN", "MY_PASSWORD")


def secrets_of(whom: str) -> dict[str, str]:
    """Variables that hold secrets; whom: whose environment they are for."""
    return {name: f"planted-{whom}-{name.lower()}-5d1c" for name in NAMES}


def texts(*folders: Path) -> dict[str, str]:
    """What the files in folders hold, by their names."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path): path.read_bytes().decode("latin-1") for path in files}


def tracked(uri: str, name: str) -> dict[str, str]:
    """What MLflow knows of an experiment's runs: parameters, tags, metrics."""
    runs = runs_of(uri, name)
    assert {run.data.tags["kind"] for run in runs} == {"sweep", "trial"} and any(run.data.params for run in runs)
    return {f"MLflow's run {run.info.run_id}": str([run.data, run.info]) for run in runs}


def rows(store: Store) -> dict[str, str]:
    """The store's tables, which are compressed on the disk."""
    found = {f"table {name}": str(store.table(name).to_pylist()) for name in SCHEMAS}
    assert len(found["table trials"]) > 1000
    return found


def leaks(planted: Iterable[str], *places: Mapping[str, str]) -> list[str]:
    """Where any of the secrets stands."""
    return [name for place in places for name, text in place.items() if any(secret in text for secret in planted)]
