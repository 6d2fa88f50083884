"""What runs inside Ray's worker processes: trainables around the engine, the sweep's own and one for anybody.

Tune sees little of it: a trial is one configuration on some seeds, `step` is a slice of about a second, and
results are a few counts. Curves and replicas go straight to the store; checkpoints are our own, by trial and
seeds, so that a sweep goes on where it stopped whatever Ray remembers.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import tune

from grokscale import data, registry, stats
from grokscale.checkpoint import Checkpoint, Claim
from grokscale.control import NOW, STOPPED
from grokscale.errors import GrokscaleError, StoreError, TrialStopped
from grokscale.outcomes import Again, again, answers
from grokscale.packing import fitting, share_of
from grokscale.parts import timing_rows, write_part
from grokscale.spec import Resolved, TrialSpec, parse, seed_for
from grokscale.store import Store
from grokscale.store.files import GONE
from grokscale.train import Evaluation, lanes_for, packs, sharded, train
from grokscale.weights import write_weights

log = logging.getLogger(__name__)

SLICE_S = 1.0  # a report at most this often
BUSY_S = 0.2  # between two looks whether another process is through with a trial


def places(device: str, count: int) -> list[str]:
    """The devices of a trial, as torch calls them: of the GPUs that Ray lets this process see, the first `count`."""
    return [f"{device}:{i}" for i in range(count)] if device == "cuda" and count > 1 else [device] * count


def out_of_memory(error: BaseException) -> str | None:
    """The first line of what says that memory ran out, on a GPU or a CPU; None for any other error."""
    said = str(error).strip().partition("\n")[0]
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in said:
        return said or type(error).__name__
    return None


class Work:
    """The replicas of one job, pack after pack, resumable.

    Iterating trains: it yields the step at every evaluation, and `finished`, `grokked` and `parts` grow. What the
    store knows already (an earlier attempt that was cut off after it wrote) is not trained again.
    """

    def __init__(self, store: Store, config: Mapping[str, Any]) -> None:
        job = config["job"]
        self.store, self.spec = store, TrialSpec.from_json(job["spec"])
        self.horizon, self.until = int(job["horizon"]), str(job["until"])
        self.seeds = [int(seed) for seed in job["seeds"]]
        self.lanes, self.device = int(config["lanes"]), str(config["device"])
        self.devices = places(self.device, int(config.get("devices", 1)))
        self.share = share_of(int(config.get("threads", 1)), float(config.get("gpus", 0)))
        self.metrics: tuple[str, ...] = tuple(config.get("metrics", ()))
        self.compiled = bool(config.get("compile", False))
        self.keeping: str | None = config.get("keep")
        self.grokked = self.finished = 0
        self.parts: list[str] = []  # files of replicas that were written
        self._pack: tuple[Checkpoint, Evaluation, float] | None = None  # under way: where it is kept, and how far it is
        self._claim = Claim(store, self.spec.trial_id)

    def __iter__(self) -> Generator[int]:
        while not self._claim.take():
            yield 0
            time.sleep(BUSY_S)
        try:
            yield from self._packs()
        finally:
            self._claim.release()

    def _packs(self) -> Iterator[int]:
        known = self.store.answered([self.spec.trial_id])
        rows = {seed: known.get((self.spec.trial_id, seed)) for seed in self.seeds}
        there = {
            seed: row for seed, row in rows.items() if row and answers(row, self.horizon, self.until, self.metrics)}
        self._count(list(there.values()))
        left = [seed for seed in self.seeds if seed not in there]
        waiting = packs(left, self.lanes or self._fitting(left))
        while waiting:
            pack = waiting.pop(0)
            asked = again([row for seed in pack if (row := rows[seed])], self.metrics)
            try:
                yield from self._train(pack, asked)
                continue
            except (RuntimeError, MemoryError) as error:
                problem = out_of_memory(error)
                if problem is None:
                    raise
            # Out here the traceback is gone, and with it what it held of the pack.
            waiting = [*self._halved(pack, asked, problem), *waiting]

    def _fitting(self, seeds: Sequence[int]) -> int:
        """Lanes of a pack, measured."""
        if not seeds:
            return 2
        try:
            lanes = fitting(
                self.spec, seeds, horizon=self.horizon, device=self.devices[0], devices=len(self.devices),
                share=self.share, registry=registry.load(self.spec.plugins), metrics=self.metrics)  # fmt: skip
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error) is None:
                raise
            lanes = lanes_for(2 * len(self.devices))
        log.info("%s: packs of %d lanes", self.spec.trial_id, lanes)
        return lanes

    def _halved(self, pack: list[int], asked: Again, problem: str) -> list[list[int]]:
        """A pack that did not fit, in two, which go on from what was kept of the whole."""
        self._pack = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        lanes = lanes_for(len(pack)) // 2
        if lanes < 2 * len(self.devices):  # a lone replica takes two lanes too
            raise GrokscaleError(
                f"trial {self.spec.trial_id}: {len(pack)} replicas do not fit into memory, and fewer take as much: "
                f"{problem}; give it a larger device, a smaller model or batch, or fewer trials at once (resources)")
        log.warning("%s: out of memory with %d replicas in a pack, on with %d: %s",
                    self.spec.trial_id, len(pack), lanes, problem)
        whole = self._checkpoint(pack, asked)
        state, spent = whole.read()
        halves = packs(pack, lanes)
        if state is not None:
            for half in halves:
                if any(str(seed) not in state["ended"] for seed in half):
                    self._checkpoint(half, asked).save(state, spent)
        whole.remove()
        return halves

    def _checkpoint(self, seeds: list[int], asked: Again) -> Checkpoint:
        return Checkpoint(self.store, self.spec, seeds, self.horizon, self.until, asked.metrics)

    def _train(self, seeds: list[int], again: Again) -> Iterator[int]:
        checkpoint = self._checkpoint(seeds, again)
        before = (self.finished, self.grokked)
        began = time.monotonic()
        spent = 0.0
        for evaluation, earlier in self._evaluations(checkpoint, seeds, again):
            now = time.monotonic()
            spent = earlier + now - began
            for weights in evaluation.kept:  # before the rows, which say that the replica needs no more training
                write_weights(self.store, self.spec, weights)
            if evaluation.done:
                break
            self._pack = (checkpoint, evaluation, spent)
            self._claim.alive()
            if checkpoint.due:
                self.keep()
            self.finished, self.grokked = before
            self._count(evaluation.replicas(ended=True))
            yield evaluation.step
        else:
            raise RuntimeError(f"trial {self.spec.trial_id}: the engine stopped before its replicas were finished")
        self._pack = None
        rows, name = write_part(self.store, self.spec, evaluation, device=self.device, wall_s=spent)
        self.parts += [name] if name else []
        checkpoint.remove()
        self.finished, self.grokked = before
        self._count(rows)
        yield evaluation.step

    def _evaluations(
        self, checkpoint: Checkpoint, seeds: list[int], again: Again
    ) -> Iterator[tuple[Evaluation, float]]:
        """The engine's evaluations, each with the seconds of earlier sittings; from the checkpoint if it
        fits.
        """
        state, spent = checkpoint.read()
        entries = registry.load(self.spec.plugins)

        def run(state: dict[str, Any] | None) -> Iterator[Evaluation]:
            return sharded(
                self.spec,
                seeds,
                devices=self.devices[: len(seeds)],
                horizon=self.horizon,
                until=self.until,
                state=state,
                registry=entries,
                metrics=again.metrics,
                at_least=again.at_least,
                compiled=self.compiled,
                keep=self.keeping,
            )

        first, evaluations = None, run(state)
        if state is not None:
            try:
                first = next(evaluations)
            except (ValueError, KeyError) as error:  # of another layout or version
                log.warning("%s does not fit, starting afresh: %s", checkpoint.path, error)
                spent, evaluations = 0.0, run(None)
        if first is not None:
            yield first, spent
        for evaluation in evaluations:
            yield evaluation, spent

    def _count(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.finished += len(rows)
        self.grokked += sum(row["grok_step"] is not None and row["grok_step"] <= self.horizon for row in rows)

    def keep(self) -> None:
        """Write the checkpoint of the pack under way, if there is one."""
        if self._pack is not None:
            checkpoint, evaluation, spent = self._pack
            checkpoint.write(evaluation, spent)


class SweepTrainable(tune.Trainable):
    """One trial of a sweep. config: root, lanes, threads, device, devices, gpus, data, job; the process is reused from
    trial to trial.
    """

    _store: Store | None = None

    def setup(self, config: dict[str, Any]) -> None:
        self._work: Work | None = None
        self._steps: Generator[int] | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._work is None or self._steps is None:
            # Begun here and not in setup: what fails here is retried and reported as the trial's own error.
            torch.set_num_threads(int(self.config["threads"]))
            if 0 < (share := float(self.config.get("gpus", 0))) < 1:  # the others on this GPU count on theirs
                torch.cuda.set_per_process_memory_fraction(share)
            data.use(self.config["data"])  # where the driver found it: the environment need not be this process's
            stops = Path(self.config.get("stops", os.devnull))
            if not stops.parent.is_dir():  # the driver made it: whoever has not seen the store must not begin another
                raise StoreError(GONE.format(self.config["root"]))
            if self._store is None or self._store.root != self.config["root"]:
                self._store = Store(self.config["root"])
            self._work = Work(self._store, self.config)
            self._steps = iter(self._work)
        self._heed(Path(self.config.get("stops", os.devnull)) / self._work.spec.trial_id)
        until, done = time.monotonic() + SLICE_S, True
        for _ in self._steps:
            if time.monotonic() >= until:
                done = False
                break
        work = self._work
        return {"finished": work.finished, "grokked": work.grokked, "parts": list(work.parts), "done": done}

    def _heed(self, asked: Path) -> None:
        """Raise TrialStopped where `stop SWEEP/TRIAL` says so: with the pack under way kept, unless it is to be now."""
        if asked.exists():
            if asked.read_text() == NOW:
                self._work = None
            self.cleanup()
            raise TrialStopped(STOPPED)

    def cleanup(self) -> None:
        """Called when the trial ends, however it ends; a pack under way is kept."""
        if self._work is not None:
            self._work.keep()
        if self._steps is not None:
            self._steps.close()
        self._work = self._steps = None


def time_trials(specs: Sequence[str], threads: int, device: str, folder: str) -> list[dict[str, Any]]:
    """Rows of `timings` of trials, given as JSON, on whatever runs this. folder: where data files are."""
    data.use(folder)
    return timing_rows([TrialSpec.from_json(spec) for spec in specs], threads=threads, device=device)


class MethodTrainable(tune.Trainable):
    """A method on a task for anybody's own Tuner; `trainable` makes its subclasses.

    Every evaluation is a report: step, the mean over replicas of train_accuracy, val_accuracy and
    test_accuracy, the median of grok_step and val_grok_step (NaN until half of them grokked), the share
    `grokked`, the `objective` of grokscale's own searches (always finite, to be minimised), `outcome` (the
    replicas', "mixed" where they differ) and done.
    """

    _settings: Mapping[str, Any]  # the experiment's tables, but for what config adds

    def setup(self, config: dict[str, Any]) -> None:
        settings = dict(self._settings)
        data.use(settings["data"])
        count, horizon = settings["seeds"], settings["horizon"]
        resolved = _resolve(settings, {knob: value for knob, value in config.items() if knob != "seed"})
        self._spec, self._horizon = resolved.trial("arm"), horizon or resolved.horizon
        first = int(config.get("seed", 0)) * count
        self._seeds = [seed_for("run", k) for k in range(first, first + count)]
        self._evaluations = self._start(None)
        self._last: Evaluation | None = None
        self._seen: dict[str, np.ndarray] = {}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        evaluation = next(self._evaluations)
        self._last = evaluation
        for name, values in evaluation.metrics.items():  # a replica that has finished keeps its last values
            self._seen[name] = np.where(np.isnan(values), self._seen.get(name, values), values)
        rows = evaluation.replicas()
        outcomes = {row["outcome"] for row in rows}
        groks = [[row[name] or np.inf for row in rows] for name in ("grok_step", "val_grok_step")]
        medians = [float(np.median(steps)) for steps in groks]
        accuracies = {f"{name}uracy": _mean(self._seen[name]) for name in ("train_acc", "val_acc", "test_acc")}
        return {
            "step": evaluation.step,
            **accuracies,
            "grok_step": medians[0] if np.isfinite(medians[0]) else float("nan"),
            "val_grok_step": medians[1] if np.isfinite(medians[1]) else float("nan"),
            "grokked": float(np.mean([row["outcome"] == "grokked" for row in rows])),
            "objective": stats.objective(groks[1], self._horizon),
            "outcome": outcomes.pop() if len(outcomes) == 1 else "mixed",
            "done": evaluation.done,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        if self._last is not None:
            torch.save({"pack": self._last.snapshot()}, Path(checkpoint_dir) / "pack.pt")

    def load_checkpoint(self, checkpoint: Any) -> None:
        path = Path(checkpoint) / "pack.pt"
        if path.exists():
            self._evaluations = self._start(torch.load(path, weights_only=True)["pack"])

    def _start(self, state: dict[str, Any] | None) -> Iterator[Evaluation]:
        return train(self._spec, self._seeds, horizon=self._horizon, state=state)


def _mean(values: np.ndarray) -> float:
    """Mean over the replicas that have a value; NaN where none has."""
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else float("nan")


def trainable(
    method: str | Sequence[str],
    *,
    task: str | Mapping[str, Any],
    model: str | Mapping[str, Any] | None = None,
    optimiser: str | Mapping[str, Any] | None = None,
    horizon: int | None = None,
    seeds: int = 1,
    plugins: Sequence[str] = (),
    **fixed: Any,
) -> type[MethodTrainable]:
    """A Ray Tune trainable for an entry of METHODS (or a chain of them), for a user's own Tuner.

    task, model, optimiser: a name, or a table as in an experiment file, {"name": ..., "n": 20}.
    horizon: steps, the task's by default.  seeds: replicas that train together.  plugins: modules to import.
    fixed: settings that do not vary, by the keys of an arm's `set`; [eval], as `eval`, besides.

    Tune's config holds further settings by the same keys, and may hold "seed", an integer: which replicas.
    Raises InputError for a name or a value that makes no sense.
    """
    table = {
        name: {"name": value} if isinstance(value, str) else dict(value)
        for name, value in (("task", task), ("model", model), ("optimiser", optimiser))
        if value is not None
    }
    methods = [method] if isinstance(method, str) else list(method)
    settings = {
        "tables": table,
        "methods": methods,
        "horizon": horizon,
        "seeds": seeds,
        "plugins": list(plugins),
        "eval": fixed.pop("eval", None),
        "fixed": fixed,
        "data": str(data.folder()),
    }
    _resolve(settings, {})
    name = "".join(part.title() for part in "-".join(methods).split("-")) + "Trainable"
    return type(name, (MethodTrainable,), {"_settings": settings, "__doc__": MethodTrainable.__doc__})


def _resolve(settings: Mapping[str, Any], varied: Mapping[str, Any]) -> Resolved:
    arm = {"name": "arm", "method": settings["methods"], "search": [], "set": {**settings["fixed"], **varied}}
    experiment = {
        "name": "trainable",
        "baseline": "arm",
        "plugin": settings["plugins"],
        **settings["tables"],
        "arm": [arm],
    }
    if settings["eval"] is not None:
        experiment["eval"] = settings["eval"]
    return parse(experiment, source="trainable").resolve(registry.load(settings["plugins"]))
