"""A trial made executable, and a step of it."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

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
from grokscale.spec import TrialSpec, canonical_json
from grokscale.tasks.base import Split, Splits, Task
from grokscale.train.graphs import Graphed
from grokscale.train.replay import PATIENCE, Replayed, shared
from grokscale.transform import Transform, chain, optimiser, resting

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}  # of parameters


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use on the CPU; None without one."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


class Seen(NamedTuple):
    """What a transform may ask for besides gradients and parameters, of one replica or of all lanes."""

    batch: Split
    outer: Split  # the rows of `outer_loss`, none without one
    val_accuracy: Tensor
    val_loss: Tensor
    noise: dict[str, Tensor]


class Program:
    """A trial made executable: its task, model and transforms, and a step of all lanes."""

    def __init__(
        self,
        spec: TrialSpec,
        registry: Registry,
        device: str,
        methods: Sequence[Mapping[str, Any]] | None = None,
        metrics: Sequence[str] = (),
        compiled: bool = False,
        patience: int = PATIENCE,
    ) -> None:
        """methods: in place of the trial's.  metrics: names of measures to take.
        compiled: compile the gradient of a pack, where there is a compiler.
        patience: calls before the operations of a step are written down (`replay`)."""
        self.patience = patience
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
        self.rest: Transform = chain(*before, *map(resting, made))  # once every sticky switch is off
        self.jacobians = sum("jacobian" in one.needs for one in made)  # methods that take it, each its own
        self.probes: dict[str, Probe] = {name: metrics_.build(name, registry) for name in sorted(set(metrics))}
        self.batch, self.drop_last = spec.optimiser["batch"], spec.optimiser["drop_last"]
        # Trials that agree in this agree in the loss as a function of parameters and rows.
        made_by = entry.factory, registry.models[spec.model["name"]].build
        self._network = (*made_by, canonical_json([spec.task, spec.model, spec.data]), spec.precision, str(self.device))

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
        step, and every branch would be compiled anew. On a GPU it is one launch (`graphs`), on a CPU, if it is not
        compiled, a list of operations (`replay`).
        """
        of_all: Callable[..., Any] = vmap(grad_and_value(self.loss))
        run = torch.compile(of_all, dynamic=False) if self.compiled else of_all
        if self.device.type == "cuda":
            return Graphed(run)
        return run if self.compiled else self._replayed("gradient", run)

    @cached_property
    def looks(self) -> Callable[[dict[str, Tensor], Split], tuple[Tensor, Tensor]]:
        """`look` of all lanes of a pack at once."""
        return self._replayed("look", vmap(self.look))

    def _replayed(self, name: str, function: Callable[..., Any]) -> Replayed:
        """A function of the network alone, which other trials have too."""
        return Replayed(function, self.patience, shared((name, *self._network, self.patience)))

    @cached_property
    def filters(self) -> tuple[Callable[..., tuple[Any, Any]], Callable[..., tuple[Any, Any]]]:
        """(params, grads, state of the transform, seen, step) of all lanes -> (what the optimiser is given, state); and
        the same once all that has a sticky switch is off in every lane."""
        return self._filter(self.transform), self._filter(self.rest)

    def _filter(self, transform: Transform) -> Callable[..., tuple[Any, Any]]:
        def of_one(params: Any, grads: Any, state: Any, seen: Seen, *, step: int) -> tuple[Any, Any]:
            return transform.update(grads, state, params, step=step, **self.extra(seen))

        if transform.elementwise:
            return lambda *of_all, step: of_one(*of_all, step=step)
        if transform.timeless:
            replayed = Replayed(vmap(partial(of_one, step=0)), self.patience)
            return lambda *of_all, step: replayed(*of_all)
        return lambda *of_all, step: vmap(partial(of_one, step=step))(*of_all)

    @cached_property
    def afterwards(self) -> Callable[..., tuple[Any, Any]]:
        """(params, state of the transform, seen, step) of all lanes -> (params, state), where `after` falls due."""
        after = self.transform.after
        assert after is not None
        if self.transform.timeless:
            replayed = Replayed(vmap(partial(self._after, after, 0)), self.patience)
            return lambda *of_all, step: replayed(*of_all)
        return lambda *of_all, step: vmap(partial(self._after, after, step))(*of_all)

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
        return params, state, kept

    @cached_property
    def structure(self) -> tuple[pytree.TreeSpec, pytree.TreeSpec]:
        """Of the state of the transform and the optimiser, and of the probes'."""
        _, state, kept = self.start(0)
        return pytree.tree_structure(state), pytree.tree_structure(kept)

    def step(self, params: Any, grads: Any, state: Any, kept: Any, seen: Seen, test: Any, *, step: int,
             look: bool, resting: bool) -> tuple[Any, Any, Any, Values]:
        """One optimiser step of all lanes: (params, state, probes' state, what probes say).

        grads: of the losses on the batch.  test: the rows that probes take a gradient of, () where none does.
        look: shall they say something?  resting: has all that has a switch been switched off for good?
        """
        chained, moments = state
        for name, probe in self.probes.items():
            if probe.every is not None:
                kept = {**kept, name: vmap(partial(self._watched, probe.every, step))(params, grads, seen, kept[name])}
        filtered, chained = self.filters[resting](params, grads, chained, seen, step=step)
        # The optimisers are elementwise, and so is a step: all lanes are one tensor to them.
        updates, moments = self.optimiser.update(filtered, moments, params, step=step)
        moved = {k: p + updates[k] for k, p in params.items()}
        told, values = Values(), Values()
        if look and self.transform.diagnostics is not None:
            told = vmap(self.transform.diagnostics)(chained, grads)
        if self.transform.after is not None and step % self.transform.period == 0:
            moved, chained = self.afterwards(moved, chained, seen, step=step)
        if look:
            values = vmap(partial(self._looked, step))(
                params, moved, grads, filtered, updates, told, kept, seen, test)
        return moved, (chained, moments), kept, values

    def extra(self, seen: Seen) -> dict[str, Any]:
        """What a transform of one replica may ask for."""
        return {
            "val_accuracy": seen.val_accuracy,
            "val_loss": seen.val_loss,
            "inner_grad": lambda p: grad(self.loss)(p, seen.batch),
            "jacobian": lambda p: self.jacobian(p, seen.batch),
            "outer_loss": lambda p: self.loss(p, seen.outer),
            "noise": seen.noise,
            "roles": self.model.roles,
            "lr": self.spec.optimiser["lr"],
        }

    def _after(self, after: Callable[..., Any], step: int, params: Any, state: Any, seen: Seen) -> Any:
        return after(params, state, step=step, **self.extra(seen))

    def _watched(self, every: Callable[..., Any], step: int, params: Any, grads: Any, seen: Seen, kept: Any) -> Any:
        return every(Step(step, params, grads, self.model.roles, seen.val_accuracy, self.spec.optimiser["lr"]), kept)

    def _looked(self, step: int, params: Any, moved: Any, grads: Any, filtered: Any, updates: Any, told: Values,
                kept: Any, seen: Seen, test: Any) -> Values:
        """What the probes say of a step of one replica."""
        slope = grad(self.loss)(params, test) if isinstance(test, Split) else None
        held = (lambda p: self.loss(p, seen.outer)) if len(seen.outer.y) else None
        view = Look(step, params, moved, grads, filtered, updates, slope, told, held, self.model.roles)
        values = Values()
        for name, probe in self.probes.items():
            if probe.look is not None:
                values |= probe.look(view, kept[name])
        return values | self.weigh(moved, kept)

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
