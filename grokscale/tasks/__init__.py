"""TASKS: every task by name. A plugin adds its own entry to this dict."""

from __future__ import annotations

from grokscale.entries import TaskEntry
from grokscale.tasks import imdb, mnist, modular, parity, qm9

TASKS: dict[str, TaskEntry] = {
    t.name: t for t in (*parity.TASKS, *modular.TASKS, *mnist.TASKS, *imdb.TASKS, *qm9.TASKS)
}
