"""A plugin whose methods crash or run out of memory: what a sweep does about a trial that cannot run."""

from __future__ import annotations

from typing import Any

import torch

from grokscale.entries import Method
from grokscale.methods import METHODS
from grokscale.transform import Params, Roles, Transform, stateless


def crash() -> Transform:
    """Raises as soon as a replica is to be set up."""

    def init(params: Params, roles: Roles, generator: torch.Generator) -> Any:
        raise RuntimeError("planted: this method cannot start")

    return stateless(lambda grads, params, *, step: grads)._replace(init=init)


METHODS["crash"] = Method("crash", "g -> !", "tests", crash)


def hungry(megabytes: int, after: int) -> Transform:
    """Asks for so many MB per replica in every step after `after`, and gives them back unused."""

    def update(grads: Params, params: Params, *, step: int) -> Params:
        if step > after:
            for one in grads.values():
                torch.empty_like(one.reshape(-1)[:1].expand(megabytes << 18))  # 4 bytes each
        return grads

    return stateless(update)


METHODS["hungry"] = Method("hungry", "g -> g", "tests", hungry, {"megabytes": 1, "after": 0})
