"""GrokAlign's penalty as its formula stands, one row after another, by plain autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.functional import jacobian


def penalty(f: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """sqrt(mean over the rows of ||J||_F^2), J the (outputs, inputs) Jacobian of f (inputs,) -> (outputs,) at a row."""
    squares = []
    for row in rows:
        j = jacobian(f, row, create_graph=True)
        assert isinstance(j, Tensor)
        squares.append(sum((entry**2 for entry in j.flatten()), torch.zeros((), dtype=rows.dtype)))
    return torch.stack(squares).mean().sqrt()
