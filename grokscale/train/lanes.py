"""The tensors of a pack, one row per lane, and what is done to all of them at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from grokscale.rng import generator
from grokscale.tasks.base import Split
from grokscale.train.program import Program, Seen

CHUNK = 2048  # rows of a split that are evaluated at once, per lane
NEVER = torch.iinfo(torch.int64).max


def lanes_for(replicas: int, *, fine: bool = False) -> int:
    """Lanes of a pack: the next of 2, 4, 8, 16, ...; fine: of 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ...

    Lanes beyond the replicas repeat one of them. On a CPU each costs its share of a step, so that packs are fine there.
    On a GPU every size that was not seen before costs a capture.
    """
    whole = max(2, 1 << (replicas - 1).bit_length())
    step = max(1, whole // 8) if fine else whole
    return max(2, -(-replicas // step) * step)


class Lanes:
    """The tensors of a pack, stacked over L lanes, and one step of all of them."""

    def __init__(
        self, program: Program, seeds: Sequence[int], lanes: Sequence[int], stacked: dict[str, Any] | None = None
    ) -> None:
        """seeds: of the replicas, whose data is loaded.  lanes: index into `seeds` per lane.
        stacked: what `take` gives, of these lanes; drawn where it is None."""
        self.program, self.seeds, self.lanes = program, list(seeds), list(lanes)
        data = [program.splits(seed) for seed in seeds]
        self.splits = {
            name: _stack_splits([getattr(splits, name) for splits, _ in data], program.device)
            for name in ("train", "val", "test")
        }
        self.index = torch.tensor(self.lanes, device=program.device)
        self.n_outer = len(data[0][1].y)
        self.outer = self._gather(_stack_splits([outer for _, outer in data], program.device), None)
        self.n_train = len(data[0][0].train.y)
        full, rest = divmod(self.n_train, program.batch)
        self.epoch_steps = max(1, full if program.drop_last or not rest else full + 1)
        self.order: tuple[int, Tensor] | None = None  # (epoch, (L, n_train) row numbers)
        if stacked is None:
            starts = [program.start(seed) for seed in seeds]
            drawn = pytree.tree_map(lambda *rows: torch.stack(rows), *(starts[i] for i in self.lanes))
            zeros = torch.zeros(len(lanes), dtype=program.dtype)
            stacked = {**dict(zip(("params", "state", "kept"), drawn, strict=True)), "val_accuracy": zeros,
                       "val_loss": zeros + math.inf, "diverged": torch.full((len(lanes),), NEVER)}
        else:
            state, kept = program.structure
            stacked = {**stacked, "state": pytree.tree_unflatten(stacked["state"], state),
                       "kept": pytree.tree_unflatten(stacked["kept"], kept)}
        self.stacked: dict[str, Any] = pytree.tree_map(lambda t: t.to(program.device), stacked)
        self.settle()

    @property
    def labels(self) -> int:
        """Labels per replica that training or a switch uses: the training half, and what is monitored for a switch."""
        watched = self.splits["test" if self.program.spec.monitor == "test" else "val"]
        used = [self.splits["train"]]
        used += [watched] if self.program.transform.needs & {"val_accuracy", "val_loss"} else []
        return self.n_outer + sum(split.y.shape[1] for split in used if split is not None)

    @property
    def oracle(self) -> float:
        """Examples per replica and step that a gradient is taken of: the batch, and what the transform asks besides."""
        batch, extra = min(self.program.batch, self.n_train), self.program.transform.oracle
        products = 2 * self.program.jacobians * self.program.task.outputs * batch  # one per output, and its gradient
        return batch + products + (extra(batch, self.n_outer) if extra is not None else 0)

    def take(self, lanes: Sequence[int]) -> dict[str, Any]:
        """A copy of the tensors of some lanes: params, the leaves of `state` (the transform's and the optimiser's) and
        of `kept` (the probes'), val_accuracy, val_loss, diverged."""
        index = torch.tensor(list(lanes), device=self.program.device)
        taken = pytree.tree_map(lambda t: t.index_select(0, index), self.stacked)
        return {**taken, "state": pytree.tree_leaves(taken["state"]), "kept": pytree.tree_leaves(taken["kept"])}

    def state(self, lane: int) -> Any:
        """A copy of the transform's state of one lane."""
        return pytree.tree_map(lambda t: t[lane].clone(), self.stacked["state"][0])

    def step(self, step: int, look: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Train every lane by one step; the losses (L,), and what the probes say where they are asked: (L, ...)."""
        program, now = self.program, self.stacked
        batch = self._labelled(self._gather(self.splits["train"], self._batch(step)), step)
        outer = self._labelled(self.outer, step)
        grads, loss = program.gradient(now["params"], batch)
        params, state, kept, said = program.step(
            now["params"], grads, now["state"], now["kept"],
            Seen(batch, outer, now["val_accuracy"], now["val_loss"], self._noise(step)),
            self._test_rows(step) if look else (), step=step, look=look, resting=self.resting)
        lost = torch.where(torch.isfinite(loss), NEVER, step)
        self.stacked = {**now, "params": params, "state": state, "kept": kept,
                        "diverged": torch.minimum(now["diverged"], lost)}
        return loss, said

    def weigh(self) -> dict[str, Tensor]:
        """What the probes say of the parameters alone, (L, ...) each."""
        return vmap(self.program.weigh)(self.stacked["params"], self.stacked["kept"]) if self.program.probes else {}

    @cached_property
    def flops_per_step(self) -> float:
        """Of the model, forward and backward, over the examples whose gradient a step takes (`oracle`)."""
        split = self.splits["train"]
        assert split is not None
        rows = min(self.program.batch, self.n_train)
        batch = self.program.flops_per_step(self._labelled(Split(split.x[0, :rows], split.y[0, :rows]), 1))
        return batch * self.oracle / rows

    def accuracy(self, name: str, rows: int | None, step: int) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy (L,) of every lane after `step`, on the first `rows` of a split, or on all."""
        split = self.splits[name]
        assert split is not None
        n = split.y.shape[1] if rows is None else min(rows, split.y.shape[1])
        loss = correct = torch.zeros((), device=self.program.device)
        for a in range(0, n, CHUNK):
            chunk = self._labelled(Split(*(t[self.index, a : min(a + CHUNK, n)] for t in split)), step)
            lo, co = self.program.looks(self.stacked["params"], chunk)
            loss, correct = loss + lo, correct + co
        return (loss / n).double(), correct.double() / n  # float32 would put 95 of 100 below 0.95

    def active(self) -> Tensor:
        """(L,) bool: does the transform of a lane act."""
        transform = self.program.transform
        if transform.active is None:
            return torch.ones(len(self.lanes), dtype=torch.bool)
        return vmap(transform.active)(self.stacked["state"][0])

    def settle(self) -> Tensor:
        """`active`; what is off for good in every lane is not computed any more."""
        on = self.active()
        self.resting = self.program.transform.sticky and not bool(on.any())
        return on

    def _test_rows(self, step: int) -> Split | tuple[()]:
        """The rows of test that probes take a gradient of, where one does: the first CHUNK."""
        split = self.splits["test"]
        if split is None or not any(probe.test for probe in self.program.probes.values()):
            return ()
        return self._labelled(Split(*(t[self.index, :CHUNK] for t in split)), step)

    def _gather(self, split: Split | None, rows: Tensor | None) -> Split:
        assert split is not None
        if rows is None:
            return Split(*(t[self.index] for t in split))
        return Split(*(t[self.index[:, None], rows] for t in split))

    def _labelled(self, split: Split, step: int) -> Split:
        labels = self.program.task.labels
        return split if labels is None else Split(split.x, labels(split.y, step))

    def _batch(self, step: int) -> Tensor:
        """(L, B) row numbers of the batch of a step: position in the order of its epoch, drawn per replica."""
        epoch, position = divmod(step - 1, self.epoch_steps)
        if self.order is None or self.order[0] != epoch:
            streams = [generator(self.seeds[i], f"order/{epoch}") for i in self.lanes]
            rows = [torch.randperm(self.n_train, generator=stream) for stream in streams]
            self.order = (epoch, torch.stack(rows).to(self.program.device))
        start = position * self.program.batch
        return self.order[1][:, start : start + self.program.batch]

    def _noise(self, step: int) -> dict[str, Tensor]:
        """Standard normal tensors (L, *shape), drawn per replica on the CPU from Generator(seed, "noise/STEP")."""
        wanted = None if self.resting else self.program.transform.noise
        if wanted is None:
            return {}
        drawn: dict[str, list[Tensor]] = {}
        one = {k: p[0] for k, p in self.stacked["params"].items()}
        for i in self.lanes:
            stream = generator(self.seeds[i], f"noise/{step}")
            for name, shape in wanted(one).items():
                drawn.setdefault(name, []).append(torch.randn(shape, generator=stream))
        return {k: torch.stack(v).to(self.program.device, self.program.dtype) for k, v in drawn.items()}


def _stack_splits(parts: list[Split | None], device: torch.device) -> Split | None:
    """Stack the replicas' data, one copy of what they share; None where the task gives none (validation = 0)."""
    there = [p for p in parts if p is not None]
    if not there:
        return None

    def stack(tensors: list[Tensor]) -> Tensor:
        if all(t is tensors[0] for t in tensors):
            return tensors[0].to(device).expand(len(tensors), *tensors[0].shape)
        return torch.stack(tensors).to(device)

    return Split(stack([p.x for p in there]), stack([p.y for p in there]))
