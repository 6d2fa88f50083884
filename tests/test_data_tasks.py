"""Tasks that read files, and their models: against slow twins, on small files of the same formats and the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # here: its import draws from Python's generator
from torch import Tensor
from torch.func import functional_call, grad
from torch.utils import _pytree as pytree

from grokscale import data, registry, solo
from grokscale.errors import GrokscaleError, InputError
from grokscale.models import Model, initial
from grokscale.spec import TrialSpec, parse, seed_for
from grokscale.store import Store
from grokscale.sweep import run_sweep
from grokscale.tasks.base import Inputs, Splits, Task, squared_error
from grokscale.tasks.imdb import imdb
from grokscale.tasks.mnist import mnist
from grokscale.tasks.qm9 import FEATURES, graph, qm9
from grokscale.train import Evaluation, train
from grokscale.train.costs import counted
from grokscale.transform import Params
from tests import datafiles
from tests import reference_data as ref
from tests.trials import REGISTRY, trial

MNIST: dict[str, Any] = {"n_train": 30, "n_val": 20, "side": 6}
IMDB: dict[str, Any] = {"rows": 80, "n_val": 30, "vocabulary": 12, "length": 8}
QM9: dict[str, Any] = {"rows": 32, "n_val": 12, "atoms": 12, "tolerance": 5.0}
TASKS = {"mnist": (mnist, MNIST), "imdb": (imdb, IMDB), "qm9": (qm9, QM9)}
MODELS: dict[str, dict[str, Any]] = {
    "mnist": {"name": "mlp", "width": 7, "scale": 2.0},
    "imdb": {"name": "lstm", "dim": 5, "width": 6, "layers": 2, "scale": 1.5},
    "qm9": {"name": "graph", "width": 6, "out": 4, "hidden": 5, "scale": 0.2},
}
BATCH = {"mnist": 10, "imdb": 12, "qm9": 6}
LR = {"mnist": 1e-2, "imdb": 1e-2, "qm9": 3e-3}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return datafiles.write_all(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def folder(files: Path) -> Path:
    data.use(files)
    return files


def make(name: str, **options: Any) -> Task:
    factory, small = TASKS[name]
    return factory(**{**small, **options})


def model_of(name: str, task: Task, **options: Any) -> Model:
    table = {k: v for k, v in {**MODELS[name], **options}.items() if k != "name"}
    return REGISTRY.models[MODELS[name]["name"]].build(task, **table)


def draw(model: Model, seed: int = 0) -> Params:
    """First weights, moved a little: biases that start at zero would hide one that is left out."""
    source = torch.Generator().manual_seed(seed)
    params = initial(model, source, torch.float64)
    return {k: p + 0.1 * torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}


def apply(model: Model, params: Params, x: Tensor) -> Tensor:
    return functional_call(model, params, (x,))


def loss_gradient(model: Model, task: Task, params: Params, x: Tensor, y: Tensor) -> Params:
    return grad(lambda p: task.loss(apply(model, p, x), y))(params)


def row_set(x: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


# ---------------------------------------------------------------------------------------------- every task


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_made_without_its_files(name: str, tmp_path: Path) -> None:
    data.use(tmp_path)
    task = make(name)
    assert model_of(name, task).roles
    with pytest.raises(InputError, match=rf"is missing; expected sha256.*\n.*grokscale data fetch {name}"):
        task.splits(0, 0.2)


@pytest.mark.parametrize("name", TASKS)
def test_a_split_is_a_function_of_its_seed(name: str) -> None:
    before = torch.random.get_rng_state()
    a, b, c = make(name).splits(3, 0.2), make(name).splits(3, 0.2), make(name).splits(4, 0.2)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"
    assert pytree.tree_all(lambda t: t, pytree.tree_map(torch.equal, tuple(a), tuple(b)))
    assert torch.equal(a.train.x, c.train.x) == (name == "mnist"), "the first images train, whatever the seed"
    without = make(name).splits(3, 0.0)
    assert without.val is None
    assert torch.equal(without.train.x, a.train.x) and torch.equal(without.test.x, a.test.x)


@pytest.mark.parametrize("name", TASKS)
def test_what_does_not_depend_on_the_seed_is_one_object(name: str) -> None:
    a, b = (make(name).splits(seed, 0.2) for seed in (1, 2))
    shared = {"mnist": ("train", "val", "test"), "imdb": (), "qm9": ("val",)}[name]
    for part in ("train", "val", "test"):
        left, right = getattr(a, part), getattr(b, part)
        assert (left.x is right.x and left.y is right.y) == (part in shared), part


@pytest.mark.parametrize("name", TASKS)
def test_every_parameter_has_a_role(name: str) -> None:
    model = model_of(name, make(name))
    params = initial(model, torch.Generator().manual_seed(0))
    assert set(model.roles) == set(params) == {key for key, _ in model.named_parameters()}
    for key, role in model.roles.items():
        assert role.kind in {"hidden", "embedding", "head", "bias"}
        assert (role.kind == "bias") == (params[key].ndim == 1)
        assert params[key].shape[role.out_dim] > 0
    assert {role.kind for role in model.roles.values()} >= {"hidden", "head", "bias"}


@pytest.mark.parametrize("name", TASKS)
def test_scale_multiplies_every_first_parameter(name: str) -> None:
    one, six = (
        initial(model_of(name, make(name), scale=scale), torch.Generator().manual_seed(3)) for scale in (1.0, 6.0)
    )
    assert all(torch.equal(six[k], 6 * one[k]) for k in one)


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("mnist", {"n_train": 0}, "n_train"), ("mnist", {"n_val": 0}, "n_val"), ("mnist", {"subset": "last"}, "subset"),
        ("mnist", {"loss": "l1"}, "loss"), ("mnist", {"side": 0}, "side"),
        ("imdb", {"fraction": 1.0}, "fraction"), ("imdb", {"length": 0}, "length"),
        ("imdb", {"vocabulary": 0}, "vocabulary"), ("qm9", {"rows": 1}, "rows"),
        ("qm9", {"fraction": 0.0}, "fraction"), ("qm9", {"atoms": 0}, "atoms"),
        ("qm9", {"tolerance": 0.0}, "tolerance"),
    ],
)  # fmt: skip
def test_an_impossible_option_is_named(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"\b{named}\b"):
        make(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("mnist", {"n_train": 50}, r"n_train \+ n_val <= 60"), ("mnist", {"side": 7}, r"side=7 asks for \(7, 7\)"),
        ("imdb", {"rows": 100}, r"rows \+ n_val <= 120"), ("qm9", {"rows": 40}, r"rows \+ n_val <= 48"),
        ("qm9", {"atoms": 5}, r"has 8 atoms, atoms=5"), ("qm9", {"target": "charm"}, "has no column charm"),
    ],
)  # fmt: skip
def test_what_the_files_cannot_give_is_said(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(name, **options).splits(0, 0.2)


def test_a_model_that_reads_something_else_says_what_to_use() -> None:
    models = REGISTRY.models
    for model, task, use in [
        ("mlp", make("imdb"), "decoder or the lstm"), ("lstm", make("qm9"), "graph"), ("graph", make("mnist"), "mlp"),
        ("mlp2", make("qm9"), "graph"), ("decoder", make("mnist"), "mlp2"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=use):
            models[model].build(task)
    for model, task, named in [
        ("mlp", make("mnist"), "depth"), ("lstm", make("imdb"), "layers"), ("graph", make("qm9"), "hidden")
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=named):
            models[model].build(task, **{named: 0})


# ---------------------------------------------------------------------------------------------- mnist


def test_images_are_the_first_of_the_file_and_test_images_are_all_there() -> None:
    images, labels, tests, answers = datafiles.mnist_arrays()
    splits = make("mnist").splits(5, 0.2)
    assert splits.val is not None
    assert torch.equal(splits.train.x, torch.from_numpy(images[:30].reshape(30, 36)).float() / 255)
    assert splits.train.y.tolist() == labels[:30].tolist()
    assert torch.allclose(splits.val.x * 255, torch.from_numpy(images[40:].reshape(20, 36)).float())
    assert splits.val.y.tolist() == labels[40:].tolist()
    assert float(splits.test.x.min()) >= 0 and float(splits.test.x.max()) <= 1
    pairs = {(row, int(y)) for row, y in zip(map(bytes, (splits.test.x * 255).round().byte().numpy()),
                                             splits.test.y, strict=True)}  # fmt: skip
    assert pairs == {(bytes(image.astype(np.uint8).ravel()), int(y)) for image, y in zip(tests, answers, strict=True)}
    assert splits.test.y.tolist() != answers.tolist(), "shuffled: the file has the easy half first"


def test_a_random_subset_is_drawn_per_seed_and_leaves_validation_alone() -> None:
    a, b = (make("mnist", subset="random").splits(seed, 0.2) for seed in (1, 2))
    assert not torch.equal(a.train.x, b.train.x)
    assert a.val is not None and b.val is not None
    assert a.val.x is b.val.x
    assert not row_set(a.train.x) & row_set(a.val.x)
    assert len(row_set(a.train.x)) == 30
    images, labels, *_ = datafiles.mnist_arrays()
    known = {bytes(image.astype(np.uint8).ravel()): int(y) for image, y in zip(images, labels, strict=True)}
    found = [known[bytes(row)] for row in (a.train.x * 255).round().byte().numpy()]
    assert found == a.train.y.tolist()


def test_squared_error_is_over_all_outputs_and_cross_entropy_is_the_usual_one() -> None:
    source = torch.Generator().manual_seed(0)
    out = torch.randn(9, 10, generator=source, dtype=torch.float64)
    y = torch.randint(0, 10, (9,), generator=source)
    assert torch.allclose(make("mnist").loss(out, y), ref.omnigrok_mse(out, y), rtol=1e-13)
    assert squared_error(torch.zeros(3, 10), y[:3]) == pytest.approx(0.1)
    expected = torch.nn.functional.cross_entropy(out, y)
    assert torch.allclose(make("mnist", loss="cross_entropy").loss(out, y), expected, rtol=1e-13)
    assert torch.equal(make("mnist").correct(out, y), out.argmax(1) == y)


def test_net_of_the_digits_is_the_ordinary_one() -> None:
    task = make("mnist")
    model, split = model_of("mnist", task), task.splits(0, 0.0).train
    params, x = draw(model), split.x.double()
    twin = ref.mlp_twin(params)
    assert (apply(model, params, x) - twin(x)).abs().max() < 1e-12
    ref.omnigrok_mse(twin(x), split.y).backward()
    ours, theirs = loss_gradient(model, task, params, x, split.y), ref.mlp_gradients(twin)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert (ours[key] - theirs[key]).abs().max() < 1e-12, key


def test_net_of_the_digits_has_the_papers_size_and_first_weights() -> None:
    entry = registry.load().tasks["mnist"]
    task = entry.factory(**entry.defaults)
    options = {k: v for k, v in entry.model.items() if k != "name"}
    model = registry.load().models[entry.model["name"]].build(task, **options)
    params = initial(model, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in params.values()) == 199_210
    for (key, p), fan_in in zip(params.items(), (784, 784, 200, 200, 200, 200), strict=True):
        assert float(p.abs().max()) == pytest.approx(8 / fan_in**0.5, rel=0.3 if p.ndim == 1 else 0.01), key
        if p.ndim == 2:
            assert float(p.std()) == pytest.approx(8 / (3 * fan_in) ** 0.5, rel=0.05), key


# ---------------------------------------------------------------------------------------------- imdb


def decode(x: Tensor, words: dict[int, str]) -> list[list[str]]:
    return [[words[int(i)] for i in row if i] for row in x]


def test_reviews_are_padded_on_the_left_with_known_words_in_their_order() -> None:
    table = datafiles.reviews()
    splits = make("imdb", length=20).splits(1, 0.2)
    assert splits.val is not None
    cleaned = [ref.words(text, frozenset(ENGLISH_STOP_WORDS)) for text, _ in table]
    # Ids are learnt from validation, whose rows are known, and must then explain the others.
    used = [[w for w in words] for words in cleaned[80:110]]
    assert [int(y) for _, y in table[80:110]] == splits.val.y.tolist()
    kept = [[int(i) for i in row if i] for row in splits.val.x]
    counts: dict[str, int] = {}
    train_rows = match(splits, cleaned, table)
    for i in train_rows:
        for word in cleaned[i]:
            counts[word] = counts.get(word, 0) + 1
    order = sorted(counts, key=lambda w: (-counts[w], w))[:12]
    ids = {word: i for i, word in enumerate(order, start=1)}
    assert kept == [[ids[w] for w in words if w in ids] for words in used]
    for row in torch.cat([splits.train.x, splits.val.x, splits.test.x]):
        first = int((row != 0).int().argmax())
        assert (row[first:] != 0).all() and not row[:first].any(), "zeros only on the left"
    assert {"br", "the", "and"} & set(ids) == {"br"}


def match(splits: Splits, cleaned: list[list[str]], table: list[list[str]]) -> list[int]:
    """Rows of the file that train: the task's own draw, repeated here from its generator."""
    from grokscale.rng import generator
    from grokscale.tasks.imdb import _stratified

    labels = torch.tensor([int(y) for _, y in table[:80]], dtype=torch.int8)
    train, test = _stratified(labels, 0.75, generator(1, "split"))
    assert labels[train].tolist() == splits.train.y.tolist() and labels[test].tolist() == splits.test.y.tolist()
    assert sorted(train + test) == list(range(80))
    return train


