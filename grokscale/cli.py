"""The verbs. Only what a verb needs is imported, and only when it runs: --help and results must be quick."""

from __future__ import annotations

import enum
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from grokscale.errors import GrokscaleError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grokscale.entries import Registry
    from grokscale.spec import Resolved
    from grokscale.store import Store


class Verbs(TyperGroup):
    """Ends every verb the same way: with a message and an exit code, no traceback unless --debug."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GrokscaleError as error:
            if ctx.params.get("debug"):
                raise
            _end(str(error), error.exit_code)
        except KeyboardInterrupt:
            _end("interrupted", 130)
        except BrokenPipeError:  # who reads our pipe has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


def _end(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(code) from None


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Declare a question about grokking in one file; get an answer with an interval.",
)
track_app = typer.Typer(help="MLflow, the mirror of the store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(track_app, name="track")
store_app = typer.Typer(help="Care for the store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")


class Format(enum.StrEnum):
    """How rows come out."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class Rows(enum.StrEnum):
    """Which rows of a sweep."""

    speedups = "speedups"
    replicas = "replicas"
    trials = "trials"
    curves = "curves"


class Until(enum.StrEnum):
    """How long a replica is watched."""

    decided = "decided"
    stable = "stable"


def _option(*names: str, **more: Any) -> Any:
    """An option that says its default in its help, where it has one worth saying."""
    return typer.Option(*names, show_default=False, **more)


File = Annotated[Path, typer.Argument(help="Experiment file (TOML).", show_default=False)]
Sweep = Annotated[
    str | None, typer.Argument(metavar="SWEEP", help="Name or id; the latest by default.", show_default=False)
]
StorePath = Annotated[
    str | None,
    _option("--store", metavar="PATH", envvar="GROKSCALE_STORE", help="Folder, s3:// or gs://; default runs."),
]
Overrides = Annotated[
    list[str] | None,
    _option("--set", metavar="a.b=c", help="Override: search.trials=8, arm.LABEL.set.KNOB=1. Repeatable."),
]
Output = Annotated[Path | None, _option("--output", "-o", help="A file in place of stdout.")]
Plugins = Annotated[
    list[str] | None, _option("--plugin", metavar="MODULE", help="Also what this module adds. Repeatable.")
]


def _version(wanted: bool) -> None:
    if wanted:
        from grokscale import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks in place of messages.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def sweep(
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the cost; write nothing.")] = False,
    set_: Overrides = None,
    store: StorePath = None,
) -> None:
    """Answer the question of a file; again = resume.

    Search, race, confirm on fresh seeds, compare. The same command again goes on where it stopped.
    """
    if dry_run:
        _say(f"{file}: measuring a few steps")
        entries, resolved = _resolve(file, set_)
        from grokscale.preview import dry_run as preview

        typer.echo(preview(resolved, entries), nl=False)
        return
    from grokscale.control import SweepInterrupted
    from grokscale.live import watch

    opened = resolved = None
    try:
        with watch(sys.stderr, file.stem) as view:
            _, resolved = _resolve(file, set_)
            from grokscale.sweep import run_sweep

            opened = _open(store or resolved.experiment.store)
            result = run_sweep(resolved, opened, on_progress=view)
    except SweepInterrupted as stopped:
        if opened and resolved and stopped.reason == "hours":  # as asked for in the file: show how far it came
            _print_results(opened, resolved.sweep_id)
        stopped.args = (f"{stopped}\nresume: {_command()}",)
        raise
    if result.behind:
        _say(f"MLflow is behind: {result.behind}; grokscale track sync {result.sweep_id} catches up")
    _print_results(opened, result.sweep_id)
    for failure in result.failures:
        last = failure.error.strip().splitlines()[-1:] or ["no reason given"]
        what = f"{failure.phase} {failure.arm} {failure.number} (trial {failure.trial_id})"
        _say(f"given up: {what}: {last[0]}")
    if result.failures:
        raise GrokscaleError(f"{len(result.failures)} trials failed; the same command tries them again")


