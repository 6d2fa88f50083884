"""The amplifier through its breakpoints against the plain network: values, gradients, lanes, look-up, files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from grokscale.entries import content_digest
from grokscale.methods import amplifier as amp
from grokscale.transform import Params
from tests import reference_neuralgrok as ref

WIDTHS = st.lists(st.integers(1, 24), min_size=0, max_size=3)
SEEDS = st.integers(0, 2**31)


def network(widths: list[int], seed: int, spread: float = 1.0, dtype: torch.dtype = torch.float64) -> Params:
    """spread: of the biases, so that kinks lie near and far."""
    source = torch.Generator().manual_seed(seed)
    phi = amp.initial(widths, source, torch.zeros((), dtype=dtype))
    return {k: t * spread if k.startswith("b") else t for k, t in phi.items()}


def entries(n: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def plain(widths: list[int], phi: Params, x: Tensor) -> Tensor:
    return ref.amplifier(widths, phi)(x.double().unsqueeze(1)).squeeze(1).detach()


def plain_slope(widths: list[int], phi: Params, x: Tensor, rise: Tensor) -> Params:
    net = ref.amplifier(widths, phi)
    (net(x.unsqueeze(1)).squeeze(1) * rise).sum().backward()
    out = {}
    for name, p in ref.weights_of(net).items():
        assert p.grad is not None
        out[name] = p.grad
    return out


def slope(phi: Params, x: Tensor, rise: Tensor) -> Params:
    return grad(lambda weights: (amp.evaluate(weights, x) * rise).sum())(phi)


def close(a: Params, b: Params, within: float) -> bool:
    scale = max(float(t.abs().max()) for t in b.values()) + 1e-300
    return set(a) == set(b) and all(float((a[k] - b[k]).abs().max()) <= within * scale for k in b)


# ---------------------------------------------------------------------------------------- values and gradients


@given(WIDTHS, SEEDS, st.sampled_from([1e-6, 1e-3, 1.0, 1e3]), st.sampled_from([1e-3, 1.0, 10.0]))
def test_values_and_gradients_are_the_plain_networks(
    widths: list[int], seed: int, scale: float, spread: float
) -> None:
    phi, x, rise = network(widths, seed, spread * scale), entries(200, seed, scale), entries(200, seed + 1)
    expected = plain(widths, phi, x)
    assert float((amp.evaluate(phi, x) - expected).abs().max()) <= 1e-13 * (1 + float(expected.abs().max()))
    assert close(slope(phi, x, rise), plain_slope(widths, phi, x, rise), 1e-11)


@given(WIDTHS, SEEDS)
def test_on_and_around_every_kink(widths: list[int], seed: int) -> None:
    """The knots themselves, their neighbours in floating point, and points a little off."""
    phi, x = network(widths, seed), entries(50, seed, 3.0)
    kinks = amp.knots(phi, float(x.min()), float(x.max()))
    near = [kinks, torch.nextafter(kinks, kinks + 1), torch.nextafter(kinks, kinks - 1), kinks + 1e-9, kinks - 1e-9]
    x = torch.cat([x, *near, torch.zeros(1, dtype=torch.float64)])
    expected = plain(widths, phi, x)
    assert float((amp.evaluate(phi, x) - expected).abs().max()) <= 1e-13 * (1 + float(expected.abs().max()))
    # At a kink any slope between the two sides is one; a step of rounding off it, which side is rounding too.
    apart = (x.unsqueeze(1) - kinks).abs().amin(1) > 1e-10 if len(kinks) else torch.ones_like(x, dtype=torch.bool)
    rise = torch.where(apart, entries(len(x), seed + 1), 0.0)
    assert close(slope(phi, x, rise), plain_slope(widths, phi, x, rise), 1e-10)


@given(st.integers(1, 16), SEEDS)
def test_at_a_kink_the_gradient_is_that_of_one_side(width: int, seed: int) -> None:
    phi, x = network([width], seed), torch.tensor([-4.0, 4.0], dtype=torch.float64)
    kinks = amp.knots(phi, -4.0, 4.0)
    assert len(kinks) <= width
    for i, kink in enumerate(kinks):
        others = torch.cat([kinks[:i], kinks[i + 1 :], x])
        gap = float((others - kink).abs().min())
        if gap < 1e-6:
            continue
        at, one = torch.cat([x, kink.view(1)]), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        got = slope(phi, at, one)
        left, right = (plain_slope([width], phi, at + shift * one, one) for shift in (-gap * 1e-4, gap * 1e-4))
        assert close(got, left, gap) or close(got, right, gap)


@pytest.mark.parametrize("value", [0.0, -3e-5, 1.7])
@given(WIDTHS, SEEDS)
def test_entries_that_are_all_the_same(value: float, widths: list[int], seed: int) -> None:
    phi, x, rise = network(widths, seed), torch.full((7,), value, dtype=torch.float64), entries(7, seed)
    assert torch.allclose(amp.evaluate(phi, x), plain(widths, phi, x), rtol=1e-13, atol=1e-14)
    assert close(slope(phi, x, rise), plain_slope(widths, phi, x, rise), 1e-11)


@pytest.mark.parametrize("widths", [[128, 128], [64, 128, 64], [1152], [512, 512]], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 3.0])
def test_the_published_sizes(widths: list[int], scale: float) -> None:
    """At 3.0 there are 200 to 1,000 pieces: tables of many blocks."""
    phi, x, rise = network(widths, 1), entries(3000, 2, scale), entries(3000, 3)
    assert sum(t.numel() for t in phi.values()) == {2: 16897, 3: 16769, 1: 3457}[len(widths)] or widths == [512, 512]
    assert torch.allclose(amp.evaluate(phi, x), plain(widths, phi, x), rtol=1e-12, atol=1e-14)
    assert close(slope(phi, x, rise), plain_slope(widths, phi, x, rise), 1e-12)
    if scale == 3.0:
        assert len(amp.knots(phi, float(x.min()), float(x.max()))) > 3 * amp.BLOCK


@pytest.mark.parametrize("widths", [[128, 128], [1152]], ids=str)
@pytest.mark.parametrize("scale", [1e-3, 3.0])
def test_float32_is_no_worse_than_the_plain_network_in_float32(widths: list[int], scale: float) -> None:
    phi, x = network(widths, 4), entries(5000, 5, scale)
    exact = plain(widths, phi, x.float())
    narrow = {k: t.float() for k, t in phi.items()}
    rounded = plain(widths, {k: t.double() for k, t in narrow.items()}, x.float())
    net = ref.amplifier(widths, narrow).float()
    theirs = float((net(x.float().unsqueeze(1)).squeeze(1).detach() - rounded).abs().max())
    ours = float((amp.evaluate(narrow, x.float()) - rounded).abs().max())
    assert ours <= max(theirs, 1e-7)
    assert float((rounded - exact).abs().max()) < 1e-5


def test_the_initialisation_is_pytorchs() -> None:
    phi = network([400, 300], 0)
    for name, fan_in in (("w1", 1), ("b1", 1), ("w2", 400), ("b2", 400), ("w3", 300)):
        bound = 1 / math.sqrt(fan_in)
        assert float(phi[name].abs().max()) <= bound
        assert float(phi[name].std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert abs(float(phi[name].mean())) < 0.12 * bound


def test_a_second_derivative_is_refused() -> None:
    phi, x = network([4], 0), entries(10, 1)
    with pytest.raises((RuntimeError, NotImplementedError)):
        grad(lambda p: sum(t.sum() for t in slope(p, x, x).values()))(phi)


# ------------------------------------------------------------------------------------------------------ lanes


def pack(lanes: list[tuple[Params, Tensor]]) -> tuple[Tensor, Params]:
    """Values and gradients of lanes of equal widths under vmap."""
    phi = {k: torch.stack([p[k] for p, _ in lanes]) for k in lanes[0][0]}
    x = torch.stack([x for _, x in lanes])
    return vmap(amp.evaluate)(phi, x), vmap(lambda p, row: slope(p, row, row.cos()))(phi, x)


def lane(seed: int, scale: float, dtype: torch.dtype) -> tuple[Params, Tensor]:
    return network([48, 48], seed, dtype=dtype), entries(70_000, seed, scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_a_lanes_bits_do_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    """Neighbours with tables of other lengths, a lost one, other places and packs."""
    few, many = lane(1, 1e-3, dtype), lane(2, 5.0, dtype)
    outlier = (few[0], torch.cat([few[1][1:], few[1].new_tensor([1e4])]))
    lost = [(few[0], torch.full_like(few[1], value)) for value in (math.nan, math.inf)]
    counts = [len(amp.knots(p, float(x.min()), float(x.max()))) for p, x in (few, many)]
    assert counts[0] < 5 and counts[1] > amp.BLOCK
    values, slopes = pack([few, few])
    for others in ([few, many], [few, outlier], [few, lost[0]], [few, lost[1]], [few, many, lost[0], many]):
        seen, moved = pack(others)
        assert torch.equal(seen[0], values[0])
        assert all(torch.equal(moved[k][0], slopes[k][0]) for k in slopes)
    swapped, _ = pack([many, few])
    assert torch.equal(swapped[1], values[0])
    seen, _ = pack([few, lost[0]])
    assert not torch.isfinite(seen[1]).any()


def test_lanes_are_single_replicas() -> None:
    lanes = [lane(seed, scale, torch.float64) for seed, scale in ((1, 1e-3), (2, 1.0), (3, 5.0))]
    values, slopes = pack(lanes)
    for i, (phi, x) in enumerate(lanes):
        assert torch.allclose(values[i], amp.evaluate(phi, x), rtol=1e-12, atol=1e-14)
        assert close({k: t[i] for k, t in slopes.items()}, slope(phi, x, x.cos()), 1e-11)


def test_what_lanes_share_need_not_be_stacked() -> None:
    """One phi for all, one x for all, only what comes after different, lanes of lanes."""
    (phi, x), rows = lane(1, 3.0, torch.float64), torch.stack([entries(500, seed, 3.0) for seed in (1, 2, 3)])
    x = x[:500]
    shared = vmap(slope, in_dims=(None, 0, 0))(phi, rows, rows.cos())
    risen = vmap(slope, in_dims=(None, None, 0))(phi, x, rows)
    inner = vmap(slope, in_dims=(None, 0, 0))
    nested = vmap(inner, in_dims=(None, 0, 0))(phi, rows.view(3, 2, 250), rows.view(3, 2, 250))
    for i in range(3):
        assert close({k: t[i] for k, t in shared.items()}, slope(phi, rows[i], rows[i].cos()), 1e-12)
        assert close({k: t[i] for k, t in risen.items()}, slope(phi, x, rows[i]), 1e-12)
        half = rows[i].view(2, 250)[1]
        assert close({k: t[i, 1] for k, t in nested.items()}, slope(phi, half, half), 1e-12)


# ---------------------------------------------------------------------------------------------------- look-up


@given(
    st.lists(st.lists(st.floats(-2, 2, width=32), max_size=40), min_size=1, max_size=4),
    SEEDS,
    st.sampled_from([1.0, 1e-3, 1e5]),
)
@settings(max_examples=60)
def test_the_look_up_is_searchsorted(rows: list[list[float]], seed: int, far: float) -> None:
    """Few and many knots, equal ones, entries on them; with one entry far off all knots fall into one cell."""
    width = max(len(row) for row in rows) + 3
    table = torch.full((len(rows), width), math.inf)
    x = entries(len(rows) * 300, seed).float().view(len(rows), 300)
    for i, row in enumerate(rows):
        knots = torch.tensor(row).sort().values
        table[i, : len(row)] = knots
        x[i, : len(row)] = knots
    x[:, -1], x[:, -2], x[:, -3] = 2.0 + far, -2.0, 2.0
    x = x.clamp(-2.0, 2.0 + far)
    assert torch.equal(amp._look_up(x, table).long(), torch.searchsorted(table, x))


# ------------------------------------------------------------------------------------------------------ files


def test_an_amplifier_comes_back_from_its_file(tmp_path: Path, monkeypatch: Any) -> None:
    phi = network([5, 3], 1)
    content = amp.packed(phi)
    (tmp_path / "add.pt").write_bytes(content)
    digest = content_digest(content)
    loaded = amp.load(f"{tmp_path}/add.pt@{digest}")
    assert set(loaded) == set(phi) and all(torch.equal(loaded[k], phi[k]) for k in phi)
    monkeypatch.chdir(tmp_path)
    assert set(amp.load(f"add.pt@{digest}")) == set(phi)
    monkeypatch.chdir("/")
    monkeypatch.setenv("GROKSCALE_DATA", str(tmp_path))
    assert set(amp.load(f"add.pt@{digest}")) == set(phi)
    for wrong in ("add.pt", "add.pt@", "add.pt@0123456789ab"):
        with pytest.raises(ValueError, match=rf"amplifier.*give 'add.pt@{digest}'"):
            amp.load(wrong)
    with pytest.raises(ValueError, match=r"amplifier.*no file"):
        amp.load(f"sub.pt@{digest}")


@pytest.mark.parametrize("content", [b"", b"text", {"phi": {}}, [1, 2]], ids=["empty", "text", "other", "list"])
def test_a_file_that_is_no_amplifier_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    digest = content_digest(path.read_bytes())
    with pytest.raises(ValueError, match=r"amplifier .* is no file of a saved amplifier"):
        amp.load(f"{path}@{digest}")