@pytest.mark.parametrize("seed", range(4))
def test_the_split_keeps_the_share_of_labels(seed: int) -> None:
    table = datafiles.reviews()
    share = np.mean([int(y) for _, y in table[:80]])
    splits = make("imdb").splits(seed, 0.0)
    assert (len(splits.train.y), len(splits.test.y)) == (60, 20)
    for split in (splits.train, splits.test):
        assert abs(float(split.y.double().mean()) - share) <= 1 / len(split.y)


def test_a_long_review_keeps_its_first_words_and_a_long_list_its_frequent_ones() -> None:
    long, short = make("imdb", length=20).splits(2, 0.0), make("imdb", length=4).splits(2, 0.0)
    for a, b in zip(long.train.x, short.train.x, strict=True):
        assert a[a != 0][:4].tolist() == b[b != 0].tolist()
    few = make("imdb", length=20, vocabulary=3).splits(2, 0.0)
    for a, b in zip(long.train.x, few.train.x, strict=True):
        assert [i for i in a.tolist() if 0 < i <= 3] == [i for i in b.tolist() if i]


def test_stop_words_may_stay() -> None:
    def known(stop_words: bool) -> int:
        return int((make("imdb", length=30, vocabulary=50, stop_words=stop_words).splits(0, 0.0).train.x != 0).sum())

    assert known(False) >= known(True) + 2 * 60 - 10, "`the` and `and` of every review"


