"""A trial made executable, and one step of one replica of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, grad_and_value
from torch.utils import _pytree as pytree

from grokscale import data
from grokscale.entries import Registry
from grokscale.errors import GrokscaleError
from grokscale.models import Model, initial
from grokscale.rng import generator
from grokscale.spec import TrialSpec
from grokscale.tasks.base import Split, Splits, Task
from grokscale.transform import Transform, chain, optimiser

DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


class Program:
    """A trial made executable: its task, model and transforms, and the step of one replica."""

    def __init__(
        self, spec: TrialSpec, registry: Registry, device: str, methods: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """methods: in place of the trial's."""
        self.spec, self.device, self.dtype = spec, torch.device(device), DTYPES[spec.precision]
        entry, options = registry.tasks[spec.task["name"]], _options(spec.task)
        if entry.data is not None and (found := entry.data(**options)) != spec.data:
            raise GrokscaleError(
                f"trial {spec.trial_id}: was specified on the data {spec.data!r}, here lies {found!r} in "
                f"{data.folder()}; name the folder with --data DIR or {data.VARIABLE}, or specify the trial anew"
            )
        self.task: Task = entry.factory(**options)
        self.model: Model = registry.models[spec.model["name"]].build(self.task, **_options(spec.model))
        before, last = optimiser(spec.optimiser)
        middle = [registry.methods[m["name"]].factory(**_options(m)) for m in methods or spec.method]
        self.transform: Transform = chain(*before, *middle, last)
        self.batch, self.drop_last = spec.optimiser["batch"], spec.optimiser["drop_last"]
        self.structure: pytree.TreeSpec | None = None  # of the transform's state, known after the first init

    def loss(self, params: dict[str, Tensor], split: Split) -> Tensor:
        return self.task.loss(functional_call(self.model, params, (split.x,)), split.y)

    def splits(self, seed: int) -> tuple[Splits, Split]:
        """(the splits of a seed, the part of the training half held back for `outer_loss`; empty without one)."""
        splits = self.task.splits(seed, self.spec.validation)
        rows = torch.randperm(len(splits.train.y), generator=generator(seed, "outer"))
        n = int(self.transform.outer * len(rows))
        outer = Split(splits.train.x[rows[:n]], splits.train.y[rows[:n]])
        if n:
            kept = rows[n:].sort().values
            splits = splits._replace(train=Split(splits.train.x[kept], splits.train.y[kept]))
        return splits, outer

    def start(self, seed: int) -> tuple[dict[str, Tensor], Any]:
        """First parameters and transform state of a replica, on the CPU."""
        params = initial(self.model, generator(seed, "init"), self.dtype)
        state = self.transform.init(params, self.model.roles, generator(seed, "method"))
        self.structure = pytree.tree_structure(state)
        return params, state

    def step(self, params: Any, state: Any, batch: Split, outer: Split, val_accuracy: Tensor, noise: dict[str, Tensor],
             step: int) -> tuple[Any, Any, Tensor]:
        """One optimiser step of one replica: (params, state, loss before the step)."""
        grads, loss = grad_and_value(self.loss)(params, batch)
        extra: dict[str, Any] = {
            "val_accuracy": val_accuracy,
            "inner_grad": lambda p: grad(self.loss)(p, batch),
            "outer_loss": lambda p: self.loss(p, outer),
            "noise": noise,
            "roles": self.model.roles,
            "lr": self.spec.optimiser["lr"],
        }
        updates, state = self.transform.update(grads, state, params, step=step, **extra)
        params = {k: p + updates[k] for k, p in params.items()}
        if self.transform.after is not None and step % self.transform.period == 0:
            params, state = self.transform.after(params, state, step=step, **extra)
        return params, state, loss

    def look(self, params: Any, split: Split) -> tuple[Tensor, Tensor]:
        """(sum of losses, number correct) of one replica on rows of a split."""
        out = functional_call(self.model, params, (split.x,))
        return self.task.loss(out, split.y) * len(split.y), self.task.correct(out, split.y).sum()


def _options(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k != "name"}
