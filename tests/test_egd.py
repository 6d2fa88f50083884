"""The forms of EGD against their twins and against numbers done by hand: spectra, layers, kernels, sketches, costs.

The common known answers (methods.md section 8) stand in test_known_answers.py and test_reference.py.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from grokscale.methods import egd as egd_
from grokscale.methods import spectra
from grokscale.methods.matrices import chosen
from grokscale.rng import generator
from grokscale.spec import resolve_file
from grokscale.train import train
from grokscale.transform import Role, Transform, chain, decay_inside
from tests import reference, reference_grokfast
from tests import reference_egd as ref
from tests.test_conformance import bits, lane_bits, restored, stopped_at
from tests.test_engine import agree, endless
from tests.test_known_answers import make, matrix
from tests.trials import GROKS, REGISTRY, trial

ROOT = Path(__file__).parent.parent
ROLES = {"w": Role("hidden", 0)}
ON = {"val_accuracy": torch.tensor(0.0)}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(values: list[float], m: int, n: int, seed: int = 0) -> Tensor:
    """A matrix (m, n) with these singular values and random singular vectors."""
    u, v = (torch.linalg.qr(normal(size, len(values), seed=seed + i))[0] for i, size in enumerate((m, n)))
    return u @ torch.diag(torch.tensor(values).double()) @ v.T


def replay(transform: Transform, stream: list[Tensor], role: Role = ROLES["w"], **extra: Any) -> list[Any]:
    """(what comes out, the state) for one tensor, step by step. noise: a list, one of every step."""
    roles, params = {"w": role}, {"w": torch.zeros_like(stream[0])}
    state, out = transform.init(params, roles, torch.Generator().manual_seed(5)), []
    for step, g in enumerate(stream, start=1):
        more = {k: v[step - 1] for k, v in extra.items()}
        new, state = transform.update({"w": g.clone()}, state, params, step=step, roles=roles, **{**ON, **more})
        out.append((new["w"], state))
    return out


def once(transform: Transform, g: Tensor, role: Role = ROLES["w"], **extra: Any) -> Tensor:
    return replay(transform, [g], role, **{k: [v] for k, v in extra.items()})[0][0]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


# --------------------------------------------------------------------------------------------- the polar factor

POLARS = ["auto", "svd", "gram", "newton-schulz"]
SIZES = [(5, 9), (9, 5), (22, 32), (32, 22), (1, 4), (4, 1), (6, 6)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("polar", POLARS)
def test_every_way_to_the_polar_factor(polar: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    """Asked are 1e-4 relative on well-conditioned input; float32's rounding of the gradient is within 1e-5."""
    g = spectrum([1.0 + i for i in range(min(size))], *size)
    within = 1e-5 if dtype == torch.float32 else 1e-7 if polar == "newton-schulz" else 1e-12
    assert relative(once(make("egd", polar=polar), g.to(dtype)), ref.clamped(g)) < within


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("polar", POLARS)
def test_the_clamp_means_the_same_whichever_way(polar: str, scale: float) -> None:
    """Above eps 1, below s / eps, at it 1, null spaces and zeros stay zero: over ten orders of magnitude."""
    values = [scale * s for s in (1.0, 0.3, 1e-2, 1e-4)] + [1e-5, 1.000001e-6, 1e-6, 9.9e-7, 1e-7, 1e-9, 0.0]
    g = spectrum(values, 14, 11)
    out = once(make("egd", polar=polar), g)
    # The Gram matrix squares what lies between the largest singular value and eps, up to 1e8 here.
    within = 2.2e-17 * (scale / 1e-6) ** 2 + 1e-7 if polar == "gram" else 1e-7
    assert (out - ref.clamped(g)).abs().max() < within
    assert torch.linalg.svdvals(out).max() < 1 + within
    assert not once(make("egd", polar=polar), torch.zeros(3, 4)).any()
    low = once(make("egd", polar=polar, eps=1e-3), torch.diag(torch.tensor([2.0, 1e-3, 1e-4, 0.0]).double()))
    assert torch.allclose(low, torch.diag(torch.tensor([1.0, 1.0, 0.1, 0.0]).double()), atol=1e-7)