def test_labels_that_are_none_are_refused(tmp_path: Path) -> None:
    datafiles.put(tmp_path, "imdb", {datafiles.IMDB: datafiles.table(["review", "label"], [["fine", "good"]] * 200)})
    data.use(tmp_path)
    with pytest.raises(InputError, match="labels must be 0 or 1, got good"):
        make("imdb").splits(0, 0.2)


@pytest.mark.parametrize(("layers", "length"), [(1, 3), (2, 8), (2, 60), (3, 26)])
def test_recurrent_net_is_the_ordinary_one(layers: int, length: int) -> None:
    """Below, at and above the length of a block, with padding in front."""
    task = make("imdb", length=length)
    model = model_of("imdb", task, layers=layers)
    params = draw(model)
    source = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 13, (7, length), generator=source, dtype=torch.int32)
    ids[0, : length - 1] = 0
    y = torch.randint(0, 2, (7,), generator=source, dtype=torch.int8)
    twin = ref.LstmTwin(13, 5, 6, layers)
    probabilities, theirs = twin.outputs_and_gradients(params, ids, y)
    out = apply(model, params, ids)
    assert out.shape == (7, 1)
    assert (out.squeeze(-1).sigmoid() - probabilities).abs().max() < 1e-9
    assert torch.equal(task.correct(out, y), probabilities.round() == y)
    ours = loss_gradient(model, task, params, ids, y)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert (ours[key] - theirs[key]).abs().max() < 1e-9, key


