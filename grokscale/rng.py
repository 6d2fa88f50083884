"""The only source of randomness: CPU generators named by a seed and a purpose."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """A fresh CPU generator for `purpose` of the replica `seed`.

    Purposes: split, val, outer, relabel, table, init, method, order/EPOCH, noise/STEP. Streams of different purposes
    are independent, so arms with the same seed share split, initialisation and batch order whatever else they draw.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
