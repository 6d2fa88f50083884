"""The oracle is tested first: reference.py against numbers that were computed by other means (methods.md 8)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests import reference as ref


class Scalar(nn.Module):
    """One parameter whose gradient is dictated."""

    def __init__(self, shape: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(shape, dtype=ref.DTYPE))

    def orthogonalised(self) -> list[tuple[str, int]]:
        return [("w", 0)]


def drive(method, gradients) -> list[float]:
    net = Scalar()
    out = []
    for g in gradients:
        net.w.grad = torch.tensor([float(g)], dtype=ref.DTYPE)
        method(net, 0.0)
        assert net.w.grad is not None
        out.append(float(net.w.grad))
    return out


def transformed(method, gradient: Tensor, accuracy: float = 0.0) -> Tensor:
    net = Scalar(tuple(gradient.shape))
    net.w.grad = gradient.clone()
    method(net, accuracy)
    assert net.w.grad is not None
    return net.w.grad


@pytest.mark.parametrize(
    ("init", "expected"),
    [("first_grad", [3, 4.04, 5.1192]), ("zero", [1.04, 2.1192, 3.236816])],
)
def test_ema(init: str, expected: list[float]) -> None:
    assert drive(ref.GrokfastEMA(0.98, 2.0, init), [1, 2, 3]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("warmup", "expected"), [(True, [1, 2, 13, 6 + 55 / 3]), (False, [6, 9.5, 13, 6 + 55 / 3])]
)
def test_ma(warmup: bool, expected: list[float]) -> None:
    assert drive(ref.GrokfastMA(3, 5.0, warmup), [1, 2, 3, 6]) == pytest.approx(expected, abs=1e-12)


def test_ma_sum_is_window_times_stronger() -> None:
    assert drive(ref.GrokfastMA(3, 5.0, True, "sum"), [1, 2, 3])[-1] == 3 + 5 * 6


def test_ema_frequency_response() -> None:
    constant = drive(ref.GrokfastEMA(0.98, 2.0), [1.0] * 2000)[-1]
    alternating = drive(ref.GrokfastEMA(0.98, 2.0), [(-1.0) ** t for t in range(2000)])[-1]
    assert constant == pytest.approx(3.0)
    assert abs(alternating) == pytest.approx(1.0202020202, abs=1e-9)


def test_egd_of_small_matrices() -> None:
    diagonal = torch.tensor([[3.0, 0, 0], [0, 4, 0]], dtype=ref.DTYPE)
    assert torch.allclose(ref.egalitarian(diagonal), torch.eye(2, 3, dtype=ref.DTYPE))
    g = torch.tensor([[1.0, 2], [3, 4], [5, 6]], dtype=ref.DTYPE)
    expected = torch.tensor([[-0.5510, 0.7278], [0.1362, 0.5611], [0.8233, 0.3943]], dtype=ref.DTYPE)
    assert torch.allclose(torch.linalg.svdvals(g), torch.tensor([9.5255, 0.5143], dtype=ref.DTYPE), atol=5e-5)
    out = ref.egalitarian(g)
    assert torch.allclose(out, expected, atol=5e-5)
    assert torch.allclose(ref.egalitarian(g.T), out.T, atol=1e-12)
    assert torch.allclose(out.T @ out, torch.eye(2, dtype=ref.DTYPE), atol=1e-12)
    assert torch.allclose(transformed(ref.Egalitarian("egd"), g), out)


def test_egd_clamp_limits_what_a_tiny_singular_value_becomes() -> None:
    g = torch.diag(torch.tensor([2.0, 1e-8], dtype=ref.DTYPE))
    assert torch.allclose(ref.egalitarian(g, eps=1e-6).diag(), torch.tensor([1.0, 1e-2], dtype=ref.DTYPE))
    assert not ref.egalitarian(torch.zeros(3, 2, dtype=ref.DTYPE)).any()


def test_column_normalisation() -> None:
    rows = torch.tensor([[1.0, 2], [3, 4], [5, 6]], dtype=ref.DTYPE)
    expected = torch.tensor([[0.4472, 0.8944], [0.6, 0.8], [0.6402, 0.7682]], dtype=ref.DTYPE)
    assert torch.allclose(ref.column_normalised(rows, incoming=1), expected, atol=5e-5)
    assert torch.allclose(ref.column_normalised(rows.T, incoming=0), expected.T, atol=5e-5)
    small = torch.tensor([[6e-4, 8e-4]], dtype=ref.DTYPE)
    assert torch.allclose(ref.column_normalised(small, incoming=1), small / 0.01)


def test_switch_is_strict_and_sticky() -> None:
    g = torch.tensor([[3.0, 0], [0, 4]], dtype=ref.DTYPE)
    sticky = ref.Egalitarian("egd")
    assert not torch.equal(transformed(sticky, g, 0.95), g)
    assert torch.equal(transformed(sticky, g, 0.951), g)
    assert torch.equal(transformed(sticky, g, 0.1), g)
    loose = ref.Egalitarian("egd", sticky=False)
    assert torch.equal(transformed(loose, g, 0.951), g)
    assert not torch.equal(transformed(loose, g, 0.1), g)


def test_warmup_starts_at_zero() -> None:
    assert [ref.warmup_factor(u) for u in range(13)] == pytest.approx([u / 10 for u in range(11)] + [1, 1])
    net = Scalar()
    optimiser = torch.optim.SGD(net.parameters(), lr=2.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, ref.warmup_factor)
    rates = []
    for _ in range(11):
        net.w.grad = torch.ones_like(net.w)
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    assert rates == pytest.approx([2.0 * u / 10 for u in range(11)])


@pytest.mark.parametrize(
    ("vocabulary", "sequence", "layers", "scalars", "tensors"),
    [(99, 5, 2, 422_784, 29), (100, 6, 2, 423_168, 29), (11, 10, 4, 797_440, 53)],
)
def test_decoder_size(vocabulary: int, sequence: int, layers: int, scalars: int, tensors: int) -> None:
    with torch.random.fork_rng():
        parameters = list(ref.Decoder(vocabulary, sequence, layers=layers).parameters())
    assert sum(p.numel() for p in parameters) == scalars
    assert ref.decoder_size(vocabulary, sequence, 128, layers) == scalars
    assert len(parameters) == tensors


def test_tables() -> None:
    assert len(ref.modular_rows(97, "mul", include_zero=False)) == 9312
    assert len(ref.modular_rows(97, "add", include_zero=True)) == 9409
    assert (5, 96, 4) in ref.modular_rows(97, "add", include_zero=True)
    assert (3, 40, 23) in ref.modular_rows(97, "mul", include_zero=False)
    assert ref.pair_input(3, [(2, 0)]).tolist() == [[0, 0, 1, 1, 0, 0]]
    assert ref.token_input(97, [(5, 7)]).tolist() == [[5, 98, 7, 97]]
    assert ref.parity_label([1, -1, -1, -1], 3) == 1


def test_losses_are_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    out = torch.randn(7, 5, generator=generator, dtype=ref.DTYPE)
    y = torch.randint(5, (7,), generator=generator)
    assert torch.allclose(ref.cross_entropy(out, y), nn.functional.cross_entropy(out, y))
    sign = torch.sign(torch.randn(7, generator=generator, dtype=ref.DTYPE))
    assert torch.allclose(ref.squared_error(out, sign), nn.functional.mse_loss(out[:, 0], sign))
    assert ref.hinge(torch.tensor([[2.0], [0.5], [-1.0]]), torch.ones(3)).item() == pytest.approx(2.5 / 3)
    assert ref.sign_accuracy(torch.tensor([[2.0], [0.0], [-1.0]]), torch.ones(3)) == pytest.approx(1 / 3)


def test_sustained_crossing() -> None:
    steps = [100, 200, 300, 400, 500, 600]
    assert ref.sustained_crossing(steps, [0, 1, 1, 1, 1, 1], 0.95) == 200
    assert ref.sustained_crossing(steps, [0, 1, 0, 1, 1, 1], 0.95) == 400
    assert ref.sustained_crossing(steps, [0, 0, 0, 0, 1, 1], 0.95) is None
    assert ref.sustained_crossing(steps, [0.94] * 6, 0.95) is None
    dense = list(range(100, 131))
    assert ref.sustained_crossing(dense, [1] * 10 + [0] + [1] * 20, 0.95) == 111
    assert ref.sustained_crossing(dense, [1] * 11 + [0] + [1] * 19, 0.95) == 100


def test_inside_decay_reaches_the_method() -> None:
    """One EGD step on a net without data gradient: the step is the orthogonal factor of wd * W1."""
    net = ref.TwoLayer(4, 3, 1)
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data.normal_(generator=generator)
    net.b1.data.fill_(-100.0)  # every unit is off
    before = net.W1.detach().clone()
    zeros = ref.Split(torch.zeros(2, 4, dtype=ref.DTYPE), torch.zeros(2, dtype=ref.DTYPE))
    ref.train(net, {"train": zeros}, [[0, 1]], ref.Optimiser(lr=0.5, wd=0.1), ref.Egalitarian(),
              ref.squared_error, ref.sign_accuracy)  # fmt: skip
    u, _, vh = torch.linalg.svd(before, full_matrices=False)
    assert torch.allclose(net.W1, before - 0.5 * u @ vh, atol=1e-12)


def test_initial_deviation() -> None:
    assert ref.initial_deviation(194) == pytest.approx(math.sqrt(2 / 194))
