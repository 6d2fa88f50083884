"""The verbs, as a user types them: what they print, what they leave, how they end."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from grokscale import doctor, live, registry, report
from grokscale.cli import app
from grokscale.desk import ArmProgress, Progress
from grokscale.errors import GrokscaleError
from grokscale.spec import seed_for
from grokscale.store import Store
from tests import synthetic

ROOT = Path(__file__).parent.parent
GROKSCALE = (sys.executable, "-m", "grokscale.cli")
TINY = """
name = "small"
question = "Does it run from end to end?"
baseline = "none"
horizon = 3000
[task]
name = "parity"
n = 20
k = 2
n_train = 400
[model]
width = 40
[space]
lr = { low = 0.01, high = 0.2, log = true, default = 0.1 }
[[arm]]
name = "none"
[[arm]]
name = "egd-colnorm"
[search]
trials = 2
seeds = 2
[race]
seeds = 0
[confirm]
seeds = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the experiment file tiny.toml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GROKSCALE_STORE", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("tiny.toml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("full"))
    synthetic.confirmed(store)
    return store


def call(*words: str, code: int = 0) -> Result:
    """The verb in this process; its exit code is checked."""
    result = CliRunner().invoke(app, list(words), prog_name="grokscale")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": ""}


# ---------------------------------------------------------------------------------------------- quickness


