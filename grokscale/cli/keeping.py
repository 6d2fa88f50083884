"""Verbs that care for the store."""

from __future__ import annotations

from typing import Annotated

import typer

from grokscale.cli.base import StorePath, app, no_password, open_store, option
from grokscale.errors import GrokscaleError

store_app = typer.Typer(help="Care for the store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")


@store_app.command("compact")
def store_compact(
    grace: Annotated[float, typer.Option(min=0, help="Seconds that merged-away files stay for readers.")] = 3600,
    store: StorePath = None,
) -> None:
    """Merge the small files of each table; others may append and read meanwhile."""
    for done in open_store(store).compact(grace=grace):
        typer.echo(str(done))


@store_app.command("check")
def store_check(
    repair: Annotated[bool, typer.Option("--repair", help="Move what is found into quarantine/.")] = False,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that a file may look unfinished.")] = 86400,
    store: StorePath = None,
) -> None:
    """Find torn, foreign, duplicate, orphaned and missing files; delete nothing."""
    found = open_store(store).check(repair=repair, grace=grace)
    for finding in found:
        typer.echo(str(finding))
    if left := sum(not finding.done for finding in found):
        raise GrokscaleError(f"{left} to look at" + ("" if repair else "; --repair does what is said"))
    typer.echo("all is well")


@store_app.command("publish")
def store_publish(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", callback=no_password, show_default=False, help="Another store: folder, s3:// or gs://."
        ),
    ],
    sweep: Annotated[list[str] | None, option("--sweep", help="Name or id; default all. Repeatable.")] = None,
    curves: Annotated[bool, typer.Option("--curves", help="Curves too.")] = False,
    measures: Annotated[
        str | None, option(metavar="A,B", help="These measures too, by column; age_* for all that begin so.")
    ] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Kept weights too.")] = False,
    store: StorePath = None,
) -> None:
    """Copy what stands behind answers into another store: all but curves, measures and checkpoints.

    What is there already stays as it is; the copy is compacted, so that it is a few small files.
    """
    from grokscale.store import Store
    from grokscale.store.publish import publish

    source, copy = open_store(store), Store(target)
    ids = [source.find_sweep(name) for name in sweep or source.sweeps()]
    columns = [name.strip() for name in (measures or "").split(",") if name.strip()]
    for table, count in publish(source, copy, ids, curves=curves, measures=columns, weights=weights).items():
        typer.echo(f"{table}: {count} {'files' if table == 'weights' else 'rows'}")
    copy.compact(grace=0)


@store_app.command("columns")
def store_columns(table: Annotated[str | None, typer.Argument(help="One table.", show_default=False)] = None) -> None:
    """List the columns of the tables and what they mean."""
    from grokscale.store.meanings import reference

    typer.echo(reference(table), nl=False)
