"""Whatever is put in, an answer or one message: thousands of experiment files, command lines and damaged stores.

The files are the published experiments, changed: in ways that leave them good, in their text, and in their tables. All
of it in this process: what the process would print as a traceback is an exception here, and fails.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from grokscale import registry
from grokscale.cli import app
from grokscale.errors import GrokscaleError, InputError
from grokscale.spec import Experiment, parse, resolve_file
from grokscale.store import SCHEMAS, Store, StoreWarning
from tests import synthetic
from tests.test_cli import ROOT
from tests.test_spec_errors import KEYS, TREES

ENTRIES = registry.load(())
FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)


def readable() -> dict[str, str]:
    """The published experiments that need no data files: name -> text."""
    found = {}
    for path in sorted((ROOT / "experiments").glob("*.toml")):
        text = path.read_text()
        try:
            parse(tomllib.loads(text)).resolve(ENTRIES)
        except InputError:
            continue
        found[path.stem] = text
    return found


TEXTS = readable()
NAMES = st.sampled_from(sorted(TEXTS))


@pytest.fixture
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty working folder, in which nothing may appear but what a test puts there."""
    before = Path.cwd()
    path = tmp_path_factory.mktemp("here")
    os.chdir(path)
    yield path
    os.chdir(before)


def read(path: Path) -> str | None:
    """The sweep's id of a file that is good; None for one that was refused, as it should be."""
    try:
        found = resolve_file(path, registry=lambda plugins: ENTRIES)
        found.trial(found.arms[0].name).canonical()
        return found.sweep_id
    except InputError as error:
        assert error.problems and error.exit_code == 2
        for problem in error.problems:
            assert problem.startswith(str(path)) and "\n" not in problem.strip() and "Traceback" not in problem
            assert len(problem) > len(f"{path}: ")
        return None
    finally:
        assert list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------------------------------- experiment files

SIZES = st.integers(1, 40)
GOOD: dict[str, st.SearchStrategy[Any]] = {  # keys that any experiment may have, and values that are always right
    "name": st.from_regex(r"[a-z0-9][a-z0-9-]{0,63}", fullmatch=True),
    "question": st.text(),
    "horizon": st.integers(1, 10**7),
    "eval": st.just("epoch") | st.fixed_dictionaries({"every": st.floats(0, 1), "min": SIZES, "examples": SIZES}),
    "search": st.fixed_dictionaries({"trials": SIZES, "seeds": SIZES, "parallel": SIZES}),
    "race": st.fixed_dictionaries({"top": SIZES, "seeds": st.integers(0, 40)}),
    "confirm": st.fixed_dictionaries({"seeds": st.integers(0, 40)}),
    "limits": st.fixed_dictionaries({}, optional={"hours": st.floats(1e-3, 1e6)}),
    "resources": st.fixed_dictionaries({"cpus": SIZES, "lanes": st.sampled_from([2, 4, 64, 1024])}),
    "store": st.from_regex(r"[a-z/]{1,20}", fullmatch=True),
    "tracking": st.just("none"),
}


