"""What a trial is given: several devices, memory that runs out, and how much a sweep may take in all."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from grokscale import registry
from grokscale.errors import GrokscaleError, InputError
from grokscale.spec import parse, seed_for
from grokscale.store import Store
from grokscale.sweep import SweepInterrupted, run_sweep
from grokscale.train import sharded, train
from grokscale.tuner import Cluster
from grokscale.worker import Work, out_of_memory, places
from tests.fakes import basic
from tests.fakes import registry as fakes
from tests.test_sweep import FAULTY, job, resolve

SEEDS = [seed_for("run", k) for k in range(6)]
HORIZON = 600
OWN = ("lanes",)  # what says how replicas were packed


def rows(evaluation: Any) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in OWN} for row in evaluation.replicas()]


def equal(a: Any, b: Any) -> None:
    """Replicas, curves and measures are the same, to the bit."""
    assert rows(a) == rows(b)
    for one, other in ((a.curves(), b.curves()), (a.measures(), b.measures())):
        order = [sorted(range(len(x["seed"])), key=lambda i, x=x: (x["seed"][i], x["step"][i])) for x in (one, other)]
        for name in one:
            left, right = ([x[name][i] for i in at] for x, at in zip((one, other), order, strict=True))
            np.testing.assert_array_equal(left, right, err_msg=name)


# ---------------------------------------------------------------------------------------- several devices


@pytest.mark.parametrize("count", [2, 3])
def test_a_trial_on_several_devices_is_the_same_to_the_bit(count: int) -> None:
    spec = resolve().trial("plain")
    options: dict[str, Any] = {"horizon": HORIZON, "until": "stable", "metrics": ["norms"]}
    whole, shards = (list(one) for one in (
        train(spec, SEEDS, **options), sharded(spec, SEEDS, devices=["cpu"] * count, **options)))  # fmt: skip
    assert len(whole) == len(shards) > 10 and len({row["steps"] for row in whole[-1].replicas()}) > 3
    equal(whole[-1], shards[-1])
    for one, other in zip(whole, shards, strict=True):
        assert one.step == other.step and one.done == other.done
        np.testing.assert_array_equal(one.finished, other.finished)
        for name, values in one.metrics.items():
            np.testing.assert_array_equal(values, other.metrics[name], err_msg=f"{name} at {one.step}")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_it_goes_on_on_another_number_of_devices(before: int, after: int) -> None:
    spec, whole = resolve().trial("plain"), list(train(resolve().trial("plain"), SEEDS, horizon=HORIZON))
    for stop in (1, len(whole) // 2, len(whole) - 2):
        run = sharded(spec, SEEDS, devices=["cpu"] * before, horizon=HORIZON)
        state = [next(run) for _ in range(stop)][-1].snapshot()
        run.close()
        *_, last = sharded(spec, SEEDS, devices=["cpu"] * after, horizon=HORIZON, state=state)
        equal(whole[-1], last)


def test_fewer_replicas_than_devices_are_refused_with_the_mend() -> None:
    with pytest.raises(ValueError, match="got 1 replicas for"):
        next(sharded(resolve().trial("plain"), SEEDS[:1], devices=["cpu", "cpu"], horizon=HORIZON))
    with pytest.raises(InputError) as caught:
        parse(basic(resources={"devices": 5}, race={"seeds": 0}), source="x.toml")
    assert caught.value.problems == [
        "x.toml: resources.devices: 5 devices want a replica each, search.seeds = 4 gives fewer; take search.seeds = 5 "
        "or more, or devices = 4"
    ]
    with pytest.raises(InputError, match=r"2 devices need as many GPUs, got gpus = 1; take gpus = 2, or devices = 1"):
        parse(basic(resources={"devices": 2, "gpus": 1}))
    assert parse(basic(resources={"devices": 2, "gpus": 2})).resolve(fakes()).sweep_id == parse(
        basic()).resolve(fakes()).sweep_id  # fmt: skip
    assert places("cuda", 2) == ["cuda:0", "cuda:1"] and places("cuda", 1) == ["cuda"]


def test_a_worker_deals_its_replicas_out(tmp_path: Path) -> None:
    one = resolve()
    store, other = Store(tmp_path / "one"), Store(tmp_path / "two")
    for root, devices in ((store, 1), (other, 2)):
        list(Work(root, {**job(one, SEEDS[:5], HORIZON, lanes=4), "devices": devices}))
    names = ("trial_id", "seed", "outcome", "grok_step", "fit_step", "steps", "observed_to")
    found = [[{n: row[n] for n in names} for row in root.rows("replicas")] for root in (store, other)]
    assert found[0] == found[1] and len(found[0]) == 5


# ---------------------------------------------------------------------------------------- memory that runs out


@contextmanager
def room(megabytes: int) -> Iterator[None]:
    """This process may map so much more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def hungry(after: int, megabytes: int = 600) -> Any:
    """A trial whose step asks for so much per replica after so many steps."""
    arms = [{"name": "plain", "method": "none"},
            {"name": "hungry", "method": "hungry", "set": {"megabytes": megabytes, "after": after}}]  # fmt: skip
    return resolve(plugin=FAULTY, arm=arms)


