"""CUDA graphs: what a GPU does in a call, recorded once and played again, so that the CPU launches it as one.

A replica's layers are so small that a GPU waits for its launches: a few microseconds each, a few hundred a step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

log = logging.getLogger(__name__)

WARM_UP = 3  # calls before a recording: libraries set themselves up in the first, which a recording must not see


class Graphed:
    """A pure function of tensors on a GPU, recorded for the shapes it was last called with.

    Its answer lies in memory that the next call writes again. Other shapes (a pack that shrinks) are recorded anew.
    What cannot be recorded (it waits for the GPU, or draws on the CPU) is called as it is, from then on.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.refused = False
        self._key: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: list[Tensor] = []
        self._answer: Any = None

    def __call__(self, *args: Any) -> Any:
        if self.refused:
            return self.function(*args)
        leaves, tree = pytree.tree_flatten(args)
        key = tree, [(leaf.shape, leaf.dtype) for leaf in leaves]
        if key != self._key:
            self._key = self._graph = self._answer = None  # before another takes its memory
            try:
                self._record(leaves, tree)
            except torch.OutOfMemoryError:  # of the pack: fewer replicas may fit, and be recorded
                raise
            except RuntimeError as error:
                log.warning("no CUDA graph, every launch is the CPU's: %s", str(error).partition("\n")[0])
                self.refused = True
                return self.function(*args)
            self._key = key
        assert self._graph is not None
        for kept, leaf in zip(self._given, leaves, strict=True):
            kept.copy_(leaf)
        self._graph.replay()
        return self._answer

    def _record(self, leaves: list[Tensor], tree: pytree.TreeSpec) -> None:
        """Of copies, which later calls write their arguments into; on a stream of its own, as recording asks."""
        self._given = [leaf.clone() for leaf in leaves]
        args = pytree.tree_unflatten(self._given, tree)
        beside = torch.cuda.Stream(leaves[0].device)
        beside.wait_stream(torch.cuda.current_stream(leaves[0].device))
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self.function(*args)
        torch.cuda.current_stream(leaves[0].device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: other threads of this process may have devices of their own (a trial on several).
        with torch.cuda.device(leaves[0].device), torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._answer = self.function(*args)
