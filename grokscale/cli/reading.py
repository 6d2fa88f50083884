"""The verbs that read: results, sql, associations, report, ui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from grokscale.cli.base import (
    Format,
    Output,
    Rows,
    StorePath,
    Sweep,
    app,
    open_store,
    option,
    put,
    say,
    show,
    write_file,
)

EXPERIMENTS = Path("experiments")


@app.command()
def results(
    sweep: Sweep = None,
    format: Annotated[Format, typer.Option(help="table: what `sweep` printed; else --rows.")] = Format.table,
    rows: Annotated[Rows, typer.Option(help="What csv, json and parquet hold.")] = Rows.speedups,
    output: Output = None,
    store: StorePath = None,
) -> None:
    """Print again what `sweep` printed at its end."""
    opened = open_store(store)
    if format is Format.table:
        from grokscale.report import results_text

        put(results_text(opened, sweep).encode(), output)
    else:
        from grokscale.store.export import export

        put(export(opened.table(rows.value, sweep=sweep), format.value), output, format)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="One SELECT.")],
    format: Annotated[Format, typer.Option(help="How the rows come out.")] = Format.table,
    output: Output = None,
    store: StorePath = None,
) -> None:
    """Ask the store in SQL, read-only.

    Views: replicas, trials, curves, measures, speedups, sweeps, plans, timings, endpoints, importances; in DuckDB's
    dialect.
    """
    show(open_store(store).sql(query), format, output)


@app.command()
def associations(
    sweep: Annotated[str | None, typer.Argument(metavar="SWEEP", help="Name or id; default the whole store.")] = None,
    format: Annotated[Format, typer.Option(help="How the rows come out.")] = Format.table,
    output: Output = None,
    store: StorePath = None,
) -> None:
    """What goes with a late grok step, per task (exploratory).

    Spearman's rho of measures with the grok step, 95 % intervals: over all replicas, and within trials.
    """
    from grokscale.explain import associations as correlate

    show(correlate(open_store(store), sweep), format, output)


@app.command()
def report(
    sweeps: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SWEEP]...", help="Name or id; the latest by default. Several: one a task."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    figures: Annotated[Path | None, option(metavar="DIR", help="Also every figure, as SVG and PNG.")] = None,
    scoreboard: Annotated[
        bool, typer.Option("--scoreboard", help="Published values against measured: SCOREBOARD.md, not a page.")
    ] = False,
    experiments: Annotated[Path, typer.Option(help="Folder of the files that --scoreboard is about.")] = EXPERIMENTS,
    store: StorePath = None,
) -> None:
    """Write a sweep's tables and figures as one HTML page.

    Of several sweeps, a task each with one baseline: their performance profile and S over the tasks.
    With --scoreboard the store is results/ in the folder of the experiments, if no other is named.
    """
    from grokscale import report as reports

    if scoreboard:
        files = reports.scoreboard_files(open_store(store or str(experiments / "results")), experiments)
        for path, data in files.items():
            write_file(path, data)
            typer.echo(str(path))
        return
    opened = open_store(store)
    named = sweeps or []
    several, sweep = len(named) > 1, named[0] if named else None
    page = reports.profile_page(opened, named) if several else reports.html(opened, sweep)
    files = {output: page.encode()}
    if figures is not None:
        drawn = reports.profile_files(opened, named) if several else reports.figure_files(opened, sweep)
        files |= {figures / name: data for name, data in drawn.items()}
    for path, data in files.items():
        write_file(path, data)
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
    say("starting MLflow")
    from grokscale import track

    opened = open_store(store)
    track.serve(opened, opened.find_sweep(sweep), port=port, say=typer.echo)