def work(store: Store, one: Any, lanes: int) -> Work:
    spec = one.trial("hungry").canonical()
    asked = {"spec": spec, "seeds": SEEDS, "horizon": HORIZON, "until": "decided"}
    return Work(store, {"root": store.root, "lanes": lanes, "threads": 1, "device": "cpu", "job": asked})


@pytest.mark.parametrize("after", [0, 200])
def test_a_pack_that_does_not_fit_is_halved(tmp_path: Path, caplog: pytest.LogCaptureFixture, after: int) -> None:
    """8 lanes ask for 4.8 GB, 4 for 2.4, 2 for 1.2; there is room for 3.6."""
    one, store = hungry(after), Store(tmp_path)
    job = work(store, one, 8)
    steps = []
    with caplog.at_level(logging.WARNING, "grokscale"), room(3600):
        for step in job:
            steps.append(step)
            if step >= 100:
                job.keep()  # so that the halves have something to go on from
    begun = [now for last, now in pairwise(steps) if now < last]
    assert begun and all((now > 100) == (after > 0) for now in begun)  # from the checkpoint, where there was one
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "out of memory with 6 replicas in a pack, on with 4" in said[0]
    kept = {row["seed"]: row for row in store.rows("replicas")}
    assert {kept[seed]["lanes"] for seed in SEEDS} <= {2, 4, 8} and len(kept) == len(SEEDS)
    assert not list((tmp_path / "checkpoints").iterdir())
    *_, last = train(one.trial("hungry"), SEEDS, horizon=HORIZON, registry=registry.load([FAULTY]))  # with room enough
    for row in last.replicas():
        assert {name: kept[row["seed"]][name] for name in ("outcome", "grok_step", "fit_step", "steps")} == {
            name: row[name] for name in ("outcome", "grok_step", "fit_step", "steps")}  # fmt: skip


def test_two_lanes_that_do_not_fit_say_so(tmp_path: Path) -> None:
    with room(1000), pytest.raises(GrokscaleError, match=r"2 replicas do not fit into memory.*a smaller model"):
        list(work(Store(tmp_path), hungry(0), 2))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert out_of_memory(RuntimeError("shapes do not fit")) is None
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried\nto")) == "CUDA out of memory. Tried"
    assert out_of_memory(MemoryError()) == "MemoryError"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED ON A GPU: there is none here")
def test_a_share_of_a_gpu_is_a_share_of_its_memory(tmp_path: Path) -> None:
    from grokscale.worker import SweepTrainable

    whole = torch.cuda.get_device_properties(0).total_memory
    one = resolve()
    trainable = SweepTrainable({**job(one, SEEDS[:2], HORIZON), "root": str(tmp_path), "device": "cuda", "gpus": 0.25,
                                "threads": 1, "data": str(tmp_path)})  # fmt: skip
    trainable.step()
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(whole // 2, dtype=torch.uint8, device="cuda")
    assert len(torch.empty(whole // 8, dtype=torch.uint8, device="cuda")) == whole // 8


# ---------------------------------------------------------------------------------------- how much in all


@pytest.fixture  # and the last of this file: Ray's threads are no company for the memory limits above
def ray_here() -> Iterator[None]:
    cluster = Cluster(1, 0.0)
    cluster.start()
    yield
    cluster.close()


def test_a_limit_of_trials_ends_in_order_and_goes_on(ray_here: None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for ended in (3, 6):
        with pytest.raises(SweepInterrupted, match=r"limits\.trials = 3 reached; everything so far") as stopped:
            run_sweep(resolve(limits={"trials": 3}), store, tracking="none")
        assert (stopped.value.reason, stopped.value.exit_code) == ("limit", 0)
        assert len(list((tmp_path / "replicas").glob("*.parquet"))) == ended  # what arms share is trained once
        assert {row["state"] for row in store.rows("trials")} == {"ended"}
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_limit_of_device_hours_ends_in_order(ray_here: None, tmp_path: Path) -> None:
    with pytest.raises(SweepInterrupted, match=r"limits\.device_hours = 1e-09 reached") as stopped:
        run_sweep(resolve(limits={"device_hours": 1e-9}), Store(tmp_path), tracking="none")
    assert stopped.value.exit_code == 0
    assert resolve(limits={"device_hours": 1.0, "trials": 3}).sweep_id == resolve().sweep_id


def test_a_job_that_tune_gives_up_too_soon_is_tried_again() -> None:
    """Tune gives a trial up, attempts left or not, when its dead process is reported once more while it waits."""
    from grokscale.tuner import ATTEMPTS, _Searcher

    class Desk:
        name, through = "one", False
        jobs: ClassVar[list[Any]] = [("job", {"job": 1})]
        said: ClassVar[list[Any]] = []

        def take(self) -> Any:
            return self.jobs.pop() if self.jobs else None

        def failed(self, key: Any, error: str) -> None:
            self.said.append((key, error))

    searcher = _Searcher(Desk(), lambda: False)  # pyright: ignore[reportArgumentType]
    assert searcher.suggest("a") == {"job": 1} and searcher.suggest("b") is None
    assert searcher.failed("a", 2, "died twice")
    assert searcher.suggest("c") == {"job": 1} and Desk.said == []
    assert not searcher.failed("c", ATTEMPTS - 1, "and again")
    assert searcher.suggest("d") is None and Desk.said == [("job", "and again")]
