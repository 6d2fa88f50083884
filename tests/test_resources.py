"""What a trial is given: several devices, memory that runs out, and how much a sweep may take in all."""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.tune.search import Searcher

from grokscale import packing, registry
from grokscale.errors import GrokscaleError, InputError, StoreError, TrialStopped
from grokscale.memory import machine
from grokscale.spec import parse, seed_for
from grokscale.store import Store
from grokscale.sweep import SweepInterrupted, run_sweep
from grokscale.train import sharded, train
from grokscale.tuner import DEATHS, FAILURES, Cluster, _Searcher
from grokscale.worker import SweepTrainable, Work, out_of_memory, places
from tests.fakes import basic
from tests.fakes import registry as fakes
from tests.test_sweep import FAULTY, resolve
from tests.test_worker import job

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
    assert parse(basic(resources={"gpus": 0.25})).resources.gpus == 0.25
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
    """6 lanes ask for 3.6 GB, 4 for 2.4, 2 for 1.2; there is room for 3."""
    one, store = hungry(after), Store(tmp_path)
    job = work(store, one, 8)
    steps = []
    with caplog.at_level(logging.WARNING, "grokscale"), room(3000):
        for step in job:
            steps.append(step)
            if step >= 100:
                job.keep()  # so that the halves have something to go on from
    begun = [now for last, now in pairwise(steps) if now < last]
    assert begun and all((now > 100) == (after > 0) for now in begun)  # from the checkpoint, where there was one
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "out of memory with 6 replicas in a pack, on with 4" in said[0]
    kept = {row["seed"]: row for row in store.rows("replicas")}
    assert {kept[seed]["lanes"] for seed in SEEDS} <= {2, 4, 6} and len(kept) == len(SEEDS)
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


def test_packs_are_sized_to_the_memory_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two and four lanes take says what more take; the measure does not change what is trained."""
    one = resolve()
    spec = one.trial("plain")
    options: dict[str, Any] = {"horizon": HORIZON}
    small, large = (packing.peak(spec, SEEDS[:n], **options) for n in (2, 6))
    assert small > 10_000 and large == pytest.approx(3 * small, rel=0.1)
    sizes = {}
    for room in (0.5 * small, 2.1 * small, 4.3 * small, 1e12):
        monkeypatch.setattr(packing, "free", lambda device, share, room=room: room / packing.MARGIN)
        sizes[room / small] = packing.fitting(spec, SEEDS, **options)
    assert list(sizes.values()) == [2, 4, 8, 8]
    assert packing.fitting(spec, SEEDS, devices=2, **options) == 8
    monkeypatch.setattr(packing, "free", lambda device, share: 2.1 * small / packing.MARGIN)
    stores = [Store(tmp_path / name) for name in ("auto", "fixed")]
    for store, lanes in zip(stores, (0, 8), strict=True):
        list(Work(store, job(one, SEEDS, HORIZON, lanes=lanes)))
    auto, fixed = ({row["seed"]: row for row in store.rows("replicas")} for store in stores)
    assert {row["lanes"] for row in auto.values()} <= {2, 4} and len(auto) == len(SEEDS)
    assert {seed: row["grok_step"] for seed, row in auto.items()} == {s: row["grok_step"] for s, row in fixed.items()}


def test_what_is_free_is_a_share_of_the_machine() -> None:
    assert 0 < packing.free("cpu", 0.01) <= 0.01 * (machine() or 0) < packing.free("cpu", 1.0) <= (machine() or 0)
    assert packing.share_of(1, 0.25) == 0.25 and packing.share_of(1, 2.0) == 1.0 and 0 < packing.share_of(1, 0) <= 1
    assert parse(basic(resources={"lanes": "auto"})).resources.lanes == 0
    with pytest.raises(InputError, match='or "auto", got "all"'):
        parse(basic(resources={"lanes": "all"}))


# ---------------------------------------------------------------------------------------- threads, a share of a GPU


def told(tmp_path: Path, **given: Any) -> dict[str, Any]:
    """A trial's config as a desk makes it."""
    return {**job(resolve(), SEEDS[:2], 200), "root": str(tmp_path), "threads": 1, "data": str(tmp_path), **given}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_trial_trains_on_the_threads_that_it_was_given(tmp_path: Path, one_thread: None) -> None:
    trainable = SweepTrainable(told(tmp_path, threads=2))
    while not trainable.step()["done"]:
        pass
    assert torch.get_num_threads() == 2
    rows = Store(tmp_path).rows("replicas")
    assert {row["threads"] for row in rows} == {2} and all(row["numerics"].endswith("/2t") for row in rows)


