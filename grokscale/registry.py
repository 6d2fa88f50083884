"""Loads what can be named in an experiment file: the built-in dicts and what plugins add to them."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path

from grokscale.entries import Registry
from grokscale.errors import InputError


def load(plugins: Sequence[str] = ()) -> Registry:
    """The registry after importing `plugins`, modules that add to METHODS, TASKS, MODELS or MEASURES when imported.

    Raises InputError for a module that cannot be imported.
    """
    from grokscale.methods import METHODS
    from grokscale.metrics import MEASURES
    from grokscale.models import MODELS
    from grokscale.tasks import TASKS

    hashes = {}
    for name in plugins:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise InputError([
                f"plugin: module {name!r} cannot be imported: {error}; install it, or put its folder on PYTHONPATH"
            ]) from error
        hashes[name] = _source_hash(module.__file__)
    return Registry(METHODS, TASKS, MODELS, hashes, MEASURES)


def _source_hash(file: str | None) -> str:
    """sha256 over a module's source, or over all Python files of a package, in order of their names."""
    if file is None:
        return ""
    path = Path(file)
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    digest = hashlib.sha256()
    for one in files:
        digest.update(one.name.encode() + b"\0" + one.read_bytes() + b"\0")
    return digest.hexdigest()
