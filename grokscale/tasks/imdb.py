"""Sentiment of film reviews from 750 of them (Omnigrok and Grokfast, methods.md 3.10)."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from grokscale import data
from grokscale.data import DataFile, Dataset
from grokscale.entries import TaskEntry
from grokscale.errors import InputError
from grokscale.rng import generator
from grokscale.tasks.base import Inputs, Split, Splits, Task

DATASET = Dataset(
    "imdb",
    (DataFile("imdb_5000.csv.gz", "7e357a632fb0647227c11ab48b7284907eef5345bd082735ac654babeeb7e3a9", 2_672_545),),
    "5,000 reviews of the Large Movie Review Dataset, shuffled, columns review and label; Maas et al., ACL 2011; "
    "research use, not to be redistributed",
)

DEFAULTS: dict[str, Any] = {
    "rows": 1000, "fraction": 0.75, "n_val": 1000, "vocabulary": 1000, "length": 500, "stop_words": True,
}  # fmt: skip
MODEL = {"name": "lstm", "dim": 64, "width": 256, "layers": 2, "scale": 6.0}
OPTIMISER = {
    "name": "adamw", "lr": 3e-4, "wd": 1.0, "beta1": 0.9, "beta2": 0.999, "decay": "decoupled", "batch": 50,
    "drop_last": False,
}  # fmt: skip
TAKEN_OUT = re.compile(r"[^\w\s]|\d")  # within a word: what is no letter


def imdb(
    rows: int = 1000, fraction: float = 0.75, n_val: int = 1000, vocabulary: int = 1000, length: int = 500,
    stop_words: bool = True,
) -> Task:  # fmt: skip
    """x = ids of a review's words, 0 to the left of them; y = 1 for a favourable one.

    rows: the first reviews of the file, split per seed and label; fraction: the share of them that trains.
    n_val: validation reviews, the next ones of the file.  vocabulary: the most frequent words of the training reviews;
    others are left out.  length: words of a review at most, the first ones.  stop_words: leave out scikit-learn's
    English stop words too.

    A word is what stands between blanks in lower case, less punctuation and digits (Grokfast's rule; its stop words
    are NLTK's, whose list is not at hand without a download).
    """
    if min(rows, n_val, vocabulary, length) < 1:
        raise ValueError(
            f"rows, n_val, vocabulary, length >= 1 must hold, got rows={rows}, n_val={n_val}, vocabulary={vocabulary}, "
            f"length={length}"
        )
    if not 0 < fraction < 1:
        raise ValueError(f"0 < fraction < 1 must hold, got fraction={fraction}")

    def splits(seed: int, validation: float) -> Splits:
        [path] = data.find(DATASET).values()
        words, labels = _reviews(path, data.fingerprint(DATASET), rows + n_val, stop_words)
        train, test = _stratified(labels[:rows], fraction, generator(seed, "split"))
        ids = _vocabulary([words[i] for i in train], vocabulary)

        def split(picked: Sequence[int]) -> Split:
            return Split(_padded([words[i] for i in picked], ids, length), labels[torch.tensor(picked)])

        val = split(range(rows, rows + n_val)) if validation else None
        return Splits(split(train), val, split(test))

    return Task(
        inputs=Inputs("tokens", vocabulary + 1, length, table=length),
        outputs=1,
        splits=splits,
        loss=lambda out, y: F.binary_cross_entropy_with_logits(out.squeeze(-1), y.to(out.dtype)),
        correct=lambda out, y: (out.squeeze(-1) > 0) == (y == 1),
    )


@functools.lru_cache(maxsize=2)
def _reviews(path: Path, fingerprint: str, count: int, stop_words: bool) -> tuple[list[list[str]], Tensor]:
    """The words of the first `count` reviews and their labels, in the order of the file."""
    table = data.read_csv(path, ("review", "label"), count)
    if len(table) < count:
        raise InputError(f"rows + n_val <= {len(table)}, the reviews of {path}, must hold, got {count}")
    if odd := sorted({label for _, label in table} - {"0", "1"}):
        raise InputError(f"{path}: labels must be 0 or 1, got {', '.join(odd[:5])}")
    left_out = _stop_words() if stop_words else frozenset()
    words = [[w for w in TAKEN_OUT.sub("", text.lower()).split() if w not in left_out] for text, _ in table]
    return words, torch.tensor([int(label) for _, label in table], dtype=torch.int8)


def _stop_words() -> frozenset[str]:
    data.need("sklearn", "imdb")
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def _stratified(labels: Tensor, fraction: float, stream: torch.Generator) -> tuple[list[int], list[int]]:
    """(training rows, test rows): ceil((1 - fraction) n) test rows, the labels in both as in all, largest remainder."""
    n_test = int(np.ceil((1 - fraction) * len(labels) - 1e-9))
    groups = [(labels == label).nonzero().flatten() for label in labels.unique().tolist()]
    exact = [n_test * len(group) / len(labels) for group in groups]
    sizes = [int(e) for e in exact]
    for i in sorted(range(len(groups)), key=lambda i: sizes[i] - exact[i])[: n_test - sum(sizes)]:
        sizes[i] += 1
    train: list[int] = []
    test: list[int] = []
    for group, size in zip(groups, sizes, strict=True):
        shuffled = group[torch.randperm(len(group), generator=stream)].tolist()
        test += shuffled[:size]
        train += shuffled[size:]
    return _shuffled(train, stream), _shuffled(test, stream)  # an evaluation looks at the first rows


def _shuffled(rows: list[int], stream: torch.Generator) -> list[int]:
    return [rows[i] for i in torch.randperm(len(rows), generator=stream).tolist()]


def _vocabulary(reviews: Sequence[Sequence[str]], size: int) -> dict[str, int]:
    """The `size` most frequent words, ties in alphabetical order, with their ids from 1; 0 pads."""
    counts = Counter(word for review in reviews for word in review)
    return {word: i for i, word in enumerate(sorted(counts, key=lambda w: (-counts[w], w))[:size], start=1)}


def _padded(reviews: Sequence[Sequence[str]], ids: dict[str, int], length: int) -> Tensor:
    """(N, length) int32: the first `length` known words of each review, to the right of zeros."""
    out = np.zeros((len(reviews), length), dtype=np.int32)
    for row, review in zip(out, reviews, strict=True):
        known = [ids[word] for word in review if word in ids][:length]
        row[length - len(known) :] = known
    return torch.from_numpy(out)


def _files(stop_words: bool = True, **_: Any) -> str:
    if stop_words:
        data.need("sklearn", "imdb")
    return data.fingerprint(DATASET)


TASKS = [
    TaskEntry(
        "imdb", "is a film review favourable? 750 reviews to train on", "Omnigrok, arXiv 2210.01117; Grokfast",
        imdb, DEFAULTS, threshold=0.75, horizon=10_000, model=MODEL, optimiser=OPTIMISER, data=_files,
        dataset=DATASET,
    ),
]  # fmt: skip
