"""What EGD's forms have in common: which tensors they act on, the switch, the count of what was not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokscale.methods.knobs import one_of
from grokscale.transform import Params, Role, Roles, Scalar, Transform

LAYERS = ("hidden", "mlp", "all2d", "all2d+emb")

COMMON: dict[str, Any] = {"layers": "mlp", "switch": 0.95, "sticky": True, "watch": "accuracy"}
"""Knobs that every form has."""


class EgdState(NamedTuple):
    on: Tensor  # 0-d bool: the switch
    skipped: Tensor  # 0-d int64: matrices that were not finite while the switch was on, over all steps
    kept: dict[str, Tensor]  # by tensor, what the form remembers of it; empty for most


class Form(NamedTuple):
    """One way to change a matrix.

    act: (a (m, n), out_dim, kept, step=, sketch=) -> (a matrix like a, kept). A number that the knobs hold may be a
        0-d tensor; a is finite.
    start: ((m, n), out_dim, generator) -> what is kept of a matrix from the beginning; None where nothing is.
    sketch: columns of standard normals that `act` needs a step: it is given (n, sketch).
    timeless: `act` does not look at the step.
    """

    act: Callable[..., tuple[Tensor, Tensor | None]]
    start: Callable[[tuple[int, int], int, torch.Generator], Tensor] | None = None
    sketch: int = 0
    timeless: bool = True


def chosen(shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, Role], layers: str) -> list[str]:
    """The tensors that `layers` means, in the order of the model; those of one axis are never among them.

    hidden: the first hidden matrix (W1 of a two-layer net; the first MLP matrix of the decoder, as EGD's text has it).
    mlp: every hidden matrix (W1; the four MLP matrices of the decoder, as EGD's code has it).
    all2d: attention besides, and the last layer unless the model has embeddings, whose counterpart it then is (all
    three matrices of the MNIST net; attention and MLP of the decoder).  all2d+emb: embeddings and last layer too.
    Source: methods.md 1.3.2, ambiguities 10 and 11.
    """
    kinds = {"hidden"}
    if layers.startswith("all2d"):
        kinds |= {"attention"}
        embedded = any(role.kind == "embedding" for role in roles.values())
        if layers == "all2d+emb" or not embedded:
            kinds |= {"embedding", "head"}
    found = [k for k in roles if k in shapes and len(shapes[k]) > 1 and roles[k].kind in kinds]
    return found[:1] if layers == "hidden" else found


def flat(shape: tuple[int, ...], out_dim: int) -> tuple[tuple[int, int], int]:
    """(shape, axis of the output units) of a tensor as a matrix: a kernel (out, in, h, w) is (out, in h w)."""
    if len(shape) == 2:
        return (shape[0], shape[1]), out_dim
    return (shape[out_dim], math.prod(shape) // shape[out_dim]), 0


def over_matrices(form: Form, layers: str, switch: Scalar, sticky: bool, watch: str = "accuracy") -> Transform:
    """The transform that puts every chosen tensor through a form while the switch is on.

    layers: `chosen`.  switch: off once the monitored accuracy is above it; above 1 = never off, below 0 = never on.
    sticky: once off it stays off.  watch: "accuracy", or "loss": off once the monitored loss is below `switch`
    (ambiguity 13).
    A tensor that is not finite is left unmoved, its answer is zero, and counted: a decomposition of it would raise for
    the whole pack.
    """
    one_of("layers", layers, LAYERS)
    one_of("watch", watch, ("accuracy", "loss"))

    def init(params: Params, roles: Roles, generator: torch.Generator) -> EgdState:
        device = next(iter(params.values())).device
        kept = {}
        if form.start is not None:
            for k in chosen(_shapes(params), roles, layers):
                kept[k] = form.start(*flat(tuple(params[k].shape), roles[k].out_dim), generator).to(device)
        on = torch.ones((), dtype=torch.bool, device=device)
        return EgdState(on, torch.zeros((), dtype=torch.int64, device=device), kept)

    def update(grads: Params, state: EgdState, params: Params, *, step: int, roles: Roles,
               val_accuracy: Tensor | None = None, val_loss: Tensor | None = None, noise: Params | None = None,
               **_: Any) -> tuple[Params, EgdState]:
        seen = val_accuracy if watch == "accuracy" else val_loss
        assert seen is not None
        below = seen <= switch if watch == "accuracy" else seen >= switch
        on = (state.on & below) if sticky else below
        out, kept, skipped = dict(grads), dict(state.kept), state.skipped
        for k in chosen(_shapes(grads), roles, layers):
            g = grads[k]
            finite = torch.isfinite(g).all()
            safe = torch.where(finite, g, torch.zeros_like(g))
            shape, out_dim = flat(tuple(g.shape), roles[k].out_dim)
            moved = safe.movedim(roles[k].out_dim, 0) if g.ndim > 2 else safe
            sketch = noise["sketch"][: shape[1]] if form.sketch and noise is not None else None
            new, held = form.act(moved.reshape(shape), out_dim, state.kept.get(k), step=step, sketch=sketch)
            new = new.to(g.dtype).reshape(moved.shape)
            out[k] = torch.where(on, new.movedim(0, roles[k].out_dim) if g.ndim > 2 else new, g)
            skipped = skipped + (on & ~finite)
            if held is not None:
                kept[k] = held.contiguous()  # as a snapshot stores it: products of a transposed layout round otherwise
        return out, EgdState(on, skipped, kept)

    def noise(params: Params) -> dict[str, tuple[int, ...]]:
        columns = [g.shape[1] if g.ndim == 2 else g.numel() // min(g.shape) for g in params.values() if g.ndim > 1]
        return {"sketch": (max(columns), form.sketch)}

    needs = {"val_accuracy" if watch == "accuracy" else "val_loss", "roles"} | ({"noise"} if form.sketch else set())
    return Transform(init, update, needs=frozenset(needs), noise=noise if form.sketch else None,
                     active=lambda state: state.on, timeless=form.timeless, sticky=sticky)


def _shapes(tensors: Params) -> dict[str, tuple[int, ...]]:
    return {k: tuple(t.shape) for k, t in tensors.items()}
