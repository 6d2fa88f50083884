"""Polarizability of small molecules from 50 of them (Grokfast, methods.md 3.9)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grokscale import data
from grokscale.data import DataFile, Dataset
from grokscale.entries import TaskEntry
from grokscale.errors import InputError
from grokscale.rng import generator
from grokscale.tasks.base import Inputs, Split, Splits, Task

DATASET = Dataset(
    "qm9",
    (
        DataFile(
            "qm9_b3lyp_14715.csv.gz", "58dd895454b48f5d7c747469f2c9548948177bfc48844b7002df91036c2c2c70", 1_403_268
        ),
    ),
    "14,715 QM9 molecules in gdb order, SMILES and B3LYP properties; Ramakrishnan et al., Sci. Data 2014; commonly "
    "stated CC0",
)

DEFAULTS: dict[str, Any] = {
    "rows": 100, "fraction": 0.5, "n_val": 100, "atoms": 29, "target": "alpha", "tolerance": 5.0,
}  # fmt: skip
MODEL = {"name": "graph", "width": 32, "out": 16, "hidden": 32, "scale": 3.0}
OPTIMISER = {
    "name": "adamw", "lr": 1e-3, "wd": 0.0, "beta1": 0.9, "beta2": 0.999, "decay": "decoupled", "batch": 32,
    "drop_last": False,
}  # fmt: skip
ELEMENTS = (1, 6, 7, 8, 9)
FEATURES = 11  # one-hot element (5), atomic number, aromatic, sp, sp2, sp3, hydrogens joined
BONDS = ("SINGLE", "DOUBLE", "TRIPLE", "AROMATIC")


def qm9(
    rows: int = 100, fraction: float = 0.5, n_val: int = 100, atoms: int = 29, target: str = "alpha",
    tolerance: float = 5.0,
) -> Task:  # fmt: skip
    """x = a molecule's graph, hydrogens included; y = one of its properties, raw.

    rows: the first molecules of the file, split per seed; int(fraction rows) train.  n_val: validation molecules, the
    next ones of the file, which are a little larger.  atoms: of a molecule at most (QM9 has none above 29).
    target: column of the file; alpha is the isotropic polarizability in bohr^3.
    tolerance: an answer counts as correct within it: |out - y| <= tolerance. Five is a tenth of a usual alpha, and
    0.6 of its standard deviation. The paper has no accuracy; its metric is the smallest validation loss, which is read
    from the curve.
    """
    if rows < 2 or n_val < 1:
        raise ValueError(f"rows >= 2 and n_val >= 1 must hold, got rows={rows}, n_val={n_val}")
    if not 1 <= int(fraction * rows) < rows:
        raise ValueError(f"1 <= int(fraction rows) < rows must hold, got fraction={fraction}, rows={rows}")
    if atoms < 1:
        raise ValueError(f"atoms >= 1 must hold, got atoms={atoms}")
    if not tolerance > 0:
        raise ValueError(f"tolerance > 0 must hold, got tolerance={tolerance}")

    def splits(seed: int, validation: float) -> Splits:
        [path] = data.find(DATASET).values()
        x, y, val = _molecules(path, data.fingerprint(DATASET), rows, n_val, atoms, target)
        order = torch.randperm(rows, generator=generator(seed, "split"))
        train, test = order[: int(fraction * rows)], order[int(fraction * rows) :]
        return Splits(Split(x[train], y[train]), val if validation else None, Split(x[test], y[test]))

    return Task(
        inputs=Inputs("graph", FEATURES, atoms, table=len(BONDS)),
        outputs=1,
        splits=splits,
        loss=lambda out, y: ((out.squeeze(-1) - y.to(out.dtype)) ** 2).mean(),
        correct=lambda out, y: (out.squeeze(-1) - y.to(out.dtype)).abs() <= tolerance,
    )


@functools.lru_cache(maxsize=2)
def _molecules(
    path: Path, fingerprint: str, rows: int, n_val: int, atoms: int, target: str
) -> tuple[Tensor, Tensor, Split]:
    """(graphs and properties of the first `rows` molecules, the validation ones: the same tensors for every seed)."""
    table = data.read_csv(path, ("smiles", target), rows + n_val)
    if len(table) < rows + n_val:
        raise InputError(f"rows + n_val <= {len(table)}, the molecules of {path}, must hold, got {rows + n_val}")
    x = torch.from_numpy(np.stack([graph(smiles, atoms) for smiles, _ in table]))
    try:
        y = torch.tensor([float(value) for _, value in table], dtype=torch.float64)
    except ValueError as error:
        raise InputError(f"{path}: column {target}, target: {error}") from None
    return x[:rows], y[:rows], Split(x[rows:], y[rows:])


def graph(smiles: str, atoms: int) -> np.ndarray:
    """A molecule as (atoms, FEATURES + 4 atoms) int8, in the layout of Inputs: features of PyG's QM9, then bonds.

    Hydrogens are nodes. An aromatic bond is of the fourth kind. A padded row is zero.
    Raises InputError for a text that is no molecule, another element, or more than `atoms` atoms.
    """
    data.need("rdkit", "qm9")
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise InputError(f"{DATASET.name}: {smiles!r} is no SMILES of a molecule")
    molecule = Chem.AddHs(molecule)
    nodes = list(molecule.GetAtoms())
    if len(nodes) > atoms:
        raise InputError(f"{DATASET.name}: {smiles} has {len(nodes)} atoms, atoms={atoms} is the most that is allowed")
    hybrids = {Chem.HybridizationType.SP: 7, Chem.HybridizationType.SP2: 8, Chem.HybridizationType.SP3: 9}
    out = np.zeros((atoms, FEATURES + len(BONDS) * atoms), dtype=np.int8)
    for i, atom in enumerate(nodes):
        number = atom.GetAtomicNum()
        if number not in ELEMENTS:
            raise InputError(f"{DATASET.name}: {smiles} has the element {atom.GetSymbol()}; allowed: H, C, N, O, F")
        out[i, ELEMENTS.index(number)] = 1
        out[i, 5], out[i, 6] = number, atom.GetIsAromatic()
        if (column := hybrids.get(atom.GetHybridization())) is not None:
            out[i, column] = 1
        out[i, 10] = sum(other.GetAtomicNum() == 1 for other in atom.GetNeighbors())
    for bond in molecule.GetBonds():
        kind, i, j = BONDS.index(bond.GetBondType().name), bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        out[i, FEATURES + kind * atoms + j] = out[j, FEATURES + kind * atoms + i] = 1
    return out


def _files(**_: Any) -> str:
    data.need("rdkit", "qm9")
    return data.fingerprint(DATASET)


TASKS = [
    TaskEntry(
        "qm9", "isotropic polarizability of a molecule, 50 molecules to train on", "Grokfast, arXiv 2405.20233",
        qm9, DEFAULTS, threshold=0.9, horizon=100_000, model=MODEL, optimiser=OPTIMISER, data=_files,
        dataset=DATASET,
    ),
]  # fmt: skip