@pytest.mark.parametrize("polar", POLARS)
def test_known_matrices_whichever_way(polar: str) -> None:
    g = matrix([[1, 2], [3, 4], [5, 6]])
    expected = matrix([[-0.5510, 0.7278], [0.1362, 0.5611], [0.8233, 0.3943]])
    assert torch.allclose(once(make("egd", polar=polar), g), expected, atol=5e-5)
    assert torch.allclose(once(make("egd", polar=polar), g.mT.contiguous()), expected.mT, atol=5e-5)
    assert torch.allclose(once(make("egd", polar=polar), matrix([[3, 0, 0], [0, 4, 0]])), torch.eye(2, 3).double())


@pytest.mark.parametrize("polar", ["auto", "svd", "gram"])
def test_pinv_cuts_off(polar: str) -> None:
    """U V^T over what is there, nothing along the rest, however small the gradient."""
    g = spectrum([1.0, 1e-2, 1e-4], 6, 8)  # rank 3
    for scale in (1.0, 1e-9):
        out = once(make("egd", form="pinv", polar=polar), scale * g)
        assert relative(out, ref.pseudo_inverse_form(scale * g)) < 1e-6
        assert torch.allclose(torch.linalg.svdvals(out), torch.tensor([1.0, 1, 1, 0, 0, 0]).double(), atol=1e-6)
    cut = once(make("egd", form="pinv", rtol=1e-3, polar=polar), g)
    assert torch.allclose(torch.linalg.svdvals(cut), torch.tensor([1.0, 1, 0, 0, 0, 0]).double(), atol=1e-9)
    assert not once(make("egd", form="pinv", polar=polar), torch.zeros(3, 4)).any()
    # float32: what rounding leaves of a null space is below its machine epsilon
    ones = torch.ones(7, 9) * 0.1
    assert relative(once(make("egd", form="pinv", polar=polar), ones), torch.ones(7, 9).double() / 63**0.5) < 1e-6


def test_what_newton_schulz_cannot_do_is_refused() -> None:
    for knobs, name in (({"form": "pinv"}, "form"), ({"refresh": 2}, "refresh")):
        with pytest.raises(ValueError, match=rf"\b{name} must be"):
            make("egd", polar="newton-schulz", **knobs)


# --------------------------------------------------------------------------------------------- powers


@pytest.mark.parametrize("q", [1.0, 0.5, 0.0, -0.5, -1.0])
def test_powers(q: float) -> None:
    g = spectrum([4.0, 1.0, 1e-2, 1e-5, 1e-8], 7, 5)
    assert relative(once(make("egd-power", q=q, eps=1e-4), g), ref.powered(g, q, 1e-4)) < 1e-6
    assert torch.allclose(torch.linalg.svdvals(once(make("egd-power", q=q), 2.0 * torch.eye(3).double())),
                          torch.full((3,), 2.0**q).double())  # fmt: skip


def test_powers_go_from_the_gradient_over_egd_to_the_natural_gradient() -> None:
    g = normal(4, 9)
    assert relative(once(make("egd-power", q=1.0), g), g) < 1e-12
    assert torch.equal(once(make("egd-power", q=0.0), g), once(make("egd"), g))
    assert relative(once(make("egd-power", q=-1.0), g), torch.linalg.inv(g @ g.T) @ g) < 1e-9


# --------------------------------------------------------------------------------------------- cheap spectra


@pytest.mark.parametrize("role", [Role("hidden", 0), Role("hidden", 1)], ids=["linear", "table"])
@pytest.mark.parametrize("blocks", [2, 3, 5, 50])
@pytest.mark.parametrize("polar", ["auto", "newton-schulz"])
def test_blocks_are_equalised_by_themselves(polar: str, blocks: int, role: Role) -> None:
    g = normal(7, 4)
    expected = ref.in_blocks(g, 1 - role.out_dim, blocks, ref.clamped)
    assert torch.allclose(once(make("egd", blocks=blocks, polar=polar), g, role), expected, atol=1e-9)


def test_one_unit_a_block_is_column_normalisation() -> None:
    g = normal(6, 4)
    for out_dim, units in ((0, 6), (1, 4)):
        role = Role("hidden", out_dim)
        assert torch.allclose(once(make("egd", blocks=units), g, role), once(make("egd-colnorm", floor=1e-6), g, role))


STALE = [{"refresh": 3}, {"refresh": 4, "blocks": 2}, {"refresh": 2, "form": "pinv"}]


