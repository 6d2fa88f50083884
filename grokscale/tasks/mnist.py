"""Handwritten digits from a thousand examples (Omnigrok and Grokfast, methods.md 3.8)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grokscale import data
from grokscale.data import DataFile, Dataset
from grokscale.entries import TaskEntry
from grokscale.errors import InputError
from grokscale.rng import generator
from grokscale.tasks.base import Inputs, Split, Splits, Task, cross_entropy, squared_error, top1

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"

DATASET = Dataset(
    "mnist",
    (
        DataFile(TRAIN_IMAGES, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
        DataFile(TRAIN_LABELS, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
        DataFile(TEST_IMAGES, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
        DataFile(TEST_LABELS, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
    ),
    "60,000 + 10,000 images of digits; LeCun, Cortes and Burges; commonly stated CC BY-SA 3.0",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)

DEFAULTS: dict[str, Any] = {"n_train": 1000, "n_val": 10_000, "subset": "first", "loss": "mse", "side": 28}
MODEL = {"name": "mlp", "width": 200, "depth": 3, "scale": 8.0}
OPTIMISER = {
    "name": "adamw", "lr": 1e-3, "wd": 0.01, "beta1": 0.9, "beta2": 0.999, "decay": "decoupled", "batch": 200,
    "drop_last": False,
}  # fmt: skip
LOSSES = {"mse": squared_error, "cross_entropy": cross_entropy}
CLASSES = 10


def mnist(
    n_train: int = 1000, n_val: int = 10_000, subset: str = "first", loss: str = "mse", side: int = 28
) -> Task:
    """x = pixels / 255 of an image, y = its digit.

    n_train: training images: the first of the file ("first", Grokfast's, the same for every seed) or drawn per seed
    ("random", Omnigrok's).  n_val: validation images, the last of the training file, which nobody trains on.
    loss: "mse" against the one-hot label, mean over the ten outputs, or "cross_entropy".
    side: pixels of an edge; 28 but for stand-ins. All test images test, in an order that is shuffled once: the first
    half of the file is the easier one (LeCun's note on it), and an evaluation looks at the first rows.
    """
    if min(n_train, n_val) < 1:
        raise ValueError(f"n_train, n_val >= 1 must hold, got n_train={n_train}, n_val={n_val}")
    if subset not in ("first", "random"):
        raise ValueError(f"subset must be 'first' or 'random', got {subset!r}")
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    if not 1 <= side <= 1024:
        raise ValueError(f"1 <= side <= 1024 must hold, got side={side}")

    def splits(seed: int, validation: float) -> Splits:
        files = data.find(DATASET)
        place = files[TRAIN_IMAGES].parent
        images, labels, first, val, test = _fixed(place, data.fingerprint(DATASET), n_train, n_val, side)
        train = first
        if subset == "random":
            rows = torch.randperm(len(images), generator=generator(seed, "split"))[:n_train].numpy()
            train = _split(images[rows], labels[rows])
        return Splits(train, val if validation else None, test)

    return Task(
        inputs=Inputs("vector", side * side), outputs=CLASSES, splits=splits, loss=LOSSES[loss], correct=top1
    )


@functools.lru_cache(maxsize=2)
def _fixed(
    place: Path, fingerprint: str, n_train: int, n_val: int, side: int
) -> tuple[np.ndarray, np.ndarray, Split, Split, Split]:
    """(images that may train, their labels; the first of them, validation, test: the same tensors for every seed)."""
    images, labels = _images(place / TRAIN_IMAGES, side), _labels(place / TRAIN_LABELS)
    tests, answers = _images(place / TEST_IMAGES, side), _labels(place / TEST_LABELS)
    for x, y, name in ((images, labels, TRAIN_LABELS), (tests, answers, TEST_LABELS)):
        if len(x) != len(y):
            raise InputError(f"{place / name}: has {len(y)} labels for {len(x)} images")
    free = len(images) - n_val
    if n_train > free:
        raise InputError(
            f"n_train + n_val <= {len(images)}, the images of {place / TRAIN_IMAGES}, must hold, got "
            f"n_train={n_train}, n_val={n_val}"
        )
    order = torch.randperm(len(tests), generator=generator(0, "split")).numpy()
    first, val = _split(images[:n_train], labels[:n_train]), _split(images[free:], labels[free:])
    return images[:free], labels[:free], first, val, _split(tests[order], answers[order])


def _images(path: Path, side: int) -> np.ndarray:
    images = data.read_idx(path)
    if images.shape[1:] != (side, side):
        raise InputError(f"{path}: holds images of shape {images.shape[1:]}, side={side} asks for ({side}, {side})")
    return images.reshape(len(images), side * side)


def _labels(path: Path) -> np.ndarray:
    labels = data.read_idx(path)
    if labels.ndim != 1 or labels.max(initial=0) >= CLASSES:
        raise InputError(f"{path}: holds no digits: shape {labels.shape}, largest {labels.max(initial=0)}")
    return labels


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(images.astype(np.float32)) / 255, torch.from_numpy(labels.astype(np.int64)))


def _files(**_: Any) -> str:
    return data.fingerprint(DATASET)


TASKS = [
    TaskEntry(
        "mnist", "a digit from 28 x 28 pixels, 1,000 images to train on", "Omnigrok, arXiv 2210.01117; Grokfast",
        mnist, DEFAULTS, threshold=0.85, horizon=100_000, model=MODEL, optimiser=OPTIMISER, data=_files,
        dataset=DATASET,
    ),
]  # fmt: skip
