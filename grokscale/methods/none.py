"""No method: the optimiser alone, the baseline of every comparison."""

from __future__ import annotations

from typing import Any

from grokscale.transform import Transform, stateless

DEFAULTS: dict[str, Any] = {}
SPACE: dict[str, Any] = {}


def none() -> Transform:
    """g -> g."""
    return stateless(lambda grads, params, *, step: dict(grads))