@pytest.mark.parametrize("knobs", STALE, ids=str)
def test_a_basis_that_is_refreshed_now_and_then(knobs: dict[str, Any]) -> None:
    """Fresh it is EGD; in between each old direction's own part of the gradient has length 1."""
    stream = [normal(5, 8, seed=i) + 2 * normal(5, 8, seed=99) for i in range(9)]
    outs = [out for out, _ in replay(make("egd", **knobs), stream)]
    twin = ref.Egalitarian(refresh=knobs["refresh"])
    for i, (g, out) in enumerate(zip(stream, outs, strict=True)):
        if "blocks" not in knobs:
            assert relative(out, twin.change("w", g, 1)) < 1e-9
        fresh = once(make("egd", **{**knobs, "refresh": 1}), g)
        assert torch.allclose(out, fresh, atol=1e-9) == (i % knobs["refresh"] == 0)
        lengths = torch.linalg.matrix_norm(out)
        assert lengths == pytest.approx(5**0.5)  # every direction at one, orthogonal or not
    tall = [g.mT.contiguous() for g in stream]
    if "blocks" not in knobs:
        for (a, _), b in zip(replay(make("egd", **knobs), tall), outs, strict=True):
            assert torch.allclose(a.mT, b, atol=1e-9)


# --------------------------------------------------------------------------------------------- sketches


def sketch(columns: int, rank: int, seed: int = 0) -> dict[str, Tensor]:
    return {"sketch": normal(columns, rank, seed=seed)}


@pytest.mark.parametrize("size", [(6, 9), (9, 6), (12, 12)], ids=str)
@pytest.mark.parametrize("rank", [1, 3, 20])
@pytest.mark.parametrize("power", [0, 1, 2])
def test_rsvd_is_the_algorithm(size: tuple[int, int], rank: int, power: int) -> None:
    """The papers' algorithm with a QR of its own; 14 rows are drawn where the widest tensor has 14 columns."""
    g, noise = normal(*size, seed=3), sketch(14, rank)
    expected = ref.randomised(g, noise["sketch"][: size[1]], power)
    assert relative(once(make("egd-rsvd", rank=rank, power=power), g, noise=noise), expected) < 1e-8


def test_rsvd_of_full_rank_is_egd_and_of_a_smaller_one_the_leading_part() -> None:
    g = spectrum([9.0, 4.0, 2.0, 1e-3, 1e-4, 1e-5], 6, 10)
    for rank in (6, 64):
        out = once(make("egd-rsvd", rank=rank), g, noise=sketch(10, rank))
        assert relative(out, ref.clamped(g)) < 1e-6
    three = once(make("egd-rsvd", rank=3, power=3), g, noise=sketch(10, 3))
    u, s, _ = torch.linalg.svd(g)
    assert relative(three, u[:, :3] @ torch.diag(1 / s[:3]) @ u[:, :3].T @ g) < 1e-9
    assert not once(make("egd-rsvd", rank=2), torch.zeros(3, 4), noise=sketch(4, 2)).any()


def test_sketches_are_fresh_every_step_or_fixed() -> None:
    g = normal(8, 9)
    fresh = make("egd-rsvd", rank=3, power=0)
    assert fresh.noise is not None
    assert fresh.noise({"a": normal(2, 7), "b": normal(9, 3), "c": normal(11), "d": normal(4, 3, 5)}) == {
        "sketch": (20, 3)}  # fmt: skip
    noise = [sketch(9, 3, seed=i) for i in (1, 2)]
    (a, state), (b, _) = replay(fresh, [g, g], noise=noise)
    assert not torch.equal(a, b) and not state.kept
    fixed = make("egd-rsvd", rank=3, power=0, fixed_sketch=True)
    assert fixed.noise is None and "noise" not in fixed.needs
    (a, first), (b, second) = replay(fixed, [g, g])
    assert torch.equal(a, b) and torch.equal(first.kept["w"], second.kept["w"])
    assert relative(a, ref.randomised(g, first.kept["w"], 0)) < 1e-9
    other = fixed.init({"w": g}, ROLES, torch.Generator().manual_seed(6))
    assert not torch.equal(other.kept["w"], first.kept["w"])


