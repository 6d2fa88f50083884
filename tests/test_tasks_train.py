"""Every task at a tiny size: trained by the engine for a few hundred steps, its loss falls; its rows suit its model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call

from grokscale.models import initial
from grokscale.train import train
from tests.trials import REGISTRY, trial

DECODER: dict[str, Any] = {"dim": 16, "heads": 2}
ADAM: dict[str, Any] = {"lr": 3e-3, "batch": 32}
# task -> options, model options and optimiser settings over the entry's presets.
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "parity": ({"n": 10, "k": 2, "n_train": 100, "n_val": 50, "n_test": 50}, {"width": 16}, {"lr": 0.1, "batch": 16}),
    "parity-400-2": ({"n": 10, "n_train": 100, "n_val": 50, "n_test": 50}, {"width": 16}, {"lr": 0.1, "batch": 16}),
    "parity-50-4": (
        {"n": 8, "n_train": 60, "n_val": 50, "n_test": 50, "loss": "hinge"}, {"width": 32}, {"lr": 0.2, "batch": 16}),
    "modular-pairs": ({"p": 7, "op": "div"}, {"width": 32}, {"batch": 8}),
    "modular-tokens": ({"p": 7, "op": "x2+xy+y2"}, DECODER, ADAM),
    "modular-composite": ({"p": 7}, DECODER, ADAM),
    "modular-composite-5": ({"p": 3}, {"dim": 32, "heads": 2}, {**ADAM, "lr": 5e-3}),
    "permutations": ({"fraction": 0.02}, {"dim": 32, "heads": 2}, {**ADAM, "wd": 0.1}),
    "parity-relabelled": (
        {"n": 10, "k": 2, "n_train": 100, "n_val": 50, "n_test": 50, "relabel": 500}, {"width": 16},
        {"lr": 0.1, "batch": 16}),
    "modular-relabelled": ({"p": 7, "relabel": 500}, {"width": 32}, {"batch": 8}),
    "modular-curriculum": ({"p": 7, "start": 6, "grow": 20}, {"width": 32}, {"batch": 8}),
    "sort": ({"values": 5, "length": 3, "rows": 300}, DECODER, ADAM),
    "reverse": ({"values": 4, "length": 3}, DECODER, ADAM),
    "reachability": ({"nodes": 4, "edges": 4, "rows": 200}, DECODER, ADAM),
    "toy": ({"eps": 0.1, "n_train": 200, "n_val": 50, "n_test": 50}, {}, {"batch": 200}),
}
NAMES = sorted(name for name, t in REGISTRY.tasks.items() if t.factory.__module__.startswith("grokscale.tasks."))


def tables(name: str) -> dict[str, dict[str, Any]]:
    entry, (task, model, optimiser) = REGISTRY.tasks[name], SMALL[name]
    return {
        "task": {"name": name, **task}, "model": {**entry.model, **model},
        "optimiser": {**entry.optimiser, **optimiser},
    }  # fmt: skip


def test_every_task_is_tried() -> None:
    assert {name for name in NAMES if REGISTRY.tasks[name].data is None} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_the_train_loss_falls(name: str) -> None:
    spec = trial(tables(name), threshold=1.1, every={"every": 0.0, "min": 25, "examples": 512})
    looks = list(train(spec, [1, 2], horizon=100, registry=REGISTRY))
    loss = np.array([look.metrics["train_loss"] for look in looks])  # (looks, seeds)
    assert np.isfinite(loss).all()
    assert (loss[-1] < 0.9 * loss[0]).all(), loss


@pytest.mark.parametrize("name", [name for name in SMALL if REGISTRY.tasks[name].model["name"] == "decoder"])
def test_what_a_task_says_of_its_tokens_is_true(name: str) -> None:
    """The decoder relies on it to compute once what many rows share: as without, for few and for many rows."""
    entry, (options, sizes, _) = REGISTRY.tasks[name], SMALL[name]
    task = entry.factory(**{**entry.defaults, **options})
    blind = replace(task, inputs=task.inputs._replace(alphabet=()))
    build = REGISTRY.models["decoder"].build
    know, not_know = (build(t, **{"layers": entry.model["layers"], **sizes}) for t in (task, blind))
    params = initial(know, torch.Generator().manual_seed(0), torch.float64)
    x = task.splits(0, 0.0).train.x
    for rows in (1, 5, len(x)):
        ours, plain = (functional_call(model, params, (x[:rows],)) for model in (know, not_know))
        assert torch.allclose(ours, plain, rtol=1e-10, atol=1e-12)
    assert int(x.max()) < task.inputs.size
    assert int(task.splits(0, 0.0).train.y.max()) < task.outputs
