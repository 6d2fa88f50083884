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
INNER = ("table", "linear", "attention")


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
    "knobs",
    [{}, {"period": 1}, {"period": 3, "beta1": 0.5, "beta2": 0.8, "eps": 1e-3},
     {"beta1": 0.0, "period": 2, "matrices": "inner"}],
)  # fmt: skip
def test_it_is_its_twin(knobs: dict[str, Any]) -> None:
    """Gradients of full rank, new at every step; the first leaves four of seven directions of a side to the ramp."""
    stream = [draw(seed) for seed in range(1, 41)]
    turned = INNER if "matrices" in knobs else [k for k, shape in SHAPES.items() if len(shape) == 2]
    twins = {k: Soap(p.shape, k in turned, {**METHOD.defaults, **knobs}) for k, p in stream[0].items()}
    out, _ = follow(make(**knobs), stream)
    for step, grads in enumerate(stream):
        for k, g in grads.items():
            torch.testing.assert_close(out[step][k], twins[k].step(g), rtol=1e-6, atol=1e-8)


def test_the_first_gradient_moves_nothing_and_the_next_is_adams_first() -> None:
    """Bases of axes (diagonal gradients): what is left is Adam, counted from the second gradient on."""
    flags = {k: torch.eye(*shape, dtype=torch.float64) if len(shape) == 2 else 1.0 for k, shape in SHAPES.items()}
    stream = [{k: g * flags[k] for k, g in draw(seed).items()} for seed in range(1, 31)]
    ours, _ = follow(make(period=10**9), stream)
    assert not any(g.any() for g in ours[0].values())
    theirs, _ = follow(adam(-1.0, beta1=0.95, beta2=0.95, eps=1e-8), stream[1:])
    for mine, its in zip(ours[1:], theirs, strict=True):
        for k in SHAPES:
            torch.testing.assert_close(mine[k], its[k], rtol=1e-6, atol=1e-7)


def only(g: Tensor) -> Params:
    return {**{k: torch.zeros(s, dtype=torch.float64) for k, s in SHAPES.items()}, "linear": g}


def constant(g: Tensor, steps: int, **knobs: Any) -> tuple[list[Tensor], Any]:
    """Its direction in each of so many steps of the same gradient of `linear`, and its state."""
    out, state = follow(make(**knobs), [only(g)] * steps)
    return [direction["linear"] for direction in out], state


def orthogonal(n: int, source: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=source, dtype=torch.float64))[0]


@pytest.mark.parametrize("period", [1, 3])
def test_a_constant_gradient_gives_egds_answer_from_the_second_step_on(period: int) -> None:
    """In the basis of its own singular vectors G = U S V' is S, and Adam's step of S is 1 on the diagonal: U V'."""
    source = torch.Generator().manual_seed(3)
    u, v = orthogonal(3, source), orthogonal(5, source)
    g = u @ torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)) @ v[:, :3].T
    first, *others = constant(g, 12, period=period)[0]
    assert not first.any()
    for direction in others:
        torch.testing.assert_close(direction, u @ v[:, :3].T, rtol=0, atol=1e-6)


def test_columns_change_places_and_the_means_of_squares_with_them() -> None:
    """A diagonal gradient whose sizes swap: the basis keeps to falling eigenvalues, and the step is the sign."""
    big, small = (torch.zeros(3, 5, dtype=torch.float64) for _ in range(2))
    for g, sizes in ((big, (3.0, -2.0, 1.0)), (small, (1.0, -2.0, 3.0))):
        g[range(3), range(3)] = torch.tensor(sizes, dtype=torch.float64)
    out, state = follow(make(period=1, beta1=0.0, beta2=0.5), [only(big)] * 3 + [only(small)] * 20)
    torch.testing.assert_close(out[-1]["linear"], small.sign(), rtol=0, atol=1e-5)
    reversed_axes = torch.eye(3, dtype=torch.float64).flip(1)
    torch.testing.assert_close(state.left_basis["linear"].abs(), reversed_axes, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        state.v["linear"].diagonal(), torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64), rtol=1e-4, atol=0)


def test_directions_that_no_gradient_has_shown_are_not_chosen_by_rounding() -> None:
    """A gradient of rank one leaves all but one direction of a side open: noise of 1e-16 must not choose them."""
    source = torch.Generator().manual_seed(5)
    g = torch.outer(*(torch.randn(n, generator=source, dtype=torch.float64) for n in (3, 5)))
    noise = 1e-15 * torch.randn(3, 5, generator=source, dtype=torch.float64)
    for one, other in zip(*([s.left_basis["linear"].abs(), s.right_basis["linear"].abs()] for s in (
            constant(g, 7, period=2)[1], constant(g + noise, 7, period=2)[1])), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_without_gradients_a_basis_stays_where_it_is() -> None:
    directions, state = constant(torch.zeros(3, 5, dtype=torch.float64), 5, period=1)
    assert not any(direction.any() for direction in directions)
    torch.testing.assert_close(state.right_basis["linear"].abs(), torch.eye(5, dtype=torch.float64))


def test_flops_of_soap() -> None:
    """A matrix 2 x 3, period 2: 8 * 6 * 5 = 240 for the products, 14/3 * 35 / 2 for the bases, 14 * 6 for Adam."""
    assert METHOD.flops is not None
    total = METHOD.flops({"linear": (2, 3), "bias": (4,)}, ROLES, {**METHOD.defaults, "period": 2})
    assert total == pytest.approx(240 + 14 / 3 * 35 / 2 + 14 * 6 + 14 * 4)