@pytest.mark.parametrize("power", [0, 2])
def test_the_engine_draws_the_sketch_of_every_step(power: int) -> None:
    """The reference loop with the same normals: of the stream noise/STEP of the seed, as wide as the widest matrix."""
    knobs: dict[str, Any] = {"rank": 5, "power": power}
    steps = iter(range(1, 1000))

    def draw(name: str, columns: int) -> Tensor:
        return torch.randn(32, 5, generator=generator(3, f"noise/{next(steps)}")).double()[:columns]

    spec = endless("pairs-mlp2", [{"name": "egd-rsvd", **knobs}], optimiser={"lr": 0.05})
    agree(spec, lambda: ref.Randomised(**knobs, sketches=draw), seeds=(3,))


@pytest.mark.parametrize("rest", ["keep", "drop"])
def test_topk_follows_the_leading_directions(rest: str) -> None:
    """Of a gradient that stays, subspace iteration finds the leading directions: then the rest is left or dropped."""
    g = spectrum([9.0, 4.0, 2.0, 0.5, 0.1, 0.02], 6, 10)
    out, _ = replay(make("egd-topk", rank=3, rest=rest), [g] * 30)[-1]
    u, _, vh = torch.linalg.svd(g)
    lead = u[:, :3] @ vh[:3]
    expected = lead + (g - u[:, :3] @ u[:, :3].T @ g) if rest == "keep" else lead
    assert relative(out, expected) < 1e-9
    all_of_it = once(make("egd-topk", rank=64, rest=rest), g)
    assert relative(all_of_it, ref.clamped(g)) < 1e-9


@pytest.mark.parametrize("rest", ["keep", "drop"])
@pytest.mark.parametrize("power", [1, 3])
def test_topk_is_the_algorithm(power: int, rest: str) -> None:
    """Step by step on gradients that have little in common: the twin goes on from its own basis."""
    stream = [normal(7, 9, seed=i) for i in range(6)]
    transform = make("egd-topk", rank=3, power=power, rest=rest, eps=0.5)
    twin = ref.Leading(transform.init({"w": stream[0]}, ROLES, torch.Generator().manual_seed(5)).kept["w"], power)
    for g, (out, _) in zip(stream, replay(transform, stream), strict=True):
        assert relative(out, twin.step(g, eps=0.5, keep=rest == "keep")) < 1e-9


def test_topk_goes_on_from_the_step_before() -> None:
    """One step from a random start misses directions that lie close together; many of a slowly moving stream do not."""
    base, drift = spectrum([3.0, 2.9, 2.8, 2.7, 2.6, 2.5], 6, 10), normal(6, 10)
    stream = [base + 1e-3 * i * drift for i in range(60)]
    outs = [out for out, _ in replay(make("egd-topk", rank=2, rest="drop"), stream)]

    def error(out: Tensor, g: Tensor) -> float:
        u, _, vh = torch.linalg.svd(g)
        return relative(out, u[:, :2] @ vh[:2])

    assert error(outs[0], stream[0]) > 0.3
    assert error(outs[-1], stream[-1]) < 0.1


@pytest.mark.parametrize("size", [(6, 10), (10, 6), (7, 7)])
def test_lanczos_of_a_whole_krylov_space_is_the_decomposition(size: tuple[int, int]) -> None:
    g = normal(*size)
    transform = make("egd-topk", by="lanczos", rank=2, power=4, rest="drop")
    u, _, vh = torch.linalg.svd(g)
    assert relative(once(transform, g), u[:, :2] @ vh[:2]) < 1e-9
    assert relative(once(make("egd-topk", by="lanczos", rank=64), g), ref.clamped(g)) < 1e-9


