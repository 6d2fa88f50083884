"""The engine: trains the replicas of one trial side by side. The only file that knows lanes.

Legend, here and in the methods: R replicas of the call, L lanes of the pack, N rows of a split, B batch rows.

A pack trains L = 2, 4, 8, 16, ... lanes as one program under `torch.func.vmap`. A lone replica runs as two equal
lanes, because one lane takes other kernels, and grok times are chaotic: a replica's bits must not depend on its
neighbours. Lanes that are not needed repeat the first replica. As replicas finish the pack shrinks to the next size.
Nothing in a pack raises or branches on values: a lane that became non-finite goes on computing NaNs, which no other
lane sees, until the next evaluation takes it out as `diverged`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, grad_and_value, vmap
from torch.utils import _pytree as pytree

from grokscale import registry as registry_
from grokscale.entries import Registry
from grokscale.models import Model, initial
from grokscale.outcomes import finished, judge
from grokscale.rng import generator
from grokscale.spec import TrialSpec
from grokscale.tasks.base import Split, Splits, Task
from grokscale.transform import Transform, chain, optimiser

METRICS = ("train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc")
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
CHUNK = 2048  # rows of a split that are evaluated at once, per lane
SNAPSHOT = 1  # version of the snapshot's layout
NEVER = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Evaluation:
    """What one look at a pack gives: arrays over the R seeds of the call, NaN for replicas that had finished before.

    step: optimiser steps done.  metrics: METRICS, (R,) each.  finished: (R,) bool.  done: all finished.
    """

    step: int
    seeds: tuple[int, ...]
    metrics: dict[str, np.ndarray]
    finished: np.ndarray
    done: bool
    _pack: Pack

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything that the run goes on from: tensors and primitives. Valid until the next evaluation."""
        return self._pack.snapshot()

    def replicas(self) -> list[dict[str, Any]]:
        """A row of the store's `replicas` per seed, without what only the caller knows (provenance)."""
        return self._pack.replicas()

    def curves(self) -> dict[str, np.ndarray]:
        """The columns of the store's `curves`: every evaluation of every seed so far."""
        return self._pack.curves()


def train(
    spec: TrialSpec,
    seeds: Sequence[int],
    *,
    horizon: int,
    until: str = "decided",
    state: dict[str, Any] | None = None,
    device: str = "cpu",
    registry: Registry | None = None,
) -> Iterator[Evaluation]:
    """Train the replicas `seeds` of a trial; yield at every evaluation of the trial's schedule.

    horizon: steps after which a replica that has not grokked is given up.  until: "decided" stops a replica once its
    crossing is decided, "stable" watches one that grokked until 2 x grok_step.  state: a snapshot to go on from, of
    these seeds or more: split run == whole run, bit for bit.
    """
    if until not in ("decided", "stable"):
        raise ValueError(f"until must be 'decided' or 'stable', got {until!r}")
    program = Program(spec, registry or registry_.load(spec.plugins), device)
    pack = Pack(program, seeds, horizon, until, state)
    with torch.no_grad():
        while not pack.done:
            yield pack.run_to_next_evaluation()


def packs(seeds: Sequence[int], lanes: int) -> list[list[int]]:
    """Seeds in packs of at most `lanes`."""
    return [list(seeds[i : i + lanes]) for i in range(0, len(seeds), lanes)]


def lanes_for(replicas: int) -> int:
    """Lanes of a pack: the next of 2, 4, 8, 16, ..."""
    return max(2, 1 << (replicas - 1).bit_length())


