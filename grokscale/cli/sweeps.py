"""The verbs that train: sweep, run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grokscale.cli.base import (
    Data,
    File,
    Overrides,
    Packs,
    StorePath,
    Until,
    app,
    open_store,
    option,
    print_results,
    remembered,
    resolve,
    say,
    seed_numbers,
    this_command,
    use_data,
    with_packs,
    write_file,
)
from grokscale.errors import GrokscaleError, InputError

if TYPE_CHECKING:
    from grokscale.spec import Resolved
    from grokscale.store import Store


@app.command()
def sweep(
    file: File,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say the cost; write nothing.")] = False,
    set_: Overrides = None,
    replicas_per_pack: Packs = None,
    data: Data = None,
    store: StorePath = None,
) -> None:
    """Answer the question of a file; again = resume.

    Search, race, confirm on fresh seeds, compare. The same command again goes on where it stopped.
    """
    use_data(data)
    overrides = with_packs(set_, replicas_per_pack)
    if dry_run:
        say(f"{file}: measuring a few steps")
        entries, resolved = resolve(file, overrides)
        from grokscale.preview import dry_run as preview

        typer.echo(preview(resolved, entries), nl=False)
        return
    run_and_print(lambda: resolve(file, overrides)[1], file.stem, store)


def run_and_print(resolved: Callable[[], Resolved], title: str, store: str | Store | None) -> None:
    """Run a sweep, with a table that follows it, and print its answer.

    resolved: gives the experiment; called once something is on the screen.  title: of the table.
    store: a store, its place, or None for the experiment's.
    """
    from grokscale.control import SweepInterrupted
    from grokscale.live import watch

    opened = asked = None
    try:
        with watch(sys.stderr, title) as view:
            asked = resolved()
            from grokscale import memory, registry
            from grokscale.sweep import run_sweep

            remembered(asked, memory.largest(asked, registry.load(asked.experiment.plugin)))
            opened = open_store(store or asked.experiment.store) if isinstance(store, str | None) else store
            result = run_sweep(asked, opened, on_progress=view)
    except SweepInterrupted as stopped:
        if opened and asked and stopped.reason == "limit":  # as asked for in the file: show how far it came
            print_results(opened, asked.sweep_id)
        stopped.args = (f"{stopped}\nresume: {this_command()}",)
        raise
    if result.behind:
        say(f"MLflow is behind: {result.behind}; grokscale track sync {result.sweep_id} catches up")
    print_results(opened, result.sweep_id)
    for failure in result.failures:
        last = failure.error.strip().splitlines()[-1:] or ["no reason given"]
        what = f"{failure.phase} {failure.arm} {failure.number} (trial {failure.trial_id})"
        say(f"given up: {what}: {last[0]}")
    if result.failures:
        raise GrokscaleError(f"{len(result.failures)} trials failed; the same command tries them again")


@app.command()
def run(
    file: File,
    arm: Annotated[str | None, option(metavar="LABEL", help="Which arm; default the baseline.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds, from the namespace `run`.")] = 1,
    seed_list: Annotated[str | None, option(metavar="1,2,3", help="These seeds instead.")] = None,
    until: Annotated[
        Until, typer.Option(help="To the crossing, to twice its step, or besides to the horizon.")
    ] = Until.decided,
    metrics: Annotated[
        str | None, option(metavar="A,B", help="Measures to take, in place of the file's; `metrics` lists them.")
    ] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Then time one replica alone.")] = False,
    no_store: Annotated[bool, typer.Option("--no-store", help="Train everything, keep nothing.")] = False,
    save_learned: Annotated[
        Path | None, option(metavar="FILE", help="Train one seed, then save what the method learned (an amplifier).")
    ] = None,
    set_: Overrides = None,
    data: Data = None,
    store: StorePath = None,
) -> None:
    """Train one configuration in this process, without Ray."""
    use_data(data)
    say(f"{file}: starting")
    given = seed_numbers(seed_list)
    if metrics is not None:
        names = ",".join(f"'{name.strip()}'" for name in metrics.split(",") if name.strip())
        set_ = [*(set_ or ()), f"metrics.names=[{names}]"]
    entries, resolved = resolve(file, set_)
    from grokscale import memory, packing, solo
    from grokscale.entries import content_digest
    from grokscale.parts import timing_rows
    from grokscale.spec import seed_for

    label = arm or resolved.experiment.baseline
    spec, resources = resolved.trial(label), resolved.experiment.resources
    opened = None if no_store else open_store(store or resolved.experiment.store)
    chosen = given or [seed_for("run", k) for k in range(seeds)]
    if save_learned is not None and not solo.learns(spec, entries):
        raise InputError(f"--save-learned: arm {label} learns nothing that could be saved")
    if save_learned is not None and len(chosen) != 1:
        raise InputError(f"--save-learned: is what one seed learned, and {len(chosen)} are asked for: name one seed")
    learned: list[bytes] = []
    say(f"{label}: trial {spec.trial_id}, {len(chosen)} seeds, horizon {resolved.horizon:,} steps")
    lanes = resources.lanes or packing.fitting(
        spec, chosen, horizon=resolved.horizon, share=packing.share_of(resources.cpus, 0), registry=entries)
    found = memory.needs(spec, min(len(chosen), lanes), entries)
    remembered(resolved, {label: found} if found else {})
    rows = solo.run(
        spec,
        chosen,
        horizon=resolved.horizon,
        until=until.value,
        lanes=lanes,
        threads=resources.cpus,
        registry=entries,
        store=opened,
        metrics=resolved.experiment.metrics.names,
        compiled=resources.compile,
        say=say,
        at_end=None if save_learned is None else lambda end: learned.append(end.learned(chosen[0])),
    )
    typer.echo(solo.table(spec, rows, resolved.horizon, solo.epoch_steps(spec, entries)), nl=False)
    if timing:
        [row] = timing_rows([spec], threads=resources.cpus, registry=entries)
        if opened is not None:
            opened.append("timings", [row])
        typer.echo("\n" + solo.timing_line(row), nl=False)
    if save_learned is not None:
        write_file(save_learned, learned[0])
        typer.echo(f"\nlearned: {save_learned}@{content_digest(learned[0])}")
