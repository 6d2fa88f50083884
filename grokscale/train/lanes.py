"""The tensors of a pack, one row per lane, and what is done to all of them at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from grokscale.rng import generator
from grokscale.tasks.base import Split
from grokscale.train.program import Program

CHUNK = 2048  # rows of a split that are evaluated at once, per lane
NEVER = torch.iinfo(torch.int64).max


def lanes_for(replicas: int) -> int:
    """Lanes of a pack: the next of 2, 4, 8, 16, ..."""
    return max(2, 1 << (replicas - 1).bit_length())


class Lanes:
    """The tensors of a pack, stacked over L lanes, and one step of all of them."""

    def __init__(
        self, program: Program, seeds: Sequence[int], lanes: Sequence[int], stacked: dict[str, Any] | None = None
    ) -> None:
        """seeds: of the replicas, whose data is loaded.  lanes: index into `seeds` per lane.
        stacked: params, leaves of state and kept (the probes'), val_accuracy, val_loss and diverged of these lanes;
        drawn where it is None."""
        self.program, self.seeds, self.lanes = program, list(seeds), list(lanes)
        data = [program.splits(seed) for seed in seeds]
        self.splits = {
            name: _stack_splits([getattr(splits, name) for splits, _ in data], program.device)
            for name in ("train", "val", "test")
        }
        self.outer = _stack_splits([outer for _, outer in data], program.device)
        self.n_train = len(data[0][0].train.y)
        full, rest = divmod(self.n_train, program.batch)
        self.epoch_steps = max(1, full if program.drop_last or not rest else full + 1)
        self.order: tuple[int, Tensor] | None = None  # (epoch, (L, n_train) row numbers)
        if stacked is None:
            starts = [program.start(seed) for seed in seeds]
            pick = [starts[i] for i in self.lanes]
            params = {k: torch.stack([p[k] for p, _, _ in pick]) for k in pick[0][0]}
            leaves, kept = (
                [torch.stack(column) for column in zip(*(pytree.tree_leaves(one[i]) for one in pick), strict=True)]
                for i in (1, 2)
            )
            zeros = torch.zeros(len(lanes), dtype=program.dtype)
            stacked = {"params": params, "state": leaves, "kept": kept, "val_accuracy": zeros,
                       "val_loss": zeros + math.inf, "diverged": torch.full((len(lanes),), NEVER)}
        elif program.structure is None:
            program.start(seeds[0])
        self.stacked: dict[str, Any] = pytree.tree_map(lambda t: t.to(program.device), stacked)

    @property
    def labels(self) -> int:
        """Labels per replica that training or a switch uses: the training half, and what is monitored for a switch."""
        watched = self.splits["test" if self.program.spec.monitor == "test" else "val"]
        used = [self.splits["train"], self.outer]
        used += [watched] if self.program.transform.needs & {"val_accuracy", "val_loss"} else []
        return sum(split.y.shape[1] for split in used if split is not None)

    @property
    def oracle(self) -> float:
        """Examples per replica and step that a gradient is taken of: the batch, and what the transform asks besides."""
        batch, extra = min(self.program.batch, self.n_train), self.program.transform.oracle
        products = 2 * self.program.jacobians * self.program.task.outputs * batch  # one per output, and its gradient
        outer = 0 if self.outer is None else self.outer.y.shape[1]
        return batch + products + (extra(batch, outer) if extra is not None else 0)

    def take(self, lanes: Sequence[int]) -> dict[str, Any]:
        """A copy of the stacked tensors of some lanes."""
        index = torch.tensor(list(lanes), device=self.program.device)
        return pytree.tree_map(lambda t: t.index_select(0, index), self.stacked)

    def state(self, lane: int) -> Any:
        """A copy of the transform's state of one lane."""
        assert self.program.structure is not None
        return pytree.tree_unflatten([leaf[0] for leaf in self.take([lane])["state"]], self.program.structure)[0]

    def step(self, step: int, look: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Train every lane by one step; the losses (L,), and what the probes say where they are asked: (L, ...)."""
        program, now = self.program, self.stacked
        assert program.structure is not None
        state = pytree.tree_unflatten(now["state"], program.structure)
        batch, noise = self._batch(step), self._noise(step)
        inner, outer = self._gather(self.splits["train"], batch), self._gather(self.outer, None)
        data = self._labelled(inner, step), self._labelled(outer, step)
        test = self._test_rows(step) if look else ()
        grads, loss = program.gradient(now["params"], data[0])
        params, state, kept, seen = vmap(partial(program.step, step=step, look=look))(
            now["params"], grads, state, self._kept(), *data, test, now["val_accuracy"], now["val_loss"], noise)
        lost = torch.where(torch.isfinite(loss), NEVER, step)
        self.stacked = {"params": params, "state": pytree.tree_leaves(state), "kept": pytree.tree_leaves(kept),
                        "val_accuracy": now["val_accuracy"], "val_loss": now["val_loss"],
                        "diverged": torch.minimum(now["diverged"], lost)}
        return loss, seen

    def weigh(self) -> dict[str, Tensor]:
        """What the probes say of the parameters alone, (L, ...) each."""
        return vmap(self.program.weigh)(self.stacked["params"], self._kept()) if self.program.probes else {}

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
            chunk = self._labelled(Split(*(t[self._data_index(), a : min(a + CHUNK, n)] for t in split)), step)
            lo, co = vmap(self.program.look)(self.stacked["params"], chunk)
            loss, correct = loss + lo, correct + co
        return (loss / n).double(), correct.double() / n  # float32 would put 95 of 100 below 0.95

    def active(self) -> Tensor:
        """(L,) bool: does the transform of a lane act."""
        transform = self.program.transform
        if transform.active is None:
            return torch.ones(len(self.lanes), dtype=torch.bool)
        assert self.program.structure is not None
        return vmap(transform.active)(pytree.tree_unflatten(self.stacked["state"], self.program.structure)[0])

    def _kept(self) -> Any:
        assert self.program.kept is not None
        return pytree.tree_unflatten(self.stacked["kept"], self.program.kept)

    def _test_rows(self, step: int) -> Split | tuple[()]:
        """The rows of test that probes take a gradient of, where one does: the first CHUNK."""
        split = self.splits["test"]
        if split is None or not any(probe.test for probe in self.program.probes.values()):
            return ()
        return self._labelled(Split(*(t[self._data_index(), :CHUNK] for t in split)), step)

    def _data_index(self) -> Tensor:
        return torch.tensor(self.lanes, device=self.program.device)

    def _gather(self, split: Split | None, rows: Tensor | None) -> Split:
        assert split is not None
        lanes = self._data_index()
        if rows is None:
            return Split(*(t[lanes] for t in split))
        return Split(*(t[lanes[:, None], rows] for t in split))

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
        wanted = self.program.transform.noise
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
