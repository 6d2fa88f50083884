"""The verbs. Only what a verb needs is imported, and only when it runs: --help and results must be quick."""

from __future__ import annotations

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
        if not any(thread.name == MIRROR for thread in threading.enumerate()):
            raise
        # MLflow was slow and is left behind in the middle of a figure. Python would take the thread down inside
        # matplotlib's C++, which ends the process with an abort.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