def test_recurrent_net_has_the_papers_size() -> None:
    entry = registry.load().tasks["imdb"]
    options = {k: v for k, v in entry.model.items() if k != "name"}
    model = registry.load().models[entry.model["name"]].build(entry.factory(**entry.defaults), **options)
    twin = ref.LstmTwin(1001, 64, 256, 2)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in twin.parameters()) == 920_385
    params = initial(model, torch.Generator().manual_seed(0))
    assert float(params["tokens"].std()) == pytest.approx(6, rel=0.02)
    assert float(params["hh_w_1"].abs().max()) == pytest.approx(6 / 16, rel=0.01)


@pytest.mark.parametrize(("layers", "length"), [(1, 1), (2, 3), (3, 26)])
def test_the_recurrent_nets_operations_are_those_that_torch_counts(layers: int, length: int) -> None:
    entry, task = REGISTRY.models["lstm"], make("imdb", length=length)
    options = {**entry.defaults, "dim": 5, "width": 6, "layers": layers}
    ids, labels = torch.zeros(7, length, dtype=torch.int32, device="meta"), torch.zeros(7, device="meta")
    assert entry.flops is not None
    assert entry.flops(task, 7, options) == counted(task, entry.build(task, **options), ids, labels)


# ---------------------------------------------------------------------------------------------- qm9


