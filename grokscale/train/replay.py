"""Functions of tensors, replayed as the operations that they come down to.

What a step of a small network costs is mostly book-keeping: `vmap` and `grad` work out again, every step, which
operations to run on which tensors, and always find the same ones. They can be written down once. The operations are
the same, on the same tensors, so the bits are too.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

PATIENCE = 256  # calls before one is written down: that takes as long as a few hundred calls of a small function
KEPT = 8  # recordings that outlive what they were made for
_ONE_AT_A_TIME = threading.Lock()  # torch's tracer keeps marks that all threads see
_aten = torch.ops.aten
_VIEWS = {_aten.expand.default, _aten.view.default, _aten._unsafe_view.default}

Signature = tuple[torch.Size, ...]


@dataclass
class Known:
    """By the shapes of its arguments: how often a function was called, and what was written down of it."""

    calls: Counter[Signature] = field(default_factory=Counter)
    recorded: dict[Signature, tuple[Callable[..., list[Tensor]], pytree.TreeSpec]] = field(default_factory=dict)


class Replayed:
    """A pure function of trees of tensors; called `patience` times with tensors of the same shapes, it is recorded.

    function: branches on no value, draws nothing and changes nothing but what it returns; one structure of arguments
    and of results, whatever their shapes.
    """

    def __init__(self, function: Callable[..., Any], patience: int = PATIENCE, known: Known | None = None) -> None:
        """known: what is known of functions that do the same, and is added to."""
        self.function, self.patience, known = function, patience, known or Known()
        self.calls, self.recorded = known.calls, known.recorded

    def __call__(self, *args: Any) -> Any:
        leaves, structure = pytree.tree_flatten(args)
        shapes = tuple(leaf.shape for leaf in leaves)
        if shapes not in self.recorded:
            self.calls[shapes] += 1
            if self.calls[shapes] <= self.patience:
                return self.function(*args)
            self.recorded[shapes] = self._record(leaves, structure)
        run, answer = self.recorded[shapes]
        try:
            return pytree.tree_unflatten(run(*leaves), answer)
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            return self.function(*args)  # which has other ways, where a recording has one

    def _record(
        self, leaves: list[Tensor], structure: pytree.TreeSpec
    ) -> tuple[Callable[..., list[Tensor]], pytree.TreeSpec]:
        from torch.fx.experimental.proxy_tensor import make_fx  # a second, which short runs are spared

        found: list[pytree.TreeSpec] = []

        def flat(*leaves: Tensor) -> list[Tensor]:
            results, answer = pytree.tree_flatten(self.function(*pytree.tree_unflatten(leaves, structure)))
            found.append(answer)
            return results

        with _ONE_AT_A_TIME:
            module: fx.GraphModule = make_fx(flat)(*leaves)
        _without_idle_views(module)
        return module.forward, found[0]


_shared: OrderedDict[Hashable, Known] = OrderedDict()


def shared(key: Hashable) -> Known:
    """What is known of the functions of this key: the trials of a process mostly train the same network, each a little
    too short to be written down anew.

    key: functions that have the same give the same bits on the same tensors. The KEPT last asked for are kept. The
    functions themselves are not shared: two threads must not call the same module at once.
    """
    with _ONE_AT_A_TIME:
        found = _shared.setdefault(key, Known())
        _shared.move_to_end(key)
        while len(_shared) > KEPT:
            _shared.popitem(last=False)
    return found


def _without_idle_views(module: fx.GraphModule) -> None:
    """Take out views that give a tensor the shape it has, which `vmap` leaves around every product."""
    for node in list(module.graph.nodes):
        if node.target in _VIEWS and node.args[0].meta["val"].shape == node.meta["val"].shape:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
