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

TASKS: dict[str, TaskEntry] = {
    t.name: t for t in (
        *parity.TASKS,
        *modular.TASKS,
        *composite.TASKS,
        *permutations.TASKS,
        *sequences.TASKS,
        *toy.TASKS,
        *relabelled.TASKS,
        *curriculum.TASKS,
        *mnist.TASKS,
        *imdb.TASKS,
        *qm9.TASKS,
    )
}  # fmt: skip
