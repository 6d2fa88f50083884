"""What a measure is: a probe that sees one replica train and says numbers, and what probes share.

Like a transform, a probe is written for one replica and runs under `torch.func.vmap`: it may branch on the step, never
on values, and it never raises on NaN. It changes nothing: what it remembers is its own state, which is part of the
snapshot, so that split run == whole run holds for measures too. Dot products, norms and entropies are taken in
float64 whatever the parameters are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokscale.transform import Params, Roles

State = Any
Values = dict[str, Tensor]  # column -> 0-d tensor, or a vector (k,)


class Step(NamedTuple):
    """What a probe sees of every step. params: before it.  grads: raw, of this step's batch."""

    step: int
    params: Params
    grads: Params
    roles: Roles
    val_accuracy: Tensor
    lr: float


class Look(NamedTuple):
    """What a probe sees of a step at whose end it is asked for its numbers.

    before, params: parameters before and after the step.  grads: raw gradient g at `before`, of the step's batch.
    used: the gradient that the optimiser was given.  update: what the optimiser added to the parameters.
    test_grads: gradient of the test loss at `before`, None unless the probe says `test`; measured, never used.
    method: the diagnostics of the transform.  outer_loss: params -> loss on the rows held back, None without any.
    """

    step: int
    before: Params
    params: Params
    grads: Params
    used: Params
    update: Params
    test_grads: Params | None
    method: Values
    outer_loss: Callable[[Params], Tensor] | None
    roles: Roles


class Probe(NamedTuple):
    """A measure at work.

    init: first state, from the first parameters; tensors of its own.  every: sees each step, before `look` does; the
    state is donated.  weights: numbers from the parameters alone, taken at step 0 too.  look: numbers from a step.
    test: needs the gradient on test.
    """

    init: Callable[[Params, Roles, torch.Generator], State] = lambda params, roles, generator: ()
    every: Callable[[Step, State], State] | None = None
    weights: Callable[[Params, State, Roles], Values] | None = None
    look: Callable[[Look, State], Values] | None = None
    test: bool = False


def dot(a: Params, b: Params) -> Tensor:
    """Sum over all entries of a * b, float64."""
    return torch.stack([(a[k].double() * b[k].double()).sum() for k in a]).sum()


def norm(a: Params) -> Tensor:
    """Euclidean norm over all tensors together, float64."""
    return dot(a, a).sqrt()


def cosine(a: Params, b: Params) -> Tensor:
    """<a, b> / (||a|| ||b||), NaN where one is zero."""
    return dot(a, b) / (norm(a) * norm(b))


def flat(a: Params) -> Tensor:
    """(N,) all entries, tensor after tensor."""
    return torch.cat([t.reshape(-1) for t in a.values()])


def minus(a: Params) -> Params:
    return {k: -t for k, t in a.items()}
