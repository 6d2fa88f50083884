"""What a wrong experiment file says: every problem at once, where it is, what is allowed; never a traceback."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grokscale.entries import ModelEntry
from grokscale.errors import GrokscaleError, InputError, nearest, suggest
from grokscale.spec import load, parse, resolve_file
from tests.fakes import BASIC, basic, registry

GOOD = """\
name = "basic"
baseline = "none"
horizon = 2_000
eval = { every = "2%", min = 25 }
[task]
name = "coins"
n = 12
[optimiser]
decay = "inside"
[space]
lr = { low = 0.01, high = 0.1, log = true, default = 0.04 }
[[arm]]
name = "none"
[[arm]]
name = "damp"
set = { mode = "hard" }
[arm.default]
rate = 0.25
[[arm]]
name = "both"
method = ["damp", "boost"]
set = { damp.depth = 2 }
[search]
trials = 6
"""


def problems(tables: dict[str, Any], *overrides: str) -> list[str]:
    """What `parse` and `resolve` complain about."""
    with pytest.raises(InputError) as caught:
        parse(tables, overrides, source="x.toml").resolve(registry())
    return caught.value.problems


def of_file(path: Path, text: str, *overrides: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        resolve_file(path, overrides, registry=registry)
    return [p.replace(str(path), "x.toml") for p in caught.value.problems]


# ------------------------------------------------------------------------------------------- the errors


def test_errors_carry_their_exit_codes_and_all_problems():
    error = InputError(["a", "b"])
    assert (str(error), error.problems, error.exit_code) == ("a\nb", ["a", "b"], 2)
    assert isinstance(error, GrokscaleError)
    assert (GrokscaleError.exit_code, InputError("one").problems) == (1, ["one"])


def test_nearest_is_everything_nearest_first():
    assert nearest("egdd", ["none", "egd", "grokfast"])[0] == "egd"
    assert sorted(nearest("x", ["b", "a"])) == ["a", "b"]
    decays = ["ema:wd=0.01", "ema:wd=0.3", "ema:wd=1", "ema:wd=2", "ema:wd=5", "none:wd=2"]
    assert nearest("ema:wd=2.0", decays)[:2] == ["ema:wd=2", "ema:wd=1"]
    assert nearest("EMA:wd=1e-2", decays)[:2] == ["ema:wd=0.01", "ema:wd=0.3"]
    assert nearest("egd-1-add-90", ["egd-1-add", "egd-1-add-127", "egd-1-add-97"])[0] == "egd-1-add-97"
    assert suggest("lern", ["learn", "x"]).startswith("did you mean 'learn'? allowed: learn, x")
    assert suggest("zzz", ["a"]) == "allowed: a"
    assert suggest("zzz", []) == "nothing is allowed here"


# ------------------------------------------------------------------------------------------------ files


def test_all_problems_of_a_file_stand_in_one_message_with_their_lines(tmp_path: Path):
    text = (
        GOOD.replace("horizon = 2_000", 'horizon = "many"')
        .replace('name = "coins"', 'name = "coin"')
        .replace("decay =", "decai =")
        .replace("low = 0.01", "low = 1")
        .replace("rate = 0.25", "rate = 7")
        .replace('["damp", "boost"]', '["damp", "bost"]')
        .replace("trials = 6", "trials = -6")
    )
    found = of_file(tmp_path / "x.toml", text, "confirm.seeds=1.5")
    assert [p.partition(" allowed: decay,")[0] for p in found] == [
        "--set confirm.seeds=1.5: must be an integer >= 0, got 1.5",
        'x.toml:3: horizon: must be an integer >= 1, got "many"',
        "x.toml:6: task.name: unknown task \"coin\"; did you mean 'coins'? allowed: coins, files, bare",
        "x.toml:9: optimiser.decai: unknown key; did you mean 'decay'?",
        "x.toml:11: space.lr: 0 < low < high must hold with log = true, got low=1, high=0.1",
        "x.toml:18: arm.damp.default.rate: must lie in the range, 0.01 to 1, got 7.0",
        "x.toml:21: arm.both.method: unknown method \"bost\"; did you mean 'boost'? allowed: boost, none, damp",
        "x.toml:24: search.trials: must be an integer >= 0, got -6",
    ]


def test_load_reports_without_a_registry_and_reads_a_good_file(tmp_path: Path):
    path = tmp_path / "x.toml"
    path.write_text(GOOD)
    assert load(path).arm[2].set == {"damp.depth": 2}
    assert resolve_file(path, registry=registry).trial("damp").method[0]["mode"] == "hard"
    with pytest.raises(InputError, match=r"--set serch.trials=3: serch: unknown key; did you mean 'search'"):
        load(path, ["serch.trials=3"])


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "quickstart.toml").write_text(GOOD)
    for number in range(20):
        (tmp_path / "experiments" / f"other-{number}.toml").touch()
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    (tmp_path / "digits.toml").write_text("horizon = " + "9" * 5000)
    (tmp_path / "broken.toml").write_text('name = "x"\n[task\n')
    said = {
        "experiments/quickstrat.toml": "there is no such file; did you mean 'experiments/quickstart.toml'",
        "experiments": "is a folder; name a file in it",
        "latin.toml": "is not UTF-8 text (byte 11)",
        "deep.toml": "nested too deeply",
        "digits.toml": "is not TOML",
        "broken.toml:2": "is not TOML",
        "no\0name": "",
    }
    for place, text in said.items():
        with pytest.raises(InputError) as caught:
            load(place.partition(":")[0])
        (problem,) = caught.value.problems
        assert problem.startswith(place)
        assert text in problem
        assert ("and 13 more in experiments/" in problem) == place.startswith("experiments")  # of 21


def test_a_plugin_that_fails_is_one_more_problem(tmp_path: Path):
    def broken(plugins: object) -> Any:
        raise InputError("plugin: module 'x' cannot be imported: no")

    path = tmp_path / "x.toml"
    path.write_text(GOOD.replace('baseline = "none"', 'baseline = "non"\nplugin = "x"'))
    with pytest.raises(InputError) as caught:
        resolve_file(path, registry=broken)
    assert [p.removeprefix(f"{path}:") for p in caught.value.problems] == [
        "2: baseline: no arm is labelled \"non\"; did you mean 'none'? allowed: none, both, damp",
        "3: plugin: module 'x' cannot be imported: no",
    ]


class Half:
    """A net of which one parameter was registered and not declared, as `self.fc = nn.Linear(...)` does."""

    roles, laws = {"w": None}, {"w": ("constant", 0.0)}

    def named_parameters(self) -> list[tuple[str, None]]:
        return [("w", None), ("fc.weight", None), ("fc.bias", None)]


class Bare(Half):
    roles, laws = {}, {}


@pytest.mark.parametrize(("net", "wanting"), [(Half, "fc.weight, fc.bias"), (Bare, "w, fc.weight, fc.bias")])
def test_a_model_that_does_not_declare_its_parameters_is_refused(net: type[Half], wanting: str):
    (problem,) = refused(net)
    assert problem.startswith(f"x.toml: model.name: builds a {net.__name__} that") and f" for: {wanting}; " in problem


def test_a_model_that_forgets_to_return_its_net_is_refused():
    (problem,) = refused(lambda: None)
    assert problem.startswith("x.toml: model.name: builds a NoneType that")
    assert "build a grokscale.models.Model" in problem


def refused(make: Callable[[], Any]) -> list[str]:
    known = registry()
    built = replace(known, models={**known.models, "mine": ModelEntry("mine", "", lambda task: make())})
    with pytest.raises(InputError) as caught:
        parse(basic(model={"name": "mine"}), (), source="x.toml").resolve(built)
    return caught.value.problems


# --------------------------------------------------------------------------------------------- one by one

ARMS = [{"name": "none"}, {"name": "damp"}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Quick Start"}, "name: must be a string (a-z, 0-9 and -, at most 64"),
        ({"nam": 1}, "nam: unknown key; did you mean 'name'? allowed: name, "),
        ({"trials": 8}, "trials: unknown key; did you mean search.trials or limits.trials? allowed here: "),
        ({"task": {"name": 3}}, "task.name: must be a string"),
        ({"task": {"nn": 3}}, "task.nn: unknown key for task coins; did you mean 'n'? allowed: n, "),
        ({"task": {"n": 1.5}}, "task.n: must be an integer, got 1.5"),
        ({"task": {"n": True}}, "task.n: must be an integer, got true"),
        ({"task": {"n": 1}}, "task.n: 1 <= k <= n must hold, got k=2, n=1"),
        ({"task": {"sizes": [1, "x"]}}, 'task.sizes: must be an integer, got "x"'),
        ({"task": {"sizes": {"a": 1}}}, "task.sizes: must be a list, got a table"),
        ({"task": {"bias": float("nan")}}, "task.bias: must be finite, got nan"),
        ({"task": {"name": "bare"}, "model": {"name": "tiny"}}, "task.n: unknown key for task bare"),
        ({"task": {"validation": 0}}, "task.validation: validation = 0 leaves nothing to look at; it needs monitor"),
        ({"task": {"monitor": "tset"}}, "task.monitor: must not be \"tset\"; did you mean 'test'? allowed: test, val"),
        ({"model": {"name": "tinny"}}, "model.name: unknown model \"tinny\"; did you mean 'tiny'? allowed: tiny, wide"),
        ({"model": {"widht": 2}}, "model.widht: unknown key for model tiny; did you mean 'width'"),
        ({"model": {"width": 0}}, "model.width: width >= 1 must hold, got width=0"),
        ({"optimiser": {"name": "sdg"}}, "optimiser.name: must not be \"sdg\"; did you mean 'sgd'"),
        ({"optimiser": {"batch": 0}}, "optimiser.batch: must be an integer >= 1, got 0"),
        ({"optimiser": {"beta1": 0.9}}, "optimiser.beta1: has no effect on sgd: take it out; allowed: "),
        ({"optimiser": {"name": "adamw", "decay": "coupled"}}, 'optimiser.decay: must be "decoupled" for adamw'),
        ({"optimiser": {"lr": 0.5}}, "optimiser.lr: is searched (space.lr): 0.5 would have no effect; set space.lr."),
        ({"eval": "epochs"}, 'eval: must be "epoch" or a table such as { every = "2%", min = 25 }, got "epochs"'),
        ({"eval": 3}, 'eval: must be "epoch" or a table'),
        ({"eval": {"every": "2"}}, 'eval.every: must be a share such as "2%" or 0.02, got "2"'),
        ({"eval": {"mim": 1}}, "eval.mim: unknown key; did you mean 'min'"),
        ({"resources": {"lanes": 1}}, 'resources.lanes: must be an integer >= 2 or "auto", got 1'),
        ({"resources": {"lanes": -2}}, 'resources.lanes: must be an integer >= 2 or "auto", got -2'),
        ({"resources": {"lanes": "six"}}, 'resources.lanes: must be an integer >= 2 or "auto", got "six"'),
        ({"confirm": {"seeds": 0}, "search": {"trials": 0}}, "confirm.seeds: search.trials = 0 and confirm.seeds = 0"),
        ({"baseline": "nonne"}, "baseline: no arm is labelled \"nonne\"; did you mean 'none'"),
        ({"arm": []}, "arm: "),
        ({"arm": "none"}, 'arm: must be a list (at least one [[arm]] with name = "..."), got "none"'),
        ({"arm": [{"name": "none"}, 3]}, "arm[2]: must be a table, got 3"),
        ({"arm": [{"name": "none"}, {"method": "damp"}]}, "arm[2].name: is missing: a label of letters"),
        ({"arm": [*ARMS, {"name": "damp"}]}, 'arm.damp.name: label "damp" is used twice'),
        ({"arm": [*ARMS, {"name": "x", "method": ["damp", "damp"]}]}, 'arm.x.method: "damp" stands twice'),
        ({"arm": [*ARMS, {"name": "x"}]}, 'arm.x.name: unknown method "x"; allowed: '),
        ({"space": {"lr": {"low": 1}}}, "space.lr: needs low and high, or choices"),
        ({"space": {"lr": {"lo": 1, "high": 2}}}, "space.lr.lo: unknown key; did you mean 'low'"),
        ({"space": {"lr": {"low": 0, "high": 1, "log": True}}}, "space.lr: 0 < low < high must hold with log = true"),
        ({"space": {"lr": {"low": 2, "high": 1}}}, "space.lr: low < high must hold, got low=2, high=1"),
        ({"space": {"lr": {"low": 1, "high": 2, "default": 3}}}, "space.lr: low <= default <= high must hold"),
        ({"space": {"lr": {"low": 1, "high": 2}}}, "space.lr: the default must lie in the range, 1 to 2, got 0.05"),
        ({"space": {"lr": {"low": -1, "high": 1, "default": 0.5}}}, "space.lr: must be a number > 0, got -1"),
        ({"space": {"wd": {"low": 0, "high": 1, "zero": True}}}, "space.wd: 0 < low must hold with zero = true"),
        ({"space": {"batch": {"low": 1.5, "high": 8}}}, "space.batch: is an integer: low and high must be integers"),
        ({"space": {"decay": {"low": 1, "high": 8}}}, 'space.decay: is not a number but "inside" by default'),
        ({"space": {"decay": {"choices": []}}}, "space.decay: choices must not be empty"),
        ({"space": {"batch": {"choices": [8, 8]}}}, "space.batch: choices must differ, got [8, 8]"),
        ({"space": {"batch": {"choices": [8], "low": 1}}}, "space.batch: choices stand alone"),
        ({"space": {"batch": {"choices": [8], "default": 9}}}, "space.batch: default must be one of [8], got 9"),
        (
            {"space": {"precision": {"choices": ["fp32"]}}},
            "space.precision: precision is not for a search; make one [[arm]] per value",
        ),
        ({"space": {"rate": {"low": 0.1, "high": 1}}}, "space.rate: unknown key; a knob of damp belongs into its arm"),
        ({"space": {"beta1": {"low": 0.1, "high": 0.9}}}, "space.beta1: has no effect on sgd: take it out"),
        ({"space": {"task": {"m": {"low": 1, "high": 2}}}}, "space.task.m: unknown key"),
    ],
)
def test_problem(changes: dict[str, Any], said: str):
    (problem,) = problems(basic(**changes))
    assert problem.startswith(f"x.toml: {said}")


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"set": {"rat": 0.1}}, "set.rat: unknown key for method damp; did you mean 'rate'? allowed: rate, "),
        ({"set": {"rate": 2}}, "set.rate: 0 < rate <= 1 must hold, got rate=2.0"),
        ({"set": {"rate": "x"}}, 'set.rate: must be a number, got "x"'),
        ({"set": {"mode": "sof"}}, "set.mode: mode must be 'soft' or 'hard', got 'sof'"),
        ({"set": {"rank": 5}}, "set.rank: must be a string, got 5"),
        ({"set": {"lr": 0}}, "set.lr: must be a number > 0, got 0"),
        ({"set": {"beta1": 0.5}}, "set.beta1: has no effect on sgd"),
        ({"set": {"optimiser": {"name": "adma"}}}, "set.optimiser.name: must not be \"adma\"; did you mean 'adam'"),
        ({"set": {"task": {"name": "x"}}}, "set.task.name: an experiment has one task and one model"),
        ({"set": {"task": {"n": 1}}}, "set.task.n: 1 <= k <= n must hold"),
        ({"set": {"model.width": 0}}, "set.model.width: width >= 1 must hold"),
        ({"default": {"rate": 2}}, "default.rate: must lie in the range, 0.01 to 1, got 2.0"),
        ({"default": {"mode": "hard"}}, "default.mode: is not searched, so it has no starting point: use set"),
        ({"default": {"mod": "hard"}}, "default.mod: unknown key for method damp; did you mean 'mode'"),
        ({"search": ["mode"]}, 'search: "mode" has no range of its own'),
        ({"search": ["rte"]}, "search: unknown knob \"rte\"; did you mean 'rate'? allowed: rate, "),
        ({"set": {"rate": 0.5}, "search": ["rate"]}, 'search: "rate" is fixed in set and searched'),
        ({"space": {"rate": {"low": 0.5, "high": 2}}}, "space.rate: 0 < rate <= 1 must hold, got rate=2.0"),
        ({"space": {"rat": {"low": 0.5, "high": 2}}}, "space.rat: unknown key for method damp; did you mean 'rate'"),
        ({"space": {"lr": {"low": 0.5, "high": 2}}}, "space.lr: is shared: its range must be the same for every arm"),
        ({"set": {"rate": 1}, "space": {"rate": {"low": 0.5, "high": 1}}}, "space.rate: is fixed in set and searched"),
        ({"space": {"rate": {"low": 0.6, "high": 1}}}, "space.rate: the default must lie in the range, 0.6 to 1"),
    ],
)
def test_problem_of_an_arm(arm: dict[str, Any], said: str):
    (problem,) = problems(basic(arm=[{"name": "none"}, {"name": "x", "method": "damp", **arm}]))
    assert problem.startswith(f"x.toml: arm.x.{said}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("horizon", "must look like key=value"),
        ("=3", "must look like key=value"),
        ("a..b=3", "must look like key=value"),
        ("horizon.x=3", 'horizon is no table, it has no key "x"'),
        ("arm.dam.set.rate=3", "no arm is labelled \"dam\"; did you mean 'damp'"),
        ("arm.damp=3", "name a key of the arm; allowed: name, method, set"),
        ("arm.damp.set.rate=3", "0 < rate <= 1 must hold, got rate=3.0"),
        ("space.lr.low=0.09", "space.lr: low <= default <= high must hold"),
        ("task=coins", 'must be a table, got "coins"'),
    ],
)
def test_problem_of_an_override(override: str, said: str):
    (problem,) = problems(basic(), override)
    assert problem.startswith(f"--set {override}: {said}")


def test_what_is_missing_is_named():
    assert problems({}) == [
        "x.toml: name: is missing: a-z, 0-9 and -, at most 64, not starting with -",
        "x.toml: baseline: is missing: label of the arm that the others are compared with",
        'x.toml: task: is missing: a table [task] with name = "..."',
        'x.toml: arm: is missing: at least one [[arm]] with name = "..."',
    ]


def test_what_was_refused_does_not_hide_or_repeat_anything():
    tables = basic(arm=[{"name": "none", "nam": 1}, {"nam": 2}, {"name": "dampp"}], horizon=0, baseline=3)
    with pytest.raises(InputError) as caught:
        parse(tables, source="x.toml")
    assert [p.partition(";")[0] for p in caught.value.problems] == [
        "x.toml: baseline: must be a string (label of the arm that the others are compared with), got 3",
        "x.toml: horizon: must be an integer >= 1, got 0",
        "x.toml: arm.none.nam: unknown key",
        "x.toml: arm[2].name: is missing: a label of letters, digits and - _ + . , : =, at most 96",
        "x.toml: arm[2].nam: unknown key",
    ]


# ---------------------------------------------------------------------------------- mangled, at random

KEYS = st.sampled_from(
    [*BASIC, "eval", "model", "optimiser", "race", "resources", "limits", "plugin", "store", "set", "default",
     "method", "low", "high", "choices", "lr", "rate", "n", "sizes", "arm", "optimiser.name", ""]
) | st.text(max_size=5)  # fmt: skip
SCALARS = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.dates(),
    st.just(10**400),
    st.sampled_from(["none", "damp", "coins", "tiny", "adam", "2%", "epoch"]),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


@st.composite
def mangled(draw: st.DrawFn) -> dict[str, Any]:
    """A good experiment with up to four values, at any depth, replaced, added or taken away."""
    tables = basic(arm=[{"name": "none"}, {"name": "damp", "set": {"mode": "hard"}, "search": ["rate"]}])
    for _ in range(draw(st.integers(1, 4))):
        node: Any = tables
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is not None and isinstance(node[key], (dict, list)) and draw(st.booleans()):
                node = node[key]
                continue
            if isinstance(node, list):
                node.append(draw(TREES))
            elif key is None or draw(st.booleans()):
                node[draw(KEYS)] = draw(TREES)
            elif draw(st.booleans()):
                node[key] = draw(TREES)
            else:
                del node[key]
            break
    return tables


def survives(tables: dict[str, Any], *overrides: str) -> None:
    """Fine, or an InputError with texts; never anything else."""
    try:
        r = parse(tables, overrides).resolve(registry())
        r.trial(r.arms[0].name).canonical()
        assert r.sweep_id
    except InputError as error:
        assert error.problems
        assert all(isinstance(p, str) and p.strip() for p in error.problems)


@given(mangled())
def test_mangled_tables_never_raise_anything_else(tables: dict[str, Any]):
    survives(tables)


@given(st.lists(st.builds("{}={}".format, KEYS.filter(lambda k: "=" not in k), st.text(max_size=8)), max_size=3))
@example(["arm.damp.set.rate=1e400", "arm.none.name=3"])
@example(["space.lr=3", "space.lr.low=2"])
def test_mangled_overrides_never_raise_anything_else(overrides: list[str]):
    survives(basic(), *overrides)


@given(st.integers(0, len(GOOD)), st.integers(0, 40), st.text(max_size=8))
def test_mangled_text_never_raises_anything_else(tmp_path_factory: Any, at: int, cut: int, put: str):
    path = tmp_path_factory.getbasetemp() / "mangled.toml"
    path.write_bytes((GOOD[:at] + put + GOOD[at + cut :]).encode(errors="surrogatepass"))
    try:
        resolve_file(path, registry=registry)
    except InputError as error:
        assert all(p.startswith((str(path), "--set")) for p in error.problems)


def test_the_text_of_these_tests_is_good():
    assert parse(tomllib.loads(GOOD)).resolve(registry()).horizon == 2000


# ------------------------------------------------------------------------------------------ measures


def test_measures_are_checked_with_their_methods() -> None:
    wrong = ["normz", "norms:damp", "compare:damp", "compare:dampp:boost", "odd:damp"]
    found = problems(basic(metrics={"names": wrong}))
    assert found == [
        'x.toml: metrics.names: unknown measure "normz"; did you mean \'norms\'? allowed: norms, compare, odd',
        'x.toml: metrics.names: must be written "norms", got "norms:damp"',
        'x.toml: metrics.names: must be written "compare:METHOD:METHOD", got "compare:damp"',
        'x.toml: metrics.names: unknown method "dampp" in "compare:dampp:boost"; did you mean \'damp\'? allowed: damp, '
        "none, boost",
        "x.toml: metrics.names: damp is odd",
    ]


def test_measures_are_no_part_of_any_identity() -> None:
    plain = parse(BASIC).resolve(registry())
    for metrics in ({"names": "norms"}, {"names": ["compare:damp:boost", "norms"], "search": True}):
        measured = parse(basic(metrics=metrics)).resolve(registry())
        assert measured.sweep_id == plain.sweep_id
        assert measured.trial("damp").trial_id == plain.trial("damp").trial_id
    both = parse(basic(metrics={"names": ["norms", "compare:damp:boost"], "search": True}))
    assert both.metrics.during("search") == ("compare:damp:boost", "norms")
    assert parse(basic(metrics={"names": "norms"})).metrics.during("race") == ()
    assert parse(basic(metrics={"names": "norms"})).metrics.during("confirm") == ("norms",)


@pytest.mark.parametrize("changes", [
    {"tracking": "http://me:planted@there:5000"}, {"store": "s3://key:planted@bucket/x"},
    {"cluster": {"address": "http://me:planted@there:8265"}}, {"tracking": "postgresql://me:planted@there/db"},
])  # fmt: skip
def test_a_password_in_an_address_is_refused_and_not_repeated(changes: dict[str, Any]) -> None:
    """The experiment is kept in the store, in jobs and in logs."""
    (said,) = problems(basic(**changes))
    assert "holds a password" in said and "MLFLOW_TRACKING_PASSWORD" in said and "planted" not in said
    assert parse(basic(tracking="http://there:5000", store="s3://bucket/a:b@c")).tracking == "http://there:5000"
