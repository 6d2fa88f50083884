"""Slow, obvious twins of the controls and rivals (methods.md sections 1.4 and 6), beside those of reference.py.

Written from the papers' equations in float64, one replica, one step at a time; nothing here imports grokscale. A
twin changes `.grad` in place, as those of reference.py do. Muon, AdEMAMix and GrokAdamW are optimisers: their twins
leave the direction of the step in `.grad`, and `torch.optim.SGD` without momentum makes the step and the decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests import reference as ref


def gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


def matrices(net: nn.Module) -> dict[str, tuple[int, int]]:
    """(output units, input units) of the matrices inside the net: neither embedding nor head."""
    if isinstance(net, ref.TwoLayer):  # stores (in, out)
        return {"W1": (net.W1.shape[1], net.W1.shape[0])}
    inside = [(n, p) for n, p in net.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    return {n: (p.shape[0], p.shape[1]) for n, p in inside}


# ------------------------------------------------------------------------------------------------- controls


@dataclass
class NormGrad:
    """c g / ||g|| of every tensor, or of all of them as one vector; then torch's own clip."""

    c: float = 1.0
    scope: str = "tensor"
    clip: float = 0.0

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        everything = torch.cat([gradient(p).flatten() for p in net.parameters()])
        for parameter in net.parameters():
            g = gradient(parameter)
            of = g.flatten() if self.scope == "tensor" else everything
            parameter.grad = self.c * g / max(math.sqrt(float(of @ of)), 1e-12)
        if self.clip:
            nn.utils.clip_grad_norm_(net.parameters(), self.clip)


@dataclass
class OrthoGrad:
    """The gradient's part across the weights, made as long as the gradient if `rescale`."""

    rescale: bool = True

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        for parameter in net.parameters():
            w, g = parameter.detach().flatten(), gradient(parameter).flatten()
            across = g - float(w @ g) / (float(w @ w) + 1e-30) * w
            if self.rescale:
                across = across * float(g.norm()) / (float(across.norm()) + 1e-30)
            parameter.grad = across.view_as(parameter)


class KeptNorm(torch.optim.SGD):
    """SGD that scales weights back to their first norm after every `every`-th step: matrices, or the whole net."""

    def __init__(self, net: nn.Module, lr: float, wd: float, every: int, scope: str) -> None:
        super().__init__(net.parameters(), lr=lr, weight_decay=wd)
        self.count, self.every = 0, every
        tensors = list(net.parameters())
        self.groups = [tensors] if scope == "global" else [[p] for p in tensors if p.ndim == 2]
        self.first = [self.norm(group) for group in self.groups]

    @staticmethod
    def norm(group: list[nn.Parameter]) -> float:
        return math.sqrt(sum(float((p.detach() ** 2).sum()) for p in group))

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for group, first in zip(self.groups, self.first, strict=True):
                now = self.norm(group)
                for parameter in group:
                    parameter.data.mul_(first / now)


@dataclass
class KeptNormOptimiser(ref.Optimiser):
    """What reference.train builds `KeptNorm` from."""

    every: int = 1
    scope: str = "tensor"

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        return KeptNorm(net, self.lr, 0.0 if self.decay == "inside" else self.wd, self.every, self.scope)


class Rewarmed(KeptNorm):
    """SGD whose step is made longer in cycles, with the norms held (or capped) at rho times the first ones."""

    def __init__(
        self, net: nn.Module, lr: float, wd: float, cycle: int, warm: float, peak: float, rho: float, hold: str,
        scope: str,
    ) -> None:  # fmt: skip
        super().__init__(net, lr, wd, every=1, scope=scope)
        self.cycle, self.warm, self.peak = cycle, warm, peak
        self.capped = hold == "clamp"
        self.first = [rho * first for first in self.first]

    def length(self, step: int) -> float:
        """1 at the start of a cycle, `peak` after its share `warm`, 1 again at its end."""
        place, top = (step - 1) % self.cycle, self.warm * self.cycle
        if place < top:
            return 1 + (self.peak - 1) * place / top
        angle = math.pi * (place - top) / (self.cycle - top)
        return 1 + (self.peak - 1) * math.cos(angle / 2) ** 2

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.param_groups[0]["lr"] *= self.length(self.count + 1)  # the loop's schedule sets it anew after every step
        torch.optim.SGD.step(self, closure)
        self.count += 1
        for group, held in zip(self.groups, self.first, strict=True):
            now = self.norm(group)
            if now > held or not self.capped:
                for parameter in group:
                    parameter.data.mul_(held / now)


