"""A trial made executable, and one step of one replica of it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, grad_and_value, vjp, vmap
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from grokscale import data
from grokscale import metrics as metrics_
from grokscale.entries import Registry
from grokscale.errors import GrokscaleError
from grokscale.metrics.base import Look, Probe, Step, Values
from grokscale.models import Model, initial
from grokscale.rng import generator
from grokscale.spec import TrialSpec
from grokscale.tasks.base import Split, Splits, Task
from grokscale.train.graphs import Graphed
from grokscale.transform import Transform, chain, optimiser

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}  # of parameters


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on the CPU; None without one."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


class Program:
    """A trial made executable: its task, model and transforms, and the step of one replica."""

    def __init__(
        self,
        spec: TrialSpec,
        registry: Registry,
        device: str,
        methods: Sequence[Mapping[str, Any]] | None = None,
        metrics: Sequence[str] = (),
        compiled: bool = False,
    ) -> None:
        """methods: in place of the trial's.  metrics: names of measures to take.
        compiled: compile the gradient of a pack, where there is a compiler."""
        self.compiled = compiled and compiler() is not None
        self.spec, self.device, self.dtype = spec, torch.device(device), DTYPES[spec.precision]
        torch.set_float32_matmul_precision("high" if spec.precision == "tf32" else "highest")
        entry, options = registry.tasks[spec.task["name"]], _options(spec.task)
        if entry.data is not None and (found := entry.data(**options)) != spec.data:
            raise GrokscaleError(
                f"trial {spec.trial_id}: was specified on the data {spec.data!r}, here lies {found!r} in "
                f"{data.folder()}; name the folder with --data DIR or {data.VARIABLE}, or specify the trial anew"
            )
        self.task: Task = entry.factory(**options)
        self.threshold = math.inf if self.task.moving else spec.threshold  # at which accuracy counts as a crossing
        self.model: Model = registry.models[spec.model["name"]].build(self.task, **_options(spec.model))
        before, self.optimiser = optimiser(spec.optimiser)
        self.methods = [(registry.methods[m["name"]], _options(m)) for m in methods or spec.method]
        # Two stages, so that what the optimiser is given can be looked at; its state stands behind the methods'.
        made: list[Transform] = [entry.factory(**knobs) for entry, knobs in self.methods]
        self.transform: Transform = chain(*before, *made)
        self.jacobians = sum("jacobian" in one.needs for one in made)  # methods that take it, each its own
        self.probes: dict[str, Probe] = {name: metrics_.build(name, registry) for name in sorted(set(metrics))}
        self.batch, self.drop_last = spec.optimiser["batch"], spec.optimiser["drop_last"]
        self.structure: pytree.TreeSpec | None = None  # of the state of the transform and the optimiser ...
        self.kept: pytree.TreeSpec | None = None  # ... and of the probes', known after the first start

    def loss(self, params: dict[str, Tensor], split: Split) -> Tensor:
        return self.task.loss(self.outputs(params, split), split.y)

    def outputs(self, params: dict[str, Tensor], split: Split) -> Tensor:
        """What the model says of the rows of a split of one replica, in the trial's precision."""
        if self.spec.precision != "bf16":
            return functional_call(self.model, params, (split.x,))
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return functional_call(self.model, params, (split.x,)).to(self.dtype)

    def jacobian(self, params: dict[str, Tensor], split: Split) -> Tensor:
        """sqrt(mean over the rows of ||J_x f||_F^2) of one replica, 0-d, x the numbers of a row; its slope at 0 is 0.

        One vector-Jacobian product per output: an output depends on its own row alone.
        """
        pulled: Any = vjp(lambda x: self.outputs(params, Split(x, split.y)), split.x.to(self.dtype))
        out, pull = pulled
        total = torch.zeros((), dtype=out.dtype, device=out.device)
        for one in torch.eye(out.shape[1], dtype=out.dtype, device=out.device):
            total = total + pull(one.expand_as(out))[0].square().sum()
        mean = total / len(out)
        moves = mean > 0
        return torch.where(moves, torch.where(moves, mean, 1.0).sqrt(), mean)

    @cached_property
    def gradient(self) -> Callable[[dict[str, Tensor], Split], tuple[dict[str, Tensor], Tensor]]:
        """(params (L, ...), batch (L, ...)) -> (gradients (L, ...), losses (L,)): of all lanes of a pack at once.

        Most of a step, and a pure function of tensors: what compiles well. The methods stay eager: they branch on the
        step, and every branch would be compiled anew. On a GPU it is one launch (`graphs`).
        """
        of_all: Callable[..., Any] = vmap(grad_and_value(self.loss))
        if self.compiled:
            of_all = torch.compile(of_all, dynamic=False)
        return Graphed(of_all) if self.device.type == "cuda" else of_all

    def splits(self, seed: int) -> tuple[Splits, Split]:
        """(the splits of a seed, the part of the training half held back for `outer_loss`; empty without one)."""
        splits = self.task.splits(seed, self.spec.validation)
        rows = torch.randperm(len(splits.train.y), generator=generator(seed, "outer"))
        # A table so small that the share is no row gives one: an outer loss of nothing would teach nothing, silently.
        n = max(1, int(self.transform.outer * len(rows))) if self.transform.outer else 0
        outer = Split(splits.train.x[rows[:n]], splits.train.y[rows[:n]])
        if n:
            kept = rows[n:].sort().values
            splits = splits._replace(train=Split(splits.train.x[kept], splits.train.y[kept]))
        return splits, outer

    def start(self, seed: int) -> tuple[dict[str, Tensor], Any, Any]:
        """First parameters, state of the transform and the optimiser, state of the probes of a replica, on the CPU."""
        params, roles = initial(self.model, generator(seed, "init"), self.dtype), self.model.roles
        stream = generator(seed, "method")
        state = self.transform.init(params, roles, stream), self.optimiser.init(params, roles, stream)
        kept = {
            name: probe.init(params, roles, generator(seed, f"measure/{name}")) for name, probe in self.probes.items()}
        self.structure, self.kept = pytree.tree_structure(state), pytree.tree_structure(kept)
        return params, state, kept

    def step(self, params: Any, grads: Any, state: Any, kept: Any, batch: Split, outer: Split, test: Any,
             val_accuracy: Tensor, val_loss: Tensor, noise: dict[str, Tensor], step: int,
             look: bool) -> tuple[Any, Any, Any, Values]:
        """One optimiser step of one replica: (params, state, probes' state, what probes say).

        grads: of the loss on the batch.  test: the rows that probes take a gradient of, () where none does.
        look: shall they say something?
        """
        roles, lr = self.model.roles, self.spec.optimiser["lr"]
        extra: dict[str, Any] = {
            "val_accuracy": val_accuracy,
            "val_loss": val_loss,
            "inner_grad": lambda p: grad(self.loss)(p, batch),
            "jacobian": lambda p: self.jacobian(p, batch),
            "outer_loss": lambda p: self.loss(p, outer),
            "noise": noise,
            "roles": roles,
            "lr": lr,
        }
        for name, probe in self.probes.items():
            if probe.every is not None:
                kept = {**kept, name: probe.every(Step(step, params, grads, roles, val_accuracy, lr), kept[name])}
        filtered, chained = self.transform.update(grads, state[0], params, step=step, **extra)
        updates, moments = self.optimiser.update(filtered, state[1], params, step=step)
        moved = {k: p + updates[k] for k, p in params.items()}
        seen, told = Values(), Values()
        if look and self.transform.diagnostics is not None:
            told = self.transform.diagnostics(chained, grads)
        if self.transform.after is not None and step % self.transform.period == 0:
            moved, chained = self.transform.after(moved, chained, step=step, **extra)
        if look:
            slope = grad(self.loss)(params, test) if isinstance(test, Split) else None
            held = (lambda p: self.loss(p, outer)) if len(outer.y) else None
            view = Look(step, params, moved, grads, filtered, updates, slope, told, held, roles)
            for name, probe in self.probes.items():
                if probe.look is not None:
                    seen |= probe.look(view, kept[name])
            seen |= self.weigh(moved, kept)
        return moved, (chained, moments), kept, seen

    def weigh(self, params: Any, kept: Any) -> Values:
        """What probes say of the parameters alone."""
        seen: Values = {}
        for name, probe in self.probes.items():
            if probe.weights is not None:
                seen |= probe.weights(params, kept[name], self.model.roles)
        return seen

    def look(self, params: Any, split: Split) -> tuple[Tensor, Tensor]:
        """(sum of losses, number correct) of one replica on rows of a split."""
        out = self.outputs(params, split)
        return self.task.loss(out, split.y) * len(split.y), self.task.correct(out, split.y).sum()

    def flops_per_step(self, batch: Split) -> int:
        """Floating-point operations of the loss on a batch of one replica and its gradient, as torch counts them:
        matrix products and attention, two per multiplication and addition; a look-up in a table is free."""
        with FlopCounterMode(display=False) as counter:
            params = initial(self.model, generator(0, "init"), self.dtype)
            grad(self.loss)(params, Split(batch.x.cpu(), batch.y.cpu()))
        return counter.get_total_flops()

    @cached_property
    def method_flops(self) -> float | None:
        """The methods' own operations per step and replica, as they declare them; None where one does not."""
        shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        total = 0.0
        for entry, knobs in self.methods:
            if entry.flops is None:
                return None
            total += entry.flops(shapes, self.model.roles, knobs)
        return total


def _options(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k != "name"}
