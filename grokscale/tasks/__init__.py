"""TASKS: every task by name. A plugin adds its own entry to this dict."""

from __future__ import annotations

from grokscale.entries import TaskEntry
from grokscale.tasks import (
    composite,
    curriculum,
    imdb,
    mnist,
    modular,
    parity,
    permutations,
    qm9,
    relabelled,
    sequences,
    toy,
)

FAMILIES = (
    parity, modular, composite, permutations, sequences, toy, relabelled, curriculum, mnist, imdb, qm9)  # fmt: skip
TASKS: dict[str, TaskEntry] = {t.name: t for family in FAMILIES for t in family.TASKS}
