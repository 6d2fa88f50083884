"""Shared by all tests: the plugin's folder on every Python path, and a guard over the global generators."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGINS = str(Path(__file__).parent / "plugins")
if PLUGINS not in sys.path:
    sys.path.insert(0, PLUGINS)
# Subprocesses (a sweep that is killed, Ray's workers) have to find the plugin too.
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (PLUGINS, os.environ.get("PYTHONPATH", "")) if p)

# Threads that fight over cores cost far more than they bring at these sizes; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def global_generators_untouched() -> Iterator[None]:
    """Fail a test in which anything drew from torch's or numpy's global generator."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    before = torch.random.get_rng_state() if torch else None
    state = numpy.random.get_state() if numpy else None
    yield
    if torch and before is not None:
        assert torch.equal(before, torch.random.get_rng_state()), "torch's global generator was used"
    if numpy and state is not None:
        after = numpy.random.get_state()
        assert state[2:] == after[2:] and (state[1] == after[1]).all(), "numpy's global generator was used"
