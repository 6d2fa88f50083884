"""Laws of every task: sizes, labels, disjoint splits, one split per seed, validation apart from test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grokscale import registry
from grokscale.tasks.base import Split, Splits, Task
from grokscale.tasks.modular import pairs, tokens
from grokscale.tasks.parity import parity
from tests import reference as ref

TABLES: list[tuple[str, Callable[..., Task], dict[str, Any]]] = [
    ("pairs", pairs, {"p": 11}),
    ("pairs-mul-thirty", pairs, {"p": 13, "op": "mul", "fraction": 0.3}),
    ("pairs-sub", pairs, {"p": 12, "op": "sub"}),
    ("tokens", tokens, {"p": 11}),
    ("tokens-add", tokens, {"p": 13, "op": "add", "fraction": 0.4}),
]
PARITY: dict[str, Any] = {"n": 20, "k": 3, "n_train": 200, "n_val": 300, "n_test": 400}


def parts(splits: Splits) -> dict[str, Split]:
    named = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {name: split for name, split in named.items() if split is not None}


def same(a: Splits, b: Splits) -> bool:
    left, right = parts(a), parts(b)
    return left.keys() == right.keys() and all(
        torch.equal(left[k].x, right[k].x) and torch.equal(left[k].y, right[k].y) for k in left
    )


def rows(split: Split) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in row) for row in split.x]


@pytest.mark.parametrize(("p", "train", "steps"), [(79, 3120, 6), (97, 4704, 9), (127, 8064, 15)])
def test_pair_sizes_of_the_paper(p: int, train: int, steps: int) -> None:
    splits = pairs(p=p).splits(0, 0.2)
    rest = p * p - train
    assert splits.val is not None
    assert [len(splits.train.y), len(splits.val.y), len(splits.test.y)] == [
        train, int(0.2 * rest), rest - int(0.2 * rest)]  # fmt: skip
    assert train // 512 == steps


def test_token_sizes_of_the_paper() -> None:
    splits = tokens(p=97).splits(0, 0.0)
    assert splits.val is None
    assert len(splits.train.y) == len(splits.test.y) == 4656
    assert -(-4656 // 512) == 10
    with_validation = tokens(p=97).splits(0, 0.2)
    assert with_validation.val is not None
    assert len(with_validation.val.y) + len(with_validation.test.y) == 4656
    assert len(with_validation.val.y) == 931


@pytest.mark.parametrize(("name", "factory", "options"), TABLES, ids=[name for name, *_ in TABLES])
def test_tables_hold_every_row_once_and_rightly_labelled(
    name: str, factory: Callable[..., Task], options: dict[str, Any]
) -> None:
    task = factory(**options)
    p, op = options["p"], options.get("op", "mul" if factory is tokens else "add")
    truth = {(a, b): r for a, b, r in ref.modular_rows(p, op, include_zero=factory is pairs)}
    seen: dict[tuple[int, int], int] = {}
    for split in parts(task.splits(3, 0.2)).values():
        for row, label in zip(rows(split), split.y.tolist(), strict=True):
            if factory is tokens:
                assert (row[1], row[3]) == (p + 1, p)
            pair = (row[0], row[2] if factory is tokens else row[1])
            assert pair not in seen, "two splits share a row"
            seen[pair] = label
    assert seen == truth
    assert len(task.splits(3, 0.2).train.y) == int(options.get("fraction", 0.5) * len(truth))


@pytest.mark.parametrize(("name", "factory", "options"), TABLES, ids=[name for name, *_ in TABLES])
def test_validation_is_carved_out_of_the_test_half_only(
    name: str, factory: Callable[..., Task], options: dict[str, Any]
) -> None:
    task = factory(**options)
    without, with_fifth, with_half = (task.splits(5, share) for share in (0.0, 0.2, 0.5))
    assert without.val is None
    assert torch.equal(without.train.x, with_fifth.train.x)
    assert torch.equal(without.train.x, with_half.train.x)
    assert with_fifth.val is not None
    assert len(with_fifth.val.y) == int(0.2 * len(without.test.y))
    assert sorted(rows(with_fifth.val) + rows(with_fifth.test)) == sorted(rows(without.test))


@pytest.mark.parametrize("task", [parity(**PARITY), *(f(**o) for _, f, o in TABLES)])
def test_a_split_is_a_function_of_its_seed(task: Task) -> None:
    before = torch.random.get_rng_state()
    assert same(task.splits(7, 0.2), task.splits(7, 0.2))
    assert not torch.equal(task.splits(7, 0.2).train.x, task.splits(8, 0.2).train.x)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"


def test_parity_labels_and_encoding() -> None:
    for split in parts(parity(**PARITY).splits(1, 0.2)).values():
        assert set(split.x.unique().tolist()) == {-1, 1}
        for row, label in zip(split.x.tolist(), split.y.tolist(), strict=True):
            assert label == ref.parity_label(row, 3)


def test_parity_sizes_and_independent_validation() -> None:
    task = parity(**PARITY)
    with_validation, without = task.splits(2, 0.2), task.splits(2, 0.0)
    assert without.val is None
    assert with_validation.val is not None
    assert [len(s.y) for s in parts(with_validation).values()] == [200, 300, 400]
    assert torch.equal(with_validation.train.x, without.train.x)
    assert torch.equal(with_validation.test.x, without.test.x), "fresh draws take nothing from the test rows"
    seen = {name: set(rows(split)) for name, split in parts(parity(**{**PARITY, "n": 60}).splits(2, 0.2)).items()}
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]


def test_parity_signs_are_fair() -> None:
    x = parity(n=50, k=3, n_train=4000, n_test=1, n_val=1).splits(0, 0.2).train.x.double()
    assert x.mean().abs() < 5 / (4000 * 50) ** 0.5
    assert x.mean(0).abs().max() < 5 / 4000**0.5


@pytest.mark.parametrize(("loss", "oracle"), [("mse", ref.squared_error), ("hinge", ref.hinge)])
def test_parity_loss_and_accuracy_are_the_references(loss: str, oracle: Callable[[Tensor, Tensor], Tensor]) -> None:
    task = parity(**PARITY, loss=loss)
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(40, 1, generator=generator, dtype=torch.float64)
    out[0] = 0.0  # on the fence: wrong whatever the label
    y = task.splits(0, 0.0).train.y[:40]
    assert torch.allclose(task.loss(out, y), oracle(out, y), rtol=1e-14)
    assert float(task.correct(out, y).double().mean()) == ref.sign_accuracy(out, y)


@pytest.mark.parametrize("task", [pairs(p=11), tokens(p=11)], ids=["pairs", "tokens"])
def test_modular_loss_and_accuracy_are_the_references(task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    y = task.splits(0, 0.0).train.y[:40]
    out = 3 * torch.randn(40, task.outputs, generator=generator, dtype=torch.float64)
    assert torch.allclose(task.loss(out, y), ref.cross_entropy(out, y), rtol=1e-13)
    assert float(task.correct(out, y).double().mean()) == ref.class_accuracy(out, y)


@pytest.mark.parametrize(
    ("factory", "options", "named"),
    [
        (pairs, {"p": 1}, "p"),
        (pairs, {"op": "gcd"}, "op"),
        (pairs, {"fraction": 1.0}, "fraction"),
        (tokens, {"fraction": 0.0}, "fraction"),
        (tokens, {"op": "pow"}, "op"),
        (parity, {"n": 3, "k": 4}, "k"),
        (parity, {"n_train": 0}, "n_train"),
        (parity, {"loss": "l1"}, "loss"),
    ],
)
def test_an_impossible_option_is_named(factory: Callable[..., Task], options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        factory(**options)


TASKS = registry.load().tasks


@pytest.mark.parametrize(
    ("name", "n", "k", "width", "lr", "wd", "epochs"),
    [
        ("parity-400-2", 400, 2, 50, 0.01, 1e-3, 10_100),
        ("parity", 100, 3, 100, 0.0416239, 1e-2, 2000),
        ("parity-50-4", 50, 4, 100, 0.0230841, 1e-2, 6000),
    ],
)
def test_parity_presets_are_the_published_ones(
    name: str, n: int, k: int, width: int, lr: float, wd: float, epochs: int
) -> None:
    """The table of methods.md 3.6; rates to three digits, as the paper's text rounds the code's."""
    entry = TASKS[name]
    assert (entry.defaults["n"], entry.defaults["k"], entry.defaults["n_train"]) == (n, k, 2000)
    assert entry.model == {"name": "mlp2", "width": width, "bias": "normal"}
    settings = dict(entry.optimiser)
    assert settings.pop("lr") == pytest.approx(lr, rel=1e-3)
    assert settings == {"name": "sgd", "wd": wd, "decay": "inside", "batch": 32, "drop_last": True}
    steps = entry.defaults["n_train"] // 32
    assert steps == 62
    assert entry.horizon == (epochs * steps if name != "parity" else 100_000)
    assert entry.defaults["loss"] == "mse", "what the released code computes; hinge is the text's"


@pytest.mark.parametrize("name", sorted(TASKS))
def test_entries_are_complete(name: str) -> None:
    entry = TASKS[name]
    assert entry.name == name
    assert entry.summary
    assert entry.source
    assert 0 < entry.threshold <= 1
    assert entry.horizon > 0
    registered = registry.load().models[entry.model["name"]]
    assert set(entry.model) - {"name"} <= set(registered.defaults)
    task = entry.factory(**entry.defaults)
    assert (entry.dataset is None) == (entry.data is None)
    if entry.dataset is None:  # test_data_tasks has the files of the others
        assert parts(task.splits(0, 0.2)).keys() == {"train", "val", "test"}
    options = {k: v for k, v in entry.model.items() if k != "name"}
    assert registered.build(task, **{**registered.defaults, **options}).roles
