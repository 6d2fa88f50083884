"""Numbers that were computed by other means (methods.md section 8), put to grokscale's own methods and tables.

tests/test_reference.py puts the same numbers to the reference, so that the two cannot be wrong together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from grokscale.entries import Registry
from grokscale.models import Model, initial
from grokscale.tasks.base import Task
from grokscale.train import Lanes, Program
from grokscale.transform import Role, Transform, adam, sgd, warmup_factor
from tests import reference as ref
from tests.trials import REGISTRY, trial

ROLES = {"w": Role("hidden", 0)}


def make(name: str, **knobs: Any) -> Transform:
    return REGISTRY.methods[name].factory(**knobs)


def drive(transform: Transform, gradients: Sequence[float]) -> list[float]:
    """What comes out of a method for one scalar parameter, step by step."""
    params = {"w": torch.zeros(1, dtype=torch.float64)}
    state = transform.init(params, ROLES, torch.Generator())
    out = []
    for step, g in enumerate(gradients, start=1):
        grads = {"w": torch.tensor([float(g)], dtype=torch.float64)}
        new, state = transform.update(grads, state, params, step=step)
        out.append(float(new["w"]))
    return out


def once(transform: Transform, g: Tensor, accuracy: float = 0.0, role: Role = ROLES["w"]) -> Tensor:
    """What comes out of a method for one matrix."""
    params, roles = {"w": torch.zeros_like(g)}, {"w": role}
    state = transform.init(params, roles, torch.Generator())
    new, _ = transform.update({"w": g}, state, params, step=1, roles=roles, val_accuracy=torch.tensor(accuracy))
    return new["w"]


def matrix(rows: list[list[float]], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(rows, dtype=dtype)


# -------------------------------------------------------------------------------------------------- Grokfast


@pytest.mark.parametrize(
    ("init", "expected"),
    [("first_grad", [3, 4.04, 5.1192]), ("zero", [1.04, 2.1192, 3.236816])],
)
def test_ema(init: str, expected: list[float]) -> None:
    assert drive(make("grokfast-ema", alpha=0.98, lam=2.0, init=init), [1, 2, 3]) == pytest.approx(expected, abs=1e-12)


def test_ema_state_is_the_running_mean() -> None:
    transform, params = make("grokfast-ema"), {"w": torch.zeros(1, dtype=torch.float64)}
    state, means = transform.init(params, ROLES, torch.Generator()), []
    for step in (1, 2, 3):
        _, state = transform.update({"w": torch.tensor([float(step)]).double()}, state, params, step=step)
        means.append(float(state.mu["w"]))
    assert means == pytest.approx([1, 1.02, 1.0596], abs=1e-12)


@pytest.mark.parametrize(
    ("warmup", "expected"), [(True, [1, 2, 13, 6 + 55 / 3]), (False, [6, 9.5, 13, 6 + 55 / 3])]
)
def test_ma(warmup: bool, expected: list[float]) -> None:
    assert drive(make("grokfast-ma", window=3, lam=5.0, warmup=warmup), [1, 2, 3, 6]) == pytest.approx(expected)


def test_ma_sum_is_window_times_stronger() -> None:
    assert drive(make("grokfast-ma", window=3, filter_type="sum"), [1, 2, 3])[-1] == 3 + 5 * 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("window", [1, 2, 7, 100])
def test_the_ring_buffer_is_the_deque(window: int, dtype: torch.dtype) -> None:
    """Within 1e-6 relative over many rounds: the running sum must not drift (methods.md 1.1.1)."""
    source = torch.Generator().manual_seed(window)
    gradients = torch.randn(650, 5, generator=source).to(dtype)
    transform, params = make("grokfast-ma", window=window), {"w": torch.zeros(5, dtype=dtype)}
    state = transform.init(params, ROLES, torch.Generator())
    queue: list[Tensor] = []
    for step, g in enumerate(gradients, start=1):
        queue = [*queue, g.double()][-window:]
        new, state = transform.update({"w": g.clone()}, state, params, step=step)
        low = torch.stack(queue).mean(0) if len(queue) == window else torch.zeros(5, dtype=torch.float64)
        expected = g.double() + 5.0 * low
        scale = 1 + 5.0 * torch.stack(queue).abs().mean(0)
        assert ((new["w"].double() - expected).abs() < 1e-6 * scale).all(), step


def test_frequency_response_of_the_ema() -> None:
    """|1 + H(0)| = 1 + lam and |1 + H(pi)| = 1 + lam (1 - alpha) / (1 + alpha)."""
    for alpha, lam, highest in ((0.98, 2.0, 1.0202020202), (0.8, 0.1, 1.0111111111)):
        method = {"alpha": alpha, "lam": lam}
        assert drive(make("grokfast-ema", **method), [1.0] * 1500)[-1] == pytest.approx(1 + lam)
        alternating = drive(make("grokfast-ema", **method), [(-1.0) ** t for t in range(1500)])
        assert abs(alternating[-1]) == pytest.approx(highest, abs=1e-9)


# ------------------------------------------------------------------------------------------------------- EGD


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_egd(dtype: torch.dtype) -> None:
    """Both precisions take different decompositions and give the same."""
    close: dict[str, Any] = {"atol": 1e-6 if dtype == torch.float32 else 1e-12}
    diagonal = matrix([[3, 0, 0], [0, 4, 0]], dtype)
    assert torch.allclose(once(make("egd"), diagonal), torch.eye(2, 3, dtype=dtype), **close)
    g = matrix([[1, 2], [3, 4], [5, 6]], dtype)
    out = once(make("egd"), g)
    assert torch.allclose(out, matrix([[-0.5510, 0.7278], [0.1362, 0.5611], [0.8233, 0.3943]], dtype), atol=5e-5)
    assert torch.allclose(once(make("egd"), g.mT.contiguous()), out.mT, **close)
    assert torch.allclose(out.mT @ out, torch.eye(2, dtype=dtype), **close)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (22, 32), (32, 22), (1, 4), (4, 1)])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-5), (torch.float64, 1e-11)])
def test_egd_is_the_decomposition(shape: tuple[int, int], dtype: torch.dtype, atol: float) -> None:
    source = torch.Generator().manual_seed(sum(shape))
    g = torch.randn(shape, generator=source, dtype=torch.float64)
    out = once(make("egd"), g.to(dtype))
    assert torch.allclose(out.double(), ref.egalitarian(g), atol=atol)
    assert torch.allclose(torch.linalg.svdvals(out.double()), torch.ones(min(shape)).double(), atol=10 * atol)
    assert torch.allclose(once(make("egd"), 1e3 * g.to(dtype)), out, atol=atol), "the scale of a gradient is nothing"


def test_egd_is_clamped() -> None:
    """Singular values below eps become s / eps; the null space and a zero gradient stay zero."""
    out = once(make("egd", eps=1e-3), torch.diag(torch.tensor([2.0, 1e-3, 1e-4, 0.0]).double()))
    assert torch.allclose(out.diag(), torch.tensor([1.0, 1.0, 0.1, 0.0]).double())
    assert not once(make("egd"), torch.zeros(3, 4)).any()
    g = matrix([[1, 2], [2, 4]])  # rank 1
    assert torch.allclose(once(make("egd"), g), g / 5.0, atol=1e-9)


def test_egd_does_not_raise_on_what_is_not_finite() -> None:
    for bad in (float("nan"), float("inf")):
        for dtype in (torch.float32, torch.float64):
            g = torch.ones(3, 4, dtype=dtype)
            g[1, 1] = bad
            assert once(make("egd"), g).shape == (3, 4)
            once(make("egd-colnorm"), g)


def test_column_normalisation() -> None:
    g = matrix([[1, 2], [3, 4], [5, 6]])
    expected = matrix([[0.4472, 0.8944], [0.6, 0.8], [0.6402, 0.7682]])
    assert torch.allclose(once(make("egd-colnorm"), g), expected, atol=5e-5)
    assert torch.allclose(once(make("egd-colnorm"), g.mT, role=Role("hidden", 1)), expected.mT, atol=5e-5)
    assert torch.allclose(once(make("egd-colnorm", axis="input"), g.mT), expected.mT, atol=5e-5)
    small = matrix([[6e-4, 8e-4]])
    assert torch.allclose(once(make("egd-colnorm"), small), small / 0.01)
    assert torch.allclose(once(make("egd-colnorm", floor=1e-4), small), small / 1e-3)


@pytest.mark.parametrize("name", ["egd", "egd-colnorm"])
def test_the_switch(name: str) -> None:
    """Off above .95, not at it; it stays off unless sticky = false; 2 means never."""
    g = matrix([[3, 0], [0, 4]])

    def acts(accuracies: Sequence[float], **knobs: Any) -> list[bool]:
        transform, params = make(name, **knobs), {"w": torch.zeros_like(g)}
        state, out = transform.init(params, ROLES, torch.Generator()), []
        for step, accuracy in enumerate(accuracies, start=1):
            seen = torch.tensor(accuracy, dtype=torch.float64)
            new, state = transform.update({"w": g}, state, params, step=step, roles=ROLES, val_accuracy=seen)
            out.append(not torch.equal(new["w"], g))
            assert transform.active is not None
            assert bool(transform.active(state)) == out[-1]
        return out

    assert acts([0.0, 0.95, 0.951, 0.2]) == [True, True, False, False]
    assert acts([0.0, 0.95, 0.951, 0.2], sticky=False) == [True, True, False, True]
    assert acts([0.0, 1.0, 0.0], switch=2.0) == [True, True, True]


# ------------------------------------------------------------------------------------------- learning rates


def test_warmup() -> None:
    """The rates of the first eleven steps are 0, .1, .2, ..., 1 x the base rate."""
    assert [warmup_factor(step, 10) for step in range(1, 14)] == pytest.approx([*(u / 10 for u in range(11)), 1, 1])
    assert [warmup_factor(step, 0) for step in (1, 2, 100)] == [1.0, 1.0, 1.0]
    moves = drive(sgd(2.0, warmup=10), [1.0] * 13)
    assert moves == pytest.approx([-2.0 * ref.warmup_factor(u) for u in range(13)])
    assert drive(adam(1e-3, warmup=10), [1.0])[0] == 0.0


# ------------------------------------------------------------------------------------------ sizes and counts


def built(task: str, model: str, task_options: dict[str, Any], model_options: dict[str, Any]) -> tuple[Task, Model]:
    made = REGISTRY.tasks[task].factory(**task_options)
    return made, REGISTRY.models[model].build(made, **model_options)


@pytest.mark.parametrize(("layers", "scalars", "tensors"), [(2, 422_784, 29), (4, 819_328, 53)])
def test_size_of_the_decoder(layers: int, scalars: int, tensors: int) -> None:
    _, model = built("modular-tokens", "decoder", {"p": 97}, {"dim": 128, "heads": 4, "layers": layers})
    params = initial(model, torch.Generator().manual_seed(0))
    assert len(params) == tensors
    assert sum(p.numel() for p in params.values()) == scalars
    assert ref.decoder_size(99, 5, 128, layers) == scalars


def test_size_of_the_two_layer_net() -> None:
    _, model = built("modular-pairs", "mlp2", {"p": 97}, {"width": 512})
    assert sum(p.numel() for p in model.parameters()) == 194 * 512 + 512 + 512 * 97


def presets(name: str, using: Registry = REGISTRY) -> dict[str, Any]:
    entry = using.tasks[name]
    return {"task": {"name": name}, "model": dict(entry.model), "optimiser": dict(entry.optimiser)}


@pytest.mark.parametrize(
    ("task", "options", "train", "steps"),
    [
        ("modular-pairs", {"p": 79}, 3120, 6),
        ("modular-pairs", {"p": 97}, 4704, 9),
        ("modular-pairs", {"p": 127}, 8064, 15),
        ("modular-tokens", {"p": 97}, 4656, 10),
        ("parity", {"n": 100, "k": 3}, 2000, 62),
    ],
)
def test_rows_and_steps_of_an_epoch(task: str, options: dict[str, Any], train: int, steps: int) -> None:
    """The presets as they stand: batch 512 dropping or keeping the rest, 32 for parity."""
    form = presets(task)
    form["task"] |= options
    lanes = Lanes(Program(trial(form), REGISTRY, "cpu"), [0], [0])
    assert (lanes.n_train, lanes.epoch_steps) == (train, steps)


def test_presets_are_the_papers() -> None:
    pairs, tokens, parity = (presets(name) for name in ("modular-pairs", "modular-tokens", "parity"))
    assert pairs["optimiser"].items() >= {
        "name": "sgd", "lr": 0.7, "wd": 1e-4, "decay": "inside", "batch": 512, "drop_last": True}.items()  # fmt: skip
    assert pairs["model"]["width"] == 512
    assert tokens["optimiser"].items() >= {
        "name": "adam", "lr": 1e-3, "beta1": 0.9, "beta2": 0.98, "decay": "coupled", "batch": 512,
        "drop_last": False, "warmup": 10}.items()  # fmt: skip
    assert tokens["model"] == {"name": "decoder", "dim": 128, "heads": 4, "layers": 2}
    assert parity["optimiser"].items() >= {"name": "sgd", "decay": "inside", "batch": 32, "drop_last": True}.items()
    assert parity["model"].items() >= {"width": 100, "bias": "normal"}.items()
    defaults = {name: dict(REGISTRY.methods[name].defaults) for name in ref.METHODS}
    common = {"part": "both", "clip_position": "none", "clip": 5.0}
    assert defaults["grokfast-ema"] == {"alpha": 0.98, "lam": 2.0, "init": "first_grad", **common}
    assert defaults["grokfast-ma"] == {
        "window": 100, "lam": 5.0, "warmup": True, "filter_type": "mean", "two_stage": 0, "buffer": "same", **common}
    common = {"layers": "mlp", "switch": 0.95, "sticky": True, "watch": "accuracy"}
    assert defaults["egd"] == {
        "form": "clamp", "eps": 1e-6, "rtol": 0.0, "polar": "auto", "blocks": 1, "refresh": 1, **common}
    assert defaults["egd-colnorm"] == {"floor": 0.01, "axis": "neuron", **common}