@pytest.mark.parametrize(("gpus", "wanted"), [(0, []), (0.25, [0.25]), (1, []), (2, [])])
def test_only_a_trial_that_shares_its_gpu_is_held_to_its_share(
    tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch, gpus: float, wanted: list[float]
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    trainable = SweepTrainable(told(tmp_path, gpus=gpus))
    trainable.step()
    trainable.stop()
    assert shares == wanted


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED ON A GPU: there is none here")
def test_a_share_of_a_gpu_is_a_share_of_its_memory(tmp_path: Path) -> None:
    whole = torch.cuda.get_device_properties(0).total_memory
    trainable = SweepTrainable(told(tmp_path, device="cuda", gpus=0.25))
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


@pytest.mark.parametrize("error", [Exception("The current node timed out during startup."), RuntimeError("no port")])
def test_a_ray_that_does_not_start_is_said_in_words(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Ray raises a bare Exception where a busy machine is too slow for it."""

    def init(**options: Any) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)
    cluster = Cluster(1, 0.0)
    with pytest.raises(GrokscaleError, match=f"Ray did not start: {error}"):
        cluster.start()
    cluster.close()


def test_a_cluster_that_may_ask_for_a_token_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """For an explicit address Ray takes none by itself, though a head took the one in the home folder."""

    def init(**options: Any) -> None:
        raise ConnectionError("no answer")

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    for mode, hinted in (("disabled", True), ("token", False)):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        cluster = Cluster(1, 0.0)
        with pytest.raises(GrokscaleError) as refused:
            cluster.start()
        cluster.close()
        assert ("set RAY_AUTH_MODE=token" in str(refused.value)) is hinted


class _Desk:
    """Has one job, and remembers what became of it."""

    name, through = "one", False

    def __init__(self) -> None:
        self.jobs: list[Any] = [(("search", "plain", 0), {"job": 1})]
        self.said: list[Any] = []

    def take(self) -> Any:
        return self.jobs.pop() if self.jobs else None

    def failed(self, key: Any, error: str, *, stopped: bool = False) -> None:
        self.said.append((key, error, "stopped") if stopped else (key, error))

    def finished(self, key: Any, parts: Any = ()) -> None:
        self.said.append((key, parts))


def _error(cause: Exception) -> BaseException:
    """As a driver gets it of a worker."""
    return RayTaskError("train", "its traceback", cause).as_instanceof_cause()


def test_a_trial_that_fails_by_itself_is_given_up_and_one_that_loses_its_node_is_not() -> None:
    desk = _Desk()
    searcher = _Searcher(desk, lambda: False, lambda: 1)  # pyright: ignore[reportArgumentType]
    errors: list[Any] = [ActorDiedError()] * FAILURES + [_error(ValueError("one"))] * (FAILURES - 1)
    for number, error in enumerate(errors):
        assert searcher.suggest(f"t{number}") == {"job": 1} and searcher.suggest("none") is None
        searcher.failed(f"t{number}", error, "its text")
    assert desk.said == []
    assert searcher.suggest("last") == {"job": 1}
    searcher.failed("last", _error(ValueError("two")), "its last text")
    assert searcher.suggest("after") is None and desk.said == [(("search", "plain", 0), "its last text")]


def test_a_trial_that_kills_every_process_that_it_gets_is_given_up() -> None:
    desk = _Desk()
    searcher = _Searcher(desk, lambda: False, lambda: 1)  # pyright: ignore[reportArgumentType]
    for number in range(DEATHS):
        assert searcher.suggest(f"t{number}") == {"job": 1}
        searcher.failed(f"t{number}", None, "it died")
    assert searcher.suggest("after") is None and desk.said == [(("search", "plain", 0), "it died")]


def test_a_trial_that_ray_ends_for_want_of_memory_goes_on_in_half_the_pack() -> None:
    desk = _Desk()
    job = {"job": {"seeds": list(range(9))}}
    desk.jobs = [(("search", "plain", 0), {"lanes": 0, **job})]
    searcher = _Searcher(desk, lambda: False, lambda: 1)  # pyright: ignore[reportArgumentType]
    given = [(searcher.suggest(f"t{n}"), searcher.failed(f"t{n}", OutOfMemoryError("low"), ""))[0] for n in range(5)]
    assert given == [{"lanes": lanes, **job} for lanes in (0, 8, 4, 2, 2)] and desk.said == []


def test_a_trial_that_was_stopped_is_no_sign_that_all_fail() -> None:
    desk = _Desk()
    searcher = _Searcher(desk, lambda: False, lambda: 1)  # pyright: ignore[reportArgumentType]
    searcher.suggest("one")
    searcher.failed("one", _error(TrialStopped("stopped by hand")), "")
    assert searcher.suggest("after") is None and desk.said == [(("search", "plain", 0), "stopped by hand", "stopped")]


def test_nodes_that_come_later_get_trials_too() -> None:
    desk, slots = _Desk(), 1
    desk.jobs = [(("search", "plain", number), {"job": number}) for number in (3, 2, 1)]
    searcher = _Searcher(desk, lambda: False, lambda: slots)  # pyright: ignore[reportArgumentType]
    assert searcher.suggest("one") == {"job": 1} and searcher.suggest("two") is None
    slots = 2
    assert searcher.suggest("two") == {"job": 2} and searcher.suggest("three") is None
    slots = 1
    searcher.on_trial_complete("one", {"parts": ()})
    assert searcher.suggest("three") is None
    searcher.on_trial_complete("two", {"parts": ()})
    assert searcher.suggest("three") == {"job": 3}


def test_processes_start_side_by_side(ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, a second would never come where trials are over sooner than a process has begun."""
    cluster = Cluster(1, 0)
    if cluster.slots < 2:
        pytest.skip("one processor only")

    class Waits(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            Path(config["folder"], str(os.getpid())).touch()
            end = time.monotonic() + 60
            while len(os.listdir(config["folder"])) < 2 and time.monotonic() < end:
                time.sleep(0.05)
            self.met = len(os.listdir(config["folder"])) == 2

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            return {"finished": 0, "grokked": 0, "parts": [self.met], "done": True}

    class Two(_Desk):
        wanted, through = 2, property(lambda self: len(self.said) == 2)  # pyright: ignore[reportAssignmentType]
        report = tick = lambda self, *_: None

    desk = Two()
    desk.jobs = [(("search", "plain", number), {"folder": str(tmp_path)}) for number in range(2)]
    monkeypatch.setattr("grokscale.tuner.SweepTrainable", Waits)
    cluster.run(desk, lambda: False)  # pyright: ignore[reportArgumentType]
    cluster.close()
    assert sorted(desk.said) == [(("search", "plain", number), [True]) for number in range(2)]


def test_a_store_that_is_full_ends_the_sweep_and_not_the_trial() -> None:
    desk = _Desk()
    searcher = _Searcher(desk, lambda: False, lambda: 1)  # pyright: ignore[reportArgumentType]
    searcher.suggest("one")
    searcher.failed("one", _error(StoreError("/runs/x: cannot write to the store: No space left on device")), "")
    assert searcher.stop() and searcher.suggest("two") == Searcher.FINISHED and desk.said == []
    assert "No space left on device; what is stored is safe" in str(searcher.problem)