@dataclass
class RewarmedOptimiser(ref.Optimiser):
    """What reference.train builds `Rewarmed` from."""

    cycle: int = 1000
    warm: float = 0.1
    peak: float = 10.0
    rho: float = 1.0
    hold: str = "project"
    scope: str = "tensor"

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        wd = 0.0 if self.decay == "inside" else self.wd
        return Rewarmed(net, self.lr, wd, self.cycle, self.warm, self.peak, self.rho, self.hold, self.scope)


# --------------------------------------------------------------------------------------------------- rivals


@dataclass
class AdamDirection:
    """m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), the means written out as sums over all gradients so far."""

    beta1: float
    beta2: float
    eps: float
    seen: dict[str, list[Tensor]] = field(default_factory=dict)

    def __call__(self, name: str, g: Tensor) -> Tensor:
        history = self.seen.setdefault(name, [])
        history.append(g)
        t, m, v = len(history), torch.zeros_like(g), torch.zeros_like(g)
        for i, h in enumerate(history, start=1):
            m = m + (1 - self.beta1) * self.beta1 ** (t - i) * h
            v = v + (1 - self.beta2) * self.beta2 ** (t - i) * h**2
        return m / (1 - self.beta1**t) / ((v / (1 - self.beta2**t)).sqrt() + self.eps)


def quintic(g: Tensor, steps: int) -> Tensor:
    """Newton-Schulz seen from the singular values: s <- 3.4445 s - 4.775 s^3 + 2.0315 s^5, from s / ||g||."""
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    s = s / max(float(g.norm()), 1e-7)
    for _ in range(steps):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ vh


@dataclass
class Muon:
    """Momentum and orthogonalisation in either order on the matrices inside the net, Adam elsewhere."""

    beta: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    ns_dtype: str = "same"
    scale: str = "original"
    order: str = "before"
    companion: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    momentum: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.ns_dtype == "same"
        self.adam = AdamDirection(self.beta1, self.beta2, self.eps)

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        inside = matrices(net)
        for name, parameter in net.named_parameters():
            g = gradient(parameter)
            if name not in inside:
                parameter.grad = self.companion * self.adam(name, g)
                continue
            if self.order == "after":
                g = quintic(g, self.ns_steps)
            old = self.momentum.get(name, torch.zeros_like(g))
            self.momentum[name] = self.beta * old + (1 - self.beta) * g
            mixed = self.momentum[name]
            if self.nesterov:
                mixed = self.beta * mixed + (1 - self.beta) * g
            if self.order == "before":
                mixed = quintic(mixed, self.ns_steps)
            rows, cols = inside[name]
            by_shape = {"original": math.sqrt(max(1, rows / cols)), "match-rms": 0.2 * math.sqrt(max(rows, cols))}
            parameter.grad = by_shape[self.scale] * mixed


def inverse_fourth_root(m: Tensor, eps: float) -> Tensor:
    """Of a positive semi-definite matrix, damped by eps times its largest eigenvalue: the root of the inverse root."""
    damped = m + eps * float(torch.linalg.eigvalsh(m)[-1]) * torch.eye(len(m), dtype=m.dtype)
    u, s, vh = torch.linalg.svd(damped)
    return u @ torch.diag(1 / s.sqrt().sqrt()) @ vh


@dataclass
class Shampoo:
    """L^(-1/4) G R^(-1/4), with L and R as weighted means over all gradients so far."""

    beta: float = 0.95
    eps: float = 1e-6
    every: int = 1
    seen: dict[str, list[Tensor]] = field(default_factory=dict)
    roots: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        parameters = dict(net.named_parameters())
        for name in matrices(net):
            g = gradient(parameters[name])
            history = self.seen.setdefault(name, [])
            history.append(g)
            if (len(history) - 1) % self.every == 0:
                weights = [self.beta ** (len(history) - i) for i in range(1, len(history) + 1)]
                left = sum((w * h @ h.T for w, h in zip(weights, history, strict=True)), 0 * g @ g.T) / sum(weights)
                right = sum((w * h.T @ h for w, h in zip(weights, history, strict=True)), 0 * g.T @ g) / sum(weights)
                self.roots[name] = inverse_fourth_root(left, self.eps), inverse_fourth_root(right, self.eps)
            left, right = self.roots[name]
            parameters[name].grad = left @ g @ right