def cpu_seconds(*words: str) -> float:
    """CPU seconds of a verb in a process of its own: what it costs whatever else the machine does."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([*GROKSCALE, *words], check=True, capture_output=True, env=environment())
    return spent() - before


def test_help_is_quick() -> None:
    assert min(cpu_seconds("--help") for _ in range(2)) < 0.5


def test_results_are_quick(full: Store) -> None:
    assert min(cpu_seconds("results", "--store", full.root) for _ in range(2)) < 2


@pytest.mark.parametrize("verb", [(), ("sweep",), ("run",), ("results",), ("ui",), ("doctor",), ("track", "sync")])
def test_help_imports_nothing_heavy(verb: Sequence[str]) -> None:
    code = (
        "import sys; from grokscale.cli import app\n"
        f"try: app({[*verb, '--help']!r})\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment())


def test_something_is_said_at_once(folder: Path) -> None:
    began = time.monotonic()
    process = subprocess.Popen([*GROKSCALE, "sweep", "tiny.toml"], stderr=subprocess.PIPE, env=environment())
    assert process.stderr is not None
    assert process.stderr.readline() == b"tiny: starting\n"
    assert time.monotonic() - began < 2
    process.kill()
    process.communicate()


# ---------------------------------------------------------------------------------------------- reading


def test_results_print_the_text(full: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = report.results_text(full, "tiny")
    assert call("results", "tiny", "--store", full.root).stdout == expected
    monkeypatch.setenv("GROKSCALE_STORE", full.root)
    assert call("results").stdout == expected
    call("results", "-o", "deep/answer.txt")
    assert Path("deep/answer.txt").read_text() == expected


def test_results_as_rows(full: Store, folder: Path) -> None:
    stored = full.speedups(sweep="tiny").to_pylist()
    table = list(csv.DictReader(io.StringIO(call("results", "--format", "csv", "--store", full.root).stdout)))
    assert [float(row["s"]) for row in table] == [row["s"] for row in stored]
    objects = json.loads(call("results", "--format", "json", "--store", full.root).stdout)
    assert [row["clock"] for row in objects] == [row["clock"] for row in stored]
    call("results", "--format", "parquet", "--rows", "curves", "-o", "curves.parquet", "--store", full.root)
    assert pq.read_table("curves.parquet").num_rows == full.curves(sweep="tiny").num_rows > 0
    trials = call("results", "--format", "csv", "--rows", "trials", "--store", full.root).stdout
    assert [1, 2, 3] in [json.loads(row["seeds"]) for row in csv.DictReader(io.StringIO(trials))]


def test_sql(full: Store, folder: Path) -> None:
    query = "SELECT method, count(*) AS n, min(grok_step) AS first FROM replicas GROUP BY 1 ORDER BY 1"
    lines = call("sql", query, "--store", full.root).stdout.splitlines()
    assert lines[0].split() == ["method", "n", "first"] and lines[-1] == "(3 rows)"
    assert [line.split()[:2] for line in lines[2:-1]] == [["plain", "8"], ["shaky", "8"], ["swift", "8"]]
    found = json.loads(call("sql", query, "--format", "json", "--store", full.root).stdout)
    assert found[2]["first"] == min(synthetic.grok_steps("swift"))
    wrong = call("sql", "DROP TABLE replicas", "--store", full.root, code=2)
    assert "SELECT" in wrong.stderr and not wrong.stdout


def test_report(full: Store, folder: Path) -> None:
    said = call("report", "tiny", "--figures", "figures", "--store", full.root).stdout.split()
    assert Path("report.html").read_text() == report.html(full, "tiny")
    assert sorted(said) == sorted(["report.html", *map(str, Path("figures").iterdir())])
    assert Path("figures/tiny-survival.svg").read_bytes() == report.figure_files(full, "tiny")["tiny-survival.svg"]


def test_methods_and_tasks_list_every_entry() -> None:
    entries = registry.load()
    listed, tasks = call("methods").stdout, call("tasks").stdout
    for method in entries.methods.values():
        entry = f"\n{listed}\n\n".partition(f"\n{method.name}\n")[2].partition("\n\n")[0]
        assert entry and all(re.search(rf"^    {knob} =", entry, re.MULTILINE) for knob in method.defaults)
        if method.factory.__module__.startswith("grokscale.methods."):
            assert "\n    flops: " in entry and method.source.split(",")[0] in entry, method.name
    for name, task in entries.tasks.items():
        entry = f"\n{tasks}".partition(f"\n{name}\n")[2].partition("\n\n")[0]
        assert re.search(r"^    flops: [\d.e+]+ a step", entry, re.MULTILINE), name
        assert task.source.split(",")[0] in entry and all(f"{option} " in entry for option in task.defaults), name
    assert all(f"\nmodel {name}\n" in tasks for name in entries.models)
    assert max(map(len, (listed + tasks).splitlines())) <= 100


# ---------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["results"], "no sweep"),
        (["sweep", "missing.toml"], "tiny.toml"),
        (["sweep", "tiny.toml", "--set", "search.trails=3"], "did you mean 'trials'"),
        (["sweep", "tiny.toml", "--replicas-per-pack", "1"], "pack: must be an integer >= 2 or auto, got 1"),
        (["submit", "tiny.toml", "--replicas-per-pack", "ten"], "--replicas-per-pack: must be an integer >= 2"),
        (["run", "tiny.toml", "--arm", "egd-colnrm"], "did you mean 'egd-colnorm'"),
        (["run", "tiny.toml", "--seed-list", "1,x"], "--seed-list"),
        (["run", "tiny.toml", "--seed-list", "1,1"], "differ"),
        (["run", "tiny.toml", "--set", "task.name=parrity"], "did you mean 'parity'"),
        (["sql", "SELEC"], "sql:"),
        (["methods", "--plugin", "no_such_module"], "no_such_module"),
        (["results", "--format", "yaml"], "parquet"),
        (["nonsense"], "nonsense"),
    ],
)
def test_wrong_input_ends_with_2_a_message_and_nothing_written(words: list[str], said: str, folder: Path) -> None:
    result = call(*words, code=2)
    assert said in result.stderr and "Traceback" not in result.stderr and not result.stdout
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_debug_shows_the_traceback() -> None:
    done = subprocess.run(
        [*GROKSCALE, "results", "--store", "/nonexistent/store", "--debug"],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert "Traceback" in done.stderr and done.returncode != 0


def test_output_that_cannot_be_written(full: Store, folder: Path) -> None:
    assert "cannot be written" in call("results", "-o", "tiny.toml/x", "--store", full.root, code=2).stderr


@pytest.mark.parametrize("verb", [("methods",), ("sql", "SELECT 1", "--format", "csv")])
def test_a_full_disk_under_the_output_is_a_message(verb: Sequence[str], tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full_disk:
        done = subprocess.run(
            [*GROKSCALE, *verb], stdout=full_disk, stderr=subprocess.PIPE,
            text=True, env=environment() | {"GROKSCALE_STORE": str(tmp_path)}, check=False,
        )  # fmt: skip
    assert done.stderr == "output: cannot be written: No space left on device; make room, then give the command again\n"
    assert done.returncode == 1


def test_a_reader_that_leaves_is_no_failure() -> None:
    pipe = subprocess.PIPE
    process = subprocess.Popen([*GROKSCALE, "methods"], stdout=pipe, stderr=pipe, env=environment())
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate()
    assert (process.returncode, said) == (0, b"")


# ---------------------------------------------------------------------------------------------- run


def test_run_trains_stores_and_takes_from_the_store(folder: Path) -> None:
    first = call("run", "tiny.toml", "--arm", "egd-colnorm", "--seeds", "2", "--store", "kept")
    store = Store("kept")
    rows = store.replicas().to_pylist()
    assert {row["seed"] for row in rows} == {seed_for("run", k) for k in range(2)}
    assert all(row["outcome"] == "grokked" and row["wall_s"] > 0 and row["host"] for row in rows)
    curves = store.curves().to_pylist()
    assert {row["attempt"] for row in curves} == {row["attempt"] for row in rows}
    assert first.stdout.splitlines()[2].startswith("grokked 2 of 2 by step 3,000")
    lines = {line.split()[0]: line.split() for line in first.stdout.splitlines() if line[:1].isdigit()}
    for row in rows:  # 400 rows in batches of 32, the last dropped: 12 steps an epoch
        grok = row["grok_step"]
        assert lines[str(row["seed"])][1] == "grokked"
        assert lines[str(row["seed"])][6:8] == [str(grok), f"{grok / 12:,.1f}"]
    assert re.search(r"^step .* finished 2/2", first.stderr, re.MULTILINE)

    again = call("run", "tiny.toml", "--arm", "egd-colnorm", "--seeds", "3", "--store", "kept", "--timing")
    assert "2 of 3 replicas are in the store already" in again.stderr
    assert set(first.stdout.splitlines()[6:8]) < set(again.stdout.splitlines())
    assert len(Store("kept").replicas()) == 3
    [timed] = Store("kept").table("timings").to_pylist()
    assert f"alone: {1e3 * timed['seconds_on']:.3g} ms a step" in again.stdout


def test_run_takes_measures(folder: Path) -> None:
    words = ("run", "tiny.toml", "--set", "horizon=100", "--store", "kept")
    plain = call(*words)
    measured = call(*words, "--metrics", "norms, compare:egd:grokfast-ema")
    assert measured.stdout == plain.stdout and "in the store already" not in measured.stderr
    [row] = Store("kept").replicas().to_pylist()
    assert row["measured"] == "compare:egd:grokfast-ema,norms"
    query = "SELECT step, value FROM measures WHERE measure = 'weight_norm' ORDER BY step"
    found = json.loads(call("sql", query, "--format", "json", "--store", "kept").stdout)
    assert [row["step"] for row in found][:5] == [0, 25, 50, 75, 100]
    said = call(*words, "--metrics", "norm", code=2).stderr
    assert "did you mean 'norms'?" in said


def test_metrics_are_listed_with_their_costs(folder: Path) -> None:
    said = call("metrics").stdout
    assert "compare:METHOD:METHOD\n  cost: a step: both methods' updates" in said
    assert "age_raw: AGE of the gradient" in said


def test_run_without_a_store_keeps_nothing(folder: Path) -> None:
    said = call("run", "tiny.toml", "--no-store", "--seed-list", "5,6", "--set", "horizon=60").stdout
    assert [line.split()[0] for line in said.splitlines()[6:8]] == ["5", "6"]
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_run_saves_what_was_learned_and_another_arm_starts_from_it(folder: Path) -> None:
    Path("tiny.toml").write_text(TINY.replace('"egd-colnorm"', '"neuralgrok"'))
    small = ("run", "tiny.toml", "--set", "horizon=60", "--arm", "neuralgrok", "--store", "kept")
    call(*small, "--save-learned", "deep/add.pt")
    said = call(*small, "--save-learned", "deep/add.pt").stdout  # trained again: the store holds no amplifiers
    knob = said.splitlines()[-1].removeprefix("learned: ")
    assert re.fullmatch(r"deep/add\.pt@[0-9a-f]{12}", knob)
    frozen = call(*small, "--set", f'arm.neuralgrok.set.amplifier="{knob}"')
    assert f"amplifier {knob}" in frozen.stdout
    other = knob[:-12] + "0" * 12
    refused = call(*small, "--set", f'arm.neuralgrok.set.amplifier="{other}"', code=2)
    assert f"give '{knob}'" in refused.stderr
    more = call(*small, "--seeds", "2", "--save-learned", "add.pt", code=2)
    assert "name one seed" in more.stderr
    nothing = call("run", "tiny.toml", "--save-learned", "add.pt", code=2)
    assert "arm none learns nothing" in nothing.stderr


def test_run_finds_a_plugin_beside_the_experiment(folder: Path) -> None:
    Path("my_method.py").write_text(
        "from grokscale.entries import Method\nfrom grokscale.methods import METHODS\n"
        "from grokscale.transform import stateless\n"
        "METHODS['mine'] = Method('mine', 'g', 'here', lambda: stateless(lambda g, p, *, step: dict(g)))\n"
    )
    try:
        text = TINY.replace('name = "small"', 'name = "small"\nplugin = "my_method"')
        Path("tiny.toml").write_text(text.replace('"egd-colnorm"', '"mine"'))
        said = call("run", "tiny.toml", "--no-store", "--arm", "mine", "--set", "horizon=60").stdout
        assert "mine on parity" in said
    finally:
        registry.load().methods.pop("mine", None)  # pyright: ignore[reportAttributeAccessIssue]
        sys.modules.pop("my_method", None)


# ---------------------------------------------------------------------------------------------- sweep


def test_dry_run_plans_and_writes_nothing(folder: Path) -> None:
    said = call("sweep", "tiny.toml", "--dry-run").stdout
    rows = {line.split()[0]: line.split()[1:5] for line in said.splitlines() if line[:6] in ("search", "confir")}
    assert rows == {"search": ["4", "2", "8", "24,000"], "confirm": ["2", "3", "6", "36,000"]}
    assert re.match(r"small-[0-9a-f]{8}: 2 arms, baseline none, horizon 3,000 steps", said)
    assert re.search(r"3 confirmation seeds show S = \d+\.\d\d or more with 80 % power", said)
    hours = float(next(line for line in said.splitlines() if line.startswith("in all")).split()[-1])
    assert 0 < hours < 1
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_a_sweep_out_of_hours_shows_how_far_it_came(folder: Path) -> None:
    result = call("sweep", "tiny.toml", "--set", "limits.hours=1e-9", "--set", "tracking=none")
    assert "No trial of the search has ended yet." in result.stdout
    assert "limits.hours" in result.stderr and "resume: grokscale" in result.stderr


def test_sweep_is_interrupted_resumed_and_read_again(folder: Path) -> None:
    """The whole way: Ray, Optuna, MLflow and Parquet; SIGTERM half-way, which Ray would take for itself; the same
    command; `results` afterwards."""
    command = [*GROKSCALE, "sweep", "tiny.toml"]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    assert started.stderr is not None
    lines = []
    while not any(re.search(r"search \(exploratory\) 0/4 trials, \d", line) for line in lines):  # Ray is up, trials run
        lines.append(started.stderr.readline())
        assert lines[-1], "".join(lines)
    asked = time.monotonic()
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate(timeout=60)
    assert started.returncode == 130 and not out
    assert time.monotonic() - asked < 20
    assert "resume: grokscale sweep tiny.toml" in err and "Traceback" not in err

    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert "Speed-up over none, confirmed on 3 fresh seeds" in done.stdout
    assert Path("runs/mlflow.db").exists()
    for path in Path("runs").glob("ml*"):
        path.unlink() if path.is_file() else None
    read = subprocess.run([*GROKSCALE, "results"], capture_output=True, text=True, env=environment(), check=True)
    assert read.stdout == done.stdout

    untracked = [*command, "--set", "tracking=none"]
    again = subprocess.run(untracked, capture_output=True, text=True, env=environment(), check=True)
    assert again.stdout == done.stdout
    assert "starting Ray" not in again.stderr and "starting Ray" in done.stderr


# ---------------------------------------------------------------------------------------------- the live view

PROGRESS = Progress(
    "small-00000000", "search", "search: running",
    (ArmProgress("none", 30, 12, 2, 5380.4, 18, 40), ArmProgress("a-long-label-" * 4, 30, 30, 0, None, 0, 90)),
    42.0, 80.0, 3, 2, 1,
)  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 200])
def test_live_table_is_readable(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(live.table(PROGRESS, width))
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    head = next(line for line in lines if "trials" in line)
    assert head.split() == ["arm", "trials", "running", "best", "grokked"]
    assert next(line for line in lines if "none" in line).split() == ["none", "12/30", "2", "5,380", "18/40"]
    assert next(line for line in lines if "a-long" in line).split()[1:] == ["30/30", "0/90"]


def test_headline() -> None:
    said = live.headline("small", PROGRESS)
    assert said == "small: search (exploratory) 42/60 trials, 0:42, about 1:20 left, 2 reused, 1 FAILED"
    assert live.headline("small", Progress("", "", "starting Ray")) == "small: starting Ray, 0:00"
    assert live.headline("small", PROGRESS, since=20).split(", ")[1:3] == ["1:02", "about 1:00 left"]
    assert [live.clock(s) for s in (0, 61.9, 3599, 3600, 11241)] == ["0:00", "1:01", "59:59", "1:00:00", "3:07:21"]


def test_plain_lines_say_changes_and_no_more() -> None:
    out = io.StringIO()
    with live.watch(out, "small") as view:
        for _ in range(5):
            view(PROGRESS)
        view(Progress("small-00000000", "race", "race: running", PROGRESS.arms, 60.0))
    lines = out.getvalue().splitlines()
    assert lines[0] == "small: starting" and len(lines) == 3
    assert "none 12/30, 18/40 grokked, best 5,380" in lines[1]
    assert lines[2].startswith("small: race (exploratory) 42/60")


def test_live_table_on_a_terminal_starts_and_ends_clean() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with live.watch(out, "small") as view:
        assert isinstance(view, live.LiveTable) and "starting" in str(view.render())
        view(PROGRESS)
    assert "42/60 trials" in out.getvalue() and "5,380" in out.getvalue()


# ---------------------------------------------------------------------------------------------- doctor


def test_doctor_tries_everything_for_real() -> None:
    done = subprocess.run([*GROKSCALE, "doctor"], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("torch", "train and store", "search", "Ray", "MLflow"):
        assert re.search(rf"^{what} +ok ", done.stdout, re.MULTILINE), done.stdout
    assert done.stdout.endswith("all is well\n")


def test_doctor_says_where_settings_come_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options go before variables, variables before the file; a cluster that is named has to answer."""
    monkeypatch.setattr(doctor, "examine", lambda: iter(()))
    monkeypatch.delenv("GROKSCALE_ADDRESS", raising=False)
    said = call("doctor").stdout
    assert "a database beside the store (default)" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert "http://mlflow:5000 (MLFLOW_TRACKING_URI)" in call("doctor", "tiny.toml").stdout
    Path("tracked.toml").write_text('tracking = "none"\n' + Path("tiny.toml").read_text())
    assert "none (tracking in tracked.toml)" in call("doctor", "tracked.toml").stdout
    assert "runs (default)" in said and "none: submit runs sweeps here, detached (default)" in said
    text = 'store = "kept"\n' + Path("tiny.toml").read_text() + '\n[cluster]\naddress = "http://127.0.0.1:1"\n'
    Path("placed.toml").write_text(text)
    said = call("doctor", "placed.toml", code=1).stdout
    assert "kept (store in placed.toml)" in said and "http://127.0.0.1:1 ([cluster] address in placed.toml)" in said
    assert re.search(r"^Ray cluster +FAILED +no Ray cluster answers", said, re.MULTILINE)
    monkeypatch.setenv("GROKSCALE_STORE", "there")
    monkeypatch.setenv("GROKSCALE_ADDRESS", "http://127.0.0.1:2")
    said = call("doctor", "placed.toml", "--store", "here", code=1).stdout
    assert "here (--store)" in said and "http://127.0.0.1:2 (GROKSCALE_ADDRESS)" in said
    assert "missing.toml" in call("doctor", "missing.toml", code=2).output


