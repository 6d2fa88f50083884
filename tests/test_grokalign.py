"""GrokAlign against its twin, on a linear model, in the engine, and where it is refused."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import torch

from grokscale.errors import InputError
from grokscale.spec import parse, resolve
from grokscale.tasks.base import Split
from grokscale.train import Program, train
from grokscale.transform import Params
from tests.reference_grokalign import penalty
from tests.trials import REGISTRY, trial

METHOD = REGISTRY.methods["grokalign"]
LINEAR: dict[str, Any] = {
    "task": {"name": "test-majority"}, "model": {"name": "test-linear"}, "optimiser": {"lr": 0.05, "batch": 10},
}  # fmt: skip
DEEP: dict[str, Any] = {
    "task": {"name": "parity", "n": 8, "k": 2, "n_train": 30, "n_val": 20, "n_test": 20},
    "model": {"name": "mlp", "width": 6, "depth": 3}, "optimiser": {"lr": 0.05, "batch": 10},
}  # fmt: skip


def program(form: dict[str, Any], **knobs: Any) -> Program:
    return Program(trial(form, [{"name": "grokalign", **knobs}], precision="fp64"), REGISTRY, "cpu")


def drawn(made: Program, outputs: int | None = None) -> tuple[Params, Split]:
    params = made.start(1)[0]
    rows = made.splits(1)[0].train
    return params, Split(rows.x[:7], rows.y[:7])


def test_of_a_linear_model_it_is_the_norm_of_the_weights() -> None:
    """f = W'x: J = W' for every row, P = ||W||_F, and its gradient W / ||W||_F."""
    made = program(LINEAR, lam=0.5)
    params, batch = drawn(made)
    torch.testing.assert_close(made.jacobian(params, batch), params["w"].norm())
    grads = {"w": torch.ones_like(params["w"])}
    out, _ = made.transform.update(
        grads, made.transform.init(params, made.model.roles, torch.Generator()), params, step=1,
        jacobian=lambda p: made.jacobian(p, batch), roles=made.model.roles)  # fmt: skip
    decay = 0.0 if not made.spec.optimiser["wd"] else made.spec.optimiser["wd"]
    expected = grads["w"] + decay * params["w"] + 0.5 * params["w"] / params["w"].norm()
    torch.testing.assert_close(out["w"], expected)


def test_weights_of_zero_have_no_slope() -> None:
    made = program(LINEAR)
    params, batch = drawn(made)
    nothing = {k: torch.zeros_like(p) for k, p in params.items()}
    slope = torch.func.grad(lambda p: made.jacobian(p, batch))(nothing)
    assert not any(s.any() for s in slope.values())


@pytest.mark.parametrize("form", [DEEP, "parity-mlp2"], ids=["three layers", "two layers"])
def test_it_is_its_twin(form: Any) -> None:
    made = program(form)
    params, batch = drawn(made)
    leaves = {k: p.clone().requires_grad_() for k, p in params.items()}

    def f(row: torch.Tensor) -> torch.Tensor:
        return made.outputs(leaves, Split(row[None], batch.y[:1]))[0]

    expected = penalty(f, batch.x.double())
    expected.backward()
    torch.testing.assert_close(made.jacobian(params, batch), expected.detach())
    slope = torch.func.grad(lambda p: made.jacobian(p, batch))(params)
    for k, leaf in leaves.items():
        theirs = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(slope[k], theirs)


def test_of_many_outputs_every_one_counts() -> None:
    """The toy's and parity's nets have one output; widened to three, P^2 is the sum of the outputs' P^2."""
    made = program(DEEP)
    params, batch = drawn(made)
    source = torch.Generator().manual_seed(2)
    wide = {**params, "w3": torch.randn(3, 6, generator=source, dtype=torch.float64),
            "b3": torch.zeros(3, dtype=torch.float64)}  # fmt: skip
    each = [made.jacobian({**wide, "w3": wide["w3"][i : i + 1], "b3": wide["b3"][:1]}, batch) for i in range(3)]
    torch.testing.assert_close(made.jacobian(wide, batch) ** 2, torch.stack(each).square().sum())


def test_its_examples_are_counted() -> None:
    """Batch of 10, one output: the batch, a product per row, and its gradient."""
    *_, end = train(trial(LINEAR, "grokalign"), [1], horizon=5, registry=REGISTRY)
    assert end.replicas()[0]["oracle_per_step"] == 30
    both = trial(LINEAR, [{"name": "grokalign"}, {"name": "grokfast-ema"}])
    *_, end = train(both, [1], horizon=5, registry=REGISTRY)
    assert end.replicas()[0]["oracle_per_step"] == 30


def test_a_larger_penalty_leaves_a_smaller_jacobian() -> None:
    ends = []
    for lam in (0.0, 0.3):
        spec = trial(LINEAR, [{"name": "grokalign", "lam": lam}], threshold=1.1)
        run = train(spec, [1], horizon=10_000, registry=REGISTRY)
        ends.append(next(run).snapshot()["stacked"]["params"]["w"].norm())
    assert ends[1] < ends[0]


@pytest.mark.parametrize("chained", [False, True])
def test_a_task_of_indices_is_refused(chained: bool) -> None:
    method = 'name = "arm"\nmethod = ["grokfast-ema", "grokalign"]' if chained else 'name = "grokalign"'
    text = (
        'name = "x"\nquestion = "?"\nbaseline = "none"\n[task]\nname = "modular-pairs"\np = 11\n'
        f'[[arm]]\nname = "none"\n[[arm]]\n{method}\n'
    )
    with pytest.raises(InputError) as refused:
        resolve(parse(tomllib.loads(text)), REGISTRY)
    message = str(refused.value)
    assert "grokalign works on tasks whose rows are vector" in message
    assert '"modular-pairs" gives pair' in message
