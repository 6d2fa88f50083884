"""Experiment files: what they mean once resolved, and what identifies a trial and a sweep."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokscale.errors import InputError
from grokscale.spec import Experiment, Resolved, TrialSpec, canonical_json, parse, seed_for
from tests.datafiles import write_all
from tests.fakes import basic, registry


def resolved(overrides: tuple[str, ...] = (), **changes: Any) -> Resolved:
    return parse(basic(**changes), overrides).resolve(registry())


# ------------------------------------------------------------------------------------ presets, defaults


def test_presets_fill_what_the_file_leaves_out():
    trial = resolved().trial("none")
    assert trial.task == {"name": "coins", "n": 12, "k": 2, "bias": 0.0, "sizes": [8, 8], "label": None}
    assert trial.model == {"name": "tiny", "width": 32, "act": "relu"}
    assert trial.optimiser == {
        "name": "sgd", "lr": 0.04, "wd": 0.01, "momentum": 0.0, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
        "decay": "inside", "batch": 16, "drop_last": True, "warmup": 0,
    }  # fmt: skip
    assert trial.method == ({"name": "none"},)
    assert (trial.threshold, trial.precision, trial.monitor, trial.validation) == (0.9, "fp32", "val", 0.2)
    assert trial.eval == {"every": 0.02, "min": 25, "examples": 1024}
    assert trial.versions == {"engine": 1, "method:none": 1, "task:coins": 1, "model:tiny": 1}


def test_defaults_of_the_counts_are_those_of_the_evaluation_contract():
    x = parse({"name": "a", "task": {"name": "coins"}, "arm": [{"name": "none"}]})
    assert (x.search.trials, x.search.seeds, x.search.parallel) == (30, 3, 4)
    assert (x.race.top, x.race.seeds, x.confirm.seeds) == (5, 8, 20)
    assert x.resolve(registry()).horizon == 5000


def test_an_optimiser_of_another_name_keeps_only_what_means_the_same():
    trial = resolved(space={}, optimiser={"name": "adam", "beta2": 0.98}).trial("none")
    assert trial.optimiser["name"] == "adam"
    assert (trial.optimiser["batch"], trial.optimiser["drop_last"]) == (16, True)  # of the task's preset
    assert trial.optimiser["lr"] == 0.04  # of [space]
    without = parse(basic(optimiser={"name": "adam"}, space={}) | {"space": {}}).resolve(registry())
    assert without.trial("none").optimiser["lr"] == 1e-3  # sgd's 0.05 means nothing to adam


def test_decoupled_adam_is_adamw():
    one = resolved(optimiser={"name": "adam", "decay": "decoupled"}).trial("none")
    assert one.trial_id == resolved(optimiser={"name": "adamw"}).trial("none").trial_id


def test_a_model_of_another_name_has_its_own_defaults():
    assert resolved(model={"name": "wide"}).trial("none").model == {"name": "wide", "depth": 2}


def test_data_hash_and_plugins_are_part_of_a_trial():
    x = parse(basic(task={"name": "files", "n": 1}) | {"task": {"name": "files", "rows": 7}})
    trial = x.resolve(registry(["mine"])).trial("none")
    assert trial.data == "hash-of-7"
    assert trial.plugins == ("mine",)
    assert trial.versions["plugin:mine"] == "sha-of-mine"


# ------------------------------------------------------------------------------------------------- arms


def test_own_knobs_are_searched_by_default_and_the_rest_is_fixed():
    arm = resolved().arm("damp")
    assert list(arm.space) == ["rate", "depth", "rank", "lr", "wd"]
    assert arm.fixed == {"mode": "soft", "eps": 1e-6}
    assert arm.defaults == {"rate": 0.5, "depth": 3, "rank": "full", "lr": 0.04, "wd": 0.01}
    assert arm.points[0] == arm.defaults
    assert arm.points[-1] == arm.defaults | {"wd": 0.0}
    assert arm.zeros == ("wd",)


def test_set_default_search_and_space_of_an_arm():
    arms = [
        {"name": "none"},
        {
            "name": "mine", "method": "damp", "set": {"depth": 5.0, "model": {"width": 8}, "momentum": 0.9},
            "default": {"rate": 0.25, "lr": 0.02}, "search": ["rate"],
            "space": {"eps": {"low": 1e-9, "high": 1e-3, "log": True}},
        },
    ]  # fmt: skip
    x = resolved(arm=arms)
    arm = x.arm("mine")
    assert arm.methods == ("damp",)
    assert set(arm.space) == {"rate", "eps", "lr", "wd"}
    assert arm.fixed == {"depth": 5, "mode": "soft", "rank": "full", "model.width": 8, "momentum": 0.9}
    assert arm.defaults == {"rate": 0.25, "eps": 1e-6, "lr": 0.02, "wd": 0.01}
    trial = x.trial("mine", {"rate": 1, "wd": 0})
    assert trial.model["width"] == 8
    assert trial.optimiser["momentum"] == 0.9
    assert trial.method == ({"name": "damp", "rate": 1.0, "depth": 5, "mode": "soft", "eps": 1e-6, "rank": "full"},)
    assert trial.params() == {
        "lr": 0.02, "wd": 0.0, "rate": 1.0, "depth": 5, "mode": "soft", "eps": 1e-6, "rank": "full"
    }  # fmt: skip


def test_an_own_knob_wins_over_the_optimisers_key_of_the_same_name():
    arms = [{"name": "none"}, {"name": "damp", "set": {"eps": 1e-3, "optimiser.eps": 1e-5}}]
    trial = resolved(arm=arms, optimiser={"name": "adam"}).trial("damp")
    assert (trial.method[0]["eps"], trial.optimiser["eps"]) == (1e-3, 1e-5)


def test_chains_name_their_knobs_after_the_method():
    arms = [{"name": "none"}, {"name": "both", "method": ["damp", "boost"], "set": {"damp": {"depth": 2}}}]
    x = resolved(arm=arms)
    assert set(x.arm("both").space) == {"damp.rate", "damp.rank", "boost.gain", "lr", "wd"}
    trial = x.trial("both", {"boost.gain": 3})
    assert [m["name"] for m in trial.method] == ["damp", "boost"]
    assert trial.params()["boost.gain"] == 3.0
    assert trial.params()["damp.depth"] == 2


def test_every_arm_is_first_asked_the_shared_settings_of_all_arms():
    arms = [
        {"name": "none"}, {"name": "damp", "default": {"lr": 0.02}},
        {"name": "boost", "set": {"wd": 0.02}}, {"name": "far", "method": "none", "set": {"lr": 7}},
    ]  # fmt: skip
    x = resolved(arm=arms)
    shared = [(p["lr"], p["wd"]) for p in x.arm("none").points]
    assert shared == [(0.04, 0.01), (0.02, 0.01), (0.04, 0.02), (0.04, 0.0)]
    assert [p["lr"] for p in x.arm("damp").points] == [0.02, 0.04, 0.04, 0.02]
    assert all(set(p) == set(arm.space) for arm in x.arms for p in arm.points)
    assert [p["lr"] for p in x.arm("boost").points] == [0.04, 0.02]  # its weight decay is fixed


def test_an_arm_with_another_optimiser_may_have_ranges_of_its_own():
    arms = [
        {"name": "none"},
        {"name": "adam", "method": "none", "set": {"optimiser.name": "adam"},
         "space": {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}},
    ]  # fmt: skip
    x = resolved(arm=arms, space={"momentum": {"low": 0.0, "high": 0.9}})
    assert set(x.arm("adam").space) == {"lr", "wd"}  # momentum means nothing to adam
    assert x.arm("adam").defaults["lr"] == 1e-3
    assert x.trial("adam").optimiser["batch"] == 16
    assert "momentum" in x.arm("none").space


def test_a_trial_refuses_what_the_arm_does_not_search():
    with pytest.raises(InputError, match="depht is not searched; did you mean 'depth'"):
        resolved().trial("damp", {"depht": 3})
    with pytest.raises(InputError, match='lr: must be a number, got "x"'):
        resolved().trial("damp", {"lr": "x"})
    with pytest.raises(InputError, match="did you mean 'damp'"):
        resolved().trial("dampp")


def test_without_trials_the_settings_stand_as_they_are():
    x = resolved(search={"trials": 0})
    assert x.trial("damp") == x.trial("damp", x.arm("damp").points[0])
    assert x.trial("damp").optimiser["lr"] == 0.04


# -------------------------------------------------------------------------------------------- overrides


def test_overrides_are_toml_then_text_and_arms_go_by_label():
    x = parse(
        basic(),
        [
            "horizon=5_000", "search.trials = 3", "arm.damp.set.rate=0.1", "arm.damp.set.mode=hard", "eval=epoch",
            "arm.boost.method=[\"damp\", \"boost\"]", "space.lr.default=0.05", "model.width=4", "store=s3://x/y",
        ],
    )  # fmt: skip
    assert (x.horizon, x.search.trials, x.eval, x.store) == (5000, 3, "epoch", "s3://x/y")
    assert x.arm[1].set == {"rate": 0.1, "mode": "hard"}
    assert x.arm[2].methods == ("damp", "boost")
    r = x.resolve(registry())
    assert r.trial("none").eval == {"epoch": True}
    assert r.trial("none").optimiser["lr"] == 0.05
    assert r.trial("none").model["width"] == 4


def test_the_later_override_wins_and_the_file_is_not_touched():
    tables = basic()
    assert parse(tables, ["horizon=1", "horizon=2"]).horizon == 2
    assert tables == basic()


# --------------------------------------------------------------------------------------------- identity


def test_trial_id_does_not_depend_on_spelling():
    a = resolved(task={"bias": 1}, eval={"every": "2%"}, arm=[{"name": "none", "set": {"lr": 1, "batch": 32.0}}])
    b = resolved(task={"bias": 1.0}, eval={"every": 0.02}, arm=[{"name": "none", "set": {"batch": 32, "lr": 1.0}}])
    assert a.trial("none").canonical() == b.trial("none").canonical()
    assert '"lr":1.0' in a.trial("none").canonical()
    assert '"batch":32,' in a.trial("none").canonical()
    assert a.trial("none").trial_id == b.trial("none").trial_id
    assert a.sweep_id == b.sweep_id


def test_trial_id_is_the_same_in_another_process():
    code = "from tests.fakes import *; from grokscale.spec import parse; r = parse(basic()).resolve(registry());"
    run = subprocess.run(
        [sys.executable, "-c", f"{code} print(r.trial('damp').trial_id, r.sweep_id)"],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert run.stdout.split() == [resolved().trial("damp").trial_id, resolved().sweep_id]


@pytest.mark.parametrize(
    "changes",
    [
        {"task": {"n": 13}},
        {"model": {"width": 8}},
        {"optimiser": {"batch": 8}},
        {"optimiser": {"precision": "fp64"}},
        {"task": {"threshold": 0.8}},
        {"eval": {"min": 10}},
        {"eval": "epoch"},
        {"task": {"validation": 0.1}},
        {"task": {"monitor": "test"}},
        {"arm": [{"name": "none"}, {"name": "damp", "set": {"rate": 0.2}}]},
        {"optimiser": {"decay": "decoupled"}},
    ],
)
def test_what_changes_numbers_changes_trial_and_sweep(changes: dict[str, Any]):
    assert resolved(**changes).trial("damp").trial_id != resolved().trial("damp").trial_id
    assert resolved(**changes).sweep_id != resolved().sweep_id


@pytest.mark.parametrize("name", ["damp", "coins", "tiny"])
def test_a_new_version_of_an_entry_is_another_trial(name: str):
    new = parse(basic()).resolve(registry((), **{name: 2}))
    assert new.trial("damp").trial_id != resolved().trial("damp").trial_id
    assert (new.trial("none") == resolved().trial("none")) == (name == "damp")


@pytest.mark.parametrize(
    "changes",
    [
        {"horizon": 3000},
        {"search": {"seeds": 5}},
        {"search": {"parallel": 2}},
        {"arm": [{"name": "none"}, {"name": "damp"}]},
        {"space": {"lr": {"low": 0.02, "high": 0.1, "log": True, "default": 0.04}}},
    ],
)
def test_what_changes_the_search_changes_the_sweep_only(changes: dict[str, Any]):
    assert resolved(**changes).trial("damp") == resolved().trial("damp")
    assert resolved(**changes).sweep_id != resolved().sweep_id


EXTENSIONS = st.fixed_dictionaries(
    {},
    optional={
        "question": st.text(max_size=20),
        "search": st.fixed_dictionaries({}, optional={"trials": st.integers(0, 99)}),
        "race": st.fixed_dictionaries({}, optional={"top": st.integers(1, 9), "seeds": st.integers(0, 9)}),
        "confirm": st.fixed_dictionaries({"seeds": st.integers(1, 99)}),
        "limits": st.fixed_dictionaries({"hours": st.floats(0.1, 99)}),
        "resources": st.fixed_dictionaries({}, optional={"cpus": st.integers(1, 9), "lanes": st.sampled_from([2, 8])}),
        "store": st.sampled_from(["elsewhere", "s3://a/b"]),
        "tracking": st.sampled_from(["none", "http://x:5000"]),
    },
)


@given(EXTENSIONS, st.randoms(use_true_random=False))
def test_a_sweep_may_be_extended_and_keys_stand_in_any_order(changes: dict[str, Any], rng: Any):
    tables = basic(**changes)
    keys = list(tables)
    rng.shuffle(keys)
    assert parse({k: tables[k] for k in keys}).resolve(registry()).sweep_id == resolved().sweep_id


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_canonical_json_comes_back_exactly(value: Any):
    text = canonical_json(value)
    assert text.isascii()
    assert canonical_json(json.loads(text)) == text


@given(
    st.floats(0.01, 0.1),
    st.sampled_from([0, 0.0, -0.0, 0.001, 0.03]),
    st.floats(0.01, 1),
    st.integers(1, 9),
    st.sampled_from(["full", 4, 8]),
)
def test_a_trial_comes_back_from_its_canonical_form(lr: float, wd: float, rate: float, depth: int, rank: Any):
    trial = resolved().trial("damp", {"lr": lr, "wd": wd, "rate": rate, "depth": float(depth), "rank": rank})
    again = TrialSpec.from_json(trial.canonical())
    assert again == trial
    assert hash(again) == hash(trial)
    assert again.canonical() == trial.canonical()
    assert again.params()["lr"] == lr
    assert trial.method[0]["rank"] == rank
    assert (
        resolved().trial("damp", {k: v for k, v in again.params().items() if k in resolved().arm("damp").space})
        == trial
    )


def test_from_json_names_missing_keys():
    with pytest.raises(ValueError, match="a trial has the keys data, eval"):
        TrialSpec.from_json('{"task": {}}')


def test_seeds_are_31_bits_and_disjoint():
    seeds = [seed_for(phase, k) for phase in ("search", "confirm", "run") for k in range(2000)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert seed_for("search", 0) == 993337312
    for phase, k in (("race", 0), ("search", -1)):
        with pytest.raises(ValueError, match="must"):
            seed_for(phase, k)


# ------------------------------------------------------------------------------------------ round trips


def test_experiments_are_frozen_and_travel():
    x = parse(basic(eval="epoch", plugin="mine", task={"sizes": [1, 2]}))
    with pytest.raises(ValueError, match="frozen"):
        x.horizon = 3  # pyright: ignore[reportAttributeAccessIssue]
    again = Experiment.from_json(x.to_json())
    assert again.model_dump() == x.model_dump()
    assert again.resolve(registry()).sweep_id == x.resolve(registry()).sweep_id
    assert pickle.loads(pickle.dumps(resolved())).sweep_id == resolved().sweep_id


def test_every_real_entry_resolves_with_its_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from grokscale import registry as real

    monkeypatch.setenv("GROKSCALE_DATA", str(write_all(tmp_path)))  # for the tasks that read files
    entries = real.load()
    for task in entries.tasks:
        kind = entries.tasks[task].factory(**entries.tasks[task].defaults).inputs.kind
        fitting = [name for name, entry in entries.methods.items() if not entry.inputs or kind in entry.inputs]
        arms = [{"name": name} for name in entries.methods]
        if len(fitting) < len(arms):
            with pytest.raises(InputError, match=f"works on tasks whose rows are .*gives {kind};") as caught:
                parse({"name": "all", "task": {"name": task}, "arm": arms}).resolve(entries)
            assert len(caught.value.problems) == len(arms) - len(fitting)
        arms = [arm for arm in arms if arm["name"] in fitting]
        x = parse({"name": "all", "task": {"name": task}, "arm": arms}).resolve(entries)
        assert len({x.trial(name).trial_id for name in fitting}) == len(arms)