@given(steps=st.integers(1, 8), power=st.integers(1, 2), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_lanczos_is_rayleigh_and_ritz_on_its_krylov_space(steps: int, power: int, seed: int) -> None:
    """The twin builds the space from powers, v, (G'G) v, (G'G)^2 v, ..., v = G'u, and leaves the rest to the SVD."""
    g, first = normal(9, 12, seed=seed), normal(9, 1, seed=seed + 1)
    k = max(1, steps // (power + 1))
    space = [g.T @ first / (g.T @ first).norm()]
    for _ in range(steps - 1):
        following = g.T @ (g @ space[-1])
        space.append(following / following.norm())
    q = torch.linalg.qr(torch.cat(space, 1))[0]
    u = torch.linalg.svd(g @ q, full_matrices=False)[0][:, :k]
    found = spectra.lanczos(g, first, steps, k)
    assert torch.allclose(found @ found.T, u @ u.T, atol=1e-5)  # powers lose digits, the recursion does not
    assert torch.allclose(found.T @ found, torch.eye(k).double(), atol=1e-12)


def test_lanczos_ends_where_its_space_does() -> None:
    """Rank one, one singular value six times over, nothing at all: no direction above 1, no rounding blown up."""
    lanczos = make("egd-topk", by="lanczos", rank=3, power=1, rest="drop")
    one = torch.outer(normal(6), normal(10))
    assert relative(once(lanczos, one), one / one.norm()) < 1e-9
    same = torch.linalg.qr(normal(10, 6))[0].T * 5
    out = once(lanczos, same)
    assert torch.linalg.svdvals(out)[:2].tolist() == pytest.approx([1.0, 0.0], abs=1e-9)
    assert not once(lanczos, torch.zeros(6, 10).double()).any()


# --------------------------------------------------------------------------------------------- which tensors


def model_roles(model: str, task: str, **options: Any) -> tuple[dict[str, tuple[int, ...]], Mapping[str, Role]]:
    built = REGISTRY.models[model].build(REGISTRY.tasks[task].factory(), **options)
    return {k: tuple(p.shape) for k, p in built.named_parameters()}, built.roles


def test_layers() -> None:
    shapes, roles = model_roles("mlp2", "parity")
    assert {at: chosen(shapes, roles, at) for at in ("hidden", "mlp", "all2d", "all2d+emb")} == {
        "hidden": ["w1"], "mlp": ["w1"], "all2d": ["w1", "w2"], "all2d+emb": ["w1", "w2"]}  # fmt: skip
    shapes, roles = model_roles("decoder", "modular-tokens", layers=2)
    mlp = ["fc1_w_0", "fc2_w_0", "fc1_w_1", "fc2_w_1"]
    attention = ["qkv_w_0", "out_w_0", "qkv_w_1", "out_w_1"]
    assert chosen(shapes, roles, "hidden") == ["fc1_w_0"]
    assert chosen(shapes, roles, "mlp") == mlp
    assert sorted(chosen(shapes, roles, "all2d")) == sorted(mlp + attention)
    assert sorted(chosen(shapes, roles, "all2d+emb")) == sorted([*mlp, *attention, "tokens", "positions", "head"])
    assert all(len(shapes[k]) == 2 for k in chosen(shapes, roles, "all2d+emb"))


@pytest.mark.parametrize("name", ["egd", "egd-colnorm", "egd-rsvd", "egd-topk", "egd-power"])
def test_the_rest_keeps_its_gradient(name: str) -> None:
    shapes, roles = model_roles("decoder", "modular-tokens", dim=8, heads=2)
    grads = {k: normal(*shape, seed=i) for i, (k, shape) in enumerate(shapes.items())}
    transform = make(name, layers="all2d")
    state = transform.init(grads, roles, torch.Generator())
    noise = {k: normal(*s) for k, s in transform.noise(grads).items()} if transform.noise else None
    out, _ = transform.update(grads, state, grads, step=1, roles=roles, noise=noise, **ON)
    changed = [k for k in grads if not torch.equal(out[k], grads[k])]
    assert changed == chosen(shapes, roles, "all2d")


@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("name", ["egd", "egd-colnorm", "egd-rsvd", "egd-topk", "egd-power"])
def test_a_kernel_is_a_matrix_of_its_output_channels(name: str, shape: tuple[int, ...]) -> None:
    """(out, in, h, w) as (out, in h w), ambiguity 11; a kernel whose outputs stand second is turned first."""
    g, transform = normal(*shape), make(name)
    size = g[0].numel()
    extra: dict[str, Any] = {"noise": sketch(size, 4)} if transform.noise else {}
    expected = once(transform, g.reshape(6, size), **extra).reshape(shape)
    assert torch.allclose(once(transform, g, **extra), expected, atol=1e-12)
    turned = once(transform, g.transpose(0, 1).contiguous(), Role("hidden", 1), **extra)
    assert torch.allclose(turned.transpose(0, 1), expected, atol=1e-12)


# --------------------------------------------------------------------------------------------- failures, order


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["egd", "egd-colnorm", "egd-rsvd", "egd-topk", "egd-power"])
def test_what_is_not_finite_is_left_unmoved_and_counted(name: str, bad: float) -> None:
    transform, roles = make(name), {k: Role("hidden", 0) for k in "ab"}
    good = {k: normal(3, 4, seed=i) for i, k in enumerate("ab")}
    poisoned = {"a": good["a"].clone(), "b": torch.full((3, 4), bad).double()}
    poisoned["a"][1, 2] = bad
    state = transform.init(good, roles, torch.Generator())
    extra = {"roles": roles, "noise": sketch(4, 4)}
    assert state.skipped.shape == ()
    seen = []
    for step, (grads, accuracy) in enumerate([(good, 0.0), (poisoned, 0.0), (good, 0.0), (poisoned, 1.0)], start=1):
        out, state = transform.update(grads, state, good, step=step, val_accuracy=torch.tensor(accuracy), **extra)
        seen.append(int(state.skipped))
        assert step == 4 or all(bool(torch.isfinite(out[k]).all()) for k in out)
        if step == 2:
            assert not out["a"].any() and not out["b"].any()
    assert seen == [0, 2, 2, 2]  # off, it passes gradients on as they are


def test_order_is_decay_then_egd_then_the_filter() -> None:
    """methods.md 1.3.3: with decay inside the matrix that is equalised is G + wd W; Grokfast sees what EGD made."""
    g, w = [normal(4, 6, seed=i) for i in (1, 2)], normal(4, 6, seed=9)
    whole = chain(decay_inside(0.3), make("egd"), make("grokfast-ema", alpha=0.9, lam=2.0))
    state = whole.init({"w": w}, ROLES, torch.Generator())
    first, second = (ref.clamped(one + 0.3 * w) for one in g)
    mu = 0.9 * first + 0.1 * second
    for step, (one, expected) in enumerate(zip(g, (first + 2 * first, second + 2 * mu), strict=True), start=1):
        out, state = whole.update({"w": one}, state, {"w": w}, step=step, roles=ROLES, **ON)
        assert torch.allclose(out["w"], expected, atol=1e-9)


# --------------------------------------------------------------------------------------------- in the engine

FORMS = [
    {"name": "egd", "form": "pinv"},
    {"name": "egd", "blocks": 5},
    {"name": "egd", "refresh": 4},
    {"name": "egd", "polar": "newton-schulz"},
    {"name": "egd-power", "q": -0.5, "eps": 1e-2},
]


@pytest.mark.parametrize("part", FORMS, ids=lambda part: str(list(part.values())))
def test_the_engine_is_the_twin(part: dict[str, Any]) -> None:
    agree(endless("pairs-mlp2", [part], optimiser={"lr": 0.05}), seeds=(3,), within=1e-7)


@pytest.mark.parametrize(
    "part",
    [
        {"name": "egd", "refresh": 4, "blocks": 3}, {"name": "egd", "polar": "newton-schulz"},
        {"name": "egd", "form": "pinv", "polar": "svd"}, {"name": "egd-rsvd", "rank": 3, "fixed_sketch": True},
        {"name": "egd-rsvd", "rank": 40, "power": 0}, {"name": "egd-topk", "rank": 3, "rest": "drop"},
        {"name": "egd-topk", "rank": 3, "by": "lanczos"},
    ],
    ids=lambda part: str(list(part.values())),
)  # fmt: skip
@pytest.mark.parametrize("form", ["pairs-mlp2", "tokens-decoder"])
def test_lanes_and_a_resume_change_no_bit(part: dict[str, Any], form: str) -> None:
    """What the conformance suite asks of the methods as they are, of the forms that keep something."""
    every = {"every": 0.02, "min": 10, "examples": 1024}
    spec = trial(form, [part], every=every, threshold=1.1)
    whole = stopped_at(spec, [1, 2, 3, 4, 5], 20)
    half = restored(stopped_at(spec, [1, 2, 3, 4, 5], 10).snapshot())
    for pack, state in (([4, 2], None), ([5], None), ([1, 2, 3, 4, 5], half), ([3], half)):
        other = stopped_at(spec, pack, 20, state=state)
        for seed in pack:
            assert (bits(other, seed), lane_bits(other, seed)) == (bits(whole, seed), lane_bits(whole, seed))


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("egd", {}), ("egd", {"refresh": 2, "blocks": 2}), ("egd", {"polar": "newton-schulz"}),
        ("egd", {"form": "pinv", "rtol": 1e-3}), ("egd-colnorm", {}), ("egd-topk", {"rank": 2}), ("egd-power", {}),
        ("egd-topk", {"rank": 2, "by": "lanczos"}),
        ("egd-rsvd", {"rank": 2, "fixed_sketch": True}),
    ],
    ids=str,
)  # fmt: skip
def test_kernels_of_many_lanes_are_those_of_each(name: str, knobs: dict[str, Any]) -> None:
    """vmap over (out, in, h, w), whose lanes have eps and the switch of their own."""
    numbers = {k: v for k, v in REGISTRY.methods[name].defaults.items() if k in ("eps", "floor")}
    lanes = [normal(6, 2, 3, 2, seed=i) for i in range(3)]
    each = torch.tensor([0.5, 2.0, 9.0]).double()

    def run(g: Tensor, scale: Tensor, accuracy: Tensor, state: Any) -> Tensor:
        transform = make(name, **knobs, **{k: v * scale for k, v in numbers.items()})
        out, _ = transform.update({"w": g}, state, {"w": g}, step=1, roles=ROLES, val_accuracy=accuracy)
        return out["w"]

    state = make(name, **knobs).init({"w": lanes[0]}, ROLES, torch.Generator())
    accuracies = torch.tensor([0.0, 1.0, 0.5])
    together = torch.func.vmap(run, in_dims=(0, 0, 0, None))(torch.stack(lanes), each, accuracies, state)
    for i in range(3):
        assert torch.allclose(together[i], run(lanes[i], each[i], accuracies[i], state), atol=1e-9)
    assert torch.equal(together[1], lanes[1])
    assert not torch.allclose(together[0], lanes[0])


