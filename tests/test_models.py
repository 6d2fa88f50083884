"""Models against ordinary modules that compute everything, and the laws of their first weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad

from grokscale import registry
from grokscale.models import MODELS, Model, initial
from grokscale.models.decoder import decoder
from grokscale.models.mlp import mlp2
from grokscale.tasks.base import Task
from grokscale.tasks.modular import pairs, tokens
from grokscale.tasks.parity import parity
from grokscale.transform import Params
from tests import reference as ref
from tests.twins import decoder_twin, dense_input, from_twin, two_layer_twin


def draw(model: Model, seed: int = 0, dtype: torch.dtype = torch.float64) -> Params:
    return initial(model, torch.Generator().manual_seed(seed), dtype)


def apply(model: Model, params: Params, x: Tensor) -> Tensor:
    return functional_call(model, params, (x,))


def loss_gradient(model: Model, task: Task, params: Params, x: Tensor, y: Tensor) -> Params:
    return grad(lambda p: task.loss(apply(model, p, x), y))(params)


CASES: dict[str, tuple[Task, Model]] = {}
for _name, _task in {
    "parity": parity(n=12, k=2, n_train=64, n_val=8, n_test=8),
    "pairs": pairs(p=11),
    "pairs-even": pairs(p=8, op="mul"),
}.items():
    CASES[_name] = (_task, mlp2(_task, width=16, bias="normal"))
DECODERS = {layers: (t := tokens(p=11), decoder(t, dim=16, heads=4, layers=layers)) for layers in (1, 2, 3)}


@pytest.mark.parametrize("name", CASES)
def test_gather_net_is_the_dense_net(name: str) -> None:
    """Outputs and gradients, the latter to be oriented alike by every method (next test)."""
    task, model = CASES[name]
    params = draw(model)
    split = task.splits(0, 0.2).train
    twin = two_layer_twin(params)
    x, y = dense_input(task, split.x), split.y
    assert torch.allclose(apply(model, params, split.x), twin(x), atol=1e-12)
    loss = ref.squared_error if task.outputs == 1 else ref.cross_entropy
    loss(twin(x), y).backward()
    ours = loss_gradient(model, task, params, split.x, y)
    for key, theirs in from_twin(twin, grads=True).items():
        assert torch.allclose(ours[key], theirs, atol=1e-12), key


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("method", "knobs"),
    [
        ("egd", {}),
        ("egd-colnorm", {}),
        ("egd-colnorm", {"axis": "input"}),
        ("egd-colnorm", {"floor": 1e-4}),
    ],
)
def test_a_method_orients_the_gather_net_like_the_dense_one(name: str, method: str, knobs: dict[str, Any]) -> None:
    task, model = CASES[name]
    params = draw(model)
    split = task.splits(0, 0.2).train
    transform = registry.load().methods[method].factory(**knobs)
    state = transform.init(params, model.roles, torch.Generator().manual_seed(0))
    ours, _ = transform.update(
        loss_gradient(model, task, params, split.x, split.y), state, params, step=1, roles=model.roles,
        val_accuracy=torch.zeros(()))  # fmt: skip
    twin = two_layer_twin(params)
    loss = ref.squared_error if task.outputs == 1 else ref.cross_entropy
    loss(twin(dense_input(task, split.x)), split.y).backward()
    plain = from_twin(twin, grads=True)
    ref.METHODS[method](**knobs)(twin, 0.0)
    for key, theirs in from_twin(twin, grads=True).items():
        assert torch.allclose(ours[key], theirs, atol=1e-9), key
        assert torch.equal(theirs, plain[key]) == (model.roles[key].kind != "hidden")


@pytest.mark.parametrize("layers", DECODERS)
def test_decoder_is_the_last_position_of_the_full_decoder(layers: int) -> None:
    task, model = DECODERS[layers]
    params = draw(model)
    # Norms start at exactly one and zero, which would hide a swapped or missing one.
    generator = torch.Generator().manual_seed(1)
    params = {k: p + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}
    twin = decoder_twin(params, heads=4)
    split = task.splits(0, 0.2).train
    out = apply(model, params, split.x)
    assert out.shape == (len(split.y), 13)
    assert (out - twin.all_positions(split.x)[:, -1]).abs().max() < 1e-12
    ref.cross_entropy(twin(split.x), split.y).backward()
    ours = loss_gradient(model, task, params, split.x, split.y)
    theirs = from_twin(twin, grads=True)
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert (ours[key] - theirs[key]).abs().max() < 1e-12, key
    assert not ours["positions"][4].any(), "the answer's own row is never read"


def test_egd_acts_on_the_mlp_matrices_of_the_decoder() -> None:
    task, model = DECODERS[2]
    params = draw(model)
    split = task.splits(0, 0.2).train
    twin = decoder_twin(params, heads=4)
    ref.cross_entropy(twin(split.x), split.y).backward()
    grads = from_twin(twin, grads=True)
    for name in ("egd", "egd-colnorm"):
        transform = registry.load().methods[name].factory()
        state = transform.init(params, model.roles, torch.Generator().manual_seed(0))
        ours, _ = transform.update(grads, state, params, step=1, roles=model.roles, val_accuracy=torch.zeros(()))
        changed = {key for key in ours if not torch.equal(ours[key], grads[key])}
        assert changed == {"fc1_w_0", "fc2_w_0", "fc1_w_1", "fc2_w_1"}
        twin = decoder_twin(params, heads=4)
        ref.cross_entropy(twin(split.x), split.y).backward()
        ref.METHODS[name]()(twin, 0.0)
        for key, theirs in from_twin(twin, grads=True).items():
            assert torch.allclose(ours[key], theirs, atol=1e-9), key


# ------------------------------------------------------------------------------------------ initialisation


@pytest.mark.parametrize(("p", "bias"), [(97, "zero"), (97, "normal")])
def test_first_weights_of_the_two_layer_net(p: int, bias: str) -> None:
    model = mlp2(pairs(p=p), width=512, bias=bias)
    params = draw(model)
    assert params["w1"].shape == (2 * p, 512)
    assert params["w2"].shape == (512, p)
    for key, fan_in in (("w1", 2 * p), ("w2", 512)):
        assert normal_with(params[key], ref.initial_deviation(fan_in)), key
    if bias == "zero":
        assert not params["b1"].any()
    else:
        assert normal_with(params["b1"], ref.initial_deviation(2 * p))


def test_first_weights_of_the_parity_net() -> None:
    params = draw(mlp2(parity(n=100, k=3), width=1000, bias="normal"))
    assert params["w2"].shape == (1000, 1)
    assert normal_with(params["w1"], ref.initial_deviation(100))
    assert normal_with(params["b1"], ref.initial_deviation(100))
    assert normal_with(params["w2"], ref.initial_deviation(1000))


def test_first_weights_of_the_decoder_are_pytorchs() -> None:
    """Every tensor against the same tensor of nn.Module's own initialisation: mean, spread and range."""
    model = decoder(tokens(p=97))
    params = draw(model)
    assert sum(p.numel() for p in params.values()) == 422_784
    assert len(params) == 29
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = from_twin(ref.Decoder(99, 5))
    for key, ours in params.items():
        other = theirs[key]
        assert ours.shape == other.shape, key
        spread = float(other.std())
        if spread == 0:
            assert torch.equal(ours, other), key
            continue
        assert float(ours.std()) == pytest.approx(spread, rel=6 / math.sqrt(2 * ours.numel())), key
        assert abs(float(ours.mean())) < 6 * spread / math.sqrt(ours.numel()), key
        if key not in ("tokens", "positions"):  # uniform laws: the range says which
            assert float(ours.abs().max()) == pytest.approx(float(other.abs().max()), rel=20 / ours.numel()), key


