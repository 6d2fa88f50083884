"""What the verbs share: the application, options, opening and printing. Nothing heavy is imported here."""

from __future__ import annotations

import enum
import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from grokscale.errors import GrokscaleError, InputError, refuse_password

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

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
            end_with(str(error), error.exit_code)
        except KeyboardInterrupt:
            end_with("interrupted", 130)
        except BrokenPipeError:  # who reads our pipe has seen enough
            _mute()
            raise typer.Exit(0) from None
        except OSError as error:
            if ctx.params.get("debug") or error.errno != errno.ENOSPC:
                raise
            _mute()
            where = error.filename or "output"
            end_with(f"{where}: cannot be written: {error.strerror}; make room, then give the command again", 1)


def _mute() -> None:
    """Let what is still to be written to stdout go nowhere: at the end of the process it would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_with(message: str, code: int) -> NoReturn:
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
    measures = "measures"


class Until(enum.StrEnum):
    """How long a replica is watched."""

    decided = "decided"
    stable = "stable"
    horizon = "horizon"


def option(*names: str, **more: Any) -> Any:
    """An option that says its default in its help, where it has one worth saying."""
    return typer.Option(*names, show_default=False, **more)


def no_password(context: Any, parameter: Any, value: str | None) -> str | None:
    """Refuse an address with a password in it, without repeating it, given as an option or by a variable."""
    if isinstance(value, str):
        given = context.get_parameter_source(parameter.name)
        refuse_password(
            parameter.envvar if given is not None and given.name == "ENVIRONMENT" else parameter.opts[0], value
        )
    return value


File = Annotated[Path, typer.Argument(help="Experiment file (TOML).", show_default=False)]
Sweep = Annotated[
    str | None, typer.Argument(metavar="SWEEP", help="Name or id; the latest by default.", show_default=False)
]
StorePath = Annotated[
    str | None,
    option("--store", metavar="PATH", envvar="GROKSCALE_STORE", callback=no_password,
           help="Folder, s3:// or gs://; default runs."),
]
Address = Annotated[
    str | None,
    option("--address", metavar="URL", envvar="GROKSCALE_ADDRESS", callback=no_password,
           help="A Ray cluster's job server, http://HOST:8265."),
]
Data = Annotated[
    Path | None,
    option("--data", metavar="DIR", envvar="GROKSCALE_DATA", help="Data files; default ~/.cache/grokscale."),
]
Overrides = Annotated[
    list[str] | None,
    option("--set", metavar="a.b=c", help="Override: search.trials=8, arm.LABEL.set.KNOB=1. Repeatable."),
]
Packs = Annotated[
    str | None,
    option("--replicas-per-pack", metavar="auto|N", help="How many train side by side: --set resources.lanes=N."),
]
Output = Annotated[Path | None, option("--output", "-o", help="A file in place of stdout.")]
Plugins = Annotated[
    list[str] | None, option("--plugin", metavar="MODULE", help="Also what this module adds. Repeatable.")
]


def with_packs(overrides: Sequence[str] | None, replicas: str | None) -> list[str]:
    """The overrides, and that of --replicas-per-pack."""
    if replicas is None:
        return list(overrides or ())
    if replicas != "auto" and not (replicas.isdecimal() and int(replicas) > 1):
        raise InputError(f"--replicas-per-pack: must be an integer >= 2 or auto, got {replicas}")
    return [*(overrides or ()), f"resources.lanes={replicas}"]


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


def say(text: str) -> None:
    typer.echo(text, err=True)


def remembered(resolved: Resolved, found: dict[str, list[Any]]) -> None:
    """Say what the arms' methods remember; refuse what is more than allowed."""
    from grokscale import memory

    memory.refuse(resolved, found)
    for line in memory.shown(found):
        say(line)


def print_results(store: Store, sweep_id: str) -> None:
    from grokscale.report import results_text

    typer.echo(results_text(store, sweep_id), nl=False)


def use_data(folder: Path | None) -> None:
    from grokscale import data

    data.use(folder)


def open_store(path: str | None) -> Store:
    from grokscale.store import Store

    return Store(path or "runs")


def load_registry(plugins: Sequence[str]) -> Registry:
    """The registry with plugins; they may stand in the folder that the command is given in."""
    from grokscale import registry

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return registry.load(plugins)


def resolve(file: Path, overrides: list[str] | None) -> tuple[Registry, Resolved]:
    """The registry with the file's plugins, and the file checked against it: all problems at once."""
    from grokscale.spec import resolve_file

    loaded: list[Registry] = []

    def load(plugins: Sequence[str]) -> Registry:
        loaded.append(load_registry(plugins))
        return loaded[0]

    resolved = resolve_file(file, overrides or (), registry=load)
    return loaded[0], resolved


def seed_numbers(text: str | None) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise InputError(f"--seed-list: {text!r} is no list of integers; write 1,2,3") from None
    if len(set(seeds)) != len(seeds) or any(seed < 0 for seed in seeds):
        raise InputError(f"--seed-list: seeds must differ and be >= 0, got {text}")
    return seeds


def this_command() -> str:
    """This very command, to be pasted into a shell."""
    import shlex

    return shlex.join(["grokscale", *sys.argv[1:]])


def show(table: pa.Table, format: Format, output: Path | None) -> None:
    """A table of rows, for a terminal or in a file's format."""
    if format is Format.table:
        from grokscale.report.words import records

        columns = [column.to_pylist() for column in table.columns]
        put(records(table.column_names, list(zip(*columns, strict=True))).encode(), output)
    else:
        from grokscale.store.export import export

        put(export(table, format.value), output, format)


def put(data: bytes, output: Path | None, format: Format = Format.table) -> None:
    if output is not None:
        write_file(output, data)
    elif format is Format.parquet and sys.stdout.isatty():
        raise InputError("parquet is not for a terminal: name a file with -o, or pipe it")
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


def write_file(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