def test_a_molecule_is_its_atoms_with_hydrogens_and_its_bonds() -> None:
    x = torch.from_numpy(graph("C#N", 4))  # prussic acid: H-C#N; RDKit keeps C, N and appends H
    assert x.shape == (4, FEATURES + 16)
    carbon, nitrogen, hydrogen, nothing = x[:, :FEATURES].tolist()
    assert carbon == [0, 1, 0, 0, 0, 6, 0, 1, 0, 0, 1]
    assert nitrogen == [0, 0, 1, 0, 0, 7, 0, 1, 0, 0, 0]
    assert hydrogen == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert not any(nothing) and not x[3].any()
    assert sorted(ref.edges(x, FEATURES, 4)) == [(0, 0, 2), (0, 2, 0), (2, 0, 1), (2, 1, 0)]


@pytest.mark.parametrize(
    ("smiles", "atoms", "bonds"),
    [("c1ccccc1", 12, {3: 12, 0: 12}), ("C=O", 4, {1: 2, 0: 4}), ("CF", 5, {0: 8}), ("NC=O", 6, {0: 8, 1: 2})],
)
def test_kinds_of_bonds(smiles: str, atoms: int, bonds: dict[int, int]) -> None:
    x = torch.from_numpy(graph(smiles, 14))
    assert int((x[:, :5].sum(1) > 0).sum()) == atoms
    found = [kind for kind, _, _ in ref.edges(x, FEATURES, 4)]
    assert {kind: found.count(kind) for kind in set(found)} == bonds
    assert bool(x[:, 6].any()) == (smiles == "c1ccccc1"), "aromatic atoms"