def toml(tables: dict[str, Any]) -> str:
    """Tables as TOML, everything below the top in one line: JSON's words are TOML's, but for a few."""

    def one(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{one(k)} = {one(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(one, value)) + "]"
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

    return "".join(f"{one(key)} = {one(value)}\n" for key, value in tables.items())


@settings(FIXTURE, max_examples=500)
@given(NAMES, st.fixed_dictionaries({}, optional=GOOD), st.randoms(use_true_random=False))
def test_a_good_file_is_taken_whatever_its_order(
    here: Path, name: str, changes: dict[str, Any], order: Any
) -> None:
    tables = {**tomllib.loads(TEXTS[name]), **changes}
    tables["arm"] = [arm if isinstance(arm, dict) else dict(arm) for arm in tables["arm"]]
    try:
        wanted = parse(tables).resolve(ENTRIES).sweep_id
    except InputError as error:  # a change that this very experiment cannot have: its claims name what it asks
        assert any(word in str(error) for word in ("paper", "endpoint", "confirm.seeds", "every evaluation", "eval"))
        return
    shuffled = dict(order.sample(sorted(tables.items(), key=lambda item: item[0]), len(tables)))
    path = here / "x.toml"
    path.write_text(toml(shuffled))
    assert read(path) == wanted
    kept = Experiment.from_json(parse(tables).to_json())
    assert kept.resolve(ENTRIES).sweep_id == wanted


TOKENS = st.sampled_from([
    "[", "]", "{", "}", "=", "\n", '"', "'", "#", ",", ".", "[[arm]]\n", "[space]\n", "1e400", "-1", "nan", "inf", "0",
    "true", '""', "[[[", "é", "\x00", "\ufeff", "1979-05-27", "10" * 300, "{low = 1, high = 0}", '"epoch"', "\r",
])  # fmt: skip


@settings(FIXTURE, max_examples=1000)
@given(NAMES, st.data())
def test_a_text_that_was_mangled(here: Path, name: str, data: st.DataObject) -> None:
    text = TEXTS[name]
    lines = [line for line in text.splitlines(True) if not line.startswith("#")]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["drop", "double", "move", "insert", "cut"])):
            case "drop" if len(lines) > 1:
                del lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "move":
                lines.insert(data.draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "insert":
                column = data.draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:column] + data.draw(TOKENS | st.text(max_size=4)) + lines[at][column:]
            case _:
                lines[at] = lines[at][: data.draw(st.integers(0, len(lines[at])))]
    raw = bytearray("".join(lines).encode(errors="surrogatepass"))
    for bit in data.draw(st.lists(st.integers(0, 8 * len(raw) - 1), max_size=2) if raw else st.just([])):
        raw[bit // 8] ^= 1 << bit % 8
    path = here / "x.toml"
    path.write_bytes(raw)
    read(path)


@settings(FIXTURE, max_examples=700)
@given(NAMES, st.data())
def test_tables_that_were_mangled(here: Path, name: str, data: st.DataObject) -> None:
    """As JSON, which the store and a job on a cluster read the same way."""
    tables: Any = copy.deepcopy(tomllib.loads(TEXTS[name]))
    for _ in range(data.draw(st.integers(1, 3))):
        node = tables
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys)) if keys else None
            if key is not None and isinstance(node[key], (dict, list)) and data.draw(st.booleans()):
                node = node[key]
            elif key is None or data.draw(st.booleans()):
                node.update({data.draw(KEYS): data.draw(TREES)}) if isinstance(node, dict) else node.append(
                    data.draw(TREES))  # fmt: skip
                break
            else:
                node[key] = data.draw(TREES)
                break
    path = here / "x.json"
    path.write_text(json.dumps(tables, default=str))
    read(path)


@settings(FIXTURE, max_examples=100)
@given(st.binary(max_size=200), st.sampled_from(["x.toml", "x.json"]))
@example(b"[" * 100_000, "x.json")
@example(b"a=" + b"[" * 100_000, "x.toml")
@example(b"{}", "x.json")
@example(b'{"arm": {"name": 1}}', "x.json")
def test_any_bytes(here: Path, raw: bytes, name: str) -> None:
    for path in here.iterdir():
        path.unlink()
    (here / name).write_bytes(raw)
    assert read(here / name) is None


# ---------------------------------------------------------------------------------------- command lines

VERBS = [
    ["sweep"], ["run"], ["submit"], ["list"], ["status"], ["logs"], ["stop"], ["resume"], ["results"], ["sql"],
    ["report"], ["associations"], ["ui"], ["track", "sync"], ["store", "check"], ["store", "compact"], ["methods"],
    ["tasks"], ["metrics"], ["data", "list"], ["data", "fetch"], [], ["track"], ["stroe"],
]  # fmt: skip
OPTIONS = ["--set", "--store", "--seeds", "--seed-list", "--until", "--format", "-o", "--add-trials", "--port",
           "--plugin", "--wait", "--arm", "--metrics", "--rows", "--uri", "--dry-run", "--now", "-f", "--repair",
           "--nonsense", "-x"]
ODD = st.sampled_from([
    "", "-1", "0", "1e400", "nan", "x.toml", "no/such/file.toml", "..", "/", "\x00", "a=b", "search.trials=-1", "=",
    "arm.x.set.lr=1", "SELECT 1", "DROP TABLE trials", "s3://", "http://127.0.0.1:9", "café", "'; --", "a" * 5000,
    "none", "tiny-00000000", "table", "$(true)", "file:///etc/passwd", "grokscale_no_such_plugin", "1,2,x", "1,1",
]) | st.text(max_size=6)  # fmt: skip