@pytest.mark.parametrize("case", [*CASES.values(), DECODERS[2]])
def test_weights_come_from_the_passed_generator_only(case: tuple[Task, Model]) -> None:
    _, model = case
    before = torch.random.get_rng_state()
    a, b, c = draw(model, 1), draw(model, 1), draw(model, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)
    single = draw(model, 1, torch.float32)
    assert all(torch.equal(single[k].double(), a[k]) for k in a), "float64 starts from the float32 numbers"


@pytest.mark.parametrize("case", [*CASES.values(), DECODERS[2]])
def test_every_parameter_has_a_role(case: tuple[Task, Model]) -> None:
    _, model = case
    params = draw(model)
    assert set(model.roles) == set(params) == {name for name, _ in model.named_parameters()}
    for name, role in model.roles.items():
        assert role.kind in {"hidden", "attention", "embedding", "head", "bias", "norm"}
        assert (role.kind in {"bias", "norm"}) == (params[name].ndim == 1)
        assert 0 <= role.out_dim < params[name].ndim


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: mlp2(tokens(p=11)), "decoder"),
        (lambda: decoder(pairs(p=11)), "mlp2"),
        (lambda: decoder(tokens(p=11), dim=10, heads=4), "heads"),
        (lambda: mlp2(pairs(p=11), width=0), "width"),
        (lambda: mlp2(pairs(p=11), bias="one"), "bias"),
    ],
)
def test_an_impossible_model_is_named(build: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        build()


def test_entries_are_complete() -> None:
    import inspect

    for name, entry in MODELS.items():
        assert entry.name == name
        signature = inspect.signature(entry.build).parameters
        assert {k: p.default for k, p in signature.items() if k != "task"} == dict(entry.defaults)


def normal_with(values: Tensor, std: float) -> bool:
    """Mean 0, deviation `std` and a normal's fourth moment, each within six standard errors."""
    n = values.numel()
    z = values.double().flatten() / std
    return (
        abs(float(z.mean())) < 6 / math.sqrt(n)
        and abs(float((z**2).mean()) - 1) < 6 * math.sqrt(2 / n)
        and abs(float((z**4).mean()) - 3) < 6 * math.sqrt(96 / n)
    )


@pytest.mark.parametrize("name", ["mlp2", "decoder"])
def test_scale_multiplies_every_first_parameter(name: str) -> None:
    task = pairs(p=5) if name == "mlp2" else tokens(p=5)
    sizes: dict[str, Any] = {"width": 4} if name == "mlp2" else {"dim": 8, "heads": 2}
    one, eight = (
        draw(MODELS[name].build(task, **sizes, scale=scale), 3, torch.float32) for scale in (1.0, 8.0)
    )
    assert all(torch.equal(eight[k], 8 * one[k]) for k in one)
    with pytest.raises(ValueError, match=r"scale > 0 must hold, got scale=0"):
        MODELS[name].build(task, **sizes, scale=0.0)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 4, 5, 20, 21, 60])
def test_what_the_decoder_knows_of_its_tokens_changes_nothing(rows: int, layers: int) -> None:
    """Batches below, at and beyond the number of prefixes (5, 5, 20, 20): values and gradients as without knowing."""
    task = tokens(p=5)
    blind = replace(task, inputs=task.inputs._replace(alphabet=()))
    know, not_know = (decoder(t, dim=8, heads=2, layers=layers) for t in (task, blind))
    params = draw(know, 1)
    data = task.splits(0, 0.0).train
    pick = torch.randint(0, len(data.y), (rows,), generator=torch.Generator().manual_seed(rows))
    x, y = data.x[pick], data.y[pick]
    assert torch.allclose(apply(know, params, x), apply(not_know, params, x), rtol=1e-12, atol=1e-13)
    one, other = (
        grad(lambda p, m=m: task.loss(functional_call(m, p, (x,)), y))(params) for m in (know, not_know)
    )
    assert all(torch.allclose(one[k], other[k], rtol=1e-10, atol=1e-13) for k in params)
