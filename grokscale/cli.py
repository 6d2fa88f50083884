"""The verbs. Only what a verb needs is imported, and only when it runs: --help and results must be quick."""

from __future__ import annotations

import enum
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from grokscale.errors import GrokscaleError, InputError

if TYPE_CHECKING:
    from grokscale.entries import Registry
    from grokscale.spec import Resolved
    from grokscale.store import Store


class Verbs(TyperGroup):
    """Ends every verb in the same way: a message and an exit code, no traceback unless --debug asks for it."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GrokscaleError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(_labelled(error), err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            if ctx.params.get("debug"):
                raise
            typer.echo("interrupted", err=True)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # the reader of a pipe has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


def _labelled(error: GrokscaleError) -> str:
    return str(error) if isinstance(error, InputError) or error.exit_code != 1 else f"failed: {error}"


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Declare a question about grokking in one file; search, confirm on fresh seeds, and get the speed-up.",
)
track_app = typer.Typer(help="MLflow, the mirror of the store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(track_app, name="track")

File = Annotated[Path, typer.Argument(metavar="FILE", help="Experiment file (TOML).")]
Sweep = Annotated[str | None, typer.Argument(metavar="[SWEEP]", help="Name or id; the latest by default.")]
StorePath = Annotated[
    str | None,
    typer.Option("--store", metavar="PATH", envvar="GROKSCALE_STORE", help="Store: a folder, s3:// or gs://. [default: runs]",
                 show_default=False, show_envvar=True),
]  # fmt: skip
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=c", help="Override a key of the file: search.trials=8, arm.LABEL.set.KNOB=0.1. Repeatable.",
                 show_default=False),
]  # fmt: skip
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="PATH", help="Write to a file instead of stdout.",
                                             show_default=False)]  # fmt: skip


class Format(enum.StrEnum):
    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


class Rows(enum.StrEnum):
    speedups = "speedups"
    replicas = "replicas"
    trials = "trials"
    curves = "curves"


class Until(enum.StrEnum):
    decided = "decided"
    stable = "stable"


@app.callback()
def root(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of messages.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("grokscale"))
        raise typer.Exit()


@app.command()
def sweep(
    file: File,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would do and cost; write nothing.")
    ] = False,
    set_: Overrides = None,
    store: StorePath = None,
) -> None:
    """Answer the question of a file; again = resume.

    Search, race, confirm on fresh seeds, compare. The same command again goes on where it stopped."""
    from grokscale.live import watch

    if dry_run:
        _say(f"{file}: measuring a few steps")
        entries, resolved = _resolve(file, set_)
        from grokscale.preview import dry_run as preview

        typer.echo(preview(resolved, entries), nl=False)
        return
    with watch(sys.stderr, file.stem) as view:
        _, resolved = _resolve(file, set_)
        from grokscale import report
        from grokscale.sweep import SweepInterrupted, run_sweep

        opened = _open(store or resolved.experiment.store)
        try:
            result = run_sweep(resolved, opened, on_progress=view)
        except SweepInterrupted as stopped:
            raise _resumable(stopped) from None
    for failure in result.failures:
        last = failure.error.strip().splitlines()[-1:] or ["no reason given"]
        _say(
            f"given up: {failure.phase} {failure.arm} {failure.number} (trial {failure.trial_id}): {last[0]}"
        )
    typer.echo(report.results_text(opened, result.sweep_id), nl=False)
    if result.failures:
        _say(f"{len(result.failures)} trials failed; the same command tries them again")
        raise typer.Exit(1)


@app.command()
def run(
    file: File,
    arm: Annotated[str | None, typer.Option(metavar="LABEL", help="Which arm, at its default settings. [default: the baseline]",
                                            show_default=False)] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, of the namespace `run`.")] = 1,
    seed_list: Annotated[str | None, typer.Option(metavar="1,2,3", help="These seeds instead.", show_default=False)] = None,
    until: Annotated[Until, typer.Option(help="Stop at a decided crossing, or watch to 2 x the grok step.")] = Until.decided,
    timing: Annotated[bool, typer.Option("--timing", help="Time one replica alone afterwards, for the clock in seconds.")] = False,
    no_store: Annotated[bool, typer.Option("--no-store", help="Train everything, keep nothing.")] = False,
    set_: Overrides = None,
    store: StorePath = None,
) -> None:  # fmt: skip
    """Train one configuration in this process, without Ray."""
    _say(f"{file}: starting")
    chosen = _seeds(seed_list)
    entries, resolved = _resolve(file, set_)
    from grokscale import solo
    from grokscale.spec import seed_for

    label = arm or resolved.experiment.baseline
    spec = resolved.trial(label)
    resources = resolved.experiment.resources
    opened = None if no_store else _open(store or resolved.experiment.store)
    chosen = chosen or [seed_for("run", k) for k in range(seeds)]
    _say(f"{label}: trial {spec.trial_id}, {len(chosen)} seeds, horizon {resolved.horizon:,} steps")
    rows = solo.run(spec, chosen, horizon=resolved.horizon, until=until.value, lanes=resources.lanes, threads=resources.cpus,
                    registry=entries, store=opened, say=_say)  # fmt: skip
    typer.echo(solo.table(spec, rows, resolved.horizon), nl=False)
    if timing:
        row = solo.time_alone(spec, threads=resources.cpus, registry=entries)
        if opened is not None:
            opened.append("timings", [row])
        off = (
            ""
            if row["seconds_off"] == row["seconds_on"]
            else f", {1e3 * row['seconds_off']:.3g} ms with the method off"
        )
        typer.echo(
            f"\nalone: {1e3 * row['seconds_on']:.3g} ms a step{off}, on {row['device']}, threads: {row['threads']}"
        )


@app.command()
def results(
    sweep: Sweep = None,
    format: Annotated[
        Format, typer.Option(help="table is what `sweep` printed; the others are rows of --rows.")
    ] = Format.table,
    rows: Annotated[Rows, typer.Option(help="Which rows csv, json and parquet hold.")] = Rows.speedups,
    output: Output = None,
    store: StorePath = None,
) -> None:
    """Print again what `sweep` printed at its end."""
    opened = _open(store)
    if format is Format.table:
        from grokscale.report import results_text

        _put(results_text(opened, sweep).encode(), output)
        return
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

    Views: replicas, trials, curves, speedups, sweeps, plans, timings (DuckDB)."""
    table = _open(store).sql(query)
    if format is Format.table:
        from grokscale.report.text import records

        _put(records(table.column_names, table.to_pylist()).encode(), output)
        return
    from grokscale.store.export import export

    _put(export(table, format.value), output, format)


