"""Slow, obvious twins of the forms of EGD (methods.md 1.3, 5.3 EGD-12), as `tests/reference.py` has them: nothing here
imports grokscale. One matrix at a time, full singular value decompositions, loops.

A method changes `.grad` in place, after backward and before the optimiser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests import reference as ref


def spectral_map(gradient: Tensor, change: Callable[[float, float], float]) -> Tensor:
    """Sum over i of change(s_i, s_max) u_i v_i'."""
    u, s, vh = torch.linalg.svd(gradient, full_matrices=False)
    out = torch.zeros_like(gradient)
    for i in range(len(s)):
        out = out + change(float(s[i]), float(s[0])) * torch.outer(u[:, i], vh[i])
    return out


def clamped(gradient: Tensor, eps: float = 1e-6) -> Tensor:
    """Singular values to min(1, s / eps)."""
    return spectral_map(gradient, lambda s, _: min(1.0, s / eps))


def pseudo_inverse_form(gradient: Tensor, rtol: float = 0.0) -> Tensor:
    """Singular values to 1, those at most rtol of the largest to 0."""
    rtol = max(rtol, max(gradient.shape) * torch.finfo(gradient.dtype).eps)
    return spectral_map(gradient, lambda s, top: 1.0 if s > rtol * top else 0.0)


def powered(gradient: Tensor, q: float, eps: float = 1e-6) -> Tensor:
    """Singular values to s^q, below eps to s eps^(q - 1)."""
    return spectral_map(gradient, lambda s, _: s**q if s >= eps else s * eps ** (q - 1))


def in_blocks(gradient: Tensor, incoming: int, blocks: int, form: Callable[[Tensor], Tensor]) -> Tensor:
    """The form on every block of ceil(units / blocks) neighbouring units by itself."""
    rows = gradient if incoming == 1 else gradient.T
    units = rows.shape[0]
    size = -(-units // min(blocks, units))
    out = torch.cat([form(rows[i : i + size]) for i in range(0, units, size)])
    return out if incoming == 1 else out.T


def orthonormal(columns: Tensor) -> Tensor:
    """Gram and Schmidt, twice over; at most as many columns as rows."""
    kept: list[Tensor] = []
    for column in columns.T[: columns.shape[0]]:
        for _ in range(2):
            for other in kept:
                column = column - (other @ column) * other
        kept.append(column / column.norm())
    return torch.stack(kept, dim=1)


def randomised(gradient: Tensor, sketch: Tensor, power: int = 2, eps: float = 1e-6) -> Tensor:
    """EGD's Algorithm 3: U diag(1 / max(s, eps)) U' G with U, s of G Q."""
    q = sketch
    for _ in range(power):
        q = orthonormal(gradient @ q)
        q = orthonormal(gradient.T @ q)
    u, s, _ = torch.linalg.svd(gradient @ q, full_matrices=False)
    return u @ torch.diag(1 / torch.clamp(s, min=eps)) @ u.T @ gradient


class Leading:
    """Subspace iteration that goes on from step to step, and the clamp along what it has found (EGD-12)."""

    def __init__(self, basis: Tensor, power: int) -> None:
        self.basis, self.power = basis.clone(), power

    def step(self, gradient: Tensor, eps: float, keep: bool) -> Tensor:
        for _ in range(self.power):
            self.basis = orthonormal(gradient.T @ orthonormal(gradient @ self.basis))
        u, s, _ = torch.linalg.svd(gradient @ self.basis, full_matrices=False)
        out = torch.zeros_like(gradient)
        for i in range(u.shape[1]):
            out += torch.outer(u[:, i], u[:, i] @ gradient) / max(float(s[i]), eps)
            if keep:
                out -= torch.outer(u[:, i], u[:, i] @ gradient)
        return out + gradient if keep else out


@dataclass
class Switched:
    """Off once validation accuracy passed `threshold`; acts on the listed matrices of the net."""

    threshold: float = 0.95
    sticky: bool = True
    off: bool = False

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        above = validation_accuracy > self.threshold
        self.off = above or (self.sticky and self.off)
        parameters = dict(net.named_parameters())
        for name, incoming in net.orthogonalised():  # type: ignore[operator]
            gradient = parameters[name].grad
            assert gradient is not None
            changed = self.change(name, gradient, incoming)  # also while off: what is kept goes on
            if not self.off:
                parameters[name].grad = changed

    def change(self, name: str, gradient: Tensor, incoming: int) -> Tensor:
        raise NotImplementedError


@dataclass
class Egalitarian(Switched):
    """EGD in its forms. With refresh > 1 the left singular vectors are of the last refresh."""

    form: str = "clamp"
    eps: float = 1e-6
    rtol: float = 0.0
    polar: str = "auto"  # how makes no difference here
    blocks: int = 1
    refresh: int = 1
    kept: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    def change(self, name: str, gradient: Tensor, incoming: int) -> Tensor:
        if self.refresh > 1:
            return self.stale(name, gradient)
        form = {"clamp": lambda g: clamped(g, self.eps), "pinv": lambda g: pseudo_inverse_form(g, self.rtol)}[self.form]
        return form(gradient) if self.blocks == 1 else in_blocks(gradient, incoming, self.blocks, form)

    def stale(self, name: str, gradient: Tensor) -> Tensor:
        """Every component of G along a kept direction, over its own length (of the shorter side's directions)."""
        wide = gradient if gradient.shape[0] <= gradient.shape[1] else gradient.T
        call = self.calls[name] = self.calls.get(name, -1) + 1
        if call % self.refresh == 0:
            self.kept[name] = torch.linalg.svd(wide, full_matrices=False)[0]
        out = torch.zeros_like(wide)
        for direction in self.kept[name].T:
            component = direction @ wide
            out = out + torch.outer(direction, component / max(float(component.norm()), self.eps))
        return out if wide is gradient else out.T


@dataclass
class Power(Switched):
    q: float = 0.5
    eps: float = 1e-6

    def change(self, name: str, gradient: Tensor, incoming: int) -> Tensor:
        return powered(gradient, self.q, self.eps)


@dataclass
class Randomised(Switched):
    """`sketches`: (name, columns) -> the normals of this step for a matrix of that many columns."""

    rank: int = 64
    power: int = 2
    eps: float = 1e-6
    fixed_sketch: bool = False
    sketches: Callable[[str, int], Tensor] | None = None

    def change(self, name: str, gradient: Tensor, incoming: int) -> Tensor:
        assert self.sketches is not None
        return randomised(gradient, self.sketches(name, gradient.shape[1]), self.power, self.eps)


METHODS: dict[str, Callable[..., Callable[[nn.Module, float], None]]] = {
    "egd": Egalitarian,
    "egd-colnorm": lambda **knobs: ref.Egalitarian("colnorm", **knobs),
    "egd-power": Power,
    "egd-rsvd": Randomised,
}
