"""Shared by all tests: the plugin's folder on every Python path, a guard over the global generators, profiles."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

PLUGINS = str(Path(__file__).parent / "plugins")
if PLUGINS not in sys.path:
    sys.path.insert(0, PLUGINS)
# Subprocesses (a sweep that is killed, Ray's workers) have to find the plugin too.
os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (PLUGINS, os.environ.get("PYTHONPATH", "")) if p)

# Whoever runs the tests may have an MLflow of their own; it is not for these sweeps.
os.environ.pop("MLFLOW_TRACKING_URI", None)

# Threads that fight over cores cost far more than they bring at these sizes; set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without a terminal starts what it puts into the background deaf to Ctrl-C, and so are all its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# No deadlines: the machine is shared and some properties train a little. CI draws the same examples every time.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


def _states() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    name, key, *rest = np.random.get_state()
    states: dict[str, Any] = {"numpy's": (name, np.asarray(key).tobytes(), *rest)}
    if torch:
        states["torch's"] = torch.random.get_rng_state().numpy().tobytes()
    if not {"mlflow", "ray"} & set(sys.modules):  # both draw from Python's for names and ports
        states["Python's"] = random.getstate()
    return states


@pytest.fixture(autouse=True)
def global_generators_untouched() -> Iterator[None]:
    """Fail a test in which anything drew from a global generator: seeds are then not the whole story."""
    before = _states()
    yield
    after = _states()
    used = [name for name in before.keys() & after.keys() if before[name] != after[name]]
    assert not used, f"{' and '.join(used)} global generator was used; pass a generator instead"


@pytest.fixture(autouse=True)
def data_folder_as_before() -> Iterator[None]:
    """A worker that runs in the test's own process chooses the folder of data for the whole process."""
    module: Any = sys.modules.get("grokscale.data")
    before = module._chosen if module else None
    yield
    if module := sys.modules.get("grokscale.data"):
        module.use(before)


@pytest.fixture
def float64() -> Iterator[None]:
    """New tensors are float64 in this test: numerics are compared where rounding cannot hide a mistake."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
