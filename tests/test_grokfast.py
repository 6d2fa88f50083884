"""Grokfast's options against its twins and against numbers done by hand; what its window costs, and when it is refused.

The common known answers (methods.md section 8) stand in test_known_answers.py and test_reference.py.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typer.testing import CliRunner

from grokscale import memory
from grokscale.cli import app
from grokscale.errors import InputError
from grokscale.methods.spaces import Complement
from grokscale.spec import parse
from grokscale.spec.values import Precision
from grokscale.train import Lanes, Program
from grokscale.transform import Role, Transform
from tests import reference_grokfast as ref
from tests.test_engine import agree, endless
from tests.test_known_answers import drive, make
from tests.trials import REGISTRY, trial

ROLES = {"w": Role("hidden", 0), "b": Role("bias")}
SHAPES = {"w": (3, 4), "b": (4,)}


class Net(nn.Module):
    """Two parameters whose gradients are dictated."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = (nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES.values())


def gradients(steps: int, scale: float = 3.0) -> list[dict[str, Tensor]]:
    source = torch.Generator().manual_seed(7)
    return [{k: scale * torch.randn(s, generator=source).double() for k, s in SHAPES.items()} for _ in range(steps)]


def ours(transform: Transform, given: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    params = {k: torch.zeros(s, dtype=torch.float64) for k, s in SHAPES.items()}
    state, out = transform.init(params, ROLES, torch.Generator()), []
    for step, grads in enumerate(given, start=1):
        new, state = transform.update({k: g.clone() for k, g in grads.items()}, state, params, step=step)
        out.append(new)
    return out


def theirs(method: Any, given: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    net, out = Net(), []
    for grads in given:
        for name, parameter in net.named_parameters():
            parameter.grad = grads[name].clone()
        method(net, 0.0)
        out.append({name: parameter.grad.clone() for name, parameter in net.named_parameters()})  # type: ignore[union-attr]
    return out


MA = [
    {"warmup": False, "two_stage": 3},
    {"two_stage": 9},
    {"part": "slow", "lam": 0.7},
    {"part": "slow", "filter_type": "sum", "warmup": False},
    {"part": "fast", "warmup": False},
    {"part": "fast", "two_stage": 8},
    {"clip_position": "pre", "clip": 2.0},
    {"clip_position": "post", "clip": 2.0},
    {"clip_position": "pre", "clip": 1e9},
    {"buffer": "bf16"},
    {"buffer": "bf16", "filter_type": "sum", "warmup": False},
    {"buffer": "bf16", "part": "fast", "clip_position": "pre", "clip": 0.5},
]
EMA = [
    {"part": "slow", "lam": 0.7}, {"part": "fast"}, {"part": "fast", "init": "zero"},
    {"clip_position": "pre", "clip": 2.0}, {"clip_position": "post", "clip": 2.0, "init": "zero"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "knobs"), [("grokfast-ma", {"window": 5, **k}) for k in MA] + [("grokfast-ema", k) for k in EMA], ids=str
)
def test_every_option_is_the_twins(name: str, knobs: dict[str, Any]) -> None:
    """17 steps, more than three rounds of the ring."""
    given = gradients(17)
    for a, b in zip(ours(make(name, **knobs), given), theirs(ref.METHODS[name](**knobs), given), strict=True):
        for k in SHAPES:
            assert torch.allclose(a[k], b[k], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "part",
    [
        {"name": "grokfast-ma", "window": 6, "two_stage": 20, "warmup": False, "lam": 0.5},
        {"name": "grokfast-ma", "window": 6, "part": "slow", "lam": 1.0, "clip_position": "pre", "clip": 0.1},
        {"name": "grokfast-ema", "part": "fast", "clip_position": "post", "clip": 0.3},
    ],
)
def test_the_engine_is_the_twin(part: dict[str, Any]) -> None:
    agree(endless("parity-mlp2", [part]), seeds=(3,))


def test_the_trigger_wins_over_the_warmup() -> None:
    """two_stage = K: the first K steps pass as they are, and fill the window; with warm-up the later of the two."""
    given = [1.0, 2.0, 3.0, 6.0]
    without = {"window": 3, "lam": 5.0, "warmup": False}
    assert drive(make("grokfast-ma", **without, two_stage=2), given) == pytest.approx([1, 2, 13, 6 + 55 / 3])
    assert drive(make("grokfast-ma", window=3, lam=5.0, two_stage=3), given) == pytest.approx([1, 2, 3, 6 + 55 / 3])
    assert drive(make("grokfast-ma", **without, two_stage=9), given) == given


def test_ablations_by_hand() -> None:
    """Of g = 1, 2, 3, 6 with a window of 3: mean(Q) = 2 at step 3 and 11 / 3 at step 4; mu = 1, 1.02, ..."""
    given = [1.0, 2.0, 3.0, 6.0]
    assert drive(make("grokfast-ma", window=3, part="slow"), given) == pytest.approx([1, 2, 10, 55 / 3])
    assert drive(make("grokfast-ma", window=3, part="fast"), given) == pytest.approx([1, 2, 1, 7 / 3])
    assert drive(make("grokfast-ema", part="slow"), given[:2]) == pytest.approx([2, 2.04])
    assert drive(make("grokfast-ema", part="fast"), given[:2]) == pytest.approx([0, 0.98])


def test_clip_by_hand() -> None:
    """|g| = 5 against 1: a filter that trebles gives 3 where the clip stands before it and 1 where it stands behind."""
    grads = [{"w": torch.zeros(SHAPES["w"]).double(), "b": torch.tensor([3.0, 4.0, 0.0, 0.0]).double()}]
    norms = {p: float(ours(make("grokfast-ema", clip_position=p, clip=1.0), grads)[0]["b"].norm())
             for p in ("none", "pre", "post")}  # fmt: skip
    assert norms == pytest.approx({"none": 15.0, "pre": 3.0, "post": 1.0}, rel=1e-6)


def test_a_bf16_window_is_the_mean_within_its_rounding() -> None:
    """Of 8 bits of mantissa: 2^-8 relative of the window's mean modulus, after many rounds as after one."""
    given = gradients(400)
    exact, rounded = (ours(make("grokfast-ma", window=7, buffer=b), given)[-1] for b in ("same", "bf16"))
    for k in SHAPES:
        bound = 5.0 * torch.stack([g[k].abs() for g in given[-7:]]).mean(0) * 2**-8
        assert ((exact[k] - rounded[k]).abs() <= bound).all()
        assert not torch.equal(exact[k], rounded[k])


def test_fast_of_a_sum_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\bfilter_type must be 'mean'"):
        make("grokfast-ma", part="fast", filter_type="sum")


def test_alpha_is_searched_by_its_complement() -> None:
    assert REGISTRY.methods["grokfast-ema"].space["alpha"] == Complement(0.8, 0.995)
    with pytest.raises(ValueError, match="low < high < 1"):
        Complement(0.8, 1.0)


# ---------------------------------------------------------------------------------------------- cost and memory


def test_flops_are_counted() -> None:
    """Per scalar: MA in, out, a w-th of the round's sum, product and sum; EMA 3 and 2."""
    def flops(name: str, **knobs: Any) -> float:
        method = REGISTRY.methods[name]
        assert method.flops is not None
        return method.flops(SHAPES, ROLES, {**method.defaults, **knobs})

    assert flops("grokfast-ma") == flops("grokfast-ema") == 16 * 5
    assert flops("grokfast-ema", part="slow") == 16 * 4
    assert flops("grokfast-ma", clip_position="pre") == 16 * 8


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize(
    ("name", "knobs"),
    [("grokfast-ma", {"window": 9}), ("grokfast-ma", {"window": 9, "buffer": "bf16"}), ("grokfast-ema", {})],
)
def test_memory_is_what_the_state_holds(name: str, knobs: dict[str, Any], precision: str) -> None:
    dtype = {"fp32": torch.float32, "fp64": torch.float64}[precision]
    method = REGISTRY.methods[name]
    state = make(name, **knobs).init({k: torch.zeros(s, dtype=dtype) for k, s in SHAPES.items()}, ROLES,
                                     torch.Generator())  # fmt: skip
    assert method.memory is not None
    held = sum(t.numel() * t.element_size() for tree in state for t in tree.values())
    assert method.memory(SHAPES, ROLES, {**method.defaults, **knobs}, dtype.itemsize) == held


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("method", ["grokfast-ma", "grokfast-ema"])
def test_memory_is_foretold_in_every_precision(method: str, precision: str) -> None:
    """What is shown before a run is what the lanes of a pack hold, whatever the products are rounded to."""
    spec = trial("parity-mlp2", method, precision=precision)
    lanes = Lanes(Program(spec, REGISTRY, "cpu"), [1, 2, 3], [0, 1, 2, 0])
    state, _ = lanes.stacked["state"]
    held = sum(t.numel() * t.element_size() for t in pytree.tree_leaves(state))
    [need] = memory.needs(spec, 3, REGISTRY)
    assert need.bytes == held > 0


def test_the_papers_window_is_169_megabytes() -> None:
    method = REGISTRY.methods["grokfast-ma"]
    assert method.memory is not None
    window = method.memory({"all": (422_784,)}, {}, {**method.defaults, "window": 100}, 4) - 4 * 422_784
    assert window == pytest.approx(169e6, rel=1e-3)


FILE = """
name = "window"
baseline = "none"
horizon = 60
[task]
name = "parity"
n = 20
k = 2
n_train = 400
[model]
width = 40
[[arm]]
name = "none"
[[arm]]
name = "grokfast-ma"
[search]
trials = 2
seeds = 2
[race]
seeds = 0
[confirm]
seeds = 3
[resources]
lanes = 4
"""
PARAMS = 20 * 40 + 40 + 40


def test_the_largest_window_of_a_search_is_what_counts() -> None:
    found = memory.largest(parse(tomllib.loads(FILE)).resolve(REGISTRY), REGISTRY)
    assert list(found) == ["grokfast-ma"]
    [need] = found["grokfast-ma"]
    assert (need.knobs, need.lanes, need.bytes) == ({"window": 500}, 4, 501 * PARAMS * 4 * 4)
    assert str(need) == "grokfast-ma, window 500: remembers 501 x 880 parameters x 4 bytes x 4 lanes = 7.05MB"


def test_memory_is_shown_before_a_run_and_refused_above_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("window.toml").write_text(FILE)

    def call(*words: str) -> Any:
        return CliRunner().invoke(app, list(words), prog_name="grokscale")

    dry = call("sweep", "window.toml", "--dry-run")
    assert dry.exit_code == 0
    assert "window 500: remembers 501 x 880 parameters x 4 bytes x 4 lanes = 7.05MB" in dry.stdout
    ran = call("run", "window.toml", "--arm", "grokfast-ma", "--no-store", "--seeds", "2")
    assert ran.exit_code == 0
    assert "window 100: remembers 101 x 880 parameters x 4 bytes x 2 lanes = 711kB" in ran.stderr
    # One trial at the default window fits, a search that may go to 500 does not.
    limit = ("--set", "resources.memory=5MB")
    assert call("run", "window.toml", "--arm", "grokfast-ma", "--no-store", *limit).exit_code == 0
    for verb in (("sweep",), ("sweep", "--dry-run")):
        refused = call(verb[0], "window.toml", *verb[1:], *limit)
        assert refused.exit_code == 2
        assert "window 500" in refused.stderr and "7.05MB" in refused.stderr and "5MB" in refused.stderr
        assert "resources.memory" in refused.stderr and "a smaller window" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["window.toml"]


def test_of_a_grid_the_arms_that_need_most_are_shown() -> None:
    tables = {**tomllib.loads(FILE), "grid": {"axes": {"window": [2, 4, 8, 16, 32, 64, 128, 256]}}}
    resolved = parse(tables).resolve(REGISTRY)
    lines = memory.shown(memory.largest(resolved, REGISTRY))
    copies = [line.partition("remembers ")[2].split()[0] for line in lines[:-1]]
    assert copies == ["257", "129", "65", "33", "17", "9"]
    assert lines[-1] == "2 arms more, with less"


@pytest.mark.parametrize(("text", "count"), [("8GB", 8e9), ("512 MiB", 2**29), ("1.5kB", 1500), ("100B", 100)])
def test_an_amount_of_memory(text: str, count: float) -> None:
    experiment = parse({**tomllib.loads(FILE), "resources": {"memory": text}})
    assert experiment.resources.memory == count
    assert type(experiment).from_json(experiment.to_json()).resources.memory == count


@pytest.mark.parametrize("text", ["8", "much", "8 gigabytes", "-1GB", "0GB"])
def test_what_is_no_amount_of_memory_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"resources\.memory"):
        parse({**tomllib.loads(FILE), "resources": {"memory": text}})


def test_without_a_limit_the_machines_memory_is_one() -> None:
    have = memory.machine()
    assert have is not None and have > 1e8
    one = parse(tomllib.loads(FILE)).resolve(REGISTRY)
    [need] = memory.largest(one, REGISTRY)["grokfast-ma"]
    memory.refuse(one, {"grokfast-ma": [need]})
    with pytest.raises(InputError, match="this machine's memory"):
        memory.refuse(one, {"grokfast-ma": [replace(need, params=int(have))]})
