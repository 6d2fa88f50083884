"""[grid]: arms multiplied by axes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest

from grokscale import registry
from grokscale.errors import InputError
from grokscale.spec import Experiment, parse
from grokscale.spec.load import load

BASE: dict[str, Any] = {
    "name": "grid", "baseline": "none", "task": {"name": "parity"}, "search": {"trials": 0},
    "arm": [{"name": "none"}, {"name": "grokfast-ema"}],
}  # fmt: skip


def read(grid: Mapping[str, Any], **more: Any) -> Experiment:
    return parse({**BASE, "grid": grid, **more})


def problems(grid: Mapping[str, Any], **more: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse({**BASE, "grid": grid, **more}).resolve(registry.load())
    return caught.value.problems


def test_the_product_of_the_axes_in_their_order() -> None:
    x = read({"axes": {"lam": [0.5, 2], "alpha": [0.9, 0.98, 0.99]}})
    assert x.arm[0].name == "none"
    assert [arm.set for arm in x.arm[1:]] == [
        {"lam": lam, "alpha": alpha} for lam, alpha in itertools.product([0.5, 2], [0.9, 0.98, 0.99])
    ]
    assert x.arm[1].name == "grokfast-ema:lam=0.5,alpha=0.9"
    resolved = x.resolve(registry.load())
    method = resolved.trial("grokfast-ema:lam=2,alpha=0.98").method[0]
    assert (method["name"], method["lam"], method["alpha"]) == ("grokfast-ema", 2.0, 0.98)
    again = Experiment.from_json(x.to_json())
    assert again.to_json() == x.to_json()
    assert again.resolve(registry.load()).sweep_id == resolved.sweep_id


def test_axes_over_task_model_and_optimiser_multiply_the_named_arms() -> None:
    grid = {"arms": ["none", "grokfast-ema"], "axes": {"wd": [0, 0.01], "model": {"scale": [1, 8]}}}
    x = read(grid, baseline="none:wd=0,scale=1")
    assert [arm.name for arm in x.arm] == [
        f"{name}:wd={wd},scale={s}" for name in ("none", "grokfast-ema") for wd in ("0", "0.01") for s in (1, 8)
    ]
    trial = x.resolve(registry.load()).trial("none:wd=0.01,scale=8")
    assert (trial.optimiser["wd"], trial.model["scale"]) == (0.01, 8.0)


def test_sobol_points_lie_in_their_ranges_and_are_always_the_same() -> None:
    grid = {
        "points": 13,
        "axes": {"lam": {"low": 0.1, "high": 10, "log": True}, "batch": {"low": 8, "high": 64, "int": True},
                 "init": ["zero", "first_grad"]},
    }  # fmt: skip
    x = read(grid)
    points = [arm.set for arm in x.arm[1:]]
    assert len(points) == 13
    assert all(0.1 <= p["lam"] <= 10 and 8 <= p["batch"] <= 64 and isinstance(p["batch"], int) for p in points)
    assert {p["init"] for p in points} == {"zero", "first_grad"}
    assert sum(p["lam"] < 1 for p in points) in range(5, 9)  # half of them below the middle of a log axis
    assert [arm.set for arm in read(grid).arm[1:]] == points
    assert len({arm.name for arm in x.arm}) == 14


@pytest.mark.parametrize(
    ("grid", "more", "expected"),
    [
        ({}, {}, "grid.axes: is missing: a table [grid.axes]"),
        ({"axes": {"lam": []}}, {}, "grid: axis lam has no value"),
        ({"axes": {"lam": {"low": 0.1, "high": 1}}}, {}, "axis lam is a range, which needs points = N"),
        ({"points": 4, "axes": {"lam": {"low": 2, "high": 1}}}, {}, "grid.axes.lam: low < high must hold"),
        ({"axes": {"lam": [1, 2]}, "arms": ["grokfast-em"]}, {}, 'no arm is labelled "grokfast-em"; did you mean'),
        ({"axes": {"lam": [1, 2]}}, {"arm": [{"name": "none"}]}, "grid.arms: the grid multiplies no arm"),
        ({"axes": {"lam": [1, 2]}, "arms": ["none", "grokfast-ema"]}, {}, 'such as "none:lam=1"'),
        ({"axes": {"lambda": [1, 2]}}, {}, "arm.grokfast-ema.set.lambda: unknown key for method grokfast-ema"),
        ({"axes": {"lam": [1, -2]}}, {}, "arm.grokfast-ema.set.lam: lam >= 0 must hold, got lam=-2"),
        ({"axes": {"lam": [float(i) for i in range(4097)]}}, {}, "at most 4096 points, got 4097"),
        ({"axes": {"lam": [1, 1]}}, {}, "is used twice; labels must differ"),
        ({"axis": {"lam": [1]}, "axes": {"lam": [1]}}, {}, "grid.axis: unknown key; did you mean 'axes'"),
        ({"axes": {"lam": [1, 2]}}, {"arm": [{"name": "none"}, {"name": "grokfast-ema", "set": {"lam": 3}}]},
         "arm.grokfast-ema.set.lam: is fixed in set and an axis of the grid"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(grid: dict[str, Any], more: dict[str, Any], expected: str) -> None:
    assert any(expected in problem for problem in problems(grid, **more)), problems(grid, **more)


def test_problems_of_a_point_are_at_the_line_of_its_arm(tmp_path: Any) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        'name = "x"\ntask = { name = "parity" }\n[[arm]]\nname = "none"\n[[arm]]\nname = "grokfast-ema"\n'
        "[grid.axes]\nlam = [1, -1]\n"
    )
    with pytest.raises(InputError) as caught:
        load(file).resolve(registry.load())
    assert [p.partition(": ")[0] for p in caught.value.problems] == [f"{file}:5"]


def test_an_override_may_shorten_an_axis(tmp_path: Any) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        'name = "x"\ntask = { name = "parity" }\n[[arm]]\nname = "none"\n[[arm]]\nname = "grokfast-ema"\n'
        "[grid.axes]\nlam = [1, 2, 5]\n"
    )
    assert len(load(file, ["grid.axes.lam=[2]"]).arm) == 2


def test_what_the_store_keeps_of_a_grid_is_not_multiplied_again() -> None:
    x = read({"axes": {"lam": [0.5, 2]}})
    again = parse(json.loads(x.to_json()))
    assert [arm.name for arm in again.arm] == [arm.name for arm in x.arm]
    assert again.resolve(registry.load()).sweep_id == x.resolve(registry.load()).sweep_id