@pytest.mark.parametrize(
    ("smiles", "said"), [("C1CC", "is no SMILES"), ("CS", "has the element S"), ("CCCC", "14 atoms")]
)
def test_what_is_no_such_molecule_is_refused(smiles: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=said):
        graph(smiles, 12)
    assert not capfd.readouterr().err, "RDKit's own complaint is not shown beside ours"


def test_molecules_are_the_first_of_the_file_and_validation_the_next() -> None:
    table = datafiles.molecules()
    splits = make("qm9").splits(0, 0.2)
    assert splits.val is not None
    assert (len(splits.train.y), len(splits.val.y), len(splits.test.y)) == (16, 12, 16)
    assert splits.val.y.tolist() == [float(row[3]) for row in table[32:44]]
    assert sorted([*splits.train.y.tolist(), *splits.test.y.tolist()]) == sorted(float(row[3]) for row in table[:32])
    known = {graph(row[1], 12).tobytes(): float(row[3]) for row in table}
    for split in (splits.train, splits.test):
        assert [known[row.numpy().tobytes()] for row in split.x] == split.y.tolist()
    assert set(make("qm9", target="mu").splits(0, 0.0).train.y.tolist()) == {0.5}


def test_loss_and_correct_of_a_property() -> None:
    task = make("qm9", tolerance=0.5)
    out = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    y = torch.tensor([1.5, 2.75, 3.0], dtype=torch.float64)
    assert task.correct(out, y).tolist() == [True, False, True]
    assert float(task.loss(out, y)) == pytest.approx((0.25 + 0.5625) / 3)


def test_graph_net_is_the_sum_edge_by_edge() -> None:
    task = make("qm9")
    model = model_of("qm9", task, scale=1.0)
    params = draw(model)
    x = torch.from_numpy(np.stack([graph(smiles, 12) for smiles in ("C", "NC=O", "CC#N", "c1ccccc1", "COC")]))
    y = torch.arange(5, dtype=torch.float64)
    sizes = ((FEATURES, 6), (6, 4))
    twin = {k: p.clone().requires_grad_() for k, p in params.items()}
    theirs = torch.stack([ref.graph_output(twin, row, FEATURES, 4, sizes) for row in x])
    ours = apply(model, params, x)
    assert ours.shape == (5, 1)
    assert ((ours - theirs).abs() / theirs.abs().clamp(min=1)).max() < 1e-9
    ((theirs.squeeze(-1) - y) ** 2).mean().backward()
    for key, g in loss_gradient(model, task, params, x, y).items():
        expected = twin[key].grad
        assert expected is not None and bool(expected.any()), key
        assert ((g - expected).abs() / expected.abs().max()).max() < 1e-9, key


def test_padding_and_the_order_of_atoms_change_nothing() -> None:
    wide = qm9(**{**QM9, "atoms": 17})
    model, roomy = model_of("qm9", make("qm9")), model_of("qm9", wide)
    params = draw(model)
    small, large = (torch.from_numpy(graph("NC=O", n))[None] for n in (12, 17))
    out = apply(model, params, small)
    assert torch.allclose(out, apply(roomy, params, large), rtol=1e-12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    joined = small[..., FEATURES:].view(1, 12, 4, 12)[:, order][..., order].flatten(2)
    assert torch.allclose(out, apply(model, params, torch.cat([small[:, order, :FEATURES], joined], -1)), rtol=1e-12)


# ---------------------------------------------------------------------------------------------- in the engine


def small_trial(name: str, method: str = "none", **more: Any) -> TrialSpec:
    form = {
        "task": {"name": name, **TASKS[name][1]},
        "model": MODELS[name],
        "optimiser": {"name": "adamw", "lr": LR[name], "wd": 0.1, "decay": "decoupled", "batch": BATCH[name],
                      "drop_last": False},
    }  # fmt: skip
    return trial(form, method, **more)


def run(spec: TrialSpec, seeds: list[int], horizon: int = 30, state: dict[str, Any] | None = None) -> list[Evaluation]:
    return list(train(spec, seeds, horizon=horizon, state=state))


def curve(evaluation: Evaluation, seed: int) -> dict[str, np.ndarray]:
    columns = evaluation.curves()
    return {name: values[columns["seed"] == seed] for name, values in columns.items()}


def alike(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == "f") for k in a)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("method", ["none", "grokfast-ema", "egd"])
def test_every_task_trains_with_methods(name: str, method: str) -> None:
    end = run(small_trial(name, method), [0, 1])[-1]
    for seed in (0, 1):
        losses = curve(end, seed)["train_loss"]
        assert np.isfinite(losses).all() and losses[-1] < losses[0] * 1.01


