"""A worker's part of a sweep: its packs, the files they go on from, and who trains a trial."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from grokscale import checkpoint, search
from grokscale.checkpoint import Checkpoint, Claim, tidy
from grokscale.desk import Ledger, PhaseDesk
from grokscale.spec import Resolved, seed_for
from grokscale.store import Store
from grokscale.train import train
from grokscale.worker import Work
from tests.test_sweep import replicas_of, resolve, trained_twice


def job(resolved: Resolved, seeds: list[int], horizon: int, lanes: int = 4) -> dict[str, Any]:
    request = {"spec": resolved.trial("plain").canonical(), "seeds": seeds, "horizon": horizon, "until": "decided"}
    return {"lanes": lanes, "device": "cpu", "job": request}


def test_work_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    resolved = resolve()
    seeds = [seed_for("run", k) for k in range(3)]
    whole, cut = Store(tmp_path / "whole"), Store(tmp_path / "cut")
    list(Work(whole, job(resolved, seeds, 600)))

    work = Work(cut, job(resolved, seeds, 600))
    steps = iter(work)
    reached = [next(steps) for _ in range(5)][-1]
    work.keep()
    (kept,) = (tmp_path / "cut" / "checkpoints").iterdir()
    assert not cut.replicas().num_rows
    steps.close()
    again = iter(Work(cut, job(resolved, seeds, 600)))
    assert next(again) > reached
    assert kept.exists()
    again.close()
    list(Work(cut, job(resolved, seeds, 600)))
    assert not kept.exists()
    assert replicas_of(cut) == replicas_of(whole)
    columns = ["trial_id", "seed", "step", "train_loss", "test_loss", "val_acc"]
    assert cut.curves().select(columns).equals(whole.curves().select(columns))


def test_a_killed_process_is_gone_on_from_where_it_last_wrote(tmp_path: Path) -> None:
    """SIGKILL, without a chance to keep anything: the checkpoint that came due is what the next process begins with."""
    resolved, seeds = resolve(), [seed_for("run", k) for k in range(3)]
    whole, cut = Store(tmp_path / "whole"), Store(tmp_path / "cut")
    asked = job(resolved, seeds, 2000)
    list(Work(whole, asked))
    code = "import json, sys; from grokscale import checkpoint, worker; from grokscale.store import Store\n"
    code += "checkpoint.CHECKPOINT_S, checkpoint.SHARE = 0.0, 1e9\n"
    code += "for step in worker.Work(Store(sys.argv[1]), json.loads(sys.argv[2])): print(step, flush=True)"
    command = [sys.executable, "-c", code, cut.root, json.dumps(asked)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reached = [int(process.stdout.readline()) for _ in range(8)][-1]
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert list((tmp_path / "cut" / "checkpoints").iterdir()) and not cut.replicas().num_rows
    work = iter(Work(cut, asked))
    assert next(work) >= reached > 0
    list(work)
    assert replicas_of(cut) == replicas_of(whole) and trained_twice(cut) == []


def test_damage_to_a_checkpoint_is_never_trained_on(tmp_path: Path) -> None:
    """Whatever bit is turned, wherever it is cut: it is as it was written, or there is none; `tidy` passes it over."""
    store, seeds = Store(tmp_path), [seed_for("run", 0)]
    one = Checkpoint(store, resolve().trial("plain"), seeds, 100, "decided")
    one.save({"step": 7, "weights": torch.arange(300.0)}, 1.0)
    sound = one.path.read_bytes()
    draw = random.Random(20261128)
    flips = [(draw.randrange(len(sound)), 1 << draw.randrange(8)) for _ in range(300)]
    for at, bit in flips:
        one.path.write_bytes(sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :])
        assert one.read() == (None, 0.0), at
        tidy(store)
    for length in [0, 1, 31, 32, 33, *(draw.randrange(len(sound)) for _ in range(100))]:
        one.path.write_bytes(sound[:length])
        assert one.read() == (None, 0.0), length
        tidy(store)
    one.path.write_bytes(sound)
    state, spent = one.read()
    assert state is not None and torch.equal(state["weights"], torch.arange(300.0)) and (state["step"], spent) == (7, 1)


@pytest.mark.parametrize("spoilt", [b"", b"not a checkpoint", "other"])
def test_a_checkpoint_that_cannot_be_used_is_no_obstacle(tmp_path: Path, spoilt: Any) -> None:
    resolved, store, seeds = resolve(), Store(tmp_path), [seed_for("run", 0)]
    path = Checkpoint(store, resolved.trial("plain"), seeds, 100, "decided").path
    if isinstance(spoilt, bytes):
        path.write_bytes(spoilt)
    else:
        torch.save({"pack": {"layout": 0, "trial_id": "another"}, "wall_s": 1.0}, path)
    list(Work(store, job(resolved, seeds, 100)))
    assert len(store.replicas()) == 1 and not path.exists()


def test_packs_that_are_stored_are_not_trained_again(tmp_path: Path) -> None:
    resolved, store = resolve(), Store(tmp_path)
    seeds = [seed_for("run", k) for k in range(4)]
    steps = iter(Work(store, job(resolved, seeds, 200, lanes=2)))
    while not store.replicas().num_rows:  # the first of two packs, then the worker is lost
        next(steps)
    steps.close()
    work = Work(store, job(resolved, seeds, 200, lanes=2))
    list(work)
    assert work.finished == len(store.replicas()) == 4 and trained_twice(store) == []


def test_a_trial_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    """Of two that want it the later waits, and finds it done; one that ended without a word holds nothing up."""
    resolved, store, seeds = resolve(), Store(tmp_path), [seed_for("run", 0)]
    one, other = (iter(Work(store, job(resolved, seeds, 200))) for _ in range(2))
    assert next(one) >= 0 and [next(other) for _ in range(3)] == [0, 0, 0]
    list(one)
    assert list(other) == [] and len(store.replicas()) == 1 and trained_twice(store) == []
    assert not list((tmp_path / "claims").iterdir())
    code = "import os, sys; from grokscale.checkpoint import Claim; from grokscale.store import Store\n"
    code += "assert Claim(Store(sys.argv[1]), 'some').take(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    claim = Claim(store, "some")
    assert claim.take() and not Claim(store, "some").take()
    claim.release()
    assert not list((tmp_path / "claims").iterdir())


def test_what_a_killed_process_left_behind_its_answer_is_tidied_up(tmp_path: Path) -> None:
    resolved, store, seeds = resolve(), Store(tmp_path), [seed_for("run", k) for k in range(2)]
    spec = resolved.trial("plain")
    list(Work(store, job(resolved, seeds, 200)))
    longer, answered = (Checkpoint(store, spec, seeds, horizon, "decided") for horizon in (5000, 200))
    for one in (longer, answered):
        one.save({"step": 1}, 1.0)
    writing = answered.path.with_name(f".{answered.path.name}.1.tmp")
    writing.touch()
    under_way = Checkpoint(store, spec, seeds, 100, "decided")
    under_way.save({"step": 1}, 1.0)
    claimed = under_way.path.rename(under_way.path.with_name(f"busy{under_way.path.name}"))
    busy = Claim(store, claimed.name.partition("-")[0])
    assert busy.take()
    (tmp_path / "claims" / "lost").touch()
    tidy(store)
    assert sorted(path.name for path in claimed.parent.iterdir()) == sorted([claimed.name, longer.path.name])
    assert [path.name for path in (tmp_path / "claims").iterdir()] == [busy.path.name]
    busy.release()


def test_a_claim_without_a_sign_of_life_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    holder, waiter = checkpoint.Claim(store, "some"), checkpoint.Claim(store, "some")
    assert holder.take() and not waiter.take()
    os.utime(waiter.path, (1, 1))  # a sign
    monkeypatch.setattr(checkpoint, "SILENT_S", 1e-9)
    assert not waiter.take()
    assert waiter.take()
    holder.release()
    assert not list((tmp_path / "claims").iterdir())


def test_dear_checkpoints_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    spec = resolve().trial("plain")
    one = checkpoint.Checkpoint(Store(tmp_path), spec, [seed_for("run", 0)], 100, "decided")
    evaluation = next(train(spec, [seed_for("run", 0)], horizon=100))
    for cost, rest in ((0.0, checkpoint.CHECKPOINT_S), (3.0, 3.0 / checkpoint.SHARE)):
        monkeypatch.setattr(one, "save", lambda state, wall_s, cost=cost: now.__setitem__(0, now[0] + cost))
        one.write(evaluation, 0.0)
        now[0] += 0.99 * rest
        assert not one.due
        now[0] += 0.02 * rest
        assert one.due


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    one = Checkpoint(Store(tmp_path), resolve().trial("plain"), [seed_for("run", 0)], 100, "decided")
    one.save({"step": 1}, 2.0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    was = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        one.save({"step": 2, "weights": torch.zeros(100_000)}, 3.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, was)
    assert one.read() == ({"step": 1}, 2.0) and len(list(one.path.parent.iterdir())) == 1


def test_measures_asked_for_later_are_taken_and_nothing_known_is_lost(tmp_path: Path) -> None:
    resolved, store = resolve(), Store(tmp_path)
    seeds = [seed_for("run", k) for k in range(3)]

    def work(metrics: list[str], until: str = "decided") -> int:
        """How many steps it took."""
        asked = job(resolved, seeds, 900)
        asked |= {"metrics": metrics, "job": {**asked["job"], "until": until}}
        return sum(1 for _ in Work(store, asked))

    assert work([], "stable") > 0
    before = replicas_of(store)
    assert store.measures().num_rows == 0
    assert work(["norms"]) > 0  # trained again, and watched no shorter than before
    assert all(len(rows) == len(before) for rows in (before, replicas_of(store)))
    for key, row in replicas_of(store).items():
        assert row[:-1] == before[key][:-1] and row[-1] >= before[key][-1]
    assert {row["measured"] for row in store.replicas().to_pylist()} == {"norms"}
    assert work(["norms"]) == work([]) == work([], "stable") == 0
    first = store.measures(measure="update_norm").num_rows
    assert first > 0
    assert work(["entropy"]) > 0  # what was measured is measured still
    assert {row["measured"] for row in store.replicas().to_pylist()} == {"entropy,norms"}
    assert store.measures(measure="age_raw").num_rows == store.measures(measure="update_norm").num_rows >= first
    assert work(["entropy", "norms"]) == 0


def test_a_confirmation_is_not_through_before_it_is_measured(tmp_path: Path) -> None:
    """As the driver sees it: the desk of a phase hands out what a store without measures has answered before."""
    resolved, store, handed = resolve(), Store(tmp_path), []
    assert resolved.experiment.metrics.during("confirm") == ()
    for metrics in ((), ("norms",), ("norms",), ()):
        plan = search.confirm_plan(resolved, search.defaults(resolved), [seed_for("run", 0)], 300)
        worker = {"root": store.root, "lanes": 2, "threads": 1, "device": "cpu", "metrics": metrics}
        desk = PhaseDesk(plan, Ledger(store, resolved.sweep_id), 300, worker, lambda progress: None)
        handed.append(0)
        while (taken := desk.take()) is not None:
            key, config = taken
            list(Work(store, config))
            desk.finished(key)
            handed[-1] += 1
        assert desk.through and not desk.failures
    assert handed == [handed[0], handed[0], 0, 0] and handed[0] > 0
    assert {row["measured"] for row in store.replicas().to_pylist()} == {"norms"}
