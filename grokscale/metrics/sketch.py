"""Trajectories and signals in 256 dimensions: a fixed random +-1 sketch (methods.md 2.2, mechanism).

S adds every entry of a vector, with a random sign, to one of 256 sums, an equal number to each. It is linear and the
same for every replica with parameters of these shapes, so differences of sketches are sketches of differences, and
E ||S x||^2 = ||x||^2 with a relative error of about sqrt(2 / 256) = 9 %. It costs one pass over the entries, where a
dense +-1 matrix would cost 256.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from grokscale.entries import Measure
from grokscale.metrics.base import Look, Probe, State, Step, Values, flat
from grokscale.transform import Params, Roles

DIM = 256
SEED = 20_405  # of the sketch, for everybody: sketches of different runs are to be compared
WINDOW = 256  # steps of the signal whose power is looked at
SLOW = 50  # a period of as many steps or more is slow: where an average with alpha = .98 passes most


@functools.lru_cache(maxsize=8)
def _pattern(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(order (n,), signs (n,)): the k-th of 256 sums takes order[k], order[k + 256], ..."""
    drawn = np.random.Generator(np.random.PCG64(SEED))  # not torch's: this may be asked for under vmap
    order, signs = drawn.permutation(n), 2 * drawn.integers(0, 2, n) - 1
    return torch.from_numpy(order).to(device), torch.from_numpy(signs.astype(np.int8)).to(device)


def sketch(values: Params) -> Tensor:
    """(256,) S x of all entries x of the tensors, in their dtype."""
    x = flat(values)
    order, signs = _pattern(len(x), x.device)
    mixed = torch.nn.functional.pad(x[order] * signs, (0, -len(x) % DIM))
    return mixed.reshape(-1, DIM).sum(0)


def trajectory() -> Probe:
    """Where the parameters are, from step 0 on; `grokscale.explain` makes distances and pictures of it."""

    def weights(params: Params, state: State, roles: Roles) -> Values:
        return {"trajectory": sketch({k: p.double() for k, p in params.items()})}

    return Probe(weights=weights)


def power(signal: Tensor) -> Tensor:
    """(W/2 + 1,) mean over coordinates of |FFT over time|^2 under a Hann window, frequency k / W per step.

    signal: (W, D).  Normalised so that white noise of variance v has power v at every frequency.
    """
    w = signal.shape[0]
    hann = 0.5 - 0.5 * torch.cos(2 * torch.pi * torch.arange(w, dtype=torch.float64, device=signal.device) / w)
    tapered = signal.double() * hann.unsqueeze(-1)
    return (torch.fft.rfft(tapered, dim=0).abs() ** 2).mean(1) / (hann * hann).sum()


def gradient_power() -> Probe:
    """How the gradient's power is spread over frequencies, from its last 256 sketches."""

    def init(params: Params, roles: Roles, generator: torch.Generator) -> State:
        return next(iter(params.values())).new_zeros((WINDOW, DIM))

    def every(seen: Step, state: State) -> State:
        state[(seen.step - 1) % WINDOW].copy_(sketch(seen.grads))
        return state

    def look(seen: Look, state: State) -> Values:
        if seen.step < WINDOW:
            return {}
        found = power(torch.roll(state, -(seen.step % WINDOW), 0))  # the oldest first
        # A real signal's frequencies but 0 and W/2 stand for two each.
        double = torch.full_like(found, 2.0)
        double[0] = double[-1] = 1.0
        energy = found * double
        return {"power": found, "slow_share": energy[: WINDOW // SLOW + 1].sum() / energy.sum()}

    return Probe(init=init, every=every, look=look)


MEASURES = [
    Measure(
        "trajectory", {"trajectory": "the parameters in a fixed random +-1 sketch of 256 numbers"},
        "Grokfast, arXiv 2405.20233 (trajectories); methods.md 2.2", "nothing a step; a look: one pass over N",
        trajectory,
    ),
    Measure(
        "gradient-power",
        {
            "power": "power of 256 sketched gradient coordinates at frequencies k/256 per step, k = 0 ... 128",
            "slow_share": "share of it at periods of 50 steps and more",
        },
        "issue: mechanism (Grokfast's premise: the slow part carries generalisation)",
        "a step: one pass over N; memory: 256 x 256; silent before step 256", gradient_power,
    ),
]  # fmt: skip
