"""The verbs for sweeps without a terminal: submit, list, status, logs, stop, resume."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from grokscale.cli.base import (
    Address,
    Data,
    File,
    Overrides,
    Packs,
    StorePath,
    Sweep,
    app,
    load_registry,
    open_store,
    resolve,
    say,
    use_data,
    with_packs,
)
from grokscale.errors import GrokscaleError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from grokscale.service import Status
    from grokscale.spec import Resolved
    from grokscale.store import Store

Detach = Annotated[bool, typer.Option("--detach", help="Return once it runs.")]
Wait = Annotated[float, typer.Option(min=0, envvar="GROKSCALE_WAIT", metavar="SECONDS",
                                     help="How long to wait for the cluster.")]  # fmt: skip


@app.command()
def submit(
    file: File,
    address: Address = None,
    detach: Detach = False,
    wait: Wait = 60.0,
    set_: Overrides = None,
    replicas_per_pack: Packs = None,
    data: Data = None,
    store: StorePath = None,
) -> None:
    """Run a sweep on a cluster, or here in the background.

    A sweep that runs already is not doubled, but followed. Without --detach its log is shown until it ends; Ctrl-C
    leaves it running.
    """
    from grokscale import service, track

    use_data(data)
    overrides = with_packs(set_, replicas_per_pack)
    _, resolved = resolve(file, overrides)
    address = address or resolved.experiment.cluster.address
    if address is None:
        track.variable_uri()  # a password in it is refused here, and not by a driver that nobody sees
    opened, sweep_id = open_store(store or resolved.experiment.store), resolved.sweep_id
    client = service.connect(address, seconds=wait, say=say) if address else None
    where = ""
    if service.answered(opened, resolved):
        typer.echo(f"{sweep_id}: done")
    elif client is None:
        command = ["sweep", str(file.resolve()), *_options(opened, data, overrides)]
        where = service.detach(opened, sweep_id, command)
        typer.echo(f"{sweep_id}: {where or 'done'}")
    else:
        where = _submitted(resolved, opened, client)
    if not detach:
        _follow(opened, sweep_id, client)


@app.command("list")
def list_(address: Address = None, store: StorePath = None) -> None:
    """List the store's sweeps, the latest first."""
    from grokscale import service
    from grokscale.report.words import grid

    opened, named = open_store(store), _client(address)
    rows = [
        [one.sweep_id, one.state, one.phase, " ".join(one.question.split())[:48]]
        for one in service.listing(opened, lambda sweep_id: named or _watching(opened, sweep_id))
    ]
    typer.echo(grid(["sweep", "state", "phase", "question"], rows, "<<<<") if rows else "no sweeps yet")


@app.command()
def status(
    sweep: Sweep = None,
    follow: Annotated[
        bool | None, typer.Option("--follow/--once", help="Show it live while it runs; on a terminal without asking.",
                                  show_default=False)] = None,
    address: Address = None,
    store: StorePath = None,
) -> None:  # fmt: skip
    """Say how far a sweep is, and where it runs: live on a terminal, as `sweep` shows it. Ctrl-C only looks away."""
    from grokscale import live, service

    opened = open_store(store)
    sweep_id = opened.find_sweep(sweep)
    client = _client(address) or _watching(opened, sweep_id)
    if sys.stdout.isatty() if follow is None else follow:
        try:
            if where := service.driver(opened, sweep_id, client):
                with live.watch(sys.stderr, sweep_id, where) as view:
                    for progress in service.watch(opened, sweep_id, client):
                        view(progress)
        except KeyboardInterrupt:
            _runs_on(sweep_id)
    typer.echo(_table(service.status(opened, sweep_id, client)))


@app.command()
def logs(
    sweep: Sweep = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on while the sweep runs.")] = False,
    address: Address = None,
    store: StorePath = None,
) -> None:
    """Print a sweep's log."""
    from grokscale import service

    opened = open_store(store)
    sweep_id = opened.find_sweep(sweep)
    client = _client(address) or _watching(opened, sweep_id)
    for line in service.follow(
        opened, sweep_id, still=lambda: follow and bool(service.driver(opened, sweep_id, client))
    ):
        typer.echo(line)


@app.command()
def stop(
    sweep: Annotated[
        str | None,
        typer.Argument(metavar="SWEEP[/TRIAL]", help="Default the latest; a trial by its id.", show_default=False),
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="At once: trials under way go back to their checkpoints.")] = False,
    address: Address = None,
    store: StorePath = None,
) -> None:
    """Stop a sweep, or one of its trials, in order: everything is saved, `resume` goes on."""
    from grokscale import service

    opened = open_store(store)
    name, _, trial = (sweep or "").partition("/")
    sweep_id = opened.find_sweep(name or None)
    if address is None and service.is_here(opened, sweep_id):
        client = _watching(opened, sweep_id)
    else:
        client = _client(address or service.address_of(opened, sweep_id))
    if trial:
        which = service.stop_trial(opened, sweep_id, trial, client, now=now)
        typer.echo(f"{sweep_id}: stopped {which}; the sweep goes on, grokscale resume {sweep_id} tries it again")
        return
    where = service.stop(opened, sweep_id, client, now=now)
    if not service.wait_stopped(opened, sweep_id, client):
        raise GrokscaleError(f"{sweep_id}: {where} was told to stop and has not yet; --now does not ask")
    typer.echo(f"{sweep_id}: stopped ({where}); grokscale resume {sweep_id} goes on")


