"""Weights of replicas that `keep` asks for: written by the worker that trains them, given back as a model."""

from __future__ import annotations

import contextlib
import os
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from grokscale import registry
from grokscale.errors import GrokscaleError, StoreError
from grokscale.spec import TrialSpec
from grokscale.store import Store
from grokscale.store.kept import WEIGHTS
from grokscale.tasks.base import Split
from grokscale.train import Kept
from grokscale.train.program import Program

ROWS = 2048  # of a split that are looked at together


@dataclass(frozen=True)
class LoadedModel:
    """A replica as it was after `step` steps.

    model: the network, with params in it, on the CPU.  params: by name.  learned: what the method learned, as a file
    that it can start from (an amplifier); None where it learns nothing.  steps: all steps that are kept of the replica.
    """

    model: nn.Module
    params: dict[str, Tensor]
    learned: bytes | None
    spec: TrialSpec
    seed: int
    step: int
    steps: tuple[int, ...]
    _program: Program = field(repr=False)

    @torch.no_grad()
    def accuracy(self, split: str = "test") -> float:
        """Share of a whole split that the model gets right, as `final_acc` counts it. split: train, val or test.

        Raises ValueError for another split, or one that the task does not have.
        """
        splits, program, right = self._program.splits(self.seed)[0], self._program, 0.0
        rows = getattr(splits, split) if split in ("train", "val", "test") else None
        if rows is None:
            raise ValueError(f"split must be train, val or test, and one that the task gives, got {split!r}")
        for at in range(0, len(rows.y), ROWS):
            part = Split(rows.x[at : at + ROWS], rows.y[at : at + ROWS])
            if program.task.labels is not None:
                part = Split(part.x, program.task.labels(part.y, self.step))
            right += float(program.look(self.params, part)[1])
        return right / len(rows.y)


def write_weights(store: Store, spec: TrialSpec, kept: Kept) -> Path:
    """Write the weights of a replica as tensors; a cut leaves nothing under the name."""
    path = store.folder(WEIGHTS, spec.trial_id) / f"{kept.seed}-{kept.step}.pt"
    content = {"params": {name: p.clone() for name, p in kept.params.items()}}
    if kept.learned is not None:
        content["learned"] = {"file": torch.frombuffer(bytearray(kept.learned), dtype=torch.uint8)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where the disk is full
        raise StoreError(f"{path}: cannot write to the store: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def load_model(store: Store, trial_id: str, seed: int, step: int | None = None) -> LoadedModel:
    """The model and the parameters of a replica whose experiment says keep = "final" or "log-spaced".

    trial_id, seed: as `Store.replicas` has them.  step: one of those that are kept, the last of its run by default.
    Raises GrokscaleError for a replica that the store does not have, or has without weights.
    """
    found = store.replicas(trial_id=trial_id, seed=seed).to_pylist()
    if not found:
        raise GrokscaleError(f"{store.root}: no replica of trial {trial_id} with seed {seed}")
    row = found[0]
    step = int(row["steps"]) if step is None else step
    folder = None if store.local is None else store.local / WEIGHTS / trial_id
    there = [] if folder is None else [int(one.stem.rpartition("-")[2]) for one in folder.glob(f"{seed}-*.pt")]
    if folder is None or step not in there:
        kept = f"after {', '.join(map(str, sorted(there)))} steps" if there else "at no step"
        raise GrokscaleError(
            f"{store.root}: the weights of trial {trial_id}, seed {seed}, after {step} steps are not kept ({kept}); "
            'what is stored is not trained again: put keep = "final" into the experiment and run it into a new store '
            "(--store DIR)"
        )
    path = folder / f"{seed}-{step}.pt"
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise GrokscaleError(f"{path}: cannot be read: {error}") from error
    spec = TrialSpec.from_json(row["spec_json"])
    program = Program(spec, registry.load(spec.plugins), "cpu")
    params, learned = content["params"], content.get("learned")
    model = program.model
    model.load_state_dict(params, assign=True)  # a model is declared without storage
    data = None if learned is None else bytes(learned["file"].tolist())
    return LoadedModel(model, params, data, spec, seed, step, tuple(sorted(there)), program)
