"""The verbs. Only what a verb needs is imported, and only when it runs: --help and results must be quick."""

from __future__ import annotations

import atexit
import os
import sys
import threading

from grokscale.cli import around, keeping, reading, service, sweeps  # noqa: F401  (in the order of --help)
from grokscale.cli.base import app
from grokscale.control import MIRROR

__all__ = ["app", "main"]


def main() -> None:
    """The console script; --debug may stand anywhere."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *(word for word in arguments if word != "--debug")]
    try:
        app(args=arguments, prog_name="grokscale")
    except SystemExit as end:
        _leave(end.code if isinstance(end.code, int) else int(end.code is not None))


def _leave(code: int) -> None:
    """End the process as Python does, but for the last: taking apart what C++ threads may still be inside of.

    Arrow's pools can end that in "terminate called without an active exception" (apache/arrow#39862), rarely, when a
    verb has done all that it should. MLflow's thread, slow and left behind in the middle of a figure, ends so for sure,
    and the exits of what it works with would wait for it.
    """
    if not any(thread.name == MIRROR for thread in threading.enumerate()):
        # Joins threads and ends those of executors; multiprocessing's children end with the same call.
        threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
