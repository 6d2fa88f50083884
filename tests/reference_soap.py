"""SOAP as its paper writes it, one matrix after another, with Gram-Schmidt in place of a QR routine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def orthonormal(columns: Tensor) -> Tensor:
    """Gram-Schmidt, twice per column, which loses no digits."""
    done: list[Tensor] = []
    for column in columns.T:
        for _ in range(2):
            for other in done:
                column = column - (other @ column) * other
        done.append(column / column.norm())
    return torch.stack(done, dim=1)


class Soap:
    """Algorithm 3 for one tensor, whose basis starts as the identity and which leaves out no step."""

    def __init__(self, shape: torch.Size, turns: bool, knobs: Mapping[str, Any]) -> None:
        self.knobs, self.turns, self.t = knobs, turns, 0
        self.m, self.v = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        if turns:
            self.means = [torch.zeros(n, n, dtype=torch.float64) for n in shape]
            self.bases = [torch.eye(n, dtype=torch.float64) for n in shape]

    def step(self, g: Tensor) -> Tensor:
        b1, b2, self.t = self.knobs["beta1"], self.knobs["beta2"], self.t + 1
        self.m = b1 * self.m + (1 - b1) * g
        p, q = self.bases if self.turns else (None, None)
        rotated = p.T @ g @ q if p is not None and q is not None else g
        self.v = b2 * self.v + (1 - b2) * rotated**2
        mean = self.m / (1 - b1**self.t)
        mean = p.T @ mean @ q if p is not None and q is not None else mean
        direction = mean / ((self.v / (1 - b2**self.t)).sqrt() + self.knobs["eps"])
        if p is None or q is None:
            return direction
        direction = p @ direction @ q.T
        for side, product in enumerate((g @ g.T, g.T @ g)):
            self.means[side] = b2 * self.means[side] + (1 - b2) * product
        if self.t % self.knobs["period"] == 0:
            for side, mean in enumerate(self.means):
                shifted = mean + 1e-6 * mean.diagonal().max() * torch.eye(len(mean), dtype=torch.float64)
                self.bases[side] = orthonormal(shifted @ self.bases[side])
        return direction
