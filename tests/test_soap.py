"""SOAP against its twin, against Adam, and on gradients whose answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from grokscale.transform import Params, Transform, adam
from tests.reference_soap import Soap
from tests.test_conformance import ROLES, SHAPES, draw
from tests.trials import REGISTRY

METHOD = REGISTRY.methods["soap"]
TURNED = ("table", "linear", "attention")


def make(**knobs: Any) -> Transform:
    return METHOD.factory(**{**METHOD.defaults, **knobs})


def follow(transform: Transform, stream: list[Params]) -> tuple[list[Params], Any]:
    """What comes out for each of the gradients, and the state at the end."""
    state, out = transform.init(stream[0], ROLES, torch.Generator()), []
    for step, grads in enumerate(stream, start=1):
        new, state = transform.update(grads, state, stream[0], step=step)
        out.append(new)
    return out, state


@pytest.mark.parametrize(
    "knobs", [{}, {"period": 1}, {"period": 3, "beta1": 0.5, "beta2": 0.8, "eps": 1e-3}, {"beta1": 0.0, "period": 2}]
)
def test_it_is_its_twin(knobs: dict[str, Any]) -> None:
    """Gradients of full rank, new at every step: the bases are well determined."""
    stream = [draw(seed) for seed in range(1, 41)]
    twins = {k: Soap(p.shape, k in TURNED, {**METHOD.defaults, **knobs}) for k, p in stream[0].items()}
    out, _ = follow(make(**knobs), stream)
    for step, grads in enumerate(stream):
        for k, g in grads.items():
            torch.testing.assert_close(out[step][k], twins[k].step(g), rtol=1e-6, atol=1e-8)


def test_until_its_basis_turns_it_is_adam() -> None:
    stream = [draw(seed) for seed in range(1, 31)]
    ours, state = follow(make(period=10**9), stream)
    theirs, _ = follow(adam(-1.0, beta1=0.95, beta2=0.95, eps=1e-8), stream)
    for mine, its in zip(ours, theirs, strict=True):
        assert all(torch.equal(mine[k], its[k]) for k in SHAPES)
    assert all(torch.equal(basis, torch.eye(len(basis), dtype=basis.dtype)) for basis in state.left_basis.values())


def constant(g: Tensor, steps: int, **knobs: Any) -> tuple[Tensor, Any]:
    """Its direction after so many steps of the same gradient of `linear`, and its state."""
    stream = [{**{k: torch.zeros(s, dtype=torch.float64) for k, s in SHAPES.items()}, "linear": g}] * steps
    out, state = follow(make(**knobs), stream)
    return out[-1]["linear"], state


def test_a_diagonal_gradient_turns_no_basis() -> None:
    """G = diag(3, -2, 1): L and R are diagonal, P and Q stay the axes, and the step is the sign of every entry."""
    g = torch.zeros(3, 5, dtype=torch.float64)
    g[range(3), range(3)] = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)
    direction, state = constant(g, 25, period=2)
    torch.testing.assert_close(direction, g.sign(), rtol=0, atol=1e-7)
    for basis in (state.left_basis["linear"], state.right_basis["linear"]):
        torch.testing.assert_close(basis.abs(), torch.eye(len(basis), dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_constant_gradient_ends_at_egds_answer() -> None:
    """In the basis of its own singular vectors G = U S V' is S, and Adam's step of S is 1 on the diagonal: U V'."""
    source = torch.Generator().manual_seed(3)
    u, _ = torch.linalg.qr(torch.randn(3, 3, generator=source, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(5, 5, generator=source, dtype=torch.float64))
    g = u @ torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)) @ v[:, :3].T
    direction, _ = constant(g, 600, period=1, beta1=0.5, beta2=0.9)
    torch.testing.assert_close(direction, u @ v[:, :3].T, rtol=0, atol=1e-6)


def test_without_gradients_a_basis_stays_where_it_is() -> None:
    direction, state = constant(torch.zeros(3, 5, dtype=torch.float64), 5, period=1)
    assert torch.equal(direction, torch.zeros_like(direction))
    torch.testing.assert_close(state.right_basis["linear"].abs(), torch.eye(5, dtype=torch.float64))


def test_flops_of_soap() -> None:
    """A matrix 2 x 3, period 2: 8 * 6 * 5 = 240 for the products, 14/3 * 35 / 2 for the bases, 14 * 6 for Adam."""
    assert METHOD.flops is not None
    total = METHOD.flops({"linear": (2, 3), "bias": (4,)}, ROLES, {**METHOD.defaults, "period": 2})
    assert total == pytest.approx(240 + 14 / 3 * 35 / 2 + 14 * 6 + 14 * 4)