# --------------------------------------------------------------------------------------------- what it costs


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("egd", {"polar": how}) for how in POLARS]
    + [("egd", {"blocks": 3}), ("egd", {"polar": "newton-schulz", "blocks": 4}), ("egd-colnorm", {}), ("egd-power", {})]
    + [("egd-rsvd", {"rank": r, "power": p}) for r in (3, 64) for p in (0, 2)]
    + [("egd-topk", {"rank": r, "rest": rest, "by": by})
       for r in (3, 64) for rest, by in (("keep", "subspace"), ("drop", "subspace"), ("keep", "lanczos"))],
    ids=str,
)
def test_products_are_counted_as_torch_counts_them(name: str, knobs: dict[str, Any]) -> None:
    """Matrix products exactly; decompositions, which torch does not count, by textbook formulas, are all else."""
    shapes = {"wide": (9, 14), "tall": (12, 7), "kernel": (6, 2, 3, 3), "bias": (9,)}
    roles = {"wide": Role("hidden", 0), "tall": Role("hidden", 1), "kernel": Role("hidden", 0), "bias": Role("bias")}
    method, transform = REGISTRY.methods[name], make(name, **knobs)
    all_knobs = {**method.defaults, **knobs}
    grads = {k: torch.randn(s, generator=torch.Generator().manual_seed(1)) for k, s in shapes.items()}
    state = transform.init(grads, roles, torch.Generator())
    noise = {"sketch": normal(18, all_knobs.get("rank", 1)).float()}
    with FlopCounterMode(display=False) as counter:
        transform.update(grads, state, grads, step=1, roles=roles, noise=noise, **ON)
    costs = {"egd": egd_.egd_cost, "egd-colnorm": egd_.colnorm_cost, "egd-rsvd": egd_.rsvd_cost,
             "egd-topk": egd_.topk_cost, "egd-power": egd_.power_cost}  # fmt: skip
    declared = costs[name](shapes, roles, all_knobs)
    assert declared.products == counter.get_total_flops()
    assert method.flops is not None
    assert method.flops(shapes, roles, all_knobs) == pytest.approx(declared.products + declared.other)
    assert declared.other > 0


