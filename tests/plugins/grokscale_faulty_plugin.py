"""A plugin whose method crashes while it trains: what a sweep does about a trial that cannot run."""

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
