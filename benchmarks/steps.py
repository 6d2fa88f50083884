"""Training steps: grokscale's packs against the ordinary loop, and what each method adds."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from benchmarks.loop import Loop
from benchmarks.measure import Row, alternate, matmul_rate, ms
from grokscale import registry
from grokscale.checkpoint import CHECKPOINT_S
from grokscale.memory import size
from grokscale.spec import TrialSpec, parse
from grokscale.store import Store
from grokscale.train import Lanes, Program, next_evaluation
from grokscale.worker import Work

REGISTRY = registry.load()
DECODER = {"task": {"name": "modular-tokens"}, "optimiser": {"wd": 0.005}}
PAIRS = {"task": {"name": "modular-pairs"}}
PARITY = {"task": {"name": "parity", "n": 60}}


def trial(tables: Mapping[str, Any], method: str | list[str] = "none", **knobs: Any) -> TrialSpec:
    """A trial of an experiment with one arm."""
    arm = {"name": "arm", "method": method, "set": knobs}
    return parse({"name": "bench", "arm": [arm], **tables}).resolve(REGISTRY).trial("arm")


def pack(spec: TrialSpec, lanes: int, device: str = "cpu", compiled: bool = False) -> Lanes:
    """`lanes` replicas side by side, their operations written down from the start, as they are for most of a run."""
    return Lanes(Program(spec, REGISTRY, device, compiled=compiled, patience=0), list(range(lanes)), list(range(lanes)))


def stepper(spec: TrialSpec, lanes: int, device: str = "cpu", compiled: bool = False) -> Callable[[int], None]:
    """A function that trains a pack of `lanes` replicas by n steps."""
    return stepping(pack(spec, lanes, device, compiled))


def stepping(mine: Lanes) -> Callable[[int], None]:
    """A function that trains these lanes by n steps."""
    done = [0]

    def run(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                done[0] += 1
                mine.step(done[0])

    return run


def decoder(seconds: float = 12.0) -> list[Row]:
    """8 replicas of the decoder under Grokfast-EMA against the authors' loop, by precision, eager and compiled."""
    spec = trial(DECODER, "grokfast-ema")
    half = replace(spec, precision="bf16")
    packs = {
        "fp32": stepper(spec, 8), "fp32, compiled": stepper(spec, 8, compiled=True),
        "bf16": stepper(half, 8), "bf16, compiled": stepper(half, 8, compiled=True),
    }  # fmt: skip
    first = {name: once(run) for name, run in packs.items()}
    found = alternate({"loop": Loop().steps, **packs}, seconds=seconds, rounds=5)
    flops = pack(spec, 2).flops_per_step
    rows = []
    for name in packs:
        ours, theirs, least = found[name] / 8, found["loop"], 5.5 if name.startswith("bf16") else 3.0
        rate = matmul_rate(torch.bfloat16 if name.startswith("bf16") else torch.float32)
        note = f"{first[name]:.0f} s to the first step" if "compiled" in name else f"{flops / 1e9:.2f} GFLOP"
        rows.append(Row(
            f"decoder, 8 replicas, {name}: steps/s against the authors' loop", f">= {least:g}x",
            f"{theirs / ours:.2f}x", theirs / ours >= least, f"{ms(ours)} a replica-step", f"{ms(theirs)} a step",
            ms(flops / rate), note))  # fmt: skip
    return rows


def once(run: Callable[[int], None]) -> float:
    """Seconds of the first step, compilation included."""
    start = time.perf_counter()
    run(1)
    return time.perf_counter() - start


def amplifier(seconds: float = 12.0) -> list[Row]:
    """NeuralGrok on a + b, every fourth step with its outer update, against the step without it."""
    task = {"task": {"name": "modular-tokens", "op": "add"}}
    packs = {name: stepper(trial(task, name), 4) for name in ("none", "neuralgrok")}
    period = 4

    def turns(run: Callable[[int], None]) -> Callable[[int], None]:
        return lambda n: run(period * n)

    found = alternate({name: turns(run) for name, run in packs.items()}, seconds=seconds, rounds=5)
    ratio = found["neuralgrok"] / found["none"]
    return [
        Row("NeuralGrok, a + b, T = 4, 4 replicas: a step with its share of outer updates", "<= 2x",
            f"{ratio:.2f}x", ratio <= 2, ms(found["neuralgrok"] / 4 / period), ms(found["none"] / 4 / period)),
    ]  # fmt: skip


# What is run: by name the tables of a trial, lanes, horizon. None of them groks by then.
LOOKED_AT: dict[str, tuple[Mapping[str, Any], int, int]] = {
    "parity (60, 3)": (PARITY, 4, 2000), "two-layer net, p = 97": (PAIRS, 8, 250), "decoder": (DECODER, 4, 75)}


