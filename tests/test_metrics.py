"""Measures: each against its slow version, on known answers, and inside the engine, which they must not touch."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad

from grokscale.metrics import MEASURES, build
from grokscale.metrics.base import Look, Step, cosine, norm
from grokscale.metrics.gradient import absolute_entropy, shannon_entropy, spectral
from grokscale.metrics.sketch import DIM, WINDOW, power, sketch
from grokscale.rng import generator
from grokscale.spec import TrialSpec
from grokscale.tasks.base import Split
from grokscale.train import Evaluation, Lanes, Program, train
from grokscale.train.costs import model_flops
from grokscale.transform import Params, Role, Transform, chain, stateless
from tests import reference_metrics as ref
from tests.test_conformance import lane_bits
from tests.trials import FORMS, REGISTRY, trial

EVERY = {"every": 0.02, "min": 10, "examples": 1024}
ALL = tuple(name if not m.methods else f"{name}:egd:grokfast-ema" for name, m in MEASURES.items())
ROLES = {"w": Role("hidden", 0), "b": Role("bias"), "h": Role("head", 0)}


def draw(seed: int, shapes: dict[str, tuple[int, ...]] | None = None) -> Params:
    source = torch.Generator().manual_seed(seed)
    shapes = shapes or {"w": (6, 4), "b": (5,), "h": (3, 2)}
    return {k: torch.randn(shape, generator=source, dtype=torch.float64) for k, shape in shapes.items()}


def arrays(values: Params) -> dict[str, np.ndarray]:
    return {k: t.numpy() for k, t in values.items()}


def look(step: int = 1, **given: Any) -> Look:
    """A look at drawn tensors, where not given."""
    parts: dict[str, Any] = {name: draw(i) for i, name in enumerate(("before", "params", "grads", "used", "update"))}
    parts |= {"test_grads": draw(9), "method": {}, "outer_loss": None, "roles": ROLES}
    return Look(step=step, **{**parts, **given})


def close(a: Tensor | float, b: float, rtol: float = 1e-10) -> bool:
    return math.isclose(float(a), b, rel_tol=rtol, abs_tol=1e-12)


# ---------------------------------------------------------------------------------------------- known answers


def test_age_of_four_numbers() -> None:
    values = torch.tensor([0.1, -0.2, 0.0, 0.5], dtype=torch.float64)
    assert close(absolute_entropy(values), 0.8987196821, 1e-10)
    assert close(absolute_entropy(values.float()), 0.8987196821, 1e-7)  # float32 only rounds what goes in
    assert ref.age([0.1, -0.2, 0.0, 0.5]) == pytest.approx(0.8987196821, rel=1e-10)


@given(st.floats(1e-3, 1e3), st.integers(0, 99))
def test_age_follows_its_scale_law_and_the_normalised_one_has_no_scale(s: float, seed: int) -> None:
    g = draw(seed)["w"]
    expected = s * absolute_entropy(g) - s * math.log(s) * g.abs().sum()
    assert torch.allclose(absolute_entropy(s * g), expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(shannon_entropy(s * g), shannon_entropy(g), rtol=1e-12)


def test_normalised_entropy_reaches_from_zero_to_ln_n() -> None:
    assert close(shannon_entropy(torch.full((50,), -3.0)), math.log(50))
    assert close(shannon_entropy(torch.tensor([0.0, 7.0, 0.0])), 0.0)
    assert math.isnan(shannon_entropy(torch.zeros(4)))


def test_spectrum_of_a_diagonal_and_of_rank_one() -> None:
    found = spectral(torch.diag(torch.tensor([4.0, 2.0, 1.0])))  # energy 16, 20, 21: 95 % of it needs two values
    assert close(found["kappa"], 4.0) and close(found["kappa95"], 2.0) and close(found["stable_rank"], 21 / 16)
    assert found["singular"].tolist() == [4.0, 2.0, 1.0]
    one = spectral(torch.outer(torch.arange(1.0, 5.0), torch.ones(3)))
    assert close(one["stable_rank"], 1.0, 1e-6) and close(one["effective_rank"], 1.0, 1e-4)
    assert close(one["kappa95"], 1.0)


def test_a_wave_has_its_power_at_its_frequency() -> None:
    time = torch.arange(WINDOW).unsqueeze(-1)
    found = power(torch.cos(2 * torch.pi * 32 * time / WINDOW) * torch.ones(3))
    assert int(found.argmax()) == 32
    assert found[29].item() < 1e-9 and found[35].item() < 1e-9
    noise = torch.randn(WINDOW, 400, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(power(noise)[2:-2], torch.ones(()).double(), atol=0.4)


# ---------------------------------------------------------------------------------------------- slow versions


@pytest.mark.parametrize("seed", range(5))
def test_entropies_are_those_of_the_loop(seed: int) -> None:
    probe = build("entropy", REGISTRY)
    seen = look(grads=draw(seed), used=draw(seed + 50))
    assert probe.look is not None and probe.weights is not None
    found = probe.look(seen, ()) | probe.weights(seen.params, (), ROLES)
    raw, used = ref.entries(arrays(seen.grads)), ref.entries(arrays(seen.used))
    expected = {"age_raw": ref.age(raw), "age_used": ref.age(used), "entropy_raw": ref.shannon(raw),
                "entropy_used": ref.shannon(used), "awe": ref.age(ref.entries(arrays(seen.params)))}  # fmt: skip
    assert found.keys() == expected.keys()
    assert all(close(found[k], v) for k, v in expected.items())


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (30, 7)])
def test_spectra_are_those_of_the_gram_matrix(shape: tuple[int, int]) -> None:
    for seed in range(3):
        g = draw(seed, {"w": shape})["w"]
        found = spectral(g)
        assert all(close(found[k], v, 1e-8) for k, v in ref.spectral(g.numpy()).items())


def test_only_hidden_matrices_have_a_spectrum() -> None:
    probe = build("spectrum", REGISTRY)
    assert probe.look is not None
    assert {name.partition("/")[2] for name in probe.look(look(), ())} == {"w"}


def test_norms_are_lengths() -> None:
    probe = build("norms", REGISTRY)
    seen, first = look(), draw(70)
    state = probe.init(first, ROLES, torch.Generator())
    assert probe.look is not None and probe.weights is not None
    found = probe.look(seen, state) | probe.weights(seen.params, state, ROLES)
    w = arrays(seen.params)
    expected = {
        "weight_norm": ref.length(w), "weight_norm_last": ref.length({"h": w["h"]}),
        **{f"weight_norm/{k}": ref.length({k: w[k]}) for k in w},
        "distance": ref.length({k: w[k] - first[k].numpy() for k in w}),
        "grad_norm": ref.length(arrays(seen.grads)), "used_norm": ref.length(arrays(seen.used)),
        "update_norm": ref.length(arrays(seen.update)),
    }  # fmt: skip
    assert found.keys() == expected.keys()
    assert all(close(found[k], v) for k, v in expected.items())


def test_alignment_follows_the_slow_part() -> None:
    probe = build("alignment", REGISTRY)
    state = probe.init(draw(0), ROLES, torch.Generator())
    assert probe.every is not None and probe.look is not None and probe.test
    stream = [draw(100 + i) for i in range(40)]
    for i, g in enumerate(stream, start=1):
        state = probe.every(Step(i, draw(0), g, ROLES, torch.tensor(0.0), 0.1), state)
    seen = look(step=40, grads=stream[-1])
    found = probe.look(seen, state)
    assert seen.test_grads is not None
    g, test, down = arrays(seen.grads), arrays(seen.test_grads), {k: -u.numpy() for k, u in seen.update.items()}
    mu = ref.mean([arrays(g) for g in stream], 0.98)
    expected = {
        "cos_g_u": ref.cosine(g, down), "cos_u_test": ref.cosine(down, test), "cos_g_test": ref.cosine(g, test),
        "gain": ref.cosine(down, test) - ref.cosine(g, test), "cos_mu_test": ref.cosine(mu, test),
        "cos_fast_test": ref.cosine({k: g[k] - mu[k] for k in g}, test),
    }  # fmt: skip
    assert found.keys() == expected.keys()
    assert all(close(found[k], v, 1e-8) for k, v in expected.items())


def test_gradient_power_is_the_transform_of_the_last_sketches() -> None:
    probe = build("gradient-power", REGISTRY)
    shapes = {"w": (40, 10)}
    state = probe.init(draw(0, shapes), ROLES, torch.Generator())
    assert probe.every is not None and probe.look is not None
    sketches, steps = [], WINDOW + 37
    for i in range(1, steps + 1):
        g = draw(i, shapes)
        sketches.append(sketch(g)[:2])
        state = probe.every(Step(i, g, g, ROLES, torch.tensor(0.0), 0.1), state)
        if i == WINDOW - 1:
            assert probe.look(look(step=i), state) == {}
    found = probe.look(look(step=steps), state)
    slow = ref.power(torch.stack(sketches[-WINDOW:]).numpy())
    # The slow version is asked for two of the coordinates only, so these stand alone here too.
    alone = power(torch.roll(state, -(steps % WINDOW), 0)[:, :2])
    assert np.allclose(alone.numpy(), slow, rtol=1e-8)
    twice = np.array([1, *[2] * (WINDOW // 2 - 1), 1]) * found["power"].numpy()
    assert close(found["slow_share"], float(twice[:6].sum() / twice.sum()))


def test_a_sketch_is_linear_shared_and_keeps_lengths() -> None:
    shapes = {"w": (300, 40), "b": (77,)}
    a, b = draw(1, shapes), draw(2, shapes)
    both = sketch({k: 2 * a[k] - b[k] for k in a})
    assert torch.allclose(both, 2 * sketch(a) - sketch(b), rtol=1e-10, atol=1e-10)
    assert torch.equal(sketch(a), sketch(draw(1, shapes)))
    ratios = [float(sketch(draw(i, shapes)).norm() / norm(draw(i, shapes))) for i in range(60)]
    assert 0.97 < float(np.mean(np.square(ratios))) < 1.03
    assert max(abs(r - 1) for r in ratios) < 5 * math.sqrt(2 / DIM) / 2
    spike = {"w": torch.zeros(300, 40).double(), "b": torch.zeros(77).double()}
    spike["w"][7, 3] = -2.0
    assert sorted(sketch(spike).abs().tolist())[-2:] == [0.0, 2.0]  # every entry goes to one sum, with a sign


def test_compare_runs_both_methods_on_one_stream() -> None:
    pair = ("egd", "grokfast-ema")
    probe = build(f"compare:{pair[0]}:{pair[1]}", REGISTRY)
    alone = [REGISTRY.methods[name].factory() for name in pair]
    params = draw(0)
    state = probe.init(params, ROLES, torch.Generator().manual_seed(1))
    states = [t.init(params, ROLES, torch.Generator().manual_seed(1)) for t in alone]
    assert probe.every is not None and probe.look is not None
    for i in range(1, 30):
        g, answers = draw(i), []
        state = probe.every(Step(i, params, g, ROLES, torch.tensor(0.2), 0.1), state)
        for j, t in enumerate(alone):
            out, states[j] = t.update(g, states[j], params, step=i, val_accuracy=torch.tensor(0.2), roles=ROLES)
            answers.append(arrays(out))
        found = probe.look(look(step=i), state)
        assert close(found[f"cos/{pair[0]}/{pair[1]}"], ref.cosine(*answers), 1e-9)
        assert close(found[f"cos_g/{pair[0]}"], ref.cosine(answers[0], arrays(g)), 1e-9)
        assert close(found[f"cos_g/{pair[1]}"], ref.cosine(answers[1], arrays(g)), 1e-9)


def test_what_methods_say_of_themselves_is_told_with_their_place_where_several_do() -> None:
    def telling(factor: float) -> Transform:
        plain = stateless(lambda grads, params, *, step: grads)
        return plain._replace(diagnostics=lambda state, grads: {"size": factor * norm(grads)})

    g = draw(3)
    for members, names in (((1.0,), {"size": 1.0}), ((1.0, 2.0), {"1/size": 1.0, "2/size": 2.0})):
        joined = chain(stateless(lambda grads, params, *, step: grads), *(telling(f) for f in members))
        state = joined.init(g, ROLES, torch.Generator())
        assert joined.diagnostics is not None
        told = joined.diagnostics(state, g)
        assert {k: float(v / norm(g)) for k, v in told.items()} == pytest.approx(names)
    probe = build("method", REGISTRY)
    assert probe.look is not None
    assert probe.look(look(method={"size": torch.tensor(2.0)}), ()) == {"method/size": torch.tensor(2.0)}


# ---------------------------------------------------------------------------------------------- entries


@pytest.mark.parametrize(("name", "text"), [
    ("entropie", "got 'entropie'"), ("compare:egd", "is about 2 methods"), ("norms:egd", "is about 0 methods"),
    ("compare:egd:nobody", "got 'nobody'"), ("compare:egd:test-look-ahead", "test-look-ahead cannot be compared"),
])  # fmt: skip
def test_measures_that_make_no_sense_are_refused(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build(name, REGISTRY)


@pytest.mark.parametrize("name", ALL)
def test_an_entry_says_what_it_records_and_what_it_costs(name: str) -> None:
    entry = MEASURES[name.partition(":")[0]]
    assert entry.source and entry.cost and entry.columns
    recorded = columns_of(run("pairs-mlp2", "test-look-ahead", metrics=(name,), steps=300), 1)
    allowed = {column.partition("/")[0] for column in entry.columns}
    assert {column.partition("/")[0] for column in recorded} == (allowed if entry.name != "method" else set())


# ---------------------------------------------------------------------------------------------- in the engine


def run(form: str, method: Any = "none", *, metrics: tuple[str, ...] = ALL, steps: int = 40,
        seeds: tuple[int, ...] = (1, 2), **options: Any) -> Evaluation:
    """The evaluation at `steps` of a run that nothing ends early."""
    return stopped_at(trial(form, method, every=EVERY, threshold=1.1), steps, seeds, metrics=metrics, **options)


def stopped_at(spec: TrialSpec, steps: int, seeds: tuple[int, ...], **options: Any) -> Evaluation:
    for evaluation in train(spec, seeds, horizon=10_000, registry=REGISTRY, **options):
        if evaluation.step >= steps:
            return evaluation
    raise AssertionError("the run ended early")


def columns_of(evaluation: Evaluation, seed: int) -> dict[str, dict[int, Any]]:
    """column -> step -> value."""
    out: dict[str, dict[int, Any]] = defaultdict(dict)
    table = evaluation.measures()
    for s, step, name, value, vector in zip(*(table[k] for k in ("seed", "step", "measure", "value", "vector")),
                                            strict=True):  # fmt: skip
        if s == seed:
            assert (value is None) != (vector is None)
            out[name][step] = vector if value is None else value
    return dict(out)


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("method", ["none", "grokfast-ma", "egd", "test-look-ahead"])
def test_curves_and_parameters_are_the_same_bits_with_and_without(form: str, method: str) -> None:
    plain, measured = run(form, method, metrics=()), run(form, method)
    assert plain.measures() == {"seed": [], "step": [], "measure": [], "value": [], "vector": []}
    a, b = plain.curves(), measured.curves()
    assert {k: v.tobytes() for k, v in a.items()} == {k: v.tobytes() for k, v in b.items()}
    for seed in (1, 2):
        bits = lane_bits(measured, seed)
        assert {k: v for k, v in bits.items() if "['kept']" not in k} == lane_bits(plain, seed)
    assert plain.snapshot()["stacked"]["kept"] == []


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_split_run_measures_what_a_whole_run_does(form: str) -> None:
    steps = 280 if form == "parity-mlp2" else 60  # past the window of the spectrum in one of them
    whole = run(form, "egd", steps=steps, seeds=(1, 2, 3))
    buffer = io.BytesIO()
    torch.save(run(form, "egd", steps=20, seeds=(1, 2, 3)).snapshot(), buffer)
    buffer.seek(0)
    half = torch.load(buffer, weights_only=True)
    for seeds in ((1, 2, 3), (3,)):  # in a smaller pack too
        resumed = run(form, "egd", steps=steps, seeds=seeds, state=half)
        for seed in seeds:
            assert columns_of(resumed, seed) == columns_of(whole, seed)
            assert lane_bits(resumed, seed) == lane_bits(whole, seed)
    if form == "parity-mlp2":
        assert "power" in columns_of(whole, 1)


def test_a_snapshot_with_other_metrics_is_refused() -> None:
    snapshot = run("parity-mlp2", steps=10).snapshot()
    with pytest.raises(ValueError, match="metrics are"):
        run("parity-mlp2", state=snapshot, metrics=("norms",))


def test_what_is_recorded_is_what_the_replica_did() -> None:
    """A run in plain autograd from the same first weights: norms, gradients and cosines at step 10 and 20."""
    spec = trial("parity-mlp2", every=EVERY, threshold=1.1, optimiser={"decay": "coupled"}, precision="fp64")
    program = Program(spec, REGISTRY, "cpu")
    [splits, _] = program.splits(5)
    first = program.start(5)[0]
    params, found = first, {}
    order: list[int] = []
    n, batch, epoch = len(splits.train.y), spec.optimiser["batch"], 0
    for step in range(1, 21):
        if len(order) < batch:
            order = torch.randperm(n, generator=generator(5, f"order/{epoch}")).tolist()
            epoch += 1
        rows, order = order[:batch], order[batch:]
        g = grad(program.loss)(params, Split(splits.train.x[rows], splits.train.y[rows]))
        test = grad(program.loss)(params, splits.test)
        decayed = {k: v + spec.optimiser["wd"] * params[k] for k, v in g.items()}
        update = {k: -spec.optimiser["lr"] * v for k, v in decayed.items()}
        params = {k: params[k] + update[k] for k in params}
        found[step] = {
            "grad_norm": norm(g), "used_norm": norm(g), "update_norm": norm(update), "weight_norm": norm(params),
            "distance": norm({k: params[k] - first[k] for k in params}), "cos_g_test": cosine(g, test),
            "cos_u_test": cosine(decayed, test), "cos_g_u": cosine(g, decayed),
        }  # fmt: skip
    recorded = columns_of(stopped_at(spec, 20, (5,), metrics=("norms", "alignment")), 5)
    assert recorded["distance"][0] == 0.0 and close(recorded["weight_norm"][0], float(norm(first)))
    for step in (10, 20):
        for name, value in found[step].items():
            assert close(recorded[name][step], float(value), 1e-8), name


def test_gradients_are_told_apart_before_and_after_the_methods() -> None:
    recorded = columns_of(run("parity-mlp2", [{"name": "egd", "layers": "hidden"}], metrics=("norms", "spectrum")), 1)
    assert recorded["grad_norm"].keys() == {10, 20, 30, 40}
    assert recorded["weight_norm"].keys() == {0, 10, 20, 30, 40}
    for step in (10, 20, 30, 40):
        assert recorded["used_norm"][step] > math.sqrt(12) > recorded["grad_norm"][step]  # twelve unit singular values


def test_measures_are_taken_two_percent_apart_however_often_one_looks() -> None:
    spec = trial("parity-mlp2", every={"epoch": True}, threshold=1.1)
    evaluation = stopped_at(spec, 900, (1,), metrics=("norms",))
    steps = sorted(columns_of(evaluation, 1)["grad_norm"])
    looked = evaluation.curves()["step"].tolist()
    epoch = looked[0]
    assert looked == list(range(epoch, looked[-1] + 1, epoch))
    expected, last = [], 0
    for step in looked:
        if step >= 1.02 * last:
            expected.append(last := step)
    assert steps == expected
    assert len(steps) < len(looked)


def test_a_lost_lane_is_measured_until_it_is_lost_and_changes_no_other() -> None:
    from grokscale_test_plugin import poisoned

    seeds = tuple(range(1, 9))
    chains = [[{"name": "test-poison", "at": 13, "share": share, "value": "nan"}] for share in (0.5, 0.0)]
    spoiled, clean = (run("parity-mlp2", [*c, {"name": "egd"}], seeds=seeds, steps=30) for c in chains)
    lost = {seed for seed in seeds if poisoned(seed)}
    assert 0 < len(lost) < len(seeds)
    for seed in seeds:
        columns = columns_of(spoiled, seed)
        if seed in lost:
            assert set(columns["grad_norm"]) == {10}
        else:
            assert columns == columns_of(clean, seed)


def test_non_finite_gradients_raise_in_no_probe() -> None:
    """Straight through the lanes, so that the poisoned step itself is looked at."""
    spec = trial("parity-mlp2", [{"name": "test-poison", "at": 3, "share": 0.5, "value": "inf"}, {"name": "egd"}])
    lanes = Lanes(Program(spec, REGISTRY, "cpu", metrics=ALL), list(range(1, 9)), list(range(8)))
    seen: dict[str, Tensor] = {}
    with torch.no_grad():
        for step in range(1, WINDOW + 5):
            _, seen = lanes.step(step, look=step in (3, 4, WINDOW + 4))
    assert {"power", "age_raw", "kappa/w1", "trajectory", "cos_mu_test"} <= seen.keys()
    bad = ~torch.isfinite(seen["weight_norm"])
    assert 0 < int(bad.sum()) < 8
    assert torch.equal(torch.isnan(seen["kappa95/w1"]), bad)


# ---------------------------------------------------------------------------------------------- operations


def test_flops_of_a_step_are_those_of_its_matrix_products() -> None:
    """Dense input (B, n) through (n, W) and (W, 1): forward 2 B n W + 2 B W; backward the first product once (no
    gradient on data), the second twice."""
    row = run("parity-mlp2", metrics=(), steps=10).replicas()[0]
    b, n, w = 16, 12, 16
    assert row["flops_per_step"] == 2 * (2 * b * n * w) + 3 * (2 * b * w)


@pytest.mark.parametrize("form", ["pairs-mlp2", "tokens-decoder"])
def test_the_list_of_tasks_counts_what_a_run_counts(form: str) -> None:
    """Without data, on the meta device: the same operations as of the batch that was trained on."""
    tables = FORMS[form]
    entry = REGISTRY.tasks[tables["task"]["name"]]
    small = replace(
        entry, defaults={**entry.defaults, **{k: v for k, v in tables["task"].items() if k != "name"}},
        model=tables["model"], optimiser=tables["optimiser"])
    assert model_flops(small, REGISTRY) == run(form, metrics=(), steps=10).replicas()[0]["flops_per_step"]


def test_method_flops_are_what_the_methods_declare() -> None:
    spec: TrialSpec = trial("parity-mlp2", [{"name": "egd"}, {"name": "grokfast-ema"}])
    program = Program(spec, REGISTRY, "cpu")
    declared = [
        (entry.__class__(**{**vars(entry), "flops": lambda shapes, roles, knobs, k=k: k * shapes["w1"][0]}), knobs)
        for k, (entry, knobs) in enumerate(program.methods, start=2)
    ]
    program.methods = declared
    assert program.method_flops == (2 + 3) * 12
    other = Program(spec, REGISTRY, "cpu")
    other.methods = [declared[0], (declared[1][0].__class__(**{**vars(declared[1][0]), "flops": None}), {})]
    assert other.method_flops is None