@app.command()
def run(
    file: File,
    arm: Annotated[str | None, _option(metavar="LABEL", help="Which arm; default the baseline.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from the namespace `run`.")] = 1,
    seed_list: Annotated[str | None, _option(metavar="1,2,3", help="These seeds instead.")] = None,
    until: Annotated[Until, typer.Option(help="To the crossing, or to twice its step.")] = Until.decided,
    timing: Annotated[bool, typer.Option("--timing", help="Then time one replica alone.")] = False,
    no_store: Annotated[bool, typer.Option("--no-store", help="Train everything, keep nothing.")] = False,
    set_: Overrides = None,
    store: StorePath = None,
) -> None:
    """Train one configuration in this process, without Ray."""
    _say(f"{file}: starting")
    given = _seeds(seed_list)
    entries, resolved = _resolve(file, set_)
    from grokscale import solo
    from grokscale.parts import timing_row
    from grokscale.spec import seed_for

    label = arm or resolved.experiment.baseline
    spec, resources = resolved.trial(label), resolved.experiment.resources
    opened = None if no_store else _open(store or resolved.experiment.store)
    chosen = given or [seed_for("run", k) for k in range(seeds)]
    _say(f"{label}: trial {spec.trial_id}, {len(chosen)} seeds, horizon {resolved.horizon:,} steps")
    rows = solo.run(
        spec,
        chosen,
        horizon=resolved.horizon,
        until=until.value,
        lanes=resources.lanes,
        threads=resources.cpus,
        registry=entries,
        store=opened,
        say=_say,
    )
    typer.echo(solo.table(spec, rows, resolved.horizon, solo.epoch_steps(spec, entries)), nl=False)
    if timing:
        row = timing_row(spec, threads=resources.cpus, registry=entries)
        if opened is not None:
            opened.append("timings", [row])
        typer.echo("\n" + solo.timing_line(row), nl=False)


@app.command()
def results(
    sweep: Sweep = None,
    format: Annotated[Format, typer.Option(help="table: what `sweep` printed; else --rows.")] = Format.table,
    rows: Annotated[Rows, typer.Option(help="What csv, json and parquet hold.")] = Rows.speedups,
    output: Output = None,
    store: StorePath = None,
) -> None:
    """Print again what `sweep` printed at its end."""
    opened = _open(store)
    if format is Format.table:
        from grokscale.report import results_text

        _put(results_text(opened, sweep).encode(), output)
    else:
        from grokscale.store.export import export

        _put(export(opened.table(rows.value, sweep=sweep), format.value), output, format)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="One SELECT.")],
    format: Annotated[Format, typer.Option(help="How the rows come out.")] = Format.table,
    output: Output = None,
    store: StorePath = None,
) -> None:
    """Ask the store in SQL, read-only.

    Views: replicas, trials, curves, speedups, sweeps, plans, timings. The dialect is DuckDB's.
    """
    table = _open(store).sql(query)
    if format is Format.table:
        from grokscale.report.words import records

        columns = [column.to_pylist() for column in table.columns]
        rows = list(zip(*columns, strict=True))
        _put(records(table.column_names, rows).encode(), output)
    else:
        from grokscale.store.export import export

        _put(export(table, format.value), output, format)


@app.command()
def report(
    sweep: Sweep = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    figures: Annotated[Path | None, _option(metavar="DIR", help="Also every figure, as SVG and PNG.")] = None,
    store: StorePath = None,
) -> None:
    """Write a sweep's tables and figures as one HTML page."""
    from grokscale import report as reports

    opened = _open(store)
    files = {output: reports.html(opened, sweep).encode()}
    if figures is not None:
        files |= {figures / name: data for name, data in reports.figure_files(opened, sweep).items()}
    for path, data in files.items():
        _write(path, data)
        typer.echo(str(path))


@app.command()
def ui(
    sweep: Sweep = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    store: StorePath = None,
) -> None:
    """Serve MLflow's pages of the store, on this machine only.

    Ctrl-C ends it.
    """
    _say("starting MLflow")
    from grokscale import track

    opened = _open(store)
    track.serve(opened, opened.find_sweep(sweep), port=port, say=typer.echo)


@app.command()
def doctor() -> None:
    """Try everything that a sweep needs, for real."""
    from grokscale.doctor import examine

    failed = 0
    for finding in examine():
        mark = {True: "ok", False: "FAILED", None: ""}[finding.ok]
        failed += finding.ok is False
        typer.echo(f"{finding.what:<18}{mark:<8}{finding.detail}")
    if failed:
        raise GrokscaleError(f"{failed} of these failed")
    typer.echo("all is well")