@pytest.mark.parametrize("name", TASKS)
def test_a_replica_does_not_depend_on_its_neighbours(name: str) -> None:
    spec = small_trial(name, "grokfast-ema")
    alone, pair, four = (run(spec, seeds)[-1] for seeds in ([7], [5, 7], [7, 1, 2, 5]))
    assert alike(curve(alone, 7), curve(pair, 7))
    assert alike(curve(alone, 7), curve(four, 7))
    assert alike(curve(pair, 5), curve(four, 5))


@pytest.mark.parametrize("name", TASKS)
def test_a_split_run_is_the_whole_run(name: str) -> None:
    spec = small_trial(name, "grokfast-ema")
    whole = run(spec, [0, 1])
    first = next(train(spec, [0, 1], horizon=30))
    rest = run(spec, [0, 1], state=first.snapshot())
    for seed in (0, 1):
        assert alike(curve(whole[-1], seed), curve(rest[-1], seed))


@pytest.mark.parametrize("name", TASKS)
def test_an_engine_step_is_an_adamw_step_of_the_twin(name: str) -> None:
    """One batch of everything, in float64: torch's own AdamW on the model's gradients."""
    spec = small_trial(name, precision="fp64", every={"epoch": True}, optimiser={"batch": 1000, "beta2": 0.999})
    end = run(spec, [3], horizon=3)[-1]
    task = make(name)
    model, split = model_of(name, task), task.splits(3, 0.2).train
    from grokscale.rng import generator

    params = {k: p.requires_grad_() for k, p in initial(model, generator(3, "init"), torch.float64).items()}
    torch_adamw = torch.optim.AdamW(params.values(), lr=LR[name], betas=(0.9, 0.999), weight_decay=0.1)
    losses = []
    for _ in range(3):
        torch_adamw.zero_grad()
        task.loss(apply(model, params, split.x), split.y).backward()
        torch_adamw.step()
        losses.append(float(task.loss(apply(model, params, split.x), split.y).detach()))
    assert curve(end, 3)["train_loss"] == pytest.approx(losses, rel=1e-9)


def test_other_files_are_another_trial_and_are_not_trained_under_its_name(tmp_path: Path) -> None:
    spec = small_trial("mnist")
    assert spec.data.startswith("own-")
    datafiles.write_mnist(tmp_path, seed=9)
    data.use(tmp_path)
    assert small_trial("mnist").trial_id != spec.trial_id
    with pytest.raises(GrokscaleError, match=rf"specified on the data '{spec.data}', here lies 'own-.*--data DIR"):
        run(spec, [0])


EXPERIMENT: dict[str, Any] = {
    "name": "digits", "question": "Do workers find the files?", "baseline": "none", "horizon": 60,
    "task": {"name": "mnist", **MNIST, "threshold": 0.3},
    "model": {k: v for k, v in MODELS["mnist"].items()},
    "optimiser": {"lr": 1e-2, "batch": 10},
    "arm": [{"name": "none"}],
    "search": {"trials": 0}, "confirm": {"seeds": 2}, "resources": {"cpus": 1},
}  # fmt: skip


