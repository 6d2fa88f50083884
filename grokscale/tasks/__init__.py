"""TASKS: every task by name. A plugin adds its own entry to this dict."""

from __future__ import annotations

from grokscale.entries import TaskEntry
from grokscale.tasks import modular, parity

TASKS: dict[str, TaskEntry] = {
    "parity": TaskEntry(
        "parity", "y = x_1 ... x_k among n signs", "EGD, arXiv 2510.04930; Barak et al. 2022",
        parity.parity, parity.DEFAULTS, horizon=100_000, model=parity.MODEL, optimiser=parity.OPTIMISER,
    ),
    "modular-pairs": TaskEntry(
        "modular-pairs", "a op b mod p from two one-hot halves", "EGD, arXiv 2510.04930",
        modular.pairs, modular.PAIRS_DEFAULTS, horizon=135_000, model=modular.PAIRS_MODEL,
        optimiser=modular.PAIRS_OPTIMISER,
    ),
    "modular-tokens": TaskEntry(
        "modular-tokens", "[x, op, y, =] -> x op y mod p", "Power et al., arXiv 2201.02177; Grokfast, arXiv 2405.20233",
        modular.tokens, modular.TOKENS_DEFAULTS, horizon=300_000, model=modular.TOKENS_MODEL,
        optimiser=modular.TOKENS_OPTIMISER,
    ),
}
