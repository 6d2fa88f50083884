"""The engine: trains the replicas of one trial side by side. The only package that knows lanes.

Legend, here and in the methods: R replicas of the call, L lanes of the pack, N rows of a split, B batch rows.

A pack trains L = 2, 4, 8, 16, ... lanes as one program under `torch.func.vmap`. A lone replica runs as two equal
lanes, because one lane takes other kernels, and grok times are chaotic: a replica's bits must not depend on its
neighbours. Lanes that are not needed repeat the first replica. As replicas finish the pack shrinks to the next size.
What `vmap` and `grad` make of the loss is written down after a while and replayed (`replay`); a transform that treats
every entry by itself is given all lanes at once. Neither changes a bit.
Nothing in a pack raises or branches on values: a lane that became non-finite goes on computing NaNs, which no other
lane sees, until the next evaluation takes it out as `diverged`.
"""

from __future__ import annotations

from grokscale.train import heap
from grokscale.train.lanes import Lanes, lanes_for
from grokscale.train.pack import METRICS, Evaluation, Kept, next_evaluation
from grokscale.train.program import DTYPES, Program, compiler
from grokscale.train.run import packs, timings, train
from grokscale.train.shards import sharded

__all__ = [
    "DTYPES", "METRICS", "Evaluation", "Kept", "Lanes", "Program", "compiler", "lanes_for", "next_evaluation", "packs",
    "sharded", "timings", "train",
]  # fmt: skip

heap.keep()
