"""`python -m grokscale.cli` is `grokscale`."""

from grokscale.cli import main

main()
