"""Muon, AdEMAMix, GrokAdamW and StableMax: against their twins, torch's own optimisers, and in experiment files."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from grokscale import registry
from grokscale.errors import InputError
from grokscale.methods.muon import newton_schulz
from grokscale.methods.rivals import half_life_warmup
from grokscale.spec import TrialSpec, parse
from grokscale.tasks.base import stablemax_cross_entropy, top1
from grokscale.train import Program
from grokscale.transform import Params, Role, Transform, chain, sgd
from tests import reference as ref
from tests import reference_rivals as twins
from tests.test_conformance import bits, lane_bits
from tests.test_engine import EVERY, agree, endless, stopped_at
from tests.trials import FORMS, REGISTRY, trial

# Oriented as their roles say: a Linear weight (out, in), a table (in, out).
ROLES = {
    "wide": Role("hidden", 0), "tall": Role("hidden", 0), "attention": Role("attention", 0),
    "embedding": Role("embedding", 1), "head": Role("head", 0), "bias": Role("bias"), "norm": Role("norm"),
}  # fmt: skip
SHAPES = {"wide": (3, 8), "tall": (9, 4), "attention": (4, 4), "embedding": (7, 3), "head": (2, 3), "bias": (4,),
          "norm": (5,)}  # fmt: skip
MATRICES = ("wide", "tall", "attention")
PLAIN = {"name": "sgd", "lr": 0.01, "wd": 0.1, "momentum": 0.0, "decay": "coupled", "warmup": 0}


def make(name: str, **knobs: Any) -> Transform:
    return REGISTRY.methods[name].factory(**knobs)


def draw(seed: int) -> Params:
    source = torch.Generator().manual_seed(seed)
    return {k: torch.randn(s, generator=source, dtype=torch.float64) for k, s in SHAPES.items()}


def run(method: Transform, lr: float, wd: float, steps: int, accuracy: float = 0.0) -> list[Params]:
    """Parameters after each step of a method with the optimiser that stands behind it, on drawn gradients."""
    whole = chain(method, sgd(lr, wd=wd, decoupled=True))
    params, history = draw(0), []
    state = whole.init(params, ROLES, torch.Generator())
    for step in range(1, steps + 1):
        extra: dict[str, Any] = {"roles": ROLES, "val_accuracy": torch.tensor(accuracy)}
        moves, state = whole.update(draw(step), state, params, step=step, **extra)
        params = {k: p + moves[k] for k, p in params.items()}
        history.append(params)
    return history


def torchs(optimisers: Any, steps: int) -> list[Params]:
    """The same with torch's optimisers: `optimisers` makes them from the named parameters."""
    leaves = {k: torch.nn.Parameter(p) for k, p in draw(0).items()}
    made, history = optimisers(leaves), []
    for step in range(1, steps + 1):
        for k, g in draw(step).items():
            leaves[k].grad = g
        for one in made:
            one.step()
        history.append({k: p.detach().clone() for k, p in leaves.items()})
    return history


def same(a: list[Params], b: list[Params], names: Any = SHAPES, rtol: float = 1e-12, atol: float = 1e-13) -> bool:
    return all(torch.allclose(x[k], y[k], rtol=rtol, atol=atol) for x, y in zip(a, b, strict=True) for k in names)


# ------------------------------------------------------------------------------------------------ the twins