def test_a_basis_kept_for_longer_costs_less() -> None:
    shapes, roles = {"w": (194, 512)}, ROLES
    once_, seldom = (egd_.egd_cost(shapes, roles, {**egd_.EGD_DEFAULTS, "refresh": r}) for r in (1, 10))
    every = 4 * 194 * 194 * 512
    assert seldom.products == pytest.approx(every + (once_.products - every) / 10)


# --------------------------------------------------------------------------------------------- one line in a file


def test_egd_and_grokfast_are_one_line_of_an_experiment_file() -> None:
    """The file as it is, its arms at their starting values, on the reference loop with the two twins in a row."""
    file = ROOT / "experiments" / "egd-and-grokfast.toml"
    resolved = resolve_file(file, ["task.n=12", "task.n_train=100", "model.width=16"], registry=lambda _: REGISTRY)
    arms = {arm.name: arm for arm in resolved.arms}
    assert arms["egd+grokfast-ema"].methods == ("egd", "grokfast-ema")
    assert {"egd.eps", "grokfast-ema.alpha", "lr", "wd"} <= set(arms["egd+grokfast-ema"].space)
    spec = resolved.trial("egd+grokfast-ema")
    assert [part["name"] for part in spec.method] == ["egd", "grokfast-ema"]
    *_, end = train(spec, [1, 2], horizon=60, registry=REGISTRY)
    assert end.step == 60 and np.isfinite(end.metrics["train_loss"]).all()