@app.command()
def report(
    sweep: Sweep = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PATH", help="The page.")] = Path("report.html"),
    figures: Annotated[Path | None, typer.Option(metavar="DIR", help="Also every figure as SVG and PNG, named after the sweep.",
                                                 show_default=False)] = None,
    store: StorePath = None,
) -> None:  # fmt: skip
    """Write a sweep's tables and figures as one HTML page."""
    from grokscale import report as reports

    opened = _open(store)
    written = [_write(output, reports.html(opened, sweep).encode())]
    if figures is not None:
        written += [
            _write(figures / name, data) for name, data in reports.figure_files(opened, sweep).items()
        ]
    for path in written:
        typer.echo(str(path))


@app.command()
def ui(
    sweep: Sweep = None,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    store: StorePath = None,
) -> None:
    """Serve MLflow's pages of the store, on this machine only.

    Ctrl-C ends it."""
    from grokscale import track

    _say("starting MLflow")
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
    typer.echo("all is well" if not failed else f"{failed} of these failed")
    if failed:
        raise typer.Exit(1)


@app.command()
def methods(
    plugin: Annotated[
        list[str] | None, typer.Option(help="Also what this module adds. Repeatable.", show_default=False)
    ] = None,
) -> None:
    """List methods: equations, sources, knobs, ranges."""
    from grokscale import registry
    from grokscale.catalogue import methods as listed

    typer.echo(listed(registry.load(tuple(plugin or ()))), nl=False)


@app.command()
def tasks(
    plugin: Annotated[
        list[str] | None, typer.Option(help="Also what this module adds. Repeatable.", show_default=False)
    ] = None,
) -> None:
    """List tasks and models with their options."""
    from grokscale import registry
    from grokscale.catalogue import tasks as listed

    typer.echo(listed(registry.load(tuple(plugin or ()))), nl=False)


@track_app.command("sync")
def track_sync(
    sweep: Sweep = None,
    uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow's tracking URI. [default: the sweep's]", show_default=False),
    ] = None,
    store: StorePath = None,
) -> None:
    """Bring MLflow up to what the store says."""
    _say("starting MLflow")
    from grokscale import track

    opened = _open(store)
    sweep_id = opened.find_sweep(sweep)
    track.sync(opened, sweep_id, uri or track.uri_of(opened, sweep_id))
    typer.echo(f"{sweep_id}: in step")


# ---------------------------------------------------------------------------------------------- shared


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _open(path: str | None) -> Store:
    from grokscale.store import Store

    return Store(path or "runs")


def _resolve(file: Path, overrides: list[str] | None) -> tuple[Registry, Resolved]:
    """The registry with the file's plugins, and the file checked against it: all problems at once."""
    from grokscale import registry
    from grokscale.spec import resolve_file

    loaded = []

    def load(plugins: Any) -> Registry:
        loaded.append(registry.load(plugins))
        return loaded[0]

    if os.getcwd() not in sys.path:  # a plugin beside the experiments, as `python -m` would find it
        sys.path.insert(0, os.getcwd())
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


def _resumable(stopped: Any) -> Any:
    """The interruption with the command that goes on."""
    import shlex

    command = shlex.join(["grokscale", *sys.argv[1:]])
    stopped.args = (f"{stopped}\nresume: {command}",)
    return stopped


def _put(data: bytes, output: Path | None, format: Format = Format.table) -> None:
    if output is not None:
        _write(output, data)
    elif format is Format.parquet and sys.stdout.isatty():
        raise InputError("parquet on a terminal is noise: name a file with -o, or pipe it")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def _write(path: Path, data: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def main() -> None:
    """The console script; --debug may stand anywhere."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *(word for word in arguments if word != "--debug")]
    app(args=arguments, prog_name="grokscale")


if __name__ == "__main__":
    main()