@dataclass
class AdEMAMix:
    """Adam with a second, far slower mean of the gradients in the numerator; alpha and beta3 may be warmed up."""

    alpha: float = 5.0
    beta1: float = 0.9
    beta2: float = 0.999
    beta3: float = 0.9999
    eps: float = 1e-8
    alpha_warmup: int = 0
    beta3_warmup: int = 0
    t: int = 0
    state: dict[str, list[Tensor]] = field(default_factory=dict)

    def half_life_scheduled(self) -> float:
        """beta3 now: the time after which a gradient counts half grows linearly from beta1's to beta3's."""
        if self.t >= self.beta3_warmup:
            return self.beta3

        def half_life(beta: float) -> float:
            return math.log(0.5) / math.log(beta)

        share = self.t / self.beta3_warmup
        return 0.5 ** (1 / ((1 - share) * half_life(self.beta1) + share * half_life(self.beta3)))

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        self.t += 1
        beta3 = self.half_life_scheduled()
        alpha = self.alpha if self.t >= self.alpha_warmup else self.alpha * self.t / self.alpha_warmup
        for name, parameter in net.named_parameters():
            g = gradient(parameter)
            fast, slow, v = self.state.get(name, [torch.zeros_like(g)] * 3)
            fast = self.beta1 * fast + (1 - self.beta1) * g
            slow = beta3 * slow + (1 - beta3) * g
            v = self.beta2 * v + (1 - self.beta2) * g**2
            self.state[name] = [fast, slow, v]
            corrected, spread = fast / (1 - self.beta1**self.t), v / (1 - self.beta2**self.t)
            parameter.grad = (corrected + alpha * slow) / (spread.sqrt() + self.eps)


@dataclass
class GrokAdamW:
    """Grokfast-EMA from zero inside Adam; memory and Adam's beta1 as GrokAdamW sets them."""

    alpha: float = 0.98
    kappa: float = 0.1
    lam: float = 2.0
    gamma: float = 0.1
    rescale: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    t: int = 0
    state: dict[str, list[Tensor]] = field(default_factory=dict)

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        self.t += 1
        memory = self.alpha * math.exp(-self.kappa * (1 - validation_accuracy))
        beta1 = self.beta1
        for name, parameter in net.named_parameters():
            g = gradient(parameter)
            mu, m, v = self.state.get(name, [torch.zeros_like(g)] * 3)
            mu = memory * mu + (1 - memory) * g
            h = g + self.lam * mu
            if self.rescale:
                h = h * float(g.norm()) / max(float(h.norm()), 1e-8)
            m = beta1 * m + (1 - beta1) * h
            v = self.beta2 * v + (1 - self.beta2) * h**2
            self.state[name] = [mu, m, v]
            parameter.grad = m / (1 - self.beta1**self.t) / ((v / (1 - self.beta2**self.t)).sqrt() + self.eps)
            beta1 = beta1 * (1 - self.gamma)  # every tensor's is smaller than that of the one before


METHODS: dict[str, Callable[..., Callable[[nn.Module, float], None]]] = {
    "normgrad": NormGrad,
    "orthograd": OrthoGrad,
    "muon": Muon,
    "shampoo": Shampoo,
    "ademamix": AdEMAMix,
    "grokadamw": GrokAdamW,
}


# ---------------------------------------------------------------------------------------------------- losses


def stablemax_cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Mean of -log(s(out_y) / sum s(out)), s(x) = x + 1 for x >= 0 and 1 / (1 - x) below, entry by entry."""
    losses = []
    for row, label in zip(out, y, strict=True):
        s = torch.stack([x + 1 if x >= 0 else 1 / (1 - x) for x in row])
        losses.append(-(s[int(label)] / s.sum()).log())
    return torch.stack(losses).mean()
