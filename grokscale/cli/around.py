"""The verbs around: doctor, the catalogues, MLflow, data files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grokscale.cli.base import (
    Address,
    Data,
    Plugins,
    StorePath,
    Sweep,
    app,
    load_registry,
    no_password,
    open_store,
    option,
    say,
    use_data,
)
from grokscale.errors import GrokscaleError, InputError, suggest

if TYPE_CHECKING:
    from grokscale.doctor import Finding

track_app = typer.Typer(help="MLflow, the mirror of the store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(track_app, name="track")
data_app = typer.Typer(help="Files that some tasks read.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")




@app.command()
def doctor(
    context: typer.Context,
    file: Annotated[Path | None, typer.Argument(help="Show what this file sets.", show_default=False)] = None,
    address: Address = None,
    store: StorePath = None,
    data: Data = None,
) -> None:
    """Show where settings come from; try everything that a sweep needs, for real."""
    use_data(data)
    from grokscale.doctor import examine

    failed = 0
    for finding in [*_settings(context, file), *_cluster(context, file), *examine()]:
        mark = {True: "ok", False: "FAILED", None: ""}[finding.ok]
        failed += finding.ok is False
        typer.echo(f"{finding.what:<18}{mark:<8}{finding.detail}")
    if failed:
        raise GrokscaleError(f"{failed} of these failed")
    typer.echo("all is well")


def _chosen(context: typer.Context, name: str, file: Path | None) -> tuple[str | None, str]:
    """A setting and where it came from: an option, a variable, the experiment, in this order."""
    if (value := context.params.get(name)) is not None:
        given, variable = context.get_parameter_source(name), f"GROKSCALE_{name.upper()}"
        return str(value), variable if given is not None and given.name == "ENVIRONMENT" else f"--{name}"
    if file is None:
        return None, ""
    from grokscale.spec import load

    x = load(file)
    asked = {
        "store": x.store if "store" in x.model_fields_set else None, "address": x.cluster.address,
        "tracking": x.tracking,
    }  # fmt: skip
    keys = {"store": "store", "address": "[cluster] address", "tracking": "tracking"}
    return (asked[name], f"{keys[name]} in {file}") if asked.get(name) else (None, "")


def _settings(context: typer.Context, file: Path | None) -> Iterator[Finding]:
    from grokscale import data, track
    from grokscale.doctor import Finding

    usual = {"store": "runs", "address": "none: submit runs sweeps here, detached", "data": str(data.folder())}
    for name, default in usual.items():
        value, source = _chosen(context, name, file)
        yield Finding(name, None, f"{value or default} ({source or 'default'})")
    uri, source = _chosen(context, "tracking", file)
    if uri is None and (uri := track.variable_uri()) is not None:
        source = track.VARIABLE
    yield Finding("tracking", None, f"{uri or 'a database beside the store'} ({source or 'default'})")


def _cluster(context: typer.Context, file: Path | None) -> Iterator[Finding]:
    """Does the job server that was named answer, and let us in?"""
    from grokscale import service
    from grokscale.doctor import Finding

    address, _ = _chosen(context, "address", file)
    if address:
        try:
            jobs = service.connect(address, seconds=0.0, say=lambda text: None).list_jobs()
            yield Finding("Ray cluster", True, f"answers, {len(jobs)} jobs")
        except (GrokscaleError, OSError, RuntimeError) as error:
            yield Finding("Ray cluster", False, str(error).strip().partition("\n")[0])


@app.command()
def methods(plugin: Plugins = None) -> None:
    """List methods: equations, sources, knobs, ranges."""
    from grokscale import catalogue

    typer.echo(catalogue.methods(load_registry(plugin or ())), nl=False)


@app.command()
def tasks(plugin: Plugins = None) -> None:
    """List tasks and models with their options."""
    from grokscale import catalogue

    typer.echo(catalogue.tasks(load_registry(plugin or ())), nl=False)


@app.command()
def metrics(plugin: Plugins = None) -> None:
    """List measures: what they record, what they cost."""
    from grokscale import catalogue

    typer.echo(catalogue.metrics(load_registry(plugin or ())), nl=False)


@track_app.command("sync")
def track_sync(
    sweep: Sweep = None,
    uri: Annotated[
        str | None, option(metavar="URI", callback=no_password, help="Where MLflow is; default the sweep's.")
    ] = None,
    store: StorePath = None,
) -> None:
    """Bring MLflow up to what the store says."""
    say("starting MLflow")
    from grokscale import track

    opened = open_store(store)
    sweep_id = opened.find_sweep(sweep)
    track.sync(opened, sweep_id, uri or track.uri_of(opened, sweep_id))
    typer.echo(f"{sweep_id}: in step")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A task that reads files.", show_default=False)],
    base: Annotated[
        str | None,
        option("--from", metavar="URL", envvar="GROKSCALE_DATA_URL", callback=no_password, help="Holds NAME/FILE."),
    ] = None,
    data: Data = None,
    plugin: Plugins = None,
) -> None:
    """Download a task's files, checked; again = what is missing."""
    use_data(data)
    from grokscale.fetch import fetch

    sets = {task.name: task.dataset for task in load_registry(plugin or ()).tasks.values() if task.dataset}
    if name not in sets:
        raise InputError(f"no task {name!r} reads files; {suggest(name, sets)}")
    fetch(sets[name], base, typer.echo)


@data_app.command("list")
def data_list(data: Data = None, plugin: Plugins = None) -> None:
    """Say which files are there and right."""
    use_data(data)
    from grokscale import catalogue

    typer.echo(catalogue.data(load_registry(plugin or ())), nl=False)
