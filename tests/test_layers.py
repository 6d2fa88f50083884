"""Who may import whom, read from the source: the direction of DESIGN's layout, and no entry named outside its place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from grokscale import registry

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "grokscale").rglob("*.py"))


def module(path: Path) -> str:
    """grokscale/store/files.py is "store"; the package's own __init__ is "grokscale"."""
    parts = path.relative_to(ROOT / "grokscale").with_suffix("").parts
    return parts[0] if parts[0] != "__init__" else "grokscale"


MODULES = {module(path) for path in FILES}


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Dotted names that a file imports, but for the sake of types; without `lazy`, only when it is loaded."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not lazy:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; the package's imports are absolute"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found


def outside(path: Path, *, lazy: bool = True) -> set[str]:
    """Top-level packages that a file imports besides grokscale and the standard library."""
    tops = {name.partition(".")[0] for name in imports(path, lazy=lazy)}
    return tops - set(sys.stdlib_module_names) - {"grokscale", "__future__"}


def inside(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules of grokscale that a file imports."""
    names = {name for name in imports(path, lazy=lazy) if name.partition(".")[0] == "grokscale"}
    parts = [name.split(".") for name in names]
    return {p[1] if len(p) > 1 and p[1] in MODULES else "grokscale" for p in parts}


# ---------------------------------------------------------------------------------------- third parties

# Modules that may import a package, at all or inside functions.
ALLOWED = {
    "torch": {"transform", "methods", "tasks", "models", "rng", "train", "parts", "worker", "preview", "doctor", "solo"}
    | {"metrics", "data", "weights", "checkpoint", "packing"},
    "ray": {"search", "tuner", "worker", "sweep", "service", "doctor"},
    "mlflow": {"track"},
    "pyarrow": {"store", "answers", "explain"},
    "duckdb": {"store"},
    "matplotlib": {"report"},
    "scipy": {"stats", "report", "spec", "explain"},
    "typer": {"cli"},
    "pydantic": {"spec"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_are_imported_only_where_they_belong(package: str):
    users = {module(path) for path in FILES if package in outside(path)}
    assert users <= ALLOWED[package]


def test_studies_and_samplers_of_optuna_are_for_the_search():
    for path in FILES:
        used = {name for name in imports(path) if name.partition(".")[0] == "optuna"}
        if module(path) != "search":
            assert all(name.startswith("optuna.distributions") for name in used), path


def test_results_need_neither_torch_nor_ray():
    code = """
import importlib, sys
for name in ("errors", "entries", "spec", "store", "stats", "outcomes", "answers", "explain", "report", "cli"):
    importlib.import_module("grokscale." + name)
    heavy = [m for m in ("torch", "ray", "mlflow", "optuna") if m in sys.modules]
    assert not heavy, f"{name} imports {heavy}"
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# -------------------------------------------------------------------------------------------- direction

# What a module may import of the others, lazily or not. "spec", "errors" and "entries" are below everything.
BASE = {"errors", "entries", "spec"}
ENGINE = {"methods", "tasks", "models", "metrics", "outcomes", "transform", "data", "rng", "registry"}
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "entries": set(),
    "spec": {"errors", "entries"},
    "rng": set(),
    "data": BASE,
    "transform": {"errors"},
    "methods": {"transform", "data", "entries", "errors"},
    "tasks": {"data", "rng", "entries", "errors"},
    "models": {"transform", "tasks", "entries", "errors"},
    "metrics": {"transform", "entries"},
    "outcomes": {"errors"},
    "signatures": {"outcomes"},
    "registry": {"methods", "tasks", "models", "metrics", "entries", "errors"},
    "train": BASE | ENGINE,
    "store": BASE,
    "stats": {"outcomes", "errors"},
    "answers": BASE | {"store", "stats", "outcomes"},
    "explain": BASE | {"store", "outcomes"},
    "report": BASE | {"store", "stats", "answers", "explain", "outcomes"},
}
DRIVERS = {"cli", "service", "sweep", "search", "tuner", "worker"}