def test_a_sweep_hands_its_workers_the_folder_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that Ray's processes inherit names a folder without files."""
    monkeypatch.setenv(data.VARIABLE, str(tmp_path / "nothing"))
    resolved = parse(EXPERIMENT, source="test").resolve(registry.load())
    store = Store(tmp_path / "runs")
    result = run_sweep(resolved, store, tracking="none")
    assert result.trained == 2 and not result.failures
    rows = store.table("replicas").to_pylist()
    assert {row["seed"] for row in rows} == {seed_for("confirm", k) for k in range(2)}
    assert '"data":"own-' in rows[0]["spec_json"]
    assert store.table("timings").num_rows == 1


def test_a_missing_file_ends_an_experiment_before_it_begins(tmp_path: Path) -> None:
    data.use(tmp_path)
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte\.gz: is missing"):
        parse(EXPERIMENT, source="test").resolve(registry.load())


# ---------------------------------------------------------------------------------------------- the real files


@pytest.fixture
def real(request: pytest.FixtureRequest) -> Path:
    folder = datafiles.real(request.param)
    data.use(folder)
    return folder


def entry_task(name: str, **options: Any) -> Task:
    entry = REGISTRY.tasks[name]
    return entry.factory(**{**entry.defaults, **options})


@pytest.mark.parametrize("real", ["mnist"], indirect=True)
def test_real_digits(real: Path) -> None:
    splits = entry_task("mnist").splits(0, 0.2)
    assert splits.val is not None
    assert [len(s.y) for s in (splits.train, splits.val, splits.test)] == [1000, 10_000, 10_000]
    assert splits.train.y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    shape = (60_000, 28, 28)
    first = ref.read_bytes(real / "mnist" / datafiles.MNIST[0], shape)[0].flatten()
    assert torch.equal((splits.train.x[0] * 255).round().to(torch.uint8), first)
    assert splits.test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert splits.test.x is entry_task("mnist").splits(1, 0.2).test.x


@pytest.mark.parametrize("real", ["imdb"], indirect=True)
def test_real_reviews(real: Path) -> None:
    task = entry_task("imdb")
    splits = task.splits(0, 0.2)
    assert splits.val is not None
    assert [tuple(s.x.shape) for s in (splits.train, splits.val, splits.test)] == [(750, 500), (1000, 500), (250, 500)]
    assert task.inputs == Inputs("tokens", 1001, 500, 500)
    assert int(splits.train.x.max()) == 1000
    assert int(splits.train.y.sum()) + int(splits.test.y.sum()) == 519
    assert int(splits.test.y.sum()) in (129, 130)


@pytest.mark.parametrize("real", ["qm9"], indirect=True)
def test_real_molecules(real: Path) -> None:
    splits = entry_task("qm9").splits(0, 0.2)
    assert splits.val is not None
    assert [tuple(s.x.shape) for s in (splits.train, splits.val, splits.test)] == [
        (50, 29, 127), (100, 29, 127), (50, 29, 127)]  # fmt: skip
    both = torch.cat([splits.train.y, splits.test.y])
    assert (float(both.min()), float(both.max())) == (23.95, 65.04)
    ethane = torch.from_numpy(graph("CC", 29))
    rows = torch.cat([splits.train.x, splits.test.x])
    assert float(both[(rows == ethane).all(-1).all(-1)]) == 23.95


@pytest.mark.parametrize(
    ("real", "options"),
    [("mnist", {}), ("imdb", {"length": 12}), ("qm9", {})],
    indirect=["real"],
)
def test_a_few_steps_on_the_real_files(real: Path, options: dict[str, Any], request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["real"]
    entry = REGISTRY.tasks[name]
    experiment = {
        "name": "real", "question": "?", "baseline": "none", "horizon": 6,
        "eval": {"every": 0.02, "min": 3, "examples": 64}, "task": {"name": name, **options},
        "arm": [{"name": "none"}],
    }  # fmt: skip
    spec = parse(experiment, source="test").resolve(REGISTRY).trial("none")
    assert spec.data.startswith("published-")
    assert spec.model["name"] == entry.model["name"]
    rows = solo.run(spec, [0, 1], horizon=6)
    assert [row["observed_to"] for row in rows] == [6, 6]
