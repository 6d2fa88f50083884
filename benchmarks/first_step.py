"""A plugin: the method `stamped` trains plainly and leaves a file once the first step has been taken.

The file holds the clock that all processes of a machine share, so that whoever started a sweep can tell how long that
took. It appears when the optimiser has moved the parameters for the first time, in whatever process trains.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from grokscale.entries import Method
from grokscale.methods import METHODS
from grokscale.transform import Params, State, Transform


def stamped(path: str) -> Transform:
    """g -> g; path: the file, left alone where it is there."""

    def after(params: Params, state: State, *, step: int, **_: Any) -> tuple[Params, State]:
        if step == 1 and not Path(path).exists():
            Path(path).write_text(repr(time.monotonic()))
        return params, state

    return Transform(
        lambda params, roles, generator: (), lambda grads, state, params, *, step: (dict(grads), state), after)


METHODS["stamped"] = Method("stamped", "g' = g", "benchmarks", stamped, {"path": ""})