def called(words: list[str]) -> int:
    """The exit code of a command line; whatever it says is no traceback."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        done = CliRunner().invoke(app, words, prog_name="grokscale")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(words) from done.exception
    assert "Traceback" not in done.output
    assert done.exit_code in (0, 1, 2), (words, done.output)
    assert done.exit_code == 0 or done.output.strip(), words
    assert {type(one.message) for one in warned} <= {StoreWarning}, [str(one.message) for one in warned]
    return done.exit_code


@settings(FIXTURE, max_examples=300)
@given(st.sampled_from(VERBS), st.lists(ODD | st.sampled_from(OPTIONS), max_size=4))
def test_any_command_line(here: Path, verb: list[str], words: list[str]) -> None:
    """In a folder with no experiment and no store, so there is nothing to train, to serve or to stop."""
    code = called([*verb, *words])
    left = [path for path in here.rglob("*") if path.is_file()]
    if verb in (["sweep"], ["run"], ["submit"], ["resume"], ["stop"], ["ui"], ["track", "sync"]):
        assert code == 2
        assert left == []
    for path in here.iterdir():  # what -o named
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# ---------------------------------------------------------------------------------------- stores

READERS = [["results"], ["list"], ["status"], ["logs"], ["store", "check"], ["sql", "SELECT count(*) FROM replicas"],
           ["sql", "SELECT count(*), sum(test_acc) FROM curves"], ["results", "--rows", "trials", "--format", "csv"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a finished sweep, a generation, a log, a lock, a checkpoint."""
    store = Store(tmp_path_factory.mktemp("whole") / "runs")
    experiment = synthetic.EXPERIMENT | {"task": {"name": "toy"}}
    sweep_id = synthetic.confirmed(store, experiment=experiment)
    store.compact(["replicas"])
    folder = store.sweep_dir(sweep_id)
    (folder / "log.txt").write_text("2026-01-01 00:00:00 INFO grokscale.sweep: search\n" * 20)
    (folder / "lock").write_text("process 1 on nowhere\n")
    (folder / "ended").write_text("0" * 64)
    (store.folder("checkpoints") / "plain0000000-0123456789ab.pt").write_bytes(b"PK\x03\x04" + bytes(200))
    assert store.local is not None
    return store.local


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """MLflow's database, empty: making its tables takes seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("tracked") / "ml.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


def damaged(whole: Path, here: Path, data: st.DataObject) -> Path:
    """The root of a copy of the store in which one to three files were spoilt."""
    root = here / "runs"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(whole, root)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    for path in data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=3, unique=True)):
        raw = bytearray(path.read_bytes())
        match data.draw(st.sampled_from(["cut", "flip", "foreign", "folder", "empty"])):
            case "cut":
                raw = raw[: data.draw(st.integers(0, len(raw)))]
            case "flip":
                for bit in data.draw(st.lists(st.integers(0, max(0, 8 * len(raw) - 1)), min_size=1, max_size=3)):
                    raw[bit // 8] ^= 1 << bit % 8
            case "foreign":
                raw = bytearray(data.draw(st.binary(max_size=64)))
            case "empty":
                raw = bytearray()
            case _:
                path.unlink()
                path.mkdir()
                continue
        path.write_bytes(raw)
    return root


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@settings(FIXTURE, max_examples=60)
@given(st.data())
def test_any_damage_to_a_store(whole: Path, here: Path, data: st.DataObject) -> None:
    root = damaged(whole, here, data)
    before = contents(root)
    for words in data.draw(st.lists(st.sampled_from(READERS), min_size=3, max_size=3, unique_by=tuple)):
        called([*words, "--store", str(root)])
    after = contents(root)
    assert {path: after.get(path) for path in before} == before


# `sweep` is not among them: what a damaged store has lost it would train again, which takes Ray and minutes.
WRITERS = [["store", "compact"], ["store", "compact", "--grace", "0"], ["store", "check", "--repair"], ["resume"],
           ["report", "-o", "report.html"], ["track", "sync", "--uri", "sqlite:///ml.db"]]  # fmt: skip


def known(root: Path) -> dict[str, Any]:
    """Table -> the rows that count; without the tables that cannot be read."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        for table in SCHEMAS:
            with contextlib.suppress(GrokscaleError):
                found[table] = Store(root).table(table).to_pylist()
    return found


@settings(FIXTURE, max_examples=24)
@given(st.data())
def test_writing_to_a_damaged_store_loses_nothing(whole: Path, tracked: bytes, here: Path, data: st.DataObject) -> None:
    """What could be read before can be read afterwards; merged parts may go, and what is spoilt may be set aside."""
    root = damaged(whole, here, data)
    (here / "ml.db").write_bytes(tracked)
    rows, before = known(root), set(contents(root).values())
    words = data.draw(st.sampled_from(WRITERS))
    called([*words, "--store", str(root)])
    assert known(root).items() >= rows.items()
    if "0" not in words:
        assert set(contents(root).values()) >= before


@pytest.mark.parametrize("kept", ["{", "", "[]", "null"])
def test_a_sweep_whose_experiment_is_beyond_reading_is_named(whole: Path, here: Path, kept: str) -> None:
    root = here / "runs"
    shutil.copytree(whole, root)
    store = Store(root)
    (row,) = store.rows("sweeps")
    store.append("sweeps", [{**{k: v for k, v in row.items() if k != "at"}, "experiment_json": kept}])
    for words in (["results"], ["report", "-o", "report.html"], ["report", "--figures", "figures"], ["resume"]):
        done = CliRunner().invoke(app, [*words, "--store", str(root)], prog_name="grokscale")
        assert isinstance(done.exception, SystemExit) and done.exit_code == 1
        assert f"what sweep {row['sweep_id']} asked for cannot be read (" in done.output
    for words in (["list"], ["status"], ["results", "--rows", "trials", "--format", "csv"]):
        assert called([*words, "--store", str(root)]) == 0
    assert [path.name for path in here.iterdir()] == ["runs"]