KNOBS: list[tuple[str, dict[str, Any]]] = [
    ("muon", {}),
    ("muon", {"nesterov": False, "scale": "match-rms", "companion": 0.2, "beta": 0.8, "beta2": 0.999}),
    ("muon", {"order": "after", "ns_steps": 3, "companion": 3.0, "beta1": 0.8}),
    ("shampoo", {}),
    ("shampoo", {"beta": 0.0, "eps": 1e-3}),
    ("shampoo", {"beta": 0.5, "every": 7, "eps": 1e-2}),
    ("ademamix", {}),
    ("ademamix", {"alpha": 8.0, "beta3": 0.99, "alpha_warmup": 30, "beta3_warmup": 20}),
    ("grokadamw", {}),
    ("grokadamw", {"kappa": 2.0, "gamma": 0.05, "alpha": 0.9, "lam": 5.0}),
    ("grokadamw", {"kappa": 0.0, "gamma": 0.0, "rescale": False}),
]


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize(("name", "knobs"), KNOBS)
def test_engine_is_the_twin(name: str, knobs: dict[str, Any], form: str) -> None:
    """With plain SGD behind it, whose coupled decay is the decoupled one as long as it has no momentum."""
    rate = {"lr": 1e-3} if form == "tokens-decoder" else {}
    spec = endless(form, [{"name": name, **knobs}], optimiser={**PLAIN, **rate})
    agree(spec, partial(twins.METHODS[name], **knobs), seeds=(3,))


def test_a_chain_feeds_the_rival() -> None:
    spec = endless("pairs-mlp2", [{"name": "grokfast-ema"}, {"name": "muon"}], optimiser=PLAIN)
    agree(spec, lambda: ref.Chain(ref.GrokfastEMA(), twins.Muon()), seeds=(3,))


# --------------------------------------------------------------------------------------------- torch's optimisers


