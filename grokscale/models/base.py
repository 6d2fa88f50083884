"""Models: ordinary modules for one replica, with the role of every parameter.

A model is built on the meta device, where it costs nothing: parameters are drawn by `initial(model, generator)`
and given to the module by `torch.func.functional_call`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from grokscale.tasks.base import Task
from grokscale.transform import Params, Role

Built = TypeVar("Built", bound="Model")


class Model(nn.Module):
    """A module that says what its parameters are for and how they are drawn.

    roles: a Role for every parameter.  laws: for every parameter ("normal" | "uniform" | "constant", scale)
    or ("values", the numbers in order).
    scale: factor on every first parameter (Omnigrok's initialisation scale; 1 + 1e-7 makes a jitter twin).
    """

    def __init__(self) -> None:
        super().__init__()
        self.roles: dict[str, Role] = {}
        self.laws: dict[str, tuple[str, Any]] = {}
        self.scale = 1.0

    if TYPE_CHECKING:  # every attribute that is not set in __init__ is a declared parameter

        def __getattr__(self, name: str) -> Tensor: ...

    def declare(self, name: str, shape: tuple[int, ...], role: Role, law: tuple[str, Any]) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(shape, device="meta")))
        self.roles[name], self.laws[name] = role, law


def initial(model: Model, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
    """Draw the parameters of one replica, in order of declaration, on the CPU.

    Drawn in float32 whatever the dtype, so that a float64 oracle starts from the same numbers.
    """
    draw = {
        "normal": lambda shape, scale: torch.randn(shape, generator=generator) * scale,
        "uniform": lambda shape, scale: (torch.rand(shape, generator=generator) * 2 - 1) * scale,
        "constant": lambda shape, scale: torch.full(shape, scale),
        "values": lambda shape, scale: torch.tensor(scale, dtype=torch.float32).reshape(shape),
    }
    return {
        name: (draw[kind](tuple(model.get_parameter(name).shape), scale) * model.scale).to(dtype)
        for name, (kind, scale) in model.laws.items()
    }


def scaled(model: Built, scale: float) -> Built:
    """The model with its first parameters multiplied by `scale` > 0. Raises ValueError for another scale."""
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale > 0 must hold, got scale={scale}")
    model.scale = scale
    return model


def given(task: Task) -> str:
    """What a task gives, and which model reads that."""
    use = {"vector": "mlp or mlp2", "pair": "mlp2", "tokens": "the decoder or the lstm", "graph": "the graph"}
    kind = task.inputs.kind
    return f"{kind if kind == 'tokens' else f'a {kind}'}; use {use[kind]}" if kind in use else kind
