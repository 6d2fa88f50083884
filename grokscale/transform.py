"""The Transform contract, `chain`, and the optimisers as transforms.

A transform is written for *one* replica over a dict of named tensors, as its paper writes it; the replica axis
appears only in `train.py`. It is two pure functions and the state between them (and, for a few, a third that
runs after the optimiser has stepped)::

    init(params, roles, generator)                      -> state
    update(grads, state, params, *, step, **extra)      -> (grads, state)
    after(params, state, *, step, **extra)              -> (params, state)     every `period` steps

`step` is a Python int that counts from 1 and is the same for all lanes of a pack, so a transform may branch on it.
It must not branch on values: every tensor may stand for all lanes of a pack at once (`torch.func.vmap`).
`grads` and `params` are never mutated and never kept. `state` is donated: it may be written in place.
State is a pytree of tensors; `()` where there is none.

Extras, given only to a transform that names them in `needs`:

=================  ===================================================================================
``val_accuracy``   0-d tensor: accuracy of the last evaluation on the monitored split, 0 before the first
``val_loss``       0-d tensor: loss there, infinite before the first
``inner_grad``     function params -> grads of the training loss on the batch of this step
``jacobian``       function params -> sqrt(mean over the batch of this step of ||J_x f||_F^2), 0-d, J_x f that of
                   the outputs by what a row puts in; only where a row is numbers (`Method.inputs`). The engine
                   counts 2 x outputs examples of the batch for it: a product per output, and its gradient
``outer_loss``     function params -> loss on the share `outer` of the training half that is held back
``noise``          dict of standard normal tensors of the shapes that `noise(params)` names
``roles``          the roles of `init` again: structure, so it needs no place in the state
``lr``             the optimiser's learning rate before any warm-up
=================  ===================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Params = dict[str, Tensor]
State = Any
Scalar = float | Tensor  # numeric hyperparameters may be 0-d tensors


class Role(NamedTuple):
    """What a parameter is for.

    kind: hidden, attention, embedding, head, bias or norm.
    out_dim: the axis of the output units of a matrix: 0 for a `Linear` weight (out, in), 1 for a table (in, out).
    """

    kind: str
    out_dim: int = 0


Roles = Mapping[str, Role]


class Transform(NamedTuple):
    """A gradient transform; the module docstring is the contract."""

    init: Callable[[Params, Roles, torch.Generator], State]
    update: Callable[..., tuple[Params, State]]
    after: Callable[..., tuple[Params, State]] | None = None
    period: int = 1
    needs: frozenset[str] = frozenset()
    noise: Callable[[Params], dict[str, tuple[int, ...]]] | None = None
    outer: float = 0.0  # share of the training half that `outer_loss` is computed on and training never sees
    active: Callable[[State], Tensor] | None = None  # 0-d bool: does the transform act at all (a switch)
    oracle: Callable[[int, int], float] | None = None  # (batch, outer rows) -> examples whose gradient it takes a step
    # (state, gradient that entered the chain) -> 0-d tensors worth recording, such as p_entropy and p_max of an
    # amplifier's p; only called where they are measured, after the step's update
    diagnostics: Callable[[State, Params], dict[str, Tensor]] | None = None
    learned: Callable[[State], bytes] | None = None  # what the transform learned, as a file that it can start from
    # What the engine may make use of; a test holds every method to what it says here.
    elementwise: bool = False  # `update` treats every entry by itself: it may be given the tensors of all lanes at once
    timeless: bool = False  # neither `update` nor `after` looks at the step or changes a tensor in place
    sticky: bool = False  # once `active` is False it stays so, and `update` hands the gradients on as they are


def stateless(
    update: Callable[..., Params], *, elementwise: bool = False, timeless: bool = False
) -> Transform:
    """A transform without state from `update(grads, params, *, step) -> grads`."""
    return Transform(
        init=lambda params, roles, generator: (),
        update=lambda grads, state, params, *, step, **_: (update(grads, params, step=step), state),
        elementwise=elementwise,
        timeless=timeless,
    )


def resting(transform: Transform) -> Transform:
    """A sticky transform once it is off, at no cost: gradients and state as they are. Any other: itself."""
    if not transform.sticky:
        return transform
    return transform._replace(
        update=lambda grads, state, params, *, step, **_: (dict(grads), state),
        needs=frozenset(), noise=None, elementwise=True, timeless=True)


def chain(*transforms: Transform) -> Transform:
    """Compose transforms: gradients flow from the first to the last, states stand in a tuple in that order.

    needs, noise and outer are joined (noise names get the position as prefix); the `after` functions run in the
    order of the chain, each with its own period; the chain is active while any member with a switch is; the
    examples that the members take gradients of add up; where several members have diagnostics, theirs get the
    position as prefix; what is learned is the last member's that learns; elementwise if all members are; timeless if
    all members are and their `after` functions fall due together; sticky if all with a switch are.
    """
    noisy = [(i, t.noise) for i, t in enumerate(transforms) if t.noise is not None]
    afters = [t.period for t in transforms if t.after is not None]
    switches = [(i, t.active) for i, t in enumerate(transforms) if t.active is not None]
    oracles = [t.oracle for t in transforms if t.oracle is not None]
    telling = [(i, t.diagnostics) for i, t in enumerate(transforms) if t.diagnostics is not None]
    learners = [(i, t.learned) for i, t in enumerate(transforms) if t.learned is not None]

    def extras(i: int, t: Transform, extra: dict[str, Any]) -> dict[str, Any]:
        mine = {k: v for k, v in extra.items() if k in t.needs and k != "noise"}
        if t.noise is not None:
            mine["noise"] = {k.split("/", 1)[1]: v for k, v in extra["noise"].items() if k.startswith(f"{i}/")}
        return mine

    def init(params: Params, roles: Roles, generator: torch.Generator) -> State:
        return tuple(t.init(params, roles, generator) for t in transforms)

    def update(grads: Params, state: State, params: Params, *, step: int, **extra: Any) -> tuple[Params, State]:
        out = []
        for i, (t, s) in enumerate(zip(transforms, state, strict=True)):
            grads, s = t.update(grads, s, params, step=step, **extras(i, t, extra))
            out.append(s)
        return grads, tuple(out)

    def after(params: Params, state: State, *, step: int, **extra: Any) -> tuple[Params, State]:
        out = list(state)
        for i, t in enumerate(transforms):
            if t.after is not None and step % t.period == 0:
                params, out[i] = t.after(params, out[i], step=step, **extras(i, t, extra))
        return params, tuple(out)

    def noise(params: Params) -> dict[str, tuple[int, ...]]:
        return {f"{i}/{name}": shape for i, shapes in noisy for name, shape in shapes(params).items()}

    def active(state: State) -> Tensor:
        return torch.stack([is_on(state[i]) for i, is_on in switches]).any(0)

    def diagnostics(state: State, grads: Params) -> dict[str, Tensor]:
        told = {i: tell(state[i], grads) for i, tell in telling}
        return {f"{i}/{k}" if len(told) > 1 else k: v for i, values in told.items() for k, v in values.items()}

    needs = frozenset().union(*(t.needs for t in transforms))
    return Transform(
        init=init,
        update=update,
        after=after if afters else None,
        period=math.gcd(*afters) if afters else 1,
        needs=needs,
        noise=noise if noisy else None,
        outer=max((t.outer for t in transforms), default=0.0),
        active=active if switches else None,
        oracle=(lambda batch, outer: sum(o(batch, outer) for o in oracles)) if oracles else None,
        diagnostics=diagnostics if telling else None,
        learned=(lambda state: learners[-1][1](state[learners[-1][0]])) if learners else None,
        elementwise=all(t.elementwise for t in transforms),
        timeless=all(t.timeless for t in transforms) and len(set(afters)) <= 1,
        sticky=bool(switches) and all(transforms[i].sticky for i, _ in switches),
    )


# ---------------------------------------------------------------------------------------------- optimisers


class SgdState(NamedTuple):
    velocity: Params  # like params


class AdamState(NamedTuple):
    m: Params  # first moment, like params
    v: Params  # second moment, like params


def warmup_factor(step: int, warmup: int) -> float:
    """Learning-rate factor min(1, (step - 1) / warmup): the first step has rate 0 (methods.md 1.4)."""
    return min(1.0, (step - 1) / warmup) if warmup else 1.0


def decay_inside(wd: Scalar) -> Transform:
    """Gradient of 1/2 wd sum ||W||^2 over weights (not biases, not norms), added before any method sees it.

    Source: the EGD reference keeps the L2 term in the loss (methods.md 1.3.3).
    """

    def update(
        grads: Params, state: State, params: Params, *, step: int, roles: Roles, **_: Any
    ) -> tuple[Params, State]:
        decayed = {k: g + wd * params[k] if roles[k].kind not in ("bias", "norm") else g for k, g in grads.items()}
        return decayed, state

    return Transform(
        lambda params, roles, generator: (), update, needs=frozenset({"roles"}), elementwise=True, timeless=True)


def sgd(lr: Scalar, *, momentum: Scalar = 0.0, wd: Scalar = 0.0, decoupled: bool = False, warmup: int = 0) -> Transform:
    """Stochastic gradient descent: v <- momentum v + g + wd p; update -lr v (as `torch.optim.SGD`).

    decoupled: the decay bypasses the momentum: update -lr (v + wd p).
    """
    moving = isinstance(momentum, Tensor) or momentum != 0.0

    def init(params: Params, roles: Roles, generator: torch.Generator) -> State:
        return SgdState({k: torch.zeros_like(p) for k, p in params.items()}) if moving else ()

    def update(grads: Params, state: State, params: Params, *, step: int, **_: Any) -> tuple[Params, State]:
        rate = lr * warmup_factor(step, warmup)
        if not decoupled:
            grads = _add_decay(grads, params, wd)
        if moving:
            grads = {k: momentum * state.velocity[k] + g for k, g in grads.items()}
            state = SgdState(grads)
        if decoupled:
            grads = _add_decay(grads, params, wd)
        return {k: -rate * g for k, g in grads.items()}, state

    return Transform(init, update, elementwise=True)


def adam(
    lr: Scalar,
    *,
    beta1: Scalar = 0.9,
    beta2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    wd: Scalar = 0.0,
    decoupled: bool = False,
    warmup: int = 0,
) -> Transform:
    """Adam with coupled L2 decay, AdamW with `decoupled` (as `torch.optim.Adam` and `AdamW`).

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;
    update -lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps); AdamW: p <- (1 - lr wd) p first.
    """

    def init(params: Params, roles: Roles, generator: torch.Generator) -> State:
        zeros = {k: torch.zeros_like(p) for k, p in params.items()}
        return AdamState(zeros, {k: torch.zeros_like(p) for k, p in params.items()})

    def update(grads: Params, state: State, params: Params, *, step: int, **_: Any) -> tuple[Params, State]:
        rate = lr * warmup_factor(step, warmup)
        if not decoupled:
            grads = _add_decay(grads, params, wd)
        m = {k: beta1 * state.m[k] + (1 - beta1) * g for k, g in grads.items()}
        v = {k: beta2 * state.v[k] + (1 - beta2) * g * g for k, g in grads.items()}
        scale1, scale2 = 1 - beta1**step, (1 - beta2**step) ** 0.5
        out = {k: -(rate / scale1) * m[k] / (v[k].sqrt() / scale2 + eps) for k in grads}
        if decoupled:
            out = {k: u - rate * wd * params[k] for k, u in out.items()}
        return out, AdamState(m, v)

    return Transform(init, update, elementwise=True)


def optimiser(options: Mapping[str, Any]) -> tuple[list[Transform], Transform]:
    """(what stands before the methods, the optimiser behind them) for the `[optimiser]` table of a trial.

    decay = inside: in the gradient before the methods; coupled: added to what they return; decoupled: AdamW's.
    """
    decay, wd = options["decay"], options["wd"]
    common: dict[str, Any] = {
        "wd": 0.0 if decay == "inside" else wd, "decoupled": decay == "decoupled", "warmup": options["warmup"]}
    before = [decay_inside(wd)] if decay == "inside" else []
    if options["name"] == "sgd":
        return before, sgd(options["lr"], momentum=options["momentum"], **common)
    if options["name"] in ("adam", "adamw"):
        betas = {k: options[k] for k in ("beta1", "beta2", "eps")}
        return before, adam(options["lr"], **betas, **common)
    raise ValueError(f"optimiser must be sgd, adam or adamw, got {options['name']!r}")


def _add_decay(grads: Params, params: Params, wd: Scalar) -> Params:
    if not isinstance(wd, Tensor) and wd == 0.0:
        return grads
    return {k: g + wd * params[k] for k, g in grads.items()}
