"""Training steps: grokscale's packs against the ordinary loop, and what each method adds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.loop import Loop
from benchmarks.measure import Row, alternate, matmul_rate, ms
from grokscale import registry
from grokscale.spec import TrialSpec, parse
from grokscale.train import Lanes, Program

REGISTRY = registry.load()
DECODER = {"task": {"name": "modular-tokens"}, "optimiser": {"wd": 0.005}}
PAIRS = {"task": {"name": "modular-pairs"}}
PARITY = {"task": {"name": "parity", "n": 60}}


def trial(tables: Mapping[str, Any], method: str | list[str] = "none", **knobs: Any) -> TrialSpec:
    """A trial of an experiment with one arm."""
    arm = {"name": "arm", "method": method, "set": knobs}
    return parse({"name": "bench", "arm": [arm], **tables}).resolve(REGISTRY).trial("arm")


def stepper(spec: TrialSpec, lanes: int, device: str = "cpu") -> Callable[[int], None]:
    """A function that trains a pack of `lanes` replicas by n steps."""
    pack = Lanes(Program(spec, REGISTRY, device), list(range(lanes)), list(range(lanes)))
    done = [0]

    def run(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                done[0] += 1
                pack.step(done[0])

    return run


def decoder(seconds: float = 12.0) -> list[Row]:
    """8 replicas of the decoder under Grokfast-EMA against the authors' loop."""
    loop = Loop()
    found = alternate(
        {"loop": loop.steps, "pack": stepper(trial(DECODER, "grokfast-ema"), 8)}, seconds=seconds, rounds=5)
    ours, theirs = found["pack"] / 8, found["loop"]
    floor = decoder_flops(512) / matmul_rate()
    return [
        Row("decoder, 8 replicas, fp32: steps/s against the authors' loop", ">= 3x", f"{theirs / ours:.2f}x",
            theirs / ours >= 3, f"{ms(ours)} a replica-step", f"{ms(theirs)} a step", ms(floor)),
    ]  # fmt: skip


def decoder_flops(batch: int, length: int = 4, dim: int = 128, layers: int = 2, vocabulary: int = 99) -> float:
    """Multiply-adds x 2 of a step of the decoder whose last block answers at one position, forward + backward (x 3)."""
    full = 2 * batch * length * (3 * dim * dim + dim * dim + 8 * dim * dim)
    last = 2 * batch * (length * 2 * dim * dim + dim * dim + dim * dim + 8 * dim * dim)
    return 3 * ((layers - 1) * full + last + 2 * batch * dim * vocabulary)


def two_layer(seconds: float = 12.0) -> list[Row]:
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


def filters(seconds: float = 16.0) -> list[Row]:
    """Grokfast-MA with a window of 100 against EMA, on the decoder."""
    base, ema, ma = "none", "grokfast-ema", "grokfast-ma"
    found = alternate({name: stepper(trial(DECODER, name), 4) for name in (base, ema, ma)}, seconds=seconds, rounds=5)
    ratio = found[ma] / found[ema]
    return [
        Row("Grokfast-MA, w = 100, against EMA: time of a step", "<= 1.3x", f"{ratio:.2f}x", ratio <= 1.3,
            ms(found[ma] / 4), ms(found[ema] / 4), note=f"no filter {ms(found[base] / 4)}"),
    ]  # fmt: skip


def packs(seconds: float = 8.0) -> list[Row]:
    """Cost per replica-step against the number of replicas, on the quickstart's task."""
    spec = trial(PARITY, "egd-colnorm")
    sizes = (2, 4, 8, 16, 32)
    found = alternate({str(r): stepper(spec, r) for r in sizes}, seconds=seconds, rounds=5)
    each = [found[str(r)] / r for r in sizes]
    falling = all(b <= 1.1 * a for a, b in itertools.pairwise(each))
    text = ", ".join(f"{r}: {1e6 * t:.0f}" for r, t in zip(sizes, each, strict=True))
    return [Row("parity (60, 3), ColNorm: microseconds per replica-step by replicas", "flat or falling", text, falling)]
