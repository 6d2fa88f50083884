"""Endpoints, published values, the practice baseline and A/A checks in an experiment file: what is read and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from grokscale.errors import InputError
from grokscale.spec import Experiment, load, parse, resolve_file
from grokscale.spec.claims import METRICS, Endpoint, Paper
from grokscale.store.schemas import SCHEMAS
from tests.fakes import basic, registry

PAPER: dict[str, Any] = {"id": "t3", "claim": "time", "value": 910, "arm": "damp", "source": "table 3"}
FINAL: dict[str, Any] = {"name": "final", "metric": "test_acc"}
TWINS = [{"name": "left", "method": "damp"}, {"name": "right", "method": "damp"}]

FILE = """\
name = "basic"
baseline = "none"
practice = ["none", "boost"]
[task]
name = "coins"
[[arm]]
name = "none"
[[arm]]
name = "damp"
[[arm]]
name = "boost"
[[endpoint]]
name = "final"
metric = "test_acc"
margin = 0.005
[[endpoint]]
name = "to-half"
kind = "time_to"
metric = "train_loss"
threshold = 0.5
[[paper]]
id = "table3"
claim = "speedup"
value = 43.8
arm = "damp"
threshold = 0.9
source = "Table 3, one run each"
"""


def problems(**changes: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse(basic(**changes), source="x.toml").resolve(registry())
    return [problem.removeprefix("x.toml: ") for problem in caught.value.problems]


def test_a_file_names_endpoints_and_published_values(tmp_path: Path):
    (tmp_path / "x.toml").write_text(FILE)
    x = load(tmp_path / "x.toml")
    final, half = x.endpoint
    assert (final.what, final.up, final.ratio, final.margin) == ("final", True, False, 0.005)
    assert (half.what, half.up, half.ratio, half.threshold) == ("time_to", False, True, 0.5)
    assert (x.paper[0].against, x.paper[0].m, x.paper[0].clock) == (None, 1, "steps")
    assert x.practice == ("none", "boost") and Experiment.from_json(x.to_json()).to_json() == x.to_json()
    assert Endpoint.model_validate_json(final.model_dump_json()) == final


def test_what_is_asked_besides_does_not_change_the_sweep(tmp_path: Path):
    (tmp_path / "x.toml").write_text(FILE)
    (tmp_path / "y.toml").write_text(FILE.partition("[[endpoint]]")[0])
    one, other = (resolve_file(tmp_path / name, registry=registry) for name in ("x.toml", "y.toml"))
    assert one.sweep_id == other.sweep_id


def test_all_problems_stand_in_one_message_with_their_lines(tmp_path: Path):
    text = FILE.replace('"test_acc"', '"tst_acc"').replace("threshold = 0.5\n", "").replace("threshold = 0.9", "m = 0")
    (tmp_path / "x.toml").write_text(text.replace('practice = ["none", "boost"]', 'practice = ["nune"]'))
    with pytest.raises(InputError) as caught:
        load(tmp_path / "x.toml")
    said = [p.removeprefix(f"{tmp_path}/x.toml:") for p in caught.value.problems]
    assert said == [
        "3: practice: no arm is labelled \"nune\"; did you mean 'none'? allowed: none, damp, boost",
        "14: endpoint[1].metric: must not be \"tst_acc\"; did you mean 'test_acc'? allowed: test_acc, train_acc, "
        "val_acc, test_loss, train_loss, val_loss",
        "16: endpoint[2]: time_to needs a threshold",
        "25: paper[1].m: must be an integer >= 1, got 0",
    ]


def test_the_metrics_are_the_columns_of_the_curves():
    assert set(METRICS) <= set(SCHEMAS["curves"].names)


@pytest.mark.parametrize(("endpoint", "said"), [
    ({"name": "final"}, "endpoint[1]: needs a metric (train_loss, train_acc"),
    ({**FINAL, "measure": "age"}, "endpoint[1]: needs a metric (train_loss, train_acc"),
    ({"name": "final", "measure": "age"}, 'endpoint[1].measure: "age" is no column of what metrics.names measures'),
    ({"name": "last", "metric": "test_acc"}, "endpoint[1]: needs kind, one of time_to, best, final, area, distance"),
    ({**FINAL, "metric": "tset_acc"}, "endpoint[1].metric: must not be \"tset_acc\"; did you mean 'test_acc'"),
    ({**FINAL, "kind": "finl"}, "endpoint[1].kind: must not be \"finl\"; did you mean 'final'"),
    ({**FINAL, "margn": 1}, "endpoint[1].margn: unknown key; did you mean 'margin'"),
    ({**FINAL, "margin": 0}, "endpoint[1].margin: must be a number > 0, got 0"),
    ({**FINAL, "margin": 0.1, "scale": "ratio"}, "endpoint[1]: a margin is for differences of best, final, area"),
    ({**FINAL, "threshold": 0.1}, "endpoint[1]: a threshold is for time_to, not final"),
    ({**FINAL, "name": "sd_ratio", "scale": "difference"}, 'endpoint[1]: scale = "difference" is for best, final'),
    ({**FINAL, "direction": "upp"}, "endpoint[1].direction: must not be \"upp\"; did you mean 'up'"),
])  # fmt: skip
def test_an_endpoint_that_cannot_be_is_refused(endpoint: dict[str, Any], said: str):
    (problem,) = problems(endpoint=[endpoint])
    assert problem.startswith(said)


@pytest.mark.parametrize("measure", ["weight_norm", "weight_norm/head", "kappa/w1"])
def test_an_endpoint_reads_a_column_of_a_measure(measure: str):
    x = parse(basic(endpoint=[{"name": "final", "measure": measure}], metrics={"names": ["norms"]}), source="x.toml")
    assert x.resolve(registry()).experiment.endpoint[0].measure == measure


@pytest.mark.parametrize("measure", ["norms", "weight_norm/", "weight_nrm", "weight_norm/W1", "kappa/b1"])
def test_an_endpoint_of_no_column_is_refused_with_the_columns_there_are(measure: str):
    (said,) = problems(endpoint=[{"name": "final", "measure": measure}], metrics={"names": ["norms"]})
    assert said.startswith(f'endpoint[1].measure: "{measure}" is no column of what metrics.names measures; ')
    assert "weight_norm" in said.partition("allowed: ")[2] and "weight_norm/w1" in said


def test_endpoints_must_differ_and_need_their_split():
    assert problems(endpoint=[FINAL, FINAL]) == ['endpoint[2].name: "final" is used twice; they must differ']
    without = {"validation": 0.0, "monitor": "test"}
    assert problems(endpoint=[{**FINAL, "metric": "val_acc"}], task=without) == [
        "endpoint[1].metric: task.validation = 0 leaves no val_acc; take test_acc"]  # fmt: skip
    assert problems(endpoint={"name": "final"})[0].startswith("endpoint: must be a list")


@pytest.mark.parametrize(("paper", "said"), [
    ({"value": -1}, "paper[1].value: must be a number > 0, got -1"),
    ({"source": ""}, "paper[1].source: must be a string (where it was published"),
    ({"claim": "faster"}, "paper[1].claim: must not be \"faster\"; allowed: time, ratio, speedup, endpoint"),
    ({"arm": "dmp"}, "paper[1].arm: no arm is labelled \"dmp\"; did you mean 'damp'"),
    ({"against": "nne", "against_value": 3000}, "paper[1].against: no arm is labelled \"nne\"; did you mean 'none'"),
    ({"against": "none"}, "paper[1]: against and against_value belong together"),
    ({"clock": "epochs"}, "paper[1]: a time in epochs needs steps_per_epoch"),
    ({"steps_per_epoch": 9}, 'paper[1]: steps_per_epoch is for clock = "epochs"'),
    ({"claim": "speedup", "value": 1}, "paper[1]: a ratio of 1 claims nothing"),
    ({"claim": "speedup", "against_value": 4}, "paper[1]: against_value is for times"),
    ({"claim": "speedup", "arm": "none"}, 'paper[1].arm: "none" is compared with itself'),
    ({"against": "none", "against_value": 910}, "paper[1]: against_value must differ from value"),
    ({"threshold": 0.95}, 'paper[1].threshold: "t3" counts from 0.95, this experiment from 0.9: set task.threshold'),
    ({"claim": "endpoint"}, 'paper[1]: endpoint belongs to claim = "endpoint" and "ratio", and both need it'),
    ({"endpoint": "final"}, 'paper[1]: endpoint belongs to claim = "endpoint" and "ratio", and both need it'),
    ({"claim": "ratio", "endpoint": "finl"}, "paper[1].endpoint: no [[endpoint]] is named \"finl\"; did you mean"),
    ({"claim": "ratio", "endpoint": "spread"}, "paper[1].endpoint: is a sd_ratio, which no seed has alone"),
    ({"claim": "endpoint", "endpoint": "final", "threshold": 0.9}, "paper[1]: an endpoint has no clock and no thr"),
    ({"claim": "ratio", "endpoint": "final", "arm": "none"}, 'paper[1].arm: "none" is compared with itself'),
    ({"at": 100}, "paper[1]: at is for an endpoint: a time is read where it is"),
    ({"claim": "endpoint", "endpoint": "final", "at": 0}, "paper[1].at: must be an integer >= 1, got 0"),
    ({"clock": "hours"}, "paper[1].clock: must not be \"hours\"; "),
])  # fmt: skip
def test_a_published_value_that_cannot_be_is_refused(paper: dict[str, Any], said: str):
    ends = [FINAL, {"name": "spread", "kind": "sd_ratio", "metric": "test_acc"}]
    (problem,) = problems(paper=[{**PAPER, **paper}], endpoint=ends)
    assert problem.startswith(said), problem


def test_an_endpoint_is_read_at_the_horizon_which_a_search_may_move():
    table = {**PAPER, "claim": "endpoint", "endpoint": "final", "at": 100}
    (said,) = problems(paper=[table], endpoint=[FINAL], search={"trials": 0})
    assert said == "paper[1].at: must be the horizon, 2,000, up to which endpoints are read"
    assert parse(basic(paper=[{**table, "at": 2000}], endpoint=[FINAL], search={"trials": 0})).paper[0].at == 2000
    assert parse(basic(paper=[table], endpoint=[FINAL])).paper[0].at == 100


def test_published_values_must_differ_and_say_where_they_are_from():
    assert problems(paper=[PAPER, PAPER]) == ['paper[2].id: "t3" is used twice; they must differ']
    assert problems(paper=[{k: v for k, v in PAPER.items() if k != "source"}])[0].startswith(
        "paper[1].source: is missing: where it was published")  # fmt: skip
    counted = parse(basic(paper=[{**PAPER, "threshold": 0.95}], task={"threshold": 0.95})).resolve(registry())
    assert counted.experiment.paper == (Paper(**{**PAPER, "threshold": 0.95}),)


def test_the_practice_baseline_is_found_by_a_search():
    assert problems(practice=["none", "none"]) == ["practice: names an arm twice; once is allowed"]
    assert problems(practice=["none", "boost"], search={"trials": 0})[0].startswith(
        "practice: the best of several is what the search finds best")  # fmt: skip
    assert parse(basic(practice="boost", search={"trials": 0})).practice == ("boost",)


def test_an_aa_check_is_of_one_method():
    assert parse(basic(arm=TWINS, baseline="left", aa=True)).aa
    other = [TWINS[0], {"name": "right", "method": "boost"}]
    said = problems(arm=other, baseline="left", aa=True)
    assert said == ['arm.right: must be the method of "left", as aa = true compares it with itself']
    fixed = [TWINS[0], {**TWINS[1], "set": {"mode": "hard"}}]
    assert problems(arm=fixed, baseline="left", aa=True) == ['arm.right.set: must be as in "left" where aa = true']
    assert problems(arm=TWINS[:1], baseline="left", aa=True)[0].startswith("aa: needs two arms of one method")
    more = problems(arm=TWINS, baseline="left", aa=True, endpoint=[FINAL], practice=["left"])
    assert [problem.partition(":")[0] for problem in more] == ["endpoint", "practice"]
