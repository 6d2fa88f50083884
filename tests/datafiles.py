"""Small data files in the formats of the real ones, and where the real ones are."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
GIVEN = os.environ.get("GROKSCALE_DATA")  # before tests set it to folders of their own

MNIST = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz",
         "t10k-labels-idx1-ubyte.gz")  # fmt: skip
IMDB = "imdb_5000.csv.gz"
QM9 = "qm9_b3lyp_14715.csv.gz"

GOOD = ("splendid", "moving", "joy", "gem", "warm")
BAD = ("dull", "awful", "waste", "mess", "cold")
NEUTRAL = ("film", "actor", "scene", "plot", "camera", "music", "hour", "screen")
MOLECULES = ("C", "N", "O", "CC", "CO", "C=O", "C#N", "C#C", "CCO", "c1ccccc1", "C1CC1", "CF", "NC=O", "CC#N", "COC",
             "c1cc[nH]c1")  # fmt: skip


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as a gzipped IDX file."""
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def table(header: list[str], rows: list[list[str]]) -> bytes:
    """Rows as a gzipped CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    return gzip.compress(text.getvalue().encode(), mtime=0)


def put(folder: Path, name: str, files: dict[str, bytes], sums: bool = True) -> Path:
    """Write FOLDER/NAME/FILE for every file, and their SHA256SUMS as `sha256sum` would."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (place / file).write_bytes(content)
    if sums:
        lines = [f"{hashlib.sha256(content).hexdigest()}  {file}\n" for file, content in files.items()]
        (place / "SHA256SUMS").write_text("".join(lines))
    return place


def mnist_arrays(n_train: int = 60, n_test: int = 40, side: int = 6, seed: int = 0) -> list[np.ndarray]:
    """Training images, labels, test images, labels: a bright row or column per digit, under noise."""
    source = np.random.default_rng(seed)
    out: list[np.ndarray] = []
    for n in (n_train, n_test):
        labels = source.integers(0, 10, n)
        images = source.integers(0, 60, (n, side, side))
        for image, label in zip(images, labels, strict=True):
            line = image if label < 5 else image.T
            line[label % 5] += 180
        out += [images, labels]
    return out


def write_mnist(folder: Path, n_train: int = 60, n_test: int = 40, side: int = 6, seed: int = 0) -> Path:
    arrays = mnist_arrays(n_train, n_test, side, seed)
    return put(folder, "mnist", {name: idx(array) for name, array in zip(MNIST, arrays, strict=True)})


def reviews(n: int = 120, seed: int = 0) -> list[list[str]]:
    """[review, label] rows: neutral words among good or bad ones, with the marks that real reviews have."""
    source = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        label = int(source.integers(0, 2))
        mood = list(source.choice(GOOD if label else BAD, 3))
        words = [str(word) for word in (*mood, *source.choice(NEUTRAL, 6))]
        source.shuffle(words)
        text = f'The {words[0].upper()}, and "{words[1]}"!<br /><br />' + " ".join(words[2:]) + " 10"
        rows.append([text, str(label)])
    return rows


def write_imdb(folder: Path, n: int = 120, seed: int = 0) -> Path:
    return put(folder, "imdb", {IMDB: table(["review", "label"], reviews(n, seed))})


def molecules(n: int = 48) -> list[list[str]]:
    """[mol_id, smiles, mu, alpha] rows; alpha grows with the length of the name."""
    names = [MOLECULES[i % len(MOLECULES)] for i in range(n)]
    return [[f"gdb_{i}", name, "0.5", f"{5 + 2.5 * len(name)}"] for i, name in enumerate(names)]


def write_qm9(folder: Path, n: int = 48) -> Path:
    return put(folder, "qm9", {QM9: table(["mol_id", "smiles", "mu", "alpha"], molecules(n))})


def write_all(folder: Path) -> Path:
    for write in (write_mnist, write_imdb, write_qm9):
        write(folder)
    return folder


def real(name: str) -> Path:
    """The folder that holds the real files of a dataset; skips the test where there is none."""
    folder = Path(GIVEN) if GIVEN else ROOT.parent / "shared" / "data"
    if not (folder / name).is_dir() or (folder / name / "SHA256SUMS").exists():
        pytest.skip(f"the real files of {name} are not in {folder}")
    return folder
