"""Tasks whose labels depend on the step: what is asked when, and what the engine makes of it."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grokscale.stats.endpoints import area
from grokscale.tasks import modular, relabelled
from grokscale.tasks import parity as signs
from grokscale.tasks.base import Split, Task
from grokscale.tasks.curriculum import OUTSIDE, curriculum, loss_of_asked
from grokscale.train import train
from tests import reference as ref
from tests.trials import REGISTRY, trial

PARITY: dict[str, Any] = {"n": 9, "k": 2, "n_train": 120, "n_val": 60, "n_test": 80}


def at(task: Task, split: Split, step: int) -> Tensor:
    assert task.labels is not None
    return task.labels(split.y, step)


@pytest.mark.parametrize("make", [
    lambda: (relabelled.parity(relabel=10, phases=3, **PARITY), signs.parity(**PARITY)),
    lambda: (relabelled.pairs(relabel=10, phases=3, p=7), modular.pairs(p=7)),
], ids=["parity", "modular"])  # fmt: skip
def test_the_first_phase_is_the_plain_task_and_phases_take_turns(make: Any) -> None:
    task, plain = make()
    assert task.moving
    for split, before in zip(task.splits(5, 0.3), plain.splits(5, 0.3), strict=True):
        assert torch.equal(split.x, before.x)
        for step in (0, 1, 10, 31, 40, 61):
            assert torch.equal(at(task, split, step), before.y)
        second, third = at(task, split, 11), at(task, split, 30)
        assert torch.equal(second, at(task, split, 20))
        assert torch.equal(third, at(task, split, 21))
        for a, b in ((second, before.y), (third, before.y), (second, third)):
            assert not torch.equal(a, b)
    # Any leading axes: lanes, then rows.
    stacked = torch.stack([task.splits(seed, 0.0).train.y for seed in (1, 2)])
    assert task.labels(stacked, 11).shape == stacked.shape[:2]


def test_every_labelling_of_parity_is_a_parity() -> None:
    """Of exactly one set of k coordinates, the same for training, validation and test, another for another seed."""
    task = relabelled.parity(relabel=5, phases=4, **PARITY)
    found = []
    for seed, phase in product((1, 2), range(4)):
        sets = []
        for split in task.splits(seed, 0.2):
            assert split is not None
            y = at(task, split, 5 * phase + 1)
            sets += [(i, j) for i in range(9) for j in range(i) if torch.equal(split.x[:, i] * split.x[:, j], y)]
        assert len(sets) == 3 and len(set(sets)) == 1
        found.append(sets[0])
    assert found[0] == found[4] == (1, 0)
    assert found[1:4] != found[5:8]


def test_every_labelling_of_the_table_renames_its_answers() -> None:
    task, plain = relabelled.pairs(relabel=1, phases=5, p=11), modular.pairs(p=11)
    for phase in range(5):
        names: dict[int, int] = {}
        for split, before in zip(task.splits(3, 0.2), plain.splits(3, 0.2), strict=True):
            assert split is not None and before is not None
            for old, new in zip(before.y.tolist(), at(task, split, phase + 1).tolist(), strict=True):
                assert names.setdefault(old, new) == new
        assert sorted(names.values()) == list(range(11))


def test_the_engine_watches_to_the_horizon_through_every_phase() -> None:
    """Accuracy rises, falls with every change and rises again; nothing counts as a crossing; the area tells arms."""
    task = {"name": "parity-relabelled", "relabel": 400, "phases": 2, "n": 8, "k": 2, "n_train": 200, "n_val": 200,
            "n_test": 200}  # fmt: skip
    tables = {"task": task, "model": {"name": "mlp2", "width": 32, "bias": "normal"},
              "optimiser": {"lr": 0.1, "wd": 0.01, "batch": 32}}  # fmt: skip
    spec = trial(tables, threshold=0.9, every={"every": 0.0, "min": 5, "examples": 1024})
    *_, end = train(spec, [1, 2], horizon=800, registry=REGISTRY)
    assert end.step == 800
    for row in end.replicas():
        assert row["grok_step"] is row["first_step"] is row["val_grok_step"] is None
        assert row["observed_to"] == 800
        assert row["outcome"] in ("memorised", "unfitted")
    curves = end.curves()
    for seed in (1, 2):
        mine = curves["seed"] == seed
        step, test = curves["step"][mine], curves["test_acc"][mine]
        assert test[step == 400] > 0.9
        assert test[step == 405] < 0.75
        assert test[step == 800] > 0.9
        by_hand = np.trapezoid(test, step) / (800 - step[0])
        assert area(step, test, 800) == pytest.approx(by_hand)
        assert 0.5 < by_hand < 1


def test_what_no_longer_moves_has_crossings_again() -> None:
    """The same data with a first phase longer than the run, as the plain task: the same curve, and it groks."""
    plain = {"name": "parity", "n": 8, "k": 2, "n_train": 200, "n_val": 200, "n_test": 200}
    moving = {**plain, "name": "parity-relabelled", "relabel": 10_000}
    ends = []
    for task in (plain, moving):
        tables = {"task": task, "model": {"name": "mlp2", "width": 32, "bias": "normal"},
                  "optimiser": {"lr": 0.1, "wd": 0.01, "batch": 32}}  # fmt: skip
        *_, end = train(trial(tables, threshold=0.9, every={"every": 0.0, "min": 50, "examples": 1024}), [1, 2],
                        horizon=300, at_least=300, registry=REGISTRY)  # fmt: skip
        ends.append(end)
    a, b = (end.curves() for end in ends)
    assert all(np.array_equal(a[name], b[name]) for name in ("step", "train_loss", "test_acc"))
    assert [row["grok_step"] is None for row in ends[0].replicas()] == [False, False]
    assert [row["grok_step"] is None for row in ends[1].replicas()] == [True, True]


@pytest.mark.parametrize("options", [{"relabel": 0}, {"phases": 1}, {"phases": 101}])
@pytest.mark.parametrize("make", [relabelled.parity, relabelled.pairs])
def test_an_impossible_change_is_named(make: Any, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"relabel >= 1 and 2 <= phases <= 100 must hold, got relabel=\d+, phases=\d+"):
        make(**options)


# ------------------------------------------------------------------------------------------- curriculum


def test_the_bound_grows_from_start_to_p() -> None:
    task, plain = curriculum(p=11, start=4, grow=70), modular.pairs(p=11)
    train_, val, test = task.splits(2, 0.2)
    before = plain.splits(2, 0.2)
    assert torch.equal(train_.x, before.train.x)
    assert val is not None and before.val is not None
    for step, bound in ((0, 4), (1, 4), (10, 4), (11, 5), (21, 6), (61, 10), (70, 10), (71, 11), (9999, 11)):
        asked = [max(a, b) < bound for a, b in train_.x.tolist()]
        expected = [y if yes else OUTSIDE for y, yes in zip(before.train.y.tolist(), asked, strict=True)]
        assert at(task, train_, step).tolist() == expected
        assert torch.equal(at(task, val, step), before.val.y), "validation asks every row at every step"
        assert torch.equal(at(task, test, step), before.test.y)
    assert not task.moving, "what is to be learned stays: a crossing is one"


def test_rows_that_are_not_asked_have_no_loss_and_no_gradient() -> None:
    source = torch.Generator().manual_seed(0)
    out = torch.randn(6, 5, generator=source, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([1, OUTSIDE, 4, OUTSIDE, 0, OUTSIDE])
    loss = loss_of_asked(out, y)
    assert torch.allclose(loss, ref.cross_entropy(out[[0, 2, 4]], y[[0, 2, 4]]), rtol=1e-12)
    loss.backward()
    assert out.grad is not None
    assert not out.grad[[1, 3, 5]].any()
    assert out.grad[[0, 2, 4]].any()
    nothing = loss_of_asked(out, torch.full((6,), OUTSIDE))
    assert nothing.item() == 0.0


@pytest.mark.parametrize("options", [{"start": 0}, {"start": 98}, {"grow": 0}])
def test_an_impossible_curriculum_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"1 <= start <= p and grow >= 1 must hold"):
        curriculum(**options)


def test_there_are_no_more_phases_than_labellings() -> None:
    """All of them can be had, each once: 3 pairs of three coordinates."""
    task = relabelled.parity(relabel=1, phases=3, n=3, k=2, n_train=50, n_val=1, n_test=1)
    assert len({tuple(row) for row in task.splits(0, 0.0).train.y.T.tolist()}) == 3
    with pytest.raises(ValueError, match="2 <= phases <= 3 must hold"):
        relabelled.parity(phases=4, n=3, k=2)