def test_doctor_ends_with_1_where_something_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise GrokscaleError("no such luck")

    finding = doctor._try("Ray", broken)
    assert finding.ok is False and "no such luck" in finding.detail
    monkeypatch.setattr(doctor, "examine", lambda: iter([finding]))
    result = call("doctor", code=1)
    assert "FAILED" in result.stdout and "1 of these failed" in result.stderr


def test_a_sweep_says_at_its_end_what_was_given_up(
    folder: Path, full: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from grokscale import sweep

    failure = sweep.Failure("search", "shaky", 3, "0123456789ab", "Traceback ...\nRuntimeError: planted")
    result = sweep.SweepResult(full.sweeps()[0], 4, 0, None, (failure,))
    monkeypatch.setattr(sweep, "run_sweep", lambda *words, **more: result)
    said = call("sweep", "tiny.toml", "--store", full.root, code=1).output
    assert "given up: search shaky 3 (trial 0123456789ab): RuntimeError: planted" in said
    assert "1 trials failed; the same command tries them again" in said


@pytest.mark.parametrize("words", [
    ["submit", "FILE", "--address", "http://me:planted@there:8265"],
    ["list", "--store", "s3://key:planted@bucket/x"],
    ["track", "sync", "--uri", "http://me:planted@there:5000"],
    ["store", "publish", "s3://key:planted@bucket/x"],
    ["data", "fetch", "mnist", "--from", "https://me:planted@there"],
    ["sweep", "FILE", "--set", "tracking=http://me:planted@there:5000"],
], ids=lambda words: f"{words[0]} {words[-2]}")  # fmt: skip
def test_a_password_in_an_option_is_refused_and_not_repeated(
    full: Store, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options stand in lists of processes, in shells' histories and in jobs."""
    if "--store" not in words:
        monkeypatch.setenv("GROKSCALE_STORE", full.root)
    file = str(ROOT / "experiments/quickstart.toml")
    said = call(*[file if word == "FILE" else word for word in words], code=2).output
    assert "holds a password" in said and "planted" not in said


@pytest.mark.parametrize("name", ["GROKSCALE_STORE", "GROKSCALE_ADDRESS", "GROKSCALE_DATA_URL", "MLFLOW_TRACKING_URI"])
def test_a_password_in_a_variable_is_refused_and_not_repeated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "http://me:planted@there:1")
    verbs = {"GROKSCALE_DATA_URL": ["data", "fetch", "mnist"], "MLFLOW_TRACKING_URI": ["doctor"]}
    said = call(*verbs.get(name, ["list"]), code=2).output
    assert f"{name}: holds a password" in said and "planted" not in said


DRAWING = """
import threading
import matplotlib.font_manager as fonts
import grokscale.cli as cli
from grokscale.control import MIRROR

font, begun = fonts.get_font(fonts.findfont("DejaVu Sans")), threading.Event()

def draw():
    while True:
        for size in range(5, 90):
            font.set_size(size, 300)
            font.set_text("".join(map(chr, range(33, 127))))
            begun.set()

def app(**_):
    threading.Thread(target=draw, name=MIRROR, daemon=True).start()
    begun.wait()
    print("everything is saved")
    raise SystemExit(130)

cli.app = app
cli.main()
"""


def test_a_mirror_that_is_left_behind_in_a_figure_does_not_end_in_a_crash() -> None:
    """Python ends such a thread inside matplotlib's C++, and the process with it, after all was saved."""
    ended = subprocess.run([sys.executable, "-c", DRAWING], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "everything is saved\n", "")


ENDING = """
import atexit, ctypes
from concurrent.futures import ThreadPoolExecutor
import grokscale.cli as cli

libc, pool = ctypes.CDLL(None), ThreadPoolExecutor(1)
libc.__cxa_atexit(libc.abort, None, None)  # what C++ does with its threads after Python's own end

def app(**_):
    atexit.register(print, "an exit that was asked for")
    pool.submit(lambda: [None for _ in range(10**6)] and print("a thread's work"))
    raise SystemExit(3)

cli.app = app
cli.main()
"""


def test_a_verb_ends_as_python_does_but_for_what_cpp_takes_apart() -> None:
    """Arrow's threads could turn the end of a verb that did all it should into an abort."""
    ended = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=False)
    said = ["a thread's work", "an exit that was asked for"]
    assert (ended.returncode, ended.stdout.splitlines(), ended.stderr) == (3, said, "")