def next_evaluation(step: int, every: dict[str, Any], epoch: int) -> int:
    """The step of the first evaluation after `step`: max(min, every x step) later, or at the end of the epoch."""
    if every.get("epoch"):
        return (step // epoch + 1) * epoch
    return step + max(int(every["min"]), int(every["every"] * step))


def timing(spec: TrialSpec, *, steps: int = 200, device: str = "cpu", registry: Registry | None = None) -> tuple[float, float]:
    """Solo seconds per step of one replica alone: (with the method, with the method off), evaluation not counted.

    Off is the same trial with method "none"; the two differ only for a method that has a switch, else both are on.
    """
    registry = registry or registry_.load(spec.plugins)
    program = Program(spec, registry, device)
    on = program.seconds_per_step(steps)
    if program.transform.active is None:
        return on, on
    return on, Program(spec, registry, device, methods=[{"name": "none"}]).seconds_per_step(steps)


class Program:
    """A trial made executable: its task, model and transforms, and the step of one replica."""

    def __init__(self, spec: TrialSpec, registry: Registry, device: str, methods: Sequence[dict[str, Any]] | None = None):
        self.spec, self.device, self.dtype = spec, torch.device(device), DTYPES[spec.precision]
        self.task: Task = registry.tasks[spec.task["name"]].factory(**_options(spec.task))
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

    def seconds_per_step(self, steps: int) -> float:
        """Seconds per step of a single lane, the median over blocks after a warm-up block."""
        lanes = Lanes(self, [0], [0])
        block = max(1, steps // 5)
        times = []
        with torch.no_grad():
            for i in range(6):
                _wait(self.device)
                start = time.perf_counter()
                for step in range(i * block + 1, (i + 1) * block + 1):
                    lanes.step(step)
                _wait(self.device)
                times.append((time.perf_counter() - start) / block)
        return float(np.median(times[1:]))


class Lanes:
    """The tensors of a pack, stacked over L lanes, and one step of all of them."""

    def __init__(self, program: Program, seeds: Sequence[int], lanes: Sequence[int], stacked: dict[str, Any] | None = None):
        """seeds: of the replicas, whose data is loaded.  lanes: index into `seeds` per lane.
        stacked: params, state leaves, val_accuracy and diverged of these lanes; drawn where it is None."""
        self.program, self.seeds, self.lanes = program, list(seeds), list(lanes)
        data = [program.splits(seed) for seed in seeds]
        self.splits = {
            name: None if getattr(data[0][0], name) is None else _stack_splits([getattr(s, name) for s, _ in data], program.device)
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
            params = {k: torch.stack([p[k] for p, _ in pick]) for k in pick[0][0]}
            leaves = [torch.stack(column) for column in zip(*(pytree.tree_leaves(s) for _, s in pick), strict=True)]
            zeros = torch.zeros(len(lanes), dtype=program.dtype)
            stacked = {"params": params, "state": leaves, "val_accuracy": zeros,
                       "diverged": torch.full((len(lanes),), NEVER)}
        elif program.structure is None:
            program.start(seeds[0])
        self.stacked: dict[str, Any] = pytree.tree_map(lambda t: t.to(program.device), stacked)

    def take(self, lanes: Sequence[int]) -> dict[str, Any]:
        """A copy of the stacked tensors of some lanes."""
        index = torch.tensor(list(lanes), device=self.program.device)
        return pytree.tree_map(lambda t: t.index_select(0, index), self.stacked)

    def step(self, step: int) -> Tensor:
        """Train every lane by one step; the losses (L,)."""
        program, now = self.program, self.stacked
        assert program.structure is not None
        state = pytree.tree_unflatten(now["state"], program.structure)
        batch, noise = self._batch(step), self._noise(step)
        data = (self._gather(self.splits["train"], batch), self._gather(self.outer, None))
        params, state, loss = vmap(lambda *a: program.step(*a, step=step))(
            now["params"], state, *data, now["val_accuracy"], noise)
        lost = torch.where(torch.isfinite(loss), NEVER, step)
        self.stacked = {"params": params, "state": pytree.tree_leaves(state), "val_accuracy": now["val_accuracy"],
                        "diverged": torch.minimum(now["diverged"], lost)}
        return loss

    def accuracy(self, name: str, rows: int | None) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy (L,) of every lane on the first `rows` of a split, or on all."""
        split = self.splits[name]
        assert split is not None
        n = split.y.shape[1] if rows is None else min(rows, split.y.shape[1])
        loss = correct = torch.zeros((), device=self.program.device)
        for a in range(0, n, CHUNK):
            chunk = Split(*(t[self._data_index(), a : min(a + CHUNK, n)] for t in split))
            lo, co = vmap(self.program.look)(self.stacked["params"], chunk)
            loss, correct = loss + lo, correct + co
        return (loss / n).double(), correct.double() / n  # float32 would put 95 of 100 below 0.95

    def active(self) -> Tensor:
        """(L,) bool: does the transform of a lane act."""
        transform = self.program.transform
        if transform.active is None:
            return torch.ones(len(self.lanes), dtype=torch.bool)
        assert self.program.structure is not None
        return vmap(transform.active)(pytree.tree_unflatten(self.stacked["state"], self.program.structure))

    def _data_index(self) -> Tensor:
        return torch.tensor(self.lanes, device=self.program.device)

    def _gather(self, split: Split | None, rows: Tensor | None) -> Split:
        assert split is not None
        lanes = self._data_index()
        if rows is None:
            return Split(*(t[lanes] for t in split))
        return Split(*(t[lanes[:, None], rows] for t in split))

    def _batch(self, step: int) -> Tensor:
        """(L, B) row numbers of the batch of a step: position in the order of its epoch, drawn per replica."""
        epoch, position = divmod(step - 1, self.epoch_steps)
        if self.order is None or self.order[0] != epoch:
            rows = [torch.randperm(self.n_train, generator=generator(self.seeds[i], f"order/{epoch}")) for i in self.lanes]
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


class Pack:
    """A run of some replicas: the lanes, the history of their evaluations, and who has finished."""

    def __init__(self, program: Program, seeds: Sequence[int], horizon: int, until: str, state: dict[str, Any] | None):
        self.program, self.horizon, self.until = program, horizon, until
        self.seeds = tuple(int(seed) for seed in seeds)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be one or more different integers, got {list(seeds)}")
        self.step = self.tick = 0  # steps done; step of the last evaluation of the schedule
        self.history: dict[int, list[list[float]]] = {seed: [] for seed in self.seeds}
        self.ended: dict[int, dict[str, Any]] = {}  # seed -> how it ended: observed_to, diverged, final accuracies
        self.widest = lanes_for(len(self.seeds))
        if state is None:
            alive, stacked = list(self.seeds), None
        else:
            alive, stacked = self._restore(state)
        self._build(alive, stacked)

    @property
    def done(self) -> bool:
        return len(self.ended) == len(self.seeds)

    def run_to_next_evaluation(self) -> Evaluation:
        """Train to the next evaluation, or to the horizon where that comes first, and look."""
        tick = next_evaluation(self.tick, self.program.spec.eval, self.lanes.epoch_steps)
        stop = min(tick, self.horizon) if self.step < self.horizon else tick
        while self.step < stop:
            self.step += 1
            self.lanes.step(self.step)
        alive = self._alive()
        rows: dict[int, list[float]] = {}
        if stop == tick:
            self.tick, rows = tick, self._look()
        ending = [seed for seed, lane in alive.items() if self._judge(seed, lane, rows.get(lane))]
        self._look_at_the_end({seed: alive[seed] for seed in ending if self.ended[seed]["diverged"] is None})
        metrics = {name: np.full(len(self.seeds), np.nan) for name in METRICS}
        for i, seed in enumerate(self.seeds):
            if seed in alive and self.history[seed]:
                for name, value in zip(METRICS, self.history[seed][-1][1:], strict=False):
                    metrics[name][i] = value
        evaluation = Evaluation(
            self.step, self.seeds, metrics, np.array([seed in self.ended for seed in self.seeds]), self.done, self)
        left = [seed for seed in alive if seed not in self.ended]
        if left and lanes_for(len(left)) < len(self.lanes.lanes):
            self._build(left, self.lanes.take([alive[seed] for seed in left]))
        return evaluation

    # ------------------------------------------------------------------------------------------ inside

    def _build(self, seeds: list[int], stacked: dict[str, Any] | None) -> None:
        """Lanes for `seeds`, the first repeated up to the next size; `stacked` has one row per seed."""
        lanes = list(range(len(seeds))) + [0] * (lanes_for(len(seeds)) - len(seeds))
        if stacked is not None:
            index = torch.tensor(lanes)
            stacked = pytree.tree_map(lambda t: t.index_select(0, index.to(t.device)), stacked)
        self.lanes = Lanes(self.program, seeds, lanes, stacked)

    def _alive(self) -> dict[int, int]:
        """Seed -> lane of the replicas that have not ended."""
        return {seed: lane for lane, seed in enumerate(self.lanes.seeds) if seed not in self.ended}

    def _look(self) -> dict[int, list[float]]:
        """Evaluate; hand the methods their accuracy; lane -> history row [step, *METRICS, active, full]."""
        spec, lanes = self.program.spec, self.lanes
        count = len(lanes.lanes)
        examples = None if spec.eval.get("epoch") else int(spec.eval["examples"])
        names = ["train", "val", "test"] if lanes.splits["val"] is not None else ["train", "test"]
        seen = {name: torch.stack(lanes.accuracy(name, examples)) for name in names}  # (2, L): loss, accuracy
        full = torch.full((count,), examples is None)
        for name in names[1:] if examples is not None else ():
            # A lane whose sample has just crossed the threshold is looked at on the full split instead.
            crossed = (seen[name][1] >= spec.threshold) & ~self._above(name)
            if bool(crossed.any()):
                seen[name] = torch.where(crossed, torch.stack(lanes.accuracy(name, None)), seen[name])
                full = full | crossed.cpu()
        seen.setdefault("val", seen["test"])
        lanes.stacked["val_accuracy"] = seen[spec.monitor][1].to(self.program.dtype)
        table = torch.cat([seen[name].cpu().double() for name in ("train", "val", "test")]).T.tolist()
        active, whole = lanes.active().tolist(), full.tolist()
        return {i: [float(self.step), *table[i], float(active[i]), float(whole[i])] for i in range(count)}

    def _above(self, name: str) -> Tensor:
        """(L,) bool: was the accuracy on a split at or above the threshold at the evaluation before."""
        column = 1 + METRICS.index(f"{name}_acc")
        past = [self.history[self.lanes.seeds[i]] for i in self.lanes.lanes]
        above = [bool(rows) and rows[-1][column] >= self.program.spec.threshold for rows in past]
        return torch.tensor(above, device=self.program.device)

    def _judge(self, seed: int, lane: int, row: list[float] | None) -> bool:
        """Take in what this look saw of a replica; has it ended?"""
        diverged = int(self.lanes.stacked["diverged"][lane])
        if diverged != NEVER or (row is not None and not np.isfinite(row[1])):
            self.ended[seed] = self._end(min(diverged, self.step))
            return True
        if row is not None:
            self.history[seed].append(row)
        if finished(self._curve(seed), threshold=self.program.spec.threshold, step=self.step, horizon=self.horizon,
                    until=self.until):
            self.ended[seed] = self._end()
        return seed in self.ended

    def _end(self, diverged: int | None = None) -> dict[str, Any]:
        return {"observed_to": diverged or self.step, "diverged": diverged, "steps": self.step, "final_acc": None,
                "final_val_acc": None}

    def _look_at_the_end(self, lanes: dict[int, int]) -> None:
        """Full splits for replicas that end well watched (at the horizon, or confirmed).

        Recorded beside the curve and unseen by the method, so that the horizon, which is no part of a trial's
        identity, changes nothing of what a longer run does.
        """
        if not lanes or (self.until == "decided" and self.step < self.horizon):
            return
        test = self.lanes.accuracy("test", None)[1]
        val = self.lanes.accuracy("val", None)[1] if self.lanes.splits["val"] is not None else test
        for seed, lane in lanes.items():
            self.ended[seed] |= {"final_acc": float(test[lane]), "final_val_acc": float(val[lane])}

    def _curve(self, seed: int) -> dict[str, np.ndarray]:
        table = np.array(self.history[seed], dtype=np.float64).reshape(-1, 3 + len(METRICS))
        names = ("step", *METRICS, "active", "full")
        curve = {name: table[:, i] for i, name in enumerate(names)}
        return {**curve, "step": curve["step"].astype(np.int64)}

    # ------------------------------------------------------------------------------------------ what comes out

    def replicas(self) -> list[dict[str, Any]]:
        spec, rows = self.program.spec, []
        for seed in self.seeds:
            curve = self._curve(seed)
            end = self.ended.get(seed) or self._end()
            outcome = judge(curve, threshold=spec.threshold, observed_to=end["observed_to"], diverged_step=end["diverged"])
            upto = outcome.grok_step if outcome.grok_step is not None else end["observed_to"]
            rows.append({
                "trial_id": spec.trial_id, "seed": seed, **outcome._asdict(),
                "final_acc": end["final_acc"], "final_val_acc": end["final_val_acc"], "steps": end["steps"],
                "active_steps": _active_steps(curve, upto), "batch": self.program.batch,
                "oracle_per_step": self.program.batch, "labels": self.lanes.n_train,
                "params": sum(p.numel() // p.shape[0] for p in self.lanes.stacked["params"].values()),
                "threshold": spec.threshold, "monitor": spec.monitor, "precision": spec.precision,
                "lanes": self.widest, "compiled": False,
            })
        return rows

    def curves(self) -> dict[str, np.ndarray]:
        parts = [(seed, self._curve(seed)) for seed in self.seeds]
        out: dict[str, np.ndarray] = {"seed": np.concatenate([np.full(len(c["step"]), s, dtype=np.int64) for s, c in parts])}
        for name in parts[0][1]:
            out[name] = np.concatenate([c[name] for _, c in parts])
        for name in ("active", "full"):
            out[name] = out[name].astype(bool)
        return out

    def snapshot(self) -> dict[str, Any]:
        alive = self._alive()
        return {
            "layout": SNAPSHOT, "trial_id": self.program.spec.trial_id, "step": self.step, "tick": self.tick, "seeds": list(self.seeds),
            "alive": list(alive), "lanes": self.widest,
            "stacked": pytree.tree_map(lambda t: t.cpu(), self.lanes.take(list(alive.values()))) if alive else None,
            "history": {str(seed): [list(row) for row in rows] for seed, rows in self.history.items()},
            "ended": {str(seed): dict(end) for seed, end in self.ended.items()},
        }

    def _restore(self, state: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        if state["layout"] != SNAPSHOT or state["trial_id"] != self.program.spec.trial_id:
            raise ValueError(f"the snapshot is of trial {state['trial_id']} (layout {state['layout']}), "
                             f"not of trial {self.program.spec.trial_id} (layout {SNAPSHOT})")
        missing = sorted(set(self.seeds) - set(state["seeds"]))
        if missing:
            raise ValueError(f"the snapshot has no replica of the seeds {missing}")
        self.step, self.tick = state["step"], state["tick"]
        self.widest = max(self.widest, state["lanes"])
        self.history = {seed: [list(row) for row in state["history"][str(seed)]] for seed in self.seeds}
        self.ended = {seed: dict(state["ended"][str(seed)]) for seed in self.seeds if str(seed) in state["ended"]}
        alive = [seed for seed in self.seeds if seed not in self.ended]
        if not alive:
            raise ValueError("the snapshot is of a run that has ended")
        index = torch.tensor([state["alive"].index(seed) for seed in alive])
        return alive, pytree.tree_map(lambda t: t.index_select(0, index), state["stacked"])


def _options(table: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in table.items() if k != "name"}


def _stack_splits(parts: list[Split], device: torch.device) -> Split:
    return Split(torch.stack([p.x for p in parts]).to(device), torch.stack([p.y for p in parts]).to(device))


def _active_steps(curve: dict[str, np.ndarray], upto: int) -> int:
    """Steps up to `upto` on which the transform acted: the switch can move only at an evaluation, and an interval
    counts as the evaluation at its end found it."""
    edges = np.minimum(np.append(curve["step"], max(upto, int(curve["step"][-1]) if len(curve["step"]) else 0)), upto)
    widths = np.diff(np.concatenate([[0], edges]))
    on = np.append(curve["active"], curve["active"][-1] if len(curve["active"]) else 1.0)
    return int((widths * on).sum())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