def test_the_chain_is_the_twins_in_a_row() -> None:
    file = ROOT / "experiments" / "egd-and-grokfast.toml"
    short = ["task.n=12", "task.n_train=100", "task.n_val=90", "task.n_test=110", "model.width=16"]
    spec = resolve_file(file, short, registry=lambda _: REGISTRY).trial("egd+grokfast-ema", {"lr": 0.01})
    every = {"every": 0.02, "min": 10, "examples": 1024}
    spec = dataclasses.replace(spec, precision="fp64", threshold=1.1, eval=every)
    twinless = ("name", "layers", "watch")
    knobs = {part["name"]: {k: v for k, v in part.items() if k not in twinless} for part in spec.method}
    egd = {"threshold" if k == "switch" else k: v for k, v in knobs["egd"].items()}

    def both() -> Any:
        return reference.Chain(ref.Egalitarian(**egd), reference_grokfast.Exponential(**knobs["grokfast-ema"]))

    agree(spec, both)


def test_the_switch_may_watch_the_loss() -> None:
    """Off once the monitored loss is below the threshold, and it stays off; infinite before the first evaluation."""
    transform = egd_.egd(switch=0.5, watch="loss")
    assert transform.needs == {"val_loss", "roles"}
    g = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = transform.init({"w": g}, ROLES, torch.Generator())
    moved = []
    for step, loss in enumerate((math.inf, 0.6, 0.4, 0.6), 1):
        out, state = transform.update({"w": g}, state, {"w": g}, step=step, roles=ROLES, val_loss=torch.tensor(loss))
        moved.append(not torch.equal(out["w"], g))
    assert moved == [True, True, False, False]


def test_a_run_whose_switch_watches_the_loss_switches_off() -> None:
    spec = trial(GROKS, [{"name": "egd", "watch": "loss", "switch": 0.5}], optimiser={"lr": 0.02})
    *_, end = train(spec, [1, 2], horizon=1500, until="stable", registry=REGISTRY)
    curve = end.curves()
    for seed in (1, 2):
        mine = curve["seed"] == seed
        off = curve["val_loss"][mine] < 0.5
        assert off.any() and curve["active"][mine][0] and not curve["active"][mine][-1]


def test_a_decomposition_that_does_not_converge_is_done_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = spectra.reweigh(g, spectra.left(g, "svd"), spectra.clamp(1e-6))

    def fails(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("it did not converge")  # pyright: ignore[reportPrivateImportUsage]

    for how, function in (("gram", "eigh"), ("svd", "svd")):
        with monkeypatch.context() as broken:
            broken.setattr(torch.linalg, function, fails)
            got = spectra.reweigh(g, spectra.left(g, how), spectra.clamp(1e-6))
            u, s = spectra.thin(g.mT)
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-12)
        vectors, values, _ = torch.linalg.svd(g.mT, full_matrices=False)
        assert torch.allclose(s, values, rtol=1e-9) and torch.allclose((u.mT @ vectors).abs(), torch.eye(4).double())
    monkeypatch.setattr(torch.linalg, "svd", fails)
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    got = spectra.reweigh(g, spectra.left(g, "svd"), spectra.clamp(1e-6))
    assert torch.allclose(got, g / g.norm(dim=1, keepdim=True))