@app.command()
def resume(
    sweep: Sweep = None,
    add_trials: Annotated[int, typer.Option(min=0, help="So many more search trials per arm.")] = 0,
    detach: Detach = False,
    address: Address = None,
    wait: Wait = 60.0,
    set_: Overrides = None,
    replicas_per_pack: Packs = None,
    data: Data = None,
    store: StorePath = None,
) -> None:
    """Go on with a sweep of the store, perhaps a longer one.

    --set may change what does not change what results mean: search.trials, race, confirm, limits, resources.
    """
    from grokscale import service
    from grokscale.cli.sweeps import run_and_print

    use_data(data)
    opened = open_store(store)
    sweep_id = opened.find_sweep(sweep)
    overrides = with_packs(set_, replicas_per_pack)
    if add_trials:
        before = service.again(opened, sweep_id, load_registry).experiment.search.trials
        overrides.append(f"search.trials={before + add_trials}")
    resolved = service.again(opened, sweep_id, load_registry, overrides)
    if address := address or resolved.experiment.cluster.address:
        client = service.connect(address, seconds=wait, say=say)
        _submitted(resolved, opened, client)
        if not detach:
            _follow(opened, sweep_id, client)
        return
    if detach:
        where = service.detach(opened, sweep_id, ["resume", sweep_id, *_options(opened, data, overrides)])
        typer.echo(f"{sweep_id}: {where or 'done'}")
        return
    run_and_print(lambda: resolved, sweep_id, opened)


def _client(address: str | None) -> JobSubmissionClient | None:
    from grokscale import service

    return service.connect(address, seconds=0.0, say=say) if address else None


def _watching(store: Store, sweep_id: str) -> JobSubmissionClient | None:
    """The cluster that the file of a sweep names. To look at the sweep it need not answer."""
    from grokscale import service

    address = service.address_of(store, sweep_id)
    return _answering(address) if address else None


@cache
def _answering(address: str) -> JobSubmissionClient | None:
    try:
        return _client(address)
    except GrokscaleError as error:
        say(f"{error}\nwhat follows is what the store knows")
        return None


def _options(store: Store, data: Path | None, overrides: Sequence[str] | None) -> list[str]:
    """The options with which a driver in another process does the same."""
    folder = ["--data", str(data.resolve())] if data is not None else []
    return ["--store", store.root, *folder, *(word for one in overrides or () for word in ("--set", one))]


def _submitted(resolved: Resolved, store: Store, client: JobSubmissionClient) -> str:
    from grokscale import service

    where, fresh = service.submit(resolved, store, client)
    typer.echo(f"{resolved.sweep_id}: {where}{'' if fresh else ', which ran already'}")
    return where


def _follow(store: Store, sweep_id: str, client: JobSubmissionClient | None) -> None:
    from grokscale import service

    try:
        for line in service.follow(store, sweep_id, still=lambda: bool(service.driver(store, sweep_id, client))):
            say(line)
    except KeyboardInterrupt:
        _runs_on(sweep_id)
    end = service.status(store, sweep_id, client)
    if end.state != "done":
        said = service.last_words(client, sweep_id) if client is not None else ""
        raise GrokscaleError(f"{sweep_id} is {end.state}; grokscale resume {sweep_id} goes on" + (said and f"\n{said}"))
    from grokscale.report import results_text

    typer.echo(results_text(store, sweep_id), nl=False)


def _runs_on(sweep_id: str) -> NoReturn:
    say(f"{sweep_id} runs on; grokscale status, logs -f, stop")
    raise typer.Exit(0) from None


def _table(one: Status) -> str:
    from grokscale.live import stage
    from grokscale.report.words import grid, number

    rows = [
        [stage(a.phase), a.arm, f"{a.ended}/{a.asked}", str(a.failed), f"{a.grokked}/{a.replicas}",
         "-" if a.best is None else number(a.best)]
        for a in one.arms
    ]  # fmt: skip
    head = f"{one.sweep_id}: {one.state}" + (f", {one.where}" if one.where else "")
    if one.state == "stopped":
        head += f"; grokscale resume {one.sweep_id} goes on"
    table = grid(["phase", "arm", "trials", "failed", "grokked", "best (steps)"], rows, "<<>>>>")
    return "\n".join([head, *([one.question] if one.question else []), "", table if rows else "nothing asked yet"])
