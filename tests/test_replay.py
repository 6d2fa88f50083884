"""What is written down once and replayed, and what all lanes are given at once, is what `vmap` does step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from grokscale import data
from grokscale.methods import amplifier
from grokscale.spec import TrialSpec
from grokscale.train import Lanes, Program
from grokscale.train.pack import Pack
from grokscale.train.replay import KEPT, Replayed, shared
from grokscale.transform import chain, resting
from tests import datafiles
from tests.test_data_tasks import TASKS, small_trial
from tests.test_tasks_train import SMALL, tables
from tests.trials import FORMS, KNOBS, REGISTRY, trial

STEPS, PATIENCE, NEVER = 6, 2, 10**9
LOOKS = {"every": 0.0, "min": 5, "examples": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = datafiles.write_all(tmp_path_factory.mktemp("files"))
    data.use(folder)
    yield folder
    data.use(None)


def trained(spec: TrialSpec, patience: int, *, plain: bool = False, steps: int = STEPS) -> Any:
    """All tensors of a pack and its losses and accuracies after so many steps."""
    program = Program(spec, REGISTRY, "cpu", patience=patience)
    if plain:
        program.transform = program.transform._replace(elementwise=False, timeless=False)
    with torch.no_grad():
        lanes = Lanes(program, [3, 4], [0, 1])
        looks = []
        for step in range(1, steps + 1):
            loss, _ = lanes.step(step)
            looks += [loss, *lanes.accuracy("test", 16, step)]
    return [*pytree.tree_leaves(lanes.stacked), *looks]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", [*SMALL, *TASKS])
def test_every_task_is_replayed_bit_for_bit(name: str, folder: Path) -> None:
    spec = small_trial(name) if name in TASKS else trial(tables(name))
    assert same(trained(spec, PATIENCE), trained(spec, NEVER))


def declared(method: str) -> bool:
    made = REGISTRY.methods[method].factory(**REGISTRY.methods[method].defaults)
    return made.elementwise or made.timeless


@pytest.mark.parametrize("form", ["parity-mlp2", "pairs-mlp2"])
@pytest.mark.parametrize("method", sorted(filter(declared, REGISTRY.methods)))
def test_every_method_is_what_it_says_of_itself(method: str, form: str) -> None:
    spec = trial(form, method)
    assert same(trained(spec, PATIENCE), trained(spec, NEVER, plain=True))


def test_an_amplifier_may_get_more_pieces_than_it_was_written_down_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amplifier, "BLOCK", 2)
    lengths: list[int] = []
    sums = amplifier._sums
    monkeypatch.setattr(amplifier, "_sums", lambda *args: lengths.append(args[3].shape[1]) or sums(*args))
    spec = trial("parity-mlp2", [{"name": "neuralgrok", "width": 16, "period": 2, "rate": 0.01}])
    replayed = trained(spec, PATIENCE, steps=30)
    assert len(set(lengths[PATIENCE:])) > 1
    assert same(replayed, trained(spec, NEVER, plain=True, steps=30))


@pytest.mark.parametrize("chained", [["egd"], ["egd-topk", "grokfast-ema"], ["egd-rsvd"]])
def test_what_is_off_for_good_is_not_computed_and_nobody_can_tell(chained: list[str]) -> None:
    """Both lanes switch off at the first evaluation that finds anything right, half-way through the run."""
    spec = trial("parity-mlp2", [{"name": name, **KNOBS.get(name, {})} for name in chained], every=LOOKS)
    spec = replace(spec, method=tuple({**m, "switch": 0.1} if "switch" in m else m for m in spec.method))

    def curves(*, sticky: bool) -> tuple[dict[str, np.ndarray], int]:
        program = Program(spec, REGISTRY, "cpu")
        program.transform = program.transform._replace(sticky=sticky)
        rested = 0
        with torch.no_grad():
            pack = Pack(program, [3, 4], 40, "decided", None)
            while not pack.done:
                pack.run_to_next_evaluation()
                rested += pack.lanes.resting
        return pack.curves(), rested

    (mine, rested), (plain, never) = curves(sticky=True), curves(sticky=False)
    assert rested >= 2 and never == 0 and not plain["active"].all()
    assert all(np.array_equal(mine[name], plain[name], equal_nan=True) for name in plain)


def test_a_switch_that_may_come_back_is_never_at_rest() -> None:
    assert REGISTRY.methods["egd"].factory(sticky=True).sticky
    back = REGISTRY.methods["egd"].factory(sticky=False)
    assert not back.sticky and not chain(back, REGISTRY.methods["egd"].factory()).sticky
    assert resting(back) is back and not chain().sticky


def test_it_is_recorded_by_shape_once_it_has_been_called_often_enough() -> None:
    called: list[int] = []

    def function(x: dict[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        called.append(len(y))
        return {"z": x["x"] * 2 + y.expand(len(y)), "y": y}

    replayed = Replayed(function, patience=2)
    for n in (3, 3, 4, 3, 3, 4):
        x, y = torch.arange(float(n)), torch.ones(n)
        answer = replayed({"x": x}, y)
        assert torch.equal(answer["z"], 2 * x + 1) and torch.equal(answer["y"], y)
    assert called == [3, 3, 4, 3, 4]  # the fourth is the recording's; the fifth call ran nothing of ours
    assert list(replayed.recorded) == [(torch.Size([3]), torch.Size([3]))]


def recordings(program: Program) -> Any:
    assert isinstance(program.gradient, Replayed)
    return program.gradient.recorded


def test_trials_of_the_same_network_share_what_was_written_down() -> None:
    def program(spec: TrialSpec, patience: int = PATIENCE) -> Program:
        return Program(spec, REGISTRY, "cpu", patience=patience)

    one, other = (program(trial("parity-mlp2", optimiser={"lr": lr})) for lr in (0.1, 0.2))
    with torch.no_grad():
        lanes = Lanes(one, [3, 4], [0, 1])
        for step in range(1, STEPS):
            lanes.step(step)
    known = recordings(one)
    assert recordings(other) is known and known and other.gradient is not one.gradient
    assert isinstance(other.looks, Replayed) and other.looks.recorded is not known
    tables = FORMS["parity-mlp2"]
    others = [
        program(trial({**tables, "model": {**tables["model"], "width": 48}})),
        program(trial({**tables, "task": {**tables["task"], "k": 3}})),
        program(trial("parity-mlp2", precision="bf16")),
        program(trial("parity-mlp2"), PATIENCE + 1),
    ]
    assert all(recordings(another) is not known for another in others)


def test_the_newest_recordings_are_kept() -> None:
    first = shared("first")
    assert shared("first") is first
    for i in range(KEPT):
        shared(i)
    assert shared("first") is not first


def test_a_decomposition_that_fails_in_a_recording_is_the_functions_affair() -> None:
    def function(a: Tensor) -> Tensor:
        try:
            return torch.linalg.cholesky(a)
        except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
            return torch.zeros_like(a)

    replayed = Replayed(function, patience=0)
    good = torch.tensor([[4.0]])
    assert float(replayed(good)) == 2 and list(replayed.recorded)
    assert float(replayed(-good)) == 0 and float(replayed(good)) == 2


def test_views_that_change_nothing_are_left_out() -> None:
    replayed = Replayed(lambda x: x.expand(2, 3).reshape(2, 3) @ x.view(3, 2), patience=0)
    x = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(replayed(x), x @ x.reshape(3, 2))
    [(run, _)] = replayed.recorded.values()
    targets = [node.target for node in run.__self__.graph.nodes if node.op == "call_function"]  # type: ignore[attr-defined]
    assert targets == [torch.ops.aten.view.default, torch.ops.aten.mm.default]