@pytest.mark.parametrize("scale", ["original", "match-rms"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs_in_its_dtype(scale: str, nesterov: bool) -> None:
    """torch orthogonalises in bfloat16; rounded in the same places, parameters agree to the digits of float64."""
    lr, wd, beta, companion = 0.02, 0.1, 0.9, 0.3

    def both(leaves: dict[str, torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
        fn = {"original": "original", "match-rms": "match_rms_adamw"}[scale]
        inside = [leaves[k] for k in MATRICES]
        outside = [p for k, p in leaves.items() if k not in MATRICES]
        return [
            torch.optim.Muon(inside, lr=lr, weight_decay=wd, momentum=beta, nesterov=nesterov, adjust_lr_fn=fn),
            torch.optim.AdamW(outside, lr=companion * lr, weight_decay=wd / companion, betas=(0.9, 0.98), eps=1e-8),
        ]

    knobs: dict[str, Any] = {"beta": beta, "nesterov": nesterov, "scale": scale, "companion": companion}
    theirs = torchs(both, 12)
    ours = run(make("muon", ns_dtype="bf16", **knobs), lr, wd, 12)
    assert same(ours, theirs)
    exact = run(make("muon", **knobs), lr, wd, 12)
    assert same(exact, theirs, [k for k in SHAPES if k not in MATRICES])
    assert same(exact, theirs, MATRICES, rtol=0, atol=0.02)  # of moves of 12 lr s, by bfloat16's 3 digits
    assert not same(exact, theirs, MATRICES)


def test_ademamix_without_its_slow_part_is_adamw() -> None:
    def adamw(leaves: dict[str, torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(leaves.values(), lr=0.01, betas=(0.9, 0.98), weight_decay=0.5, eps=1e-8)]

    knobs = {"beta1": 0.9, "beta2": 0.98}
    theirs = torchs(adamw, 20)
    assert same(run(make("ademamix", alpha=0.0, **knobs), 0.01, 0.5, 20), theirs)
    assert not same(run(make("ademamix", **knobs), 0.01, 0.5, 20), theirs)
    assert same(run(make("grokadamw", lam=0.0, gamma=0.0, **knobs), 0.01, 0.5, 20, accuracy=0.7), theirs)
    assert not same(run(make("grokadamw", lam=0.0, gamma=0.1, **knobs), 0.01, 0.5, 20), theirs)


# ---------------------------------------------------------------------------------------------------------- Muon


def orthogonal(g: Tensor) -> Tensor:
    return newton_schulz(g, 5, lambda t: t)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (5, 5)])
def test_five_steps_bring_singular_values_near_one(shape: tuple[int, int]) -> None:
    source = torch.Generator().manual_seed(sum(shape))
    g = torch.randn(shape, generator=source, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    kept = s / s.norm() > 1e-2
    out = torch.linalg.svdvals(u.mT @ orthogonal(g) @ vh.mT)[: int(kept.sum())]
    assert out.min() > 0.67
    assert out.max() < 1.15
    assert torch.allclose(orthogonal(g), twins.quintic(g, 5), rtol=1e-9, atol=1e-11)
    assert torch.allclose(orthogonal(g.mT.contiguous()), orthogonal(g).mT, atol=1e-12)
    assert not orthogonal(torch.zeros(shape)).any()


def test_shape_factor_follows_the_role_and_not_the_storage() -> None:
    """A gather table (in, out) is the transpose of a Linear weight (out, in), and so is its step."""
    g = draw(1)["tall"]
    for scale, tall, wide in (("original", 1.5, 1.0), ("match-rms", 0.6, 0.6)):
        method = make("muon", scale=scale)
        for tensor, out_dim, factor in ((g, 0, tall), (g, 1, wide), (g.mT.contiguous(), 1, tall)):
            roles = {"w": Role("hidden", out_dim)}
            params = {"w": torch.zeros_like(tensor)}
            state = method.init(params, roles, torch.Generator())
            out, _ = method.update({"w": tensor}, state, params, step=1, roles=roles)
            expected = twins.quintic(g, 5) if tensor is g else twins.quintic(g, 5).mT
            assert torch.allclose(out["w"], factor * expected, rtol=1e-9, atol=1e-11)


def test_without_momentum_both_orders_are_one_and_near_egd() -> None:
    """EGD = Muon with beta = 0, an exact decomposition and no scale factor (methods.md 6)."""
    before, after = (run(make("muon", beta=0.0, order=order), 0.1, 0.0, 3) for order in ("before", "after"))
    assert same(before, after)
    moved = (draw(0)["attention"] - before[0]["attention"]) / 0.1
    assert (moved - ref.egalitarian(draw(1)["attention"])).norm() < 0.35 * 2  # singular values 0.67 to 1.15, four


@pytest.mark.parametrize("form", sorted(FORMS))
def test_lanes_do_not_see_each_other_in_bf16(form: str) -> None:
    spec = endless(form, [{"name": "muon", "ns_dtype": "bf16"}], optimiser=PLAIN)
    whole = stopped_at(spec, list(range(1, 9)), 30)
    for pack in ([3, 1, 8, 5], [5, 2], [5]):
        evaluation = stopped_at(spec, pack, 30)
        for seed in pack:
            assert bits(evaluation, seed) == bits(whole, seed)
            assert lane_bits(evaluation, seed) == lane_bits(whole, seed)


def test_flops_of_muon() -> None:
    flops = REGISTRY.methods["muon"].flops
    assert flops is not None
    declared = flops({"w": (100, 20), "b": (100,)}, {"w": Role("hidden"), "b": Role("bias")}, {"ns_steps": 5})
    products = 5 * (2 * 20 * 20 * 100 + 2 * 20**3 + 2 * 20 * 20 * 100)
    assert declared == products + 9 * 2000 + 14 * 100


def test_shampoo_without_memory_is_egd() -> None:
    """(G G')^(-1/4) G (G' G)^(-1/4) = U V^T; a zero gradient stays zero, and what is no matrix inside is left alone."""
    params, grads = draw(0), {**draw(1), "wide": torch.zeros(3, 8).double()}
    method = make("shampoo", beta=0.0, eps=1e-13, every=1)
    out, _ = method.update(grads, method.init(params, ROLES, torch.Generator()), params, step=1)
    assert not out["wide"].any()
    for k, g in grads.items():
        expected = ref.egalitarian(g) if k in ("tall", "attention") else g
        assert torch.allclose(out[k], expected, atol=1e-6), k


def test_shampoos_metric_remembers_while_its_roots_wait() -> None:
    method, params = make("shampoo", beta=0.9, every=3), draw(0)
    state = method.init(params, ROLES, torch.Generator())
    roots, means = [], []
    for step in range(1, 7):
        _, state = method.update(draw(step), state, params, step=step)
        roots.append(state.left_root["tall"])
        means.append(state.left["tall"])
    assert [torch.equal(a, b) for a, b in pairwise(roots)] == [True, True, False, True, True]
    assert not any(torch.equal(a, b) for a, b in pairwise(means))


def test_flops_of_shampoo() -> None:
    flops = REGISTRY.methods["shampoo"].flops
    assert flops is not None
    shapes: dict[str, tuple[int, ...]] = {"w": (100, 20), "b": (100,)}
    roles = {"w": Role("hidden"), "b": Role("bias")}
    products = 2 * (100 * 100 * 20 + 100 * 20 * 20) * 2
    assert flops(shapes, roles, {"every": 10}) == pytest.approx(products + 1.2 * (100**3 + 20**3))


@pytest.mark.parametrize(("name", "per_scalar"), [("ademamix", 17), ("grokadamw", 24)])
def test_flops_of_adams_relatives(name: str, per_scalar: int) -> None:
    method = REGISTRY.methods[name]
    assert method.flops is not None
    assert method.flops(SHAPES, ROLES, method.defaults) == per_scalar * sum(math.prod(s) for s in SHAPES.values())


# ------------------------------------------------------------------------------------------------ Adam's relatives


def test_the_half_life_grows_linearly() -> None:
    def half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta)

    for share in (0.01, 0.25, 0.9):
        expected = (1 - share) * half_life(0.9) + share * half_life(0.9999)
        a, b = (torch.tensor(beta, dtype=torch.float64) for beta in (0.9, 0.9999))
        for start, end in ((0.9, 0.9999), (a, 0.9999), (0.9, b), (a, b)):
            assert half_life(float(half_life_warmup(start, end, share))) == pytest.approx(expected, rel=1e-9)
    assert half_life_warmup(0.0, 0.99, 0.5) == pytest.approx(float(half_life_warmup(torch.tensor(0.0), 0.99, 0.5)))
    assert half_life_warmup(0.9, 0.0, 0.5) == pytest.approx(0.81)
    assert float(half_life_warmup(torch.tensor(0.9), 0.0, 0.5)) == pytest.approx(0.81)
    assert half_life_warmup(0.0, 0.0, 0.5) == 0.0 == float(half_life_warmup(torch.tensor(0.0), 0.0, 0.5))


def test_slow_mean_of_a_constant_gradient() -> None:
    """m2 is not corrected: after t steps of g = 1 the direction is 1 + alpha (1 - beta3^t)."""
    method = make("ademamix", alpha=5.0, beta3=0.99)
    params = {"w": torch.zeros(1, dtype=torch.float64)}
    state = method.init(params, {"w": Role("bias")}, torch.Generator())
    for step in range(1, 101):
        out, state = method.update({"w": torch.ones(1).double()}, state, params, step=step)
        assert float(out["w"]) == pytest.approx(1 + 5 * (1 - 0.99**step), rel=1e-7)


def test_grokadamw_watches_validation_only_if_its_signal_counts() -> None:
    assert make("grokadamw").needs == {"val_accuracy"}
    assert make("grokadamw", kappa=0.0).needs == frozenset()
    low, high = (run(make("grokadamw", kappa=3.0), 0.01, 0.0, 3, accuracy=a) for a in (0.1, 1.0))
    quiet = run(make("grokadamw", kappa=0.0), 0.01, 0.0, 3)
    assert same(high, quiet, rtol=1e-6), "a net that generalises has alpha's whole memory"
    assert not same(low, quiet, rtol=1e-6)


def test_rescaling_keeps_the_norm_of_the_gradient() -> None:
    """Seen through the mean of squares at the first step: v = (1 - beta2) h^2."""
    params, grads = draw(0), draw(1)
    for rescale, factor in ((True, 1.0), (False, 1 + 2 * 0.02)):
        method = make("grokadamw", rescale=rescale, kappa=0.0)
        _, state = method.update(grads, method.init(params, ROLES, torch.Generator()), params, step=1)
        for k, g in grads.items():
            assert float((state.v[k].sum() / 0.001).sqrt()) == pytest.approx(factor * float(g.norm()), rel=1e-9)


def test_state_and_weights_keep_single_precision() -> None:
    for name in ("muon", "ademamix", "grokadamw"):
        spec = TrialSpec.from_json(endless("pairs-mlp2", name, optimiser=PLAIN).canonical().replace("fp64", "fp32"))
        stacked = stopped_at(spec, [1, 2], 10).snapshot()["stacked"]
        assert {t.dtype for t in (*stacked["params"].values(), *stacked["state"])} == {torch.float32}


# ---------------------------------------------------------------------------------------------------- StableMax


def test_stablemax_of_known_numbers() -> None:
    """methods.md section 8: (2, -1, 0) -> (2/3, 1/9, 2/9), cross-entropy of class 0 .4054651081."""
    out = torch.tensor([[2.0, -1.0, 0.0]]).double()
    p = [math.exp(-float(stablemax_cross_entropy(out, torch.tensor([i])))) for i in range(3)]
    assert p == pytest.approx([2 / 3, 1 / 9, 2 / 9], rel=1e-12)
    assert float(stablemax_cross_entropy(out, torch.tensor([0]))) == pytest.approx(0.4054651081, abs=1e-10)


def test_stablemax_is_the_twin_with_gradients() -> None:
    source = torch.Generator().manual_seed(0)
    out = (100 * torch.randn(9, 5, generator=source, dtype=torch.float64)).requires_grad_()
    twin = out.detach().clone().requires_grad_()
    y = torch.randint(5, (9,), generator=source)
    ours, theirs = stablemax_cross_entropy(out, y), twins.stablemax_cross_entropy(twin, y)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    ours.backward()
    theirs.backward()
    assert out.grad is not None
    assert twin.grad is not None
    assert torch.allclose(out.grad, twin.grad, rtol=1e-11)


def test_stablemax_keeps_what_single_precision_loses() -> None:
    """At a margin of 200 softmax's loss and gradient are 0 in float32; at logits of 0 the slope is that of s."""
    out, y = torch.tensor([[200.0, 0.0]], requires_grad=True), torch.tensor([0])
    [g] = torch.autograd.grad(stablemax_cross_entropy(out, y), out)
    assert stablemax_cross_entropy(out, y).dtype == g.dtype == torch.float32
    assert g.tolist()[0] == pytest.approx([1 / 202 - 1 / 201, 1 / 202], rel=1e-4)
    assert not torch.autograd.grad(torch.nn.functional.cross_entropy(out, y), out)[0].any()
    zero = torch.zeros(1, 2, requires_grad=True)
    assert torch.autograd.grad(stablemax_cross_entropy(zero, y), zero)[0].tolist() == [[-0.5, 0.5]]


@pytest.mark.parametrize("form", ["pairs-mlp2", "tokens-decoder"])
def test_stablemax_trains(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """50 steps of the engine with the loss, as the reference with the twin of it."""
    tables = {**FORMS[form], "task": {**FORMS[form]["task"], "loss": "stablemax"}}
    spec = trial(tables, "none", precision="fp64", every=EVERY, threshold=1.1)
    monkeypatch.setattr(ref, "cross_entropy", twins.stablemax_cross_entropy)
    trace = agree(spec, seeds=(3,))
    assert trace.batch_loss[-1] < trace.batch_loss[0]


def test_another_loss_is_refused() -> None:
    for task in ("modular-pairs", "modular-tokens"):
        with pytest.raises(ValueError, match=r"loss must be one of cross_entropy, stablemax, got 'hinge'"):
            REGISTRY.tasks[task].factory(loss="hinge")
        assert REGISTRY.tasks[task].factory(p=5, loss="stablemax").correct is top1


# --------------------------------------------------------------------------------------------- in experiment files

OPTIMISERS = ("muon", "ademamix", "grokadamw")


def experiment(**changes: Any) -> dict[str, Any]:
    return {
        "name": "rivals", "horizon": 1000, "baseline": "none", "task": {"name": "modular-tokens"},
        "optimiser": {"name": "adam", "lr": 2e-3, "wd": 0.02, "beta1": 0.8, "decay": "coupled", "warmup": 10},
        "arm": [{"name": "none"}, *({"name": name} for name in OPTIMISERS)],
        **changes,
    }  # fmt: skip


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_arm_with_a_rival_takes_its_optimiser(name: str) -> None:
    """Plain SGD with decoupled decay; rate, decay, batch and warm-up as the experiment's; the baseline untouched."""
    x = parse(experiment()).resolve(registry.load())
    base, ours = x.trial("none").optimiser, x.trial(name).optimiser
    assert {k: base[k] for k in ("name", "lr", "wd", "beta1", "beta2", "decay")} == {
        "name": "adam", "lr": 2e-3, "wd": 0.02, "beta1": 0.8, "beta2": 0.98, "decay": "coupled"}  # fmt: skip
    assert {k: ours[k] for k in ("name", "lr", "wd", "momentum", "decay", "batch", "warmup")} == {
        "name": "sgd", "lr": 2e-3, "wd": 0.02, "momentum": 0.0, "decay": "decoupled", "batch": 512, "warmup": 10,
    }  # fmt: skip
    Program(x.trial(name), registry.load(), "cpu")


def test_what_an_arm_sets_wins() -> None:
    arms = [{"name": "none"}, {"name": "muon", "set": {"lr": 0.02, "wd": 0.05, "beta1": 0.7, "warmup": 0}}]
    trial = parse(experiment(arm=arms)).resolve(registry.load()).trial("muon")
    assert (trial.optimiser["lr"], trial.optimiser["wd"], trial.optimiser["warmup"]) == (0.02, 0.05, 0)
    assert (trial.optimiser["name"], trial.optimiser["decay"]) == ("sgd", "decoupled")
    assert trial.method[0]["beta1"] == 0.7, "the method's own knob, before the optimiser's key of the same name"
    inside = [{"name": "none"}, {"name": "muon", "set": {"decay": "inside", "momentum": 0.5}}]
    table = parse(experiment(arm=inside)).resolve(registry.load()).trial("muon").optimiser
    assert (table["decay"], table["momentum"]) == ("inside", 0.5)


def test_shared_ranges_reach_a_rival_as_far_as_it_reads_them() -> None:
    shared = {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "optimiser.beta2": {"low": 0.9, "high": 0.999}}
    x = parse(experiment(space=shared, optimiser={"name": "adam"})).resolve(registry.load())
    spaces = {arm.name: arm.space for arm in x.arms}
    assert {"lr", "beta2"} <= set(spaces["none"])
    assert "lr" in spaces["muon"]
    assert not {"optimiser.beta2", "beta2"} & set(spaces["muon"])
    assert {"beta", "companion"} <= set(spaces["muon"])


def test_errors_stay_at_their_key() -> None:
    cases = [
        ({"beta": 1.0}, r"set\.beta: 0 <= beta < 1 must hold, got beta=1\.0"),
        ({"scale": "rms"}, r"set\.scale: scale must be 'original' or 'match-rms', got 'rms'"),
        ({"compagnon": 1.0}, r"set\.compagnon: unknown key for method muon; did you mean 'companion'"),
        ({"optimiser.beta1": 0.5}, r"beta1: has no effect on sgd: take it out"),
        ({"ns_steps": "five"}, r'set\.ns_steps: must be an integer, got "five"'),
    ]
    for wrong, message in cases:
        arms = [{"name": "none"}, {"name": "muon", "set": wrong}]
        with pytest.raises(InputError, match=message):
            parse(experiment(arm=arms)).resolve(registry.load())
