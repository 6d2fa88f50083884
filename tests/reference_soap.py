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


def shift(mean: Tensor) -> Tensor:
    top = mean.diagonal().max()
    return 1e-6 * (top if top > 0 else torch.ones_like(top))


class Soap:
    """Algorithm 3 for one tensor, with the released code's first step and its order of the columns."""

    def __init__(self, shape: torch.Size, turns: bool, knobs: Mapping[str, Any]) -> None:
        self.knobs, self.turns, self.t = knobs, turns, -1
        self.m, self.v = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        self.means = [torch.zeros(n, n, dtype=torch.float64) for n in shape]
        self.bases: list[Tensor] = []

    def step(self, g: Tensor) -> Tensor:
        self.t += 1
        direction = self.move(g) if self.t else torch.zeros_like(g)
        if self.turns:
            self.remember(g)
        return direction

    def move(self, g: Tensor) -> Tensor:
        b1, b2 = self.knobs["beta1"], self.knobs["beta2"]
        self.m = b1 * self.m + (1 - b1) * g
        mean = self.m / (1 - b1**self.t)
        if self.turns:
            p, q = self.bases
            g, mean = p.T @ g @ q, p.T @ mean @ q
        self.v = b2 * self.v + (1 - b2) * g**2
        direction = mean / ((self.v / (1 - b2**self.t)).sqrt() + self.knobs["eps"])
        return self.bases[0] @ direction @ self.bases[1].T if self.turns else direction

    def remember(self, g: Tensor) -> None:
        b2 = self.knobs["beta2"]
        for side, product in enumerate((g @ g.T, g.T @ g)):
            self.means[side] = b2 * self.means[side] + (1 - b2) * product
        if self.t == 0:
            self.bases = [self.first(g), self.first(g.T)]
        elif self.t % self.knobs["period"] == 0:
            for side, mean in enumerate(self.means):
                basis = self.bases[side]
                values = [float(column @ mean @ column) for column in basis.T]
                order = sorted(range(len(values)), key=lambda i: -values[i] if values[i] > shift(mean) else 0)
                shifted = mean + shift(mean) * torch.eye(len(mean), dtype=torch.float64)
                self.bases[side] = orthonormal(shifted @ basis[:, order])
                self.v = self.v[order] if side == 0 else self.v[:, order]

    @staticmethod
    def first(g: Tensor) -> Tensor:
        """Left singular vectors; then, one at a time, what is left of space and has most of n, n - 1, ..."""
        n = len(g)
        u, s, _ = torch.linalg.svd(g)
        found = [u[:, i] for i in range(int((s > 1e-6 * s.max()).sum()))]
        ramp = torch.diag(torch.arange(n, 0, -1, dtype=torch.float64))
        while len(found) < n:
            seen = torch.stack(found, dim=1)
            inside = torch.eye(n, dtype=torch.float64) - seen @ seen.T
            found.append(torch.linalg.svd(inside @ ramp @ inside)[0][:, 0])
        return torch.stack(found, dim=1)
