"""A run of some replicas: evaluations on schedule, who has finished, and snapshots to go on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from grokscale.outcomes import finished, judge
from grokscale.train.lanes import NEVER, Lanes, lanes_for
from grokscale.train.program import Program

METRICS = ("train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc")
FLAGS = ("active", "full", "val_full", "test_full")
PROBED = 1.02  # measures are taken at evaluations at least this factor apart, however often a schedule looks
SNAPSHOT = 3  # version of the snapshot's layout


_COLUMNS = ("step", *METRICS, *FLAGS)


class _History:
    """The evaluations of a replica, a row of _COLUMNS each: a table that grows in place."""

    def __init__(self, rows: Sequence[Sequence[float]] = ()) -> None:
        self._table = np.empty((max(64, 2 * len(rows)), len(_COLUMNS)))
        self._count = 0
        for row in rows:
            self.append(row)

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> np.ndarray:
        """(E, columns) so far."""
        return self._table[: self._count]

    def append(self, row: Sequence[float]) -> None:
        if self._count == len(self._table):
            self._table = np.concatenate([self._table, np.empty_like(self._table)])
        self._table[self._count] = row
        self._count += 1

    def curve(self) -> dict[str, np.ndarray]:
        """The columns, by name."""
        curve = dict(zip(_COLUMNS, self.rows.T, strict=True))
        return {**curve, "step": curve["step"].astype(np.int64)}


class Kept(NamedTuple):
    """What a replica weighs after `step` steps. params: on the CPU.  learned: what its transform learned, as a file."""

    seed: int
    step: int
    params: dict[str, Tensor]
    learned: bytes | None


@dataclass(frozen=True)
class Evaluation:
    """What one look at a pack gives: arrays over the R seeds of the call, NaN for replicas that had finished before.

    step: optimiser steps done.  metrics: METRICS, (R,) each.  finished: (R,) bool.  done: all finished.
    kept: the weights that `keep` asks for at this evaluation.
    """

    step: int
    seeds: tuple[int, ...]
    metrics: dict[str, np.ndarray]
    finished: np.ndarray
    done: bool
    kept: tuple[Kept, ...]
    _pack: Pack

    def snapshot(self) -> dict[str, Any]:
        """A copy of everything that the run goes on from: tensors and primitives. Valid until the next evaluation."""
        return self._pack.snapshot()

    def learned(self, seed: int) -> bytes:
        """What the transform of a replica learned, as a file; of one that has not ended before this evaluation."""
        return self._pack.learned(seed)

    def replicas(self, *, ended: bool = False) -> list[dict[str, Any]]:
        """A row of the store's `replicas` per seed, without what only the caller knows (provenance).

        ended: only of the replicas that have finished.
        """
        return self._pack.replicas(ended=ended)

    def curves(self) -> dict[str, np.ndarray]:
        """The columns of the store's `curves`: every evaluation of every seed so far."""
        return self._pack.curves()

    def measures(self) -> dict[str, Any]:
        """The columns of the store's `measures`: what the chosen ones said of every seed so far."""
        return self._pack.measures()


