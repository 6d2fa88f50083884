"""A trial on several devices: each trains a part of the replicas, and together they look like one pack.

A replica's bits do not hang on its neighbours, so how replicas are dealt out changes nothing. All parts look at the
same steps, because the schedule is the trial's; one thread per device, or they would take turns.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from torch.utils import _pytree as pytree

from grokscale.spec import TrialSpec
from grokscale.train.pack import METRICS, Evaluation, Pack
from grokscale.train.run import train


def sharded(
    spec: TrialSpec, seeds: Sequence[int], *, devices: Sequence[str], state: dict[str, Any] | None = None,
    **options: Any,
) -> Generator[Evaluation]:
    """`train`, its replicas dealt out to `devices`; snapshots are those of one pack, for any number of devices.

    options: of `train`.  Raises ValueError for fewer replicas than devices.
    """
    if len(seeds) < len(devices):
        raise ValueError(f"devices: one replica each at least, got {len(seeds)} replicas for {list(devices)}")
    shards = _dealt(seeds, len(devices), state)
    if len(shards) == 1:
        yield from train(spec, seeds, device=devices[0], state=state, **options)
        return
    runs = [
        train(spec, shard, device=device, state=state, **options)
        for shard, device in zip(shards, devices, strict=False)
    ]
    parts: list[Evaluation | None] = [None] * len(runs)
    with ThreadPoolExecutor(len(runs)) as pool:
        while not all(part is not None and part.done for part in parts):
            parts = list(pool.map(lambda run, part: part if part and part.done else next(run), runs, parts))
            yield _joined(seeds, [part for part in parts if part is not None])


def _dealt(seeds: Sequence[int], count: int, state: dict[str, Any] | None) -> list[list[int]]:
    """Seeds in so many equal parts; those that have ended in `state` go with the first, as they need no device."""
    ended = [] if state is None else [seed for seed in seeds if str(seed) in state["ended"]]
    alive = [seed for seed in seeds if seed not in ended]
    count = max(1, min(count, len(alive)))
    parts = [alive[i * len(alive) // count : (i + 1) * len(alive) // count] for i in range(count)]
    return [[*ended, *parts[0]], *parts[1:]]


class _Joined:
    """What `Evaluation` asks of a pack, from several."""

    def __init__(self, seeds: Sequence[int], parts: Sequence[Evaluation]) -> None:
        self.seeds, self.parts = list(seeds), parts

    def learned(self, seed: int) -> bytes:
        return next(part for part in self.parts if seed in part.seeds).learned(seed)

    def replicas(self, *, ended: bool = False) -> list[dict[str, Any]]:
        rows = {row["seed"]: row for part in self.parts for row in part.replicas(ended=ended)}
        return [rows[seed] for seed in self.seeds if seed in rows]

    def curves(self) -> dict[str, np.ndarray]:
        found = [part.curves() for part in self.parts]
        return {name: np.concatenate([columns[name] for columns in found]) for name in found[0]}

    def measures(self) -> dict[str, Any]:
        found = [part.measures() for part in self.parts]
        return {name: [value for columns in found for value in columns[name]] for name in found[0]}

    def snapshot(self) -> dict[str, Any]:
        found = [part.snapshot() for part in self.parts]
        alive = [one for one in found if one["alive"]]
        last = max(found, key=lambda one: one["step"])
        stacked = [one["stacked"] for one in alive]
        return {
            **last,
            "seeds": [seed for one in found for seed in one["seeds"]],
            "alive": [seed for one in alive for seed in one["alive"]],
            "lanes": max(one["lanes"] for one in found),
            "stacked": pytree.tree_map(lambda *rows: torch.cat(rows), *stacked) if stacked else None,
            **{name: {seed: value for one in found for seed, value in one[name].items()}
               for name in ("history", "measured", "ended")},
        }


def _joined(seeds: Sequence[int], parts: Sequence[Evaluation]) -> Evaluation:
    step = max(part.step for part in parts)
    place = {seed: (part, i) for part in parts for i, seed in enumerate(part.seeds)}
    finished = np.array([place[seed][0].finished[place[seed][1]] for seed in seeds])
    metrics = {
        name: np.array([
            part.metrics[name][i] if part.step == step else np.nan for part, i in (place[seed] for seed in seeds)])
        for name in METRICS
    }
    kept = tuple(one for part in parts if part.step == step for one in part.kept)
    pack = cast(Pack, _Joined(seeds, parts))
    return Evaluation(step, tuple(seeds), metrics, finished, all(part.done for part in parts), kept, pack)
