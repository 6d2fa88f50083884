"""No method: the optimiser alone, the baseline of every comparison."""

from __future__ import annotations

from grokscale.entries import Method
from grokscale.transform import Transform, stateless


def none() -> Transform:
    """g -> g."""
    return stateless(lambda grads, params, *, step: dict(grads), elementwise=True, timeless=True)


METHODS = [Method("none", "g' = g", "the optimiser alone", none, neutral={}, flops=lambda *_: 0.0)]
