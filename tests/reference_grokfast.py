"""Slow, obvious twins of Grokfast in all its options (methods.md 1.1), as `tests/reference.py` has them: nothing here
imports grokscale. A method changes `.grad` in place, after backward and before the optimiser.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class MovingAverage:
    """A queue of the last `window` gradients of every parameter; g + lam * mean(queue), or a part of it."""

    window: int = 100
    lam: float = 5.0
    warmup: bool = True
    filter_type: str = "mean"
    two_stage: int = 0
    buffer: str = "same"
    part: str = "both"
    clip_position: str = "none"
    clip: float = 5.0
    queues: dict[str, deque[Tensor]] = field(default_factory=dict)
    calls: int = 0

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        if self.clip_position == "pre":
            torch.nn.utils.clip_grad_norm_(net.parameters(), self.clip)
        trigger = self.calls < self.two_stage  # counts from 0, as the released code does
        self.calls += 1
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.clone()
            queue = self.queues.setdefault(name, deque(maxlen=self.window))
            queue.append(gradient.bfloat16() if self.buffer == "bf16" else gradient)
            if trigger or (self.warmup and len(queue) < self.window):
                continue
            low = torch.zeros_like(gradient)
            for old in queue:
                low = low + old.to(gradient.dtype)
            if self.filter_type == "mean":
                low = low / len(queue)
            parameter.grad = _parts(gradient, low, self.lam)[self.part]
        if self.clip_position == "post":
            torch.nn.utils.clip_grad_norm_(net.parameters(), self.clip)


@dataclass
class Exponential:
    """mu <- alpha mu + (1 - alpha) g, from the first gradient or from zero; g + lam * mu, or a part of it."""

    alpha: float = 0.98
    lam: float = 2.0
    init: str = "first_grad"
    part: str = "both"
    clip_position: str = "none"
    clip: float = 5.0
    mean: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        if self.clip_position == "pre":
            torch.nn.utils.clip_grad_norm_(net.parameters(), self.clip)
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.clone()
            if name not in self.mean:
                self.mean[name] = gradient if self.init == "first_grad" else torch.zeros_like(gradient)
            self.mean[name] = self.alpha * self.mean[name] + (1 - self.alpha) * gradient
            parameter.grad = _parts(gradient, self.mean[name], self.lam)[self.part]
        if self.clip_position == "post":
            torch.nn.utils.clip_grad_norm_(net.parameters(), self.clip)


def _parts(gradient: Tensor, low: Tensor, lam: float) -> dict[str, Tensor]:
    return {"both": gradient + lam * low, "slow": lam * low, "fast": gradient - low}


METHODS: dict[str, Callable[..., Callable[[nn.Module, float], None]]] = {
    "grokfast-ma": MovingAverage,
    "grokfast-ema": Exponential,
}