def looking(runs: Mapping[str, tuple[Mapping[str, Any], int, int]] = LOOKED_AT, rounds: int = 3) -> list[Row]:
    """What evaluations at the default spacing, the part in the store and checkpoints add to the steps of a run.

    The run is a worker's own (`worker.Work`), from its first evaluation to its end; beside it, in turns, the same steps
    alone. A checkpoint falls due every CHECKPOINT_S seconds, more than these runs take: one is timed and its share of
    that added.
    """
    rows = []
    for name, (tables, lanes, horizon) in runs.items():
        spec, first = trial(tables), next_evaluation(0, trial(tables).eval, 1)
        run = stepper(spec, lanes)
        run(first)
        whole, alone, keeping = [], [], []
        for _ in range(rounds):
            taken, kept = watched(spec, lanes, horizon)
            whole.append(taken)
            keeping.append(kept)
            start = time.perf_counter()
            run(horizon - first)
            alone.append(time.perf_counter() - start)
        ours, steps, due = (statistics.median(found) for found in (whole, alone, keeping))
        share = 1 - steps / ours + due / CHECKPOINT_S
        rows.append(Row(
            f"{name}: share of evaluation, storing and checkpoints in steps {first} to {horizon}", "<= 10 %",
            f"{100 * share:.1f} %", share <= 0.1, f"{ours:.2f} s", f"{steps:.2f} s",
            note=f"{lanes} replicas; a checkpoint {ms(due)} every {CHECKPOINT_S:g} s"))  # fmt: skip
    return rows


def watched(spec: TrialSpec, lanes: int, horizon: int) -> tuple[float, float]:
    """Seconds of a worker's run from its first evaluation to its end, and of one checkpoint.

    Raises RuntimeError where a replica ended before the horizon: the steps beside it would be more than its own.
    """
    seeds = list(range(lanes))
    job = {"spec": spec.canonical(), "seeds": seeds, "horizon": horizon, "until": "decided"}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        work = Work(store, {"job": job, "lanes": lanes, "device": "cpu"})
        steps = iter(work)
        next(steps)
        start = time.perf_counter()
        work.keep()
        kept = time.perf_counter() - start
        start = time.perf_counter()
        last = max(steps)
        taken = time.perf_counter() - start
        ends = {row["steps"] for row in store.answered([spec.trial_id]).values()}
    if ends != {horizon} or last != horizon:
        raise RuntimeError(f"every replica has to run to step {horizon}, got ends at {sorted(ends)}")
    return taken, kept


def two_layer(seconds: float = 10.0) -> list[Row]:
    """The two-layer net on p = 97: SGD alone, and what EGD adds."""
    found = alternate(
        {name: stepper(trial(PAIRS, name), 8) for name in ("none", "egd", "egd-colnorm")}, seconds=seconds, rounds=7)
    sgd, egd, colnorm = (found[name] / 8 for name in ("none", "egd", "egd-colnorm"))
    # forward W2, its two gradients: dense products; the gathers and the ReLU move bytes instead
    floor = 3 * 2 * 512 * 512 * 97 / matmul_rate()
    return [
        Row("two-layer net p = 97, SGD, 8 replicas: a replica-step", "<= 4.5 ms", ms(sgd), sgd <= 4.5e-3,
            floor=ms(floor)),
        Row("  EGD on top", "<= 6 ms", ms(egd - sgd), egd - sgd <= 6e-3, ms(egd)),
        Row("  ColNorm on top", "", ms(colnorm - sgd), None, ms(colnorm)),
    ]  # fmt: skip


def filters(seconds: float = 12.0) -> list[Row]:
    """Grokfast-MA with a window of 100 against EMA, on the decoder."""
    base, ema, ma = "none", "grokfast-ema", "grokfast-ma"
    found = alternate({name: stepper(trial(DECODER, name), 4) for name in (base, ema, ma)}, seconds=seconds, rounds=5)
    ratio = found[ma] / found[ema]
    return [
        Row("Grokfast-MA, w = 100, against EMA: time of a step", "<= 1.3x", f"{ratio:.2f}x", ratio <= 1.3,
            ms(found[ma] / 4), ms(found[ema] / 4), note=f"no filter {ms(found[base] / 4)}"),
        window(trial(DECODER, ma)),
    ]  # fmt: skip


def window(spec: TrialSpec, lanes: int = 4) -> Row:
    """The bytes of the tensors that Grokfast-MA keeps, after some steps."""
    mine = pack(spec, lanes)
    places = next(int(part["window"]) for part in spec.method if part["name"] == "grokfast-ma")
    with torch.no_grad():
        for step in range(1, 4):
            mine.step(step)
    held = sum(t.numel() * t.element_size() for t in pytree.tree_leaves(mine.stacked["state"][0])) / lanes
    least = places * sum(p[0].numel() * p.element_size() for p in mine.stacked["params"].values())
    return Row(f"Grokfast-MA, w = {places}: bytes of its state a replica", "<= w x N x bytes + 10 %",
               f"{100 * (held / least - 1):+.1f} %", held <= 1.1 * least, size(held), floor=size(least))


def packs(seconds: float = 8.0) -> list[Row]:
    """Cost per replica-step against the number of replicas, on the quickstart's task."""
    spec = trial(PARITY, "egd-colnorm")
    sizes = (2, 4, 8, 16, 32)
    found = alternate({str(r): stepper(spec, r) for r in sizes}, seconds=seconds, rounds=5)
    each = [found[str(r)] / r for r in sizes]
    falling = all(b <= 1.1 * a for a, b in itertools.pairwise(each))
    text = ", ".join(f"{r}: {1e6 * t:.0f}" for r, t in zip(sizes, each, strict=True))
    return [Row("parity (60, 3), ColNorm: microseconds per replica-step by replicas", "flat or falling", text, falling)]