def test_the_lower_layers_know_nothing_of_the_upper_ones():
    for path in FILES:
        name = module(path)
        if name in BELOW:
            extra = inside(path) - BELOW[name] - {name, "grokscale"}
            assert not extra, f"{path.relative_to(ROOT)} imports {', '.join(sorted(extra))}"


def test_nothing_imports_the_command_line_and_only_it_the_service():
    for path in FILES:
        used = inside(path) - {module(path)}
        assert "cli" not in used, path
        assert "service" not in used or module(path) == "cli", path


def test_there_is_no_cycle_between_modules():
    edges: dict[str, set[str]] = {name: set() for name in MODULES}
    for path in FILES:
        edges[module(path)] |= inside(path, lazy=False) - {module(path), "grokscale"}
    done: set[str] = set()
    while ready := {name for name in edges if name not in done and edges[name] <= done}:
        done |= ready
    assert done == set(edges), f"a cycle among {', '.join(sorted(set(edges) - done))}"


# ----------------------------------------------------------------------------------------------- habits


def test_no_file_outside_names_an_entry():
    entries = registry.load()
    names = {*entries.methods, *entries.tasks, *entries.models} - {"none"}
    for path in FILES:
        if module(path) in ("methods", "tasks", "models"):
            continue
        strings = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        assert not names & strings, f"{path.relative_to(ROOT)} names {', '.join(sorted(names & strings))}"


def test_nothing_draws_from_a_global_generator_or_swallows_everything():
    for path in FILES:
        assert "random" not in {name.partition(".")[0] for name in imports(path)}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and ast.unparse(node.body[-1]) != "raise":
                caught = "" if node.type is None else ast.unparse(node.type)
                assert caught not in ("", "Exception", "BaseException"), f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                assert text not in ("torch.manual_seed", "np.random.seed", "np.random.rand"), f"{path}:{node.lineno}"


def unpicklings(tree: ast.AST) -> list[str]:
    """Calls that would run code out of a file, under whatever name their module goes."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "cloudpickle", "torch", "numpy"):
            names = {alias.name for alias in node.names} & {"load", "loads", "Unpickler"}
            found += [f"{node.lineno} from {node.module} import {name}" for name in sorted(names)]
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        bare = called in ("torch.load", "torch.serialization.load") and given.get("weights_only") != "True"
        module, _, name = called.rpartition(".")
        pickled = name == "read_pickle" or (module.endswith("pickle") and name in ("load", "loads", "Unpickler"))
        if bare or pickled or given.get("allow_pickle", "False") != "False":
            found.append(f"{node.lineno} {called}")
    return found


@pytest.mark.parametrize("code", [
    "torch.load(x)", "torch.load(x, weights_only=False)", "torch.load(x, weights_only=safe)", "pickle.load(x)",
    "pickle.loads(x)", "cloudpickle.loads(x)", "pickle.Unpickler(x)", "pd.read_pickle(x)",
    "np.load(x, allow_pickle=True)", "from pickle import loads", "from torch import load",
])  # fmt: skip
def test_the_rule_on_unpickling_finds_it(code: str) -> None:
    assert len(unpicklings(ast.parse(code))) == 1
    assert unpicklings(ast.parse("torch.load(x, weights_only=True); np.load(x); json.loads(x)")) == []


def test_nothing_is_unpickled() -> None:
    """But a trial's last error, by the driver that has written it a moment ago."""
    found = {str(path.relative_to(ROOT)): one for path in FILES if (one := unpicklings(ast.parse(path.read_text())))}
    assert {path: [one.split()[1] for one in calls] for path, calls in found.items()} == {
        "grokscale/tuner.py": ["cloudpickle.loads"]
    }


def test_files_are_short_enough_to_read():
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := p.read_text().count("\n")) > 520}
    assert not long