def next_evaluation(step: int, every: Mapping[str, Any], epoch: int) -> int:
    """The step of the first evaluation after `step`: max(min, every x step) later, or at the end of the epoch."""
    if every.get("epoch"):
        return (step // epoch + 1) * epoch
    return step + max(int(every["min"]), int(every["every"] * step))


class Pack:
    """A run of some replicas: the lanes, the history of their evaluations, and who has finished."""

    def __init__(self, program: Program, seeds: Sequence[int], horizon: int, until: str, state: dict[str, Any] | None,
                 at_least: int = 0, keep: str | None = None) -> None:
        self.keep = keep
        self.program, self.horizon, self.until, self.at_least = program, horizon, until, at_least
        self.seeds = tuple(int(seed) for seed in seeds)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be one or more different integers, got {list(seeds)}")
        self.step = self.tick = 0  # steps done; step of the last evaluation of the schedule
        self.probed = 0  # step of the last look of the probes
        self.history = {seed: _History() for seed in self.seeds}
        self.measured: dict[int, list[tuple[int, dict[str, Any]]]] = {seed: [] for seed in self.seeds}
        self.ended: dict[int, dict[str, Any]] = {}  # seed -> how it ended: observed_to, diverged, final accuracies
        self._rows: dict[int, dict[str, Any]] = {}  # of those that have ended, once asked for
        self.widest = self._size(len(self.seeds))
        if state is None:
            alive, stacked = list(self.seeds), None
        else:
            alive, stacked = self._restore(state)
        self._build(alive, stacked)
        if state is None:
            self._note(self.lanes.weigh(), {seed: lane for lane, seed in enumerate(self.seeds)})

    @property
    def done(self) -> bool:
        return len(self.ended) == len(self.seeds)

    def run_to_next_evaluation(self) -> Evaluation:
        """Train to the next evaluation, or to the horizon where that comes first, and look."""
        tick = next_evaluation(self.tick, self.program.spec.eval, self.lanes.epoch_steps)
        stop = min(tick, self.horizon) if self.step < self.horizon else tick
        probing = bool(self.program.probes) and stop == tick and tick >= PROBED * self.probed
        seen: dict[str, Tensor] = {}
        while self.step < stop:
            self.step += 1
            _, seen = self.lanes.step(self.step, look=probing and self.step == stop)
        alive = self._alive()
        rows: dict[int, list[float]] = {}
        # Log-spaced: the first evaluation at or after every power of two.
        spaced = self.keep == "log-spaced" and stop == tick and tick.bit_length() > self.tick.bit_length()
        if stop == tick:
            self.tick, rows = tick, self._look()
        looked = {seed: len(rows) for seed, rows in self.history.items()}
        ending = [seed for seed, lane in alive.items() if self._judge(seed, lane, rows.get(lane))]
        if probing:  # of the replicas that this look says something of
            self.probed = stop
            self._note(seen, {seed: lane for seed, lane in alive.items() if len(self.history[seed]) > looked[seed]})
        self._look_at_the_end({seed: alive[seed] for seed in ending if self.ended[seed]["diverged"] is None})
        kept = [] if self.keep is None else [self._kept(s, lane) for s, lane in alive.items() if spaced or s in ending]
        metrics = {name: np.full(len(self.seeds), np.nan) for name in METRICS}
        for i, seed in enumerate(self.seeds):
            if seed in alive and len(self.history[seed]):
                for name, value in zip(METRICS, self.history[seed].rows[-1, 1:], strict=False):
                    metrics[name][i] = value
        evaluation = Evaluation(
            self.step, self.seeds, metrics, np.array([seed in self.ended for seed in self.seeds]), self.done,
            tuple(kept), self)
        left = [seed for seed in alive if seed not in self.ended]
        if left and not self.program.compiled and self._size(len(left)) < len(self.lanes.lanes):
            self._build(left, self.lanes.take([alive[seed] for seed in left]))
        return evaluation

    # ------------------------------------------------------------------------------------------ inside

    def _build(self, seeds: list[int], stacked: dict[str, Any] | None) -> None:
        """Lanes for `seeds`, the first repeated up to the next size; `stacked` has one row per seed."""
        # A compiled pack keeps its size: another one would be compiled anew.
        size = self.widest if self.program.compiled else self._size(len(seeds))
        lanes = list(range(len(seeds))) + [0] * (size - len(seeds))
        if stacked is not None:
            index = torch.tensor(lanes)
            stacked = pytree.tree_map(lambda t: t.index_select(0, index.to(t.device)), stacked)
        self.lanes = Lanes(self.program, seeds, lanes, stacked)

    def _size(self, replicas: int) -> int:
        """Lanes of so many replicas on this device. A compiled pack never shrinks, and every size is compiled anew."""
        return lanes_for(replicas, fine=self.program.device.type == "cpu" and not self.program.compiled)

    def _alive(self) -> dict[int, int]:
        """Seed -> lane of the replicas that have not ended."""
        return {seed: lane for lane, seed in enumerate(self.lanes.seeds) if seed not in self.ended}

    def _note(self, seen: Mapping[str, Tensor], lanes: Mapping[int, int]) -> None:
        """Write down what the probes say of these seeds."""
        if seen:
            told = {name: values.double().tolist() for name, values in seen.items()}
            for seed, lane in lanes.items():
                self.measured[seed].append((self.step, {name: values[lane] for name, values in told.items()}))

    def _look(self) -> dict[int, list[float]]:
        """Evaluate; hand the methods their accuracy; lane -> history row [step, *METRICS, *FLAGS]."""
        spec, lanes = self.program.spec, self.lanes
        count = len(lanes.lanes)
        examples = None if spec.eval.get("epoch") else int(spec.eval["examples"])
        names = ["train", "val", "test"] if lanes.splits["val"] is not None else ["train", "test"]
        # name -> (2, L): loss, accuracy
        seen = {name: torch.stack(lanes.accuracy(name, examples, self.step)) for name in names}
        full = {name: torch.full((count,), examples is None) for name in ("val", "test")}
        for name in names[1:] if examples is not None else ():
            # A lane whose sample has just crossed the threshold is looked at on the full split instead.
            crossed = (seen[name][1] >= self.program.threshold) & ~self._above(name)
            if bool(crossed.any()):
                seen[name] = torch.where(crossed, torch.stack(lanes.accuracy(name, None, self.step)), seen[name])
                full[name] = crossed.cpu()
        if "val" not in seen:
            seen["val"], full["val"] = seen["test"], full["test"]
        lanes.stacked["val_loss"], lanes.stacked["val_accuracy"] = seen[spec.monitor].to(self.program.dtype)
        table = torch.cat([seen[name].cpu().double() for name in ("train", "val", "test")]).T.tolist()
        flags = torch.stack([lanes.settle().cpu(), full["val"] | full["test"], full["val"], full["test"]]).T.tolist()
        return {i: [float(self.step), *table[i], *map(float, flags[i])] for i in range(count)}

    def _above(self, name: str) -> Tensor:
        """(L,) bool: was the accuracy on a split at or above the threshold at the evaluation before."""
        column = _COLUMNS.index(f"{name}_acc")
        past = [self.history[self.lanes.seeds[i]].rows for i in self.lanes.lanes]
        above = [len(rows) > 0 and bool(rows[-1, column] >= self.program.threshold) for rows in past]
        return torch.tensor(above, device=self.program.device)

    def _judge(self, seed: int, lane: int, row: list[float] | None) -> bool:
        """Take in what this look saw of a replica; has it ended?"""
        diverged = int(self.lanes.stacked["diverged"][lane])
        if diverged != NEVER or (row is not None and not np.isfinite(row[1])):
            self.ended[seed] = self._end(min(diverged, self.step))
            return True
        if row is not None:
            self.history[seed].append(row)
        if self.step >= self.at_least and finished(
                self.history[seed].curve(), threshold=self.program.threshold, step=self.step, horizon=self.horizon,
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
        test = self.lanes.accuracy("test", None, self.step)[1]
        val = self.lanes.accuracy("val", None, self.step)[1] if self.lanes.splits["val"] is not None else test
        for seed, lane in lanes.items():
            self.ended[seed] |= {"final_acc": float(test[lane]), "final_val_acc": float(val[lane])}

    # ------------------------------------------------------------------------------------------ what comes out

    def replicas(self, *, ended: bool = False) -> list[dict[str, Any]]:
        """ended: only those that have."""
        for seed in self.ended.keys() - self._rows.keys():
            self._rows[seed] = self._row(seed)
        asked = [seed for seed in self.seeds if seed in self.ended or not ended]
        return [dict(self._rows[seed]) if seed in self._rows else self._row(seed) for seed in asked]

    def _row(self, seed: int) -> dict[str, Any]:
        spec, curve, end = self.program.spec, self.history[seed].curve(), self.ended.get(seed) or self._end()
        outcome = judge(
            curve, threshold=self.program.threshold, observed_to=end["observed_to"], diverged_step=end["diverged"])
        upto = outcome.grok_step if outcome.grok_step is not None else end["observed_to"]
        return {
            "trial_id": spec.trial_id, "seed": seed, **outcome._asdict(),
            "final_acc": end["final_acc"], "final_val_acc": end["final_val_acc"], "steps": end["steps"],
            "active_steps": _active_steps(curve, upto), "batch": self.program.batch,
            "oracle_per_step": self.lanes.oracle, "labels": self.lanes.labels,
            "params": sum(p.numel() // p.shape[0] for p in self.lanes.stacked["params"].values()),
            "threshold": spec.threshold, "monitor": spec.monitor, "precision": spec.precision,
            "lanes": self.widest, "compiled": self.program.compiled, "measured": ",".join(self.program.probes),
            "flops_per_step": self.lanes.flops_per_step, "method_flops": self.program.method_flops,
        }

    def curves(self) -> dict[str, np.ndarray]:
        parts = [(seed, self.history[seed].curve()) for seed in self.seeds]
        seeds = [np.full(len(curve["step"]), seed, dtype=np.int64) for seed, curve in parts]
        out: dict[str, np.ndarray] = {"seed": np.concatenate(seeds)}
        for name in parts[0][1]:
            out[name] = np.concatenate([c[name] for _, c in parts])
        for name in FLAGS:
            out[name] = out[name].astype(bool)
        return out

    def measures(self) -> dict[str, Any]:
        rows = [
            (seed, step, name, *((None, value) if isinstance(value, list) else (value, None)))
            for seed in self.seeds for step, values in self.measured[seed] for name, value in values.items()
        ]  # fmt: skip
        columns = zip(*rows, strict=True) if rows else [()] * 5
        return dict(zip(("seed", "step", "measure", "value", "vector"), map(list, columns), strict=True))

    def _kept(self, seed: int, lane: int) -> Kept:
        learned = self.program.transform.learned
        params = {name: p[0].cpu() for name, p in self.lanes.take([lane])["params"].items()}
        return Kept(seed, self.step, params, None if learned is None else learned(self.lanes.state(lane)))

    def learned(self, seed: int) -> bytes:
        if self.program.transform.learned is None:
            raise ValueError("the method learns nothing that could be saved")
        state = self.lanes.state(self.lanes.seeds.index(seed))
        return self.program.transform.learned(state)

    def snapshot(self) -> dict[str, Any]:
        alive = self._alive()
        return {
            "layout": SNAPSHOT, "trial_id": self.program.spec.trial_id, "step": self.step, "tick": self.tick,
            "seeds": list(self.seeds), "alive": list(alive), "lanes": self.widest, "probed": self.probed,
            "metrics": list(self.program.probes),
            "stacked": pytree.tree_map(lambda t: t.cpu(), self.lanes.take(list(alive.values()))) if alive else None,
            "history": {str(seed): history.rows.tolist() for seed, history in self.history.items()},
            "measured": {str(seed): [[step, dict(values)] for step, values in rows]
                         for seed, rows in self.measured.items()},
            "ended": {str(seed): dict(end) for seed, end in self.ended.items()},
        }

    def _restore(self, state: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        if state["layout"] != SNAPSHOT or state["trial_id"] != self.program.spec.trial_id:
            raise ValueError(f"the snapshot is of trial {state['trial_id']} (layout {state['layout']}), "
                             f"not of trial {self.program.spec.trial_id} (layout {SNAPSHOT})")
        missing = sorted(set(self.seeds) - set(state["seeds"]))
        if missing:
            raise ValueError(f"the snapshot has no replica of the seeds {missing}")
        if state["metrics"] != list(self.program.probes):
            raise ValueError(f"the snapshot's metrics are {state['metrics']}, not {list(self.program.probes)}")
        self.step, self.tick, self.probed = state["step"], state["tick"], state["probed"]
        self.widest = max(self.widest, state["lanes"])
        self.history = {seed: _History(state["history"][str(seed)]) for seed in self.seeds}
        self.measured = {
            seed: [(step, dict(values)) for step, values in state["measured"][str(seed)]] for seed in self.seeds}
        self.ended = {seed: dict(state["ended"][str(seed)]) for seed in self.seeds if str(seed) in state["ended"]}
        alive = [seed for seed in self.seeds if seed not in self.ended]
        if not alive:
            raise ValueError("the snapshot is of a run that has ended")
        index = torch.tensor([state["alive"].index(seed) for seed in alive])
        return alive, pytree.tree_map(lambda t: t.index_select(0, index), state["stacked"])


def _active_steps(curve: dict[str, np.ndarray], upto: int) -> int:
    """Steps up to `upto` on which the transform acted: the switch can move only at an evaluation, and an interval
    counts as the evaluation at its end found it."""
    edges = np.minimum(np.append(curve["step"], max(upto, int(curve["step"][-1]) if len(curve["step"]) else 0)), upto)
    widths = np.diff(np.concatenate([[0], edges]))
    on = np.append(curve["active"], curve["active"][-1] if len(curve["active"]) else 1.0)
    return int((widths * on).sum())
