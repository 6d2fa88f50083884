"""The verbs. Only what a verb needs is imported, and only when it runs: --help and results must be quick."""

from __future__ import annotations

import sys

from grokscale.cli import around, keeping, reading, service, sweeps  # noqa: F401  (in the order of --help)
from grokscale.cli.base import app

__all__ = ["app", "main"]


def main() -> None:
    """The console script; --debug may stand anywhere."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:
        arguments = ["--debug", *(word for word in arguments if word != "--debug")]
    app(args=arguments, prog_name="grokscale")