@app.command()
def methods(plugin: Plugins = None) -> None:
    """List methods: equations, sources, knobs, ranges."""
    from grokscale import catalogue

    typer.echo(catalogue.methods(_registry(plugin or ())), nl=False)


@app.command()
def tasks(plugin: Plugins = None) -> None:
    """List tasks and models with their options."""
    from grokscale import catalogue

    typer.echo(catalogue.tasks(_registry(plugin or ())), nl=False)


@track_app.command("sync")
def track_sync(
    sweep: Sweep = None,
    uri: Annotated[str | None, _option(metavar="URI", help="Where MLflow is; default the sweep's.")] = None,
    store: StorePath = None,
) -> None:
    """Bring MLflow up to what the store says."""
    _say("starting MLflow")
    from grokscale import track

    opened = _open(store)
    sweep_id = opened.find_sweep(sweep)
    track.sync(opened, sweep_id, uri or track.uri_of(opened, sweep_id))
    typer.echo(f"{sweep_id}: in step")


@store_app.command("compact")
def store_compact(
    grace: Annotated[float, typer.Option(min=0, help="Seconds that merged-away files stay for readers.")] = 3600,
    store: StorePath = None,
) -> None:
    """Merge the small files of each table; others may append and read meanwhile."""
    for done in _open(store).compact(grace=grace):
        typer.echo(str(done))


@store_app.command("check")
def store_check(
    repair: Annotated[bool, typer.Option("--repair", help="Move what is found into quarantine/.")] = False,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that a file may look unfinished.")] = 86400,
    store: StorePath = None,
) -> None:
    """Find torn, foreign, duplicate, orphaned and missing files; delete nothing."""
    found = _open(store).check(repair=repair, grace=grace)
    for finding in found:
        typer.echo(str(finding))
    if left := sum(not finding.done for finding in found):
        raise GrokscaleError(f"{left} to look at" + ("" if repair else "; --repair does what is said"))
    typer.echo("all is well")


@store_app.command("columns")
def store_columns(table: Annotated[str | None, typer.Argument(help="One table.", show_default=False)] = None) -> None:
    """List the columns of the tables and what they mean."""
    from grokscale.store.meanings import reference

    typer.echo(reference(table), nl=False)


# ---------------------------------------------------------------------------------------------- shared


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _print_results(store: Store, sweep_id: str) -> None:
    from grokscale.report import results_text

    typer.echo(results_text(store, sweep_id), nl=False)


def _open(path: str | None) -> Store:
    from grokscale.store import Store

    return Store(path or "runs")


def _registry(plugins: Sequence[str]) -> Registry:
    """The registry with plugins; they may stand in the folder that the command is given in."""
    from grokscale import registry

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return registry.load(plugins)


def _resolve(file: Path, overrides: list[str] | None) -> tuple[Registry, Resolved]:
    """The registry with the file's plugins, and the file checked against it: all problems at once."""
    from grokscale.spec import resolve_file

    loaded: list[Registry] = []

    def load(plugins: Sequence[str]) -> Registry:
        loaded.append(_registry(plugins))
        return loaded[0]

    resolved = resolve_file(file, overrides or (), registry=load)
    return loaded[0], resolved


def _seeds(text: str | None) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise InputError(f"--seed-list: {text!r} is no list of integers; write 1,2,3") from None
    if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
        raise InputError(f"--seed-list: seeds must differ and be >= 0, got {text}")
    return seeds


def _command() -> str:
    """This very command, to be pasted into a shell."""
    import shlex

    return shlex.join(["grokscale", *sys.argv[1:]])


def _put(data: bytes, output: Path | None, format: Format = Format.table) -> None:
    if output is not None:
        _write(output, data)
    elif format is Format.parquet and sys.stdout.isatty():
        raise InputError("parquet is not for a terminal: name a file with -o, or pipe it")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None


def main() -> None:
    """The console script; --debug may stand anywhere."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *(word for word in arguments if word != "--debug")]
    app(args=arguments, prog_name="grokscale")


if __name__ == "__main__":
    main()
