"""The verbs for sweeps without a terminal, on real drivers in processes of their own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from grokscale import registry, service
from grokscale.control import STOPPED, holder, locked, note_progress
from grokscale.desk import ArmProgress, Progress
from grokscale.errors import GrokscaleError, StoreError, TrialStopped
from grokscale.spec import Resolved, parse
from grokscale.store import Store
from grokscale.sweep import introduce
from tests import rows
from tests.faults.breaking import until as wait_until
from tests.test_cli import GROKSCALE, environment
from tests.test_sweep import replicas_of, trained_twice, trials_of

PATIENCE_S = 400.0  # only a failure takes as long
TABLES: dict[str, Any] = {
    "name": "tiny",
    "question": "Does a sweep without a terminal lose anything?",
    "baseline": "plain",
    "horizon": 800,
    "tracking": "none",
    "eval": {"every": "2%", "min": 25, "examples": 200},
    "task": {"name": "parity", "n": 20, "k": 2, "n_train": 100, "n_val": 200, "n_test": 200},
    "model": {"name": "mlp2", "width": 16},
    "optimiser": {"name": "sgd", "batch": 32, "decay": "inside"},
    "space": {
        "lr": {"low": 0.05, "high": 0.6, "log": True, "default": 0.1},
        "wd": {"low": 1e-2, "high": 4e-2, "log": True, "default": 0.03},
    },
    "arm": [{"name": "plain", "method": "none"}, {"name": "hot", "method": "none", "default": {"lr": 0.5}}],
    "search": {"trials": 4, "seeds": 2, "parallel": 2},
    "race": {"seeds": 0},
    "confirm": {"seeds": 2},
    "resources": {"lanes": 2},
}


# At such a rate nothing is ever learned: a trial of it runs until somebody stops it.
ENDLESS: dict[str, Any] = {
    "horizon": 5_000_000, "space": {"lr": {"low": 1e-9, "high": 1e-8, "default": 1e-9}},
    "arm": [TABLES["arm"][0]], "search": {"trials": 1, "seeds": 2}, "confirm": {"seeds": 0},
}  # fmt: skip


def resolved(**changes: Any) -> Resolved:
    experiment = parse({**TABLES, **changes})
    return experiment.resolve(registry.load(experiment.plugin))


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.json"
    path.write_text(resolved(**changes).experiment.to_json())
    return path


def verb(folder: Path, *words: str, code: int = 0) -> str:
    """What a verb prints on both streams; its exit code is checked."""
    done = subprocess.run(
        [*GROKSCALE, *words], cwd=folder, capture_output=True, text=True, env=environment(), timeout=PATIENCE_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def watched(folder: Path, *words: str) -> Iterator[Iterator[str]]:
    """The lines of a verb that goes on, as they come."""
    process = subprocess.Popen(
        [*GROKSCALE, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    assert process.stdout is not None
    try:
        yield iter(process.stdout)
    finally:
        process.kill()
        process.communicate()


def until(lines: Iterator[str], text: str, times: int = 1) -> None:
    for line in lines:
        times -= text in line
        if not times:
            return
    raise AssertionError(f"{text!r} never came")


def pid_of(store: Store, sweep_id: str) -> int:
    held = holder(store.sweep_dir(sweep_id) / "lock")
    assert held is not None and held.here
    return held.pid


def wait_gone(pid: int) -> None:
    """Until a process that is not our child has ended: its pidfd becomes readable."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], PATIENCE_S)[0], f"process {pid} lives on"
    finally:
        os.close(descriptor)


def pending(pid: int) -> set[int]:
    """The signals that wait for a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    waiting = next(int(line.split()[1], 16) for line in lines if line.startswith("ShdPnd:"))
    return {number for number in signal.valid_signals() if waiting >> (number - 1) & 1}


def caught(store: Store, sweep_id: str, text: str, after: int = 0) -> int:
    """The driver of a sweep, standing still since its log said so once more than `after` times."""
    lock, log = (store.sweep_dir(sweep_id) / name for name in ("lock", "log.txt"))
    wait_until(lambda: holder(lock) is not None and log.is_file(), "a driver")
    pid = pid_of(store, sweep_id)
    wait_until(lambda: log.read_text().count(text) > after, text, every=0.005)
    os.kill(pid, signal.SIGSTOP)
    return pid


def let_go(pid: int, folder: Path, *words: str) -> str:
    """What a verb says that sends SIGINT to a driver which stands still; it goes on once the signal waits for it."""
    with ThreadPoolExecutor(1) as beside:
        said = beside.submit(verb, folder, *words)
        wait_until(lambda: signal.SIGINT in pending(pid), "the driver's signal")
        os.kill(pid, signal.SIGCONT)
        return said.result()


def leave_no_driver(folder: Path) -> None:
    """A detached driver outlives a test that fails: not here."""
    for lock in folder.glob("runs/sweeps/*/lock"):
        if (held := holder(lock)) is not None:
            os.kill(held.pid, signal.SIGKILL)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    leave_no_driver(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A sweep that was submitted, followed and left alone: its folder, and all that submit printed."""
    folder = tmp_path_factory.mktemp("whole")
    try:
        yield folder, verb(folder, "submit", str(write(folder)))
    finally:
        leave_no_driver(folder)


@pytest.fixture(scope="module")
def undisturbed(whole: tuple[Path, str]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """(trials, replicas) as a sweep has them that nothing happened to."""
    store = Store(whole[0] / "runs")
    return trials_of(store, resolved().sweep_id), replicas_of(store)


def test_submit_follows_to_the_answer(whole: tuple[Path, str], undisturbed: tuple[Any, Any]) -> None:
    folder, said = whole
    sweep_id = resolved().sweep_id
    assert f"{sweep_id}: process " in said
    assert "phase search" in said and "phase confirm" in said and "Speed-up over plain" in said
    assert f"{sweep_id}: done\n" in verb(folder, "status")
    assert "4/4" in verb(folder, "status", "tiny")
    assert f"{sweep_id}: done" in verb(folder, "submit", str(folder / "tiny.json"), "--detach")
    assert sweep_id in (listed := verb(folder, "list")) and " done " in listed


def test_status_follows_live_until_its_driver_is_gone(place: Path) -> None:
    file, sweep_id = write(place, **ENDLESS), resolved(**ENDLESS).sweep_id
    verb(place, "submit", str(file), "--detach")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [*GROKSCALE, "status"]
    process = subprocess.Popen(command, cwd=place, stdin=theirs, stdout=theirs, stderr=theirs, env=environment())
    os.close(theirs)
    seen = b""
    while not re.search(rb"plain +0/1 +1 ", seen):  # one trial, under way
        assert select.select([ours], [], [], PATIENCE_S)[0], seen
        try:
            seen += os.read(ours, 4096)
        except OSError:
            raise AssertionError(f"it left, with code {process.wait()}: {seen.decode()}") from None
    assert f"{sweep_id}: search (exploratory) 0/1 trials".encode() in seen
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):  # what a terminal says once nobody holds its other side
        while part := os.read(ours, 4096):
            seen += part
    os.close(ours)
    assert process.wait() == 0 and b"runs on" in seen

    assert f"{sweep_id}: running" in verb(place, "status")  # elsewhere than on a terminal: once
    with watched(place, "status", "--follow") as lines:
        until(lines, "| plain 0/1")
        verb(place, "stop", "--now")
        until(lines, f"{sweep_id}: stopped; grokscale resume")


def test_progress_that_cannot_be_made_out_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.sweep_dir("a-00000000")
    note_progress(folder, asdict(Progress("a-00000000", "search", "", (ArmProgress("plain", 2),))))
    assert service.progress(store, "a-00000000") == Progress("a-00000000", "search", "", (ArmProgress("plain", 2),))
    for text in ("", "[]", "{}", "{", '{"arms": [1]}', '{"arms": [], "more": 1}', "\xff"):
        (folder / "progress.json").write_text(text, "latin-1")
        assert service.progress(store, "a-00000000") is None, text
    note_progress(tmp_path / "unmounted", {})  # neither an end nor the beginning of another store
    assert not (tmp_path / "unmounted").exists()


def test_stopped_killed_and_resumed_is_as_undisturbed(place: Path, undisturbed: tuple[Any, Any]) -> None:
    """A driver is held still while its sweep is looked at: on a slow machine the verbs would outlast the sweep."""
    file, store, sweep_id = write(place), Store(place / "runs"), resolved().sweep_id

    first = verb(place, "submit", str(file), "--detach")
    pid = pid_of(store, sweep_id)
    again = verb(place, "submit", str(file), "--detach")
    assert first == again == f"{sweep_id}: process {pid} on {os.uname().nodename}\n"
    with watched(place, "logs", "-f") as lines:
        until(lines, "phase search")
    assert caught(store, sweep_id, ": ended, objective") == pid
    running = verb(place, "status")
    assert f"{sweep_id}: running, process {pid}" in running and "search" in running
    assert " running " in verb(place, "list")
    assert f"{sweep_id}: stopped (process {pid} on" in let_go(pid, place, "stop")
    assert holder(store.sweep_dir(sweep_id) / "lock") is None
    wait_gone(pid)
    assert f"{sweep_id}: stopped; grokscale resume" in verb(place, "status")
    assert "no driver runs" in verb(place, "stop", code=1)
    stopped = store.replicas().num_rows
    assert 0 < stopped < len(undisturbed[1])

    # Caught as it hands a trial out: what is under way then may end, and no verb would be quick enough to see it.
    handed = (store.sweep_dir(sweep_id) / "log.txt").read_text().count(": trial ")
    verb(place, "resume", "--detach")
    pid = caught(store, sweep_id, ": trial ", handed)
    service.stop(store, sweep_id, now=True)
    wait_gone(pid)
    assert f"{sweep_id}: stopped; " in verb(place, "status")
    assert store.replicas().num_rows < len(undisturbed[1]), "it was to be killed half-way"

    verb(place, "resume")
    assert f"{sweep_id}: done\n" in verb(place, "status")
    assert (trials_of(store, sweep_id), replicas_of(store)) == undisturbed
    assert trained_twice(store) == []
    assert not list((place / "runs/checkpoints").iterdir())


def test_one_trial_is_stopped_with_its_state_saved(place: Path) -> None:
    """The sweep goes on without it: here to its end. The next start tries it again, from its checkpoint."""
    file, store = write(place, **ENDLESS), Store(place / "runs")
    verb(place, "submit", str(file), "--detach")
    with watched(place, "logs", "-f") as lines:
        until(lines, ": trial ")
    (row,) = store.rows("trials")
    pid = pid_of(store, row["sweep_id"])
    while not (place / "runs/claims" / row["trial_id"]).exists():
        assert pid_of(store, row["sweep_id"])
        time.sleep(0.1)
    said = verb(place, "stop", f"tiny/{row['trial_id'][:3]}x", code=2)
    assert f"no trial under way begins so; allowed: {row['trial_id']}" in said
    said = verb(place, "stop", f"tiny/{row['trial_id'][:5]}")
    assert f"stopped search plain 0, trial {row['trial_id']}; the sweep goes on" in said
    wait_gone(pid)
    (row,) = store.rows("trials")
    assert row["state"] == "failed" and row["error"] == STOPPED
    said = (store.sweep_dir(row["sweep_id"]) / service.LOG).read_text()  # it was all that the baseline had
    assert "every trial of the baseline plain failed" in said and "search plain 0: stopped by hand" in said
    (kept,) = (place / "runs/checkpoints").iterdir()
    assert kept.name.startswith(row["trial_id"]) and not list((place / "runs/claims").iterdir())
    assert "no driver runs" in verb(place, "stop", f"tiny/{row['trial_id']}", code=1)


def test_a_note_stops_a_trial_at_once_or_with_its_state_saved(tmp_path: Path) -> None:
    from grokscale.control import ask_stop, forget_stops, notes_in
    from grokscale.worker import SweepTrainable
    from tests.test_worker import job

    store, one = Store(tmp_path / "runs"), resolved(**ENDLESS)
    folder = store.sweep_dir(one.sweep_id)
    asked = {**job(one, [1, 2], 5_000_000), "root": store.root, "threads": 1, "data": str(tmp_path),
             "stops": str(notes_in(folder))}  # fmt: skip
    trainable, trial_id = SweepTrainable(asked), one.trial("plain").trial_id
    for now, kept in ((True, 0), (False, 1)):
        assert trainable.step()["done"] is False
        ask_stop(folder, trial_id, now=now)
        with pytest.raises(TrialStopped, match="stopped by hand"):
            trainable.step()
        assert len(list((tmp_path / "runs/checkpoints").iterdir())) == kept
        forget_stops(folder)


def test_a_worker_that_begins_while_the_store_is_away_begins_no_other(tmp_path: Path) -> None:
    from grokscale.control import notes_in
    from grokscale.worker import SweepTrainable
    from tests.test_worker import job

    one = resolved()
    (tmp_path / "mount").mkdir()
    asked = {**job(one, [1, 2], 100), "root": str(tmp_path / "mount"), "threads": 1, "data": str(tmp_path),
             "stops": str(notes_in(tmp_path / "mount/sweeps" / one.sweep_id))}  # fmt: skip
    with pytest.raises(StoreError, match="mount it again, then resume"):
        SweepTrainable(asked).step()
    assert not list((tmp_path / "mount").iterdir())


def test_resume_adds_trials_and_refuses_another_sweep(whole: tuple[Path, str], undisturbed: tuple[Any, Any]) -> None:
    folder, store, sweep_id = whole[0], Store(whole[0] / "runs"), resolved().sweep_id
    for change in ("space.lr.high=0.7", "horizon=900", "task.k=3"):
        said = verb(folder, "resume", "--set", change, code=2)
        assert f"--set {change}: would make it another sweep" in said and "may change: search.trials" in said
    assert "did you mean 'trials'" in verb(folder, "resume", "--set", "search.trails=5", code=2)
    assert replicas_of(store) == undisturbed[1]
    verb(folder, "resume", "--add-trials", "1")
    assert "5/5" in verb(folder, "status")
    assert undisturbed[0].items() <= trials_of(store, sweep_id).items()
    assert undisturbed[1].items() <= replicas_of(store).items() and trained_twice(store) == []
    longer = service.again(store, sweep_id, registry.load)
    assert longer.experiment.search.trials == 5


@pytest.mark.parametrize("kept", ["{", "[]"])
def test_what_a_sweep_asked_for_may_be_beyond_reading(tmp_path: Path, kept: str) -> None:
    store = Store(tmp_path)
    store.append("sweeps", [rows.sweep("broken-00000001", experiment_json=kept)])
    with pytest.raises(GrokscaleError, match=r"sweep broken-00000001 asked for cannot be read \(.+\); sweep its file"):
        service.again(store, "broken-00000001", registry.load)


@pytest.mark.parametrize("kept", ["{", "[]"])
def test_the_same_file_again_mends_what_a_sweep_asked_for(tmp_path: Path, kept: str) -> None:
    from grokscale.sweep import introduce

    one, store = resolved(), Store(tmp_path)
    introduce(one, store)
    (row,) = store.rows("sweeps")
    store.append("sweeps", [{**{k: v for k, v in row.items() if k != "at"}, "experiment_json": kept}])
    assert store.rows("sweeps")[0]["experiment_json"] == kept
    introduce(one, store)
    assert store.rows("sweeps")[0]["experiment_json"] == row["experiment_json"]
    assert service.again(store, one.sweep_id, registry.load).sweep_id == one.sweep_id


def test_a_longer_sweep_is_not_done_before_it_ran(tmp_path: Path) -> None:
    from grokscale.control import has_ended, mark_ended

    mark_ended(tmp_path, resolved().experiment.to_json())
    assert has_ended(tmp_path, resolved().experiment.to_json())
    assert not has_ended(tmp_path, resolved(search={"trials": 5, "seeds": 2}).experiment.to_json())


def test_a_disk_without_room_is_said_in_words(tmp_path: Path) -> None:
    """A tmpfs of one page, which the lock takes up. It wants root; the fault tests fill a larger one under a sweep."""
    from grokscale.control import ask_stop, mark_ended

    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={os.sysconf('SC_PAGE_SIZE')}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("NOT TESTED: a small tmpfs wants root")
    try:
        (folder / "ballast").write_text("x")
        for write_ in (lambda: mark_ended(folder, "{}"), lambda: ask_stop(folder, "0" * 12, now=True),
                       lambda: locked(folder / "lock", "some-00000000").__enter__()):
            with pytest.raises(StoreError, match="cannot write to the store: No space left on device; make room"):
                write_()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_password_in_mlflows_variable_is_refused_before_a_driver_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-5d1c@127.0.0.1:5000")
    said = verb(tmp_path, "submit", str(write(tmp_path)), "--detach", code=2)
    assert said.startswith("MLFLOW_TRACKING_URI: holds a password") and "planted" not in said
    assert not (tmp_path / "runs").exists()


def test_a_driver_that_cannot_begin_says_why(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    with pytest.raises(GrokscaleError, match=r"(?s)ended with code 2:.*nowhere\.toml"):
        service.detach(store, "some-00000000", ["sweep", str(tmp_path / "nowhere.toml")])


def test_a_sweep_of_another_machine_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    lock = store.sweep_dir("some-00000000") / "lock"
    with locked(lock, "some-00000000"):
        lock.write_text("process 1 on elsewhere\n")
        with pytest.raises(GrokscaleError, match="is run by process 1 on elsewhere: stop it there"):
            service.stop(store, "some-00000000", now=True)


def test_the_cluster_that_a_file_names_is_every_verbs(tmp_path: Path) -> None:
    """Nobody answers there: looking says so and goes on, what would act refuses, and nothing runs here instead."""
    changes = {"cluster": {"address": "http://127.0.0.1:1"}}
    store, one = Store(tmp_path / "runs"), resolved(**changes)
    introduce(one, store)
    for words in (("status",), ("list",), ("logs",)):
        said = verb(tmp_path, *words)
        assert "no Ray cluster answers at http://127.0.0.1:1" in said and "what the store knows" in said
    for words in (("resume", "--wait", "0"), ("resume", "--detach", "--wait", "0"), ("stop",), ("stop", "tiny/1a")):
        said = verb(tmp_path, *words, code=1)
        assert "no Ray cluster answers at http://127.0.0.1:1" in said and "Traceback" not in said
    assert holder(store.sweep_dir(one.sweep_id) / "lock") is None and not store.trials().num_rows


def test_no_cluster_is_said_within_the_limit(tmp_path: Path) -> None:
    """Port 1 answers nobody."""
    said = verb(tmp_path, "submit", str(write(tmp_path)), "--address", "http://127.0.0.1:1", "--wait", "1", code=1)
    assert "waiting for a Ray cluster at http://127.0.0.1:1 (at most 1 s)" in said
    assert "no Ray cluster answers at http://127.0.0.1:1" in said and "GROKSCALE_ADDRESS" in said
    assert "Traceback" not in said and not (tmp_path / "runs/sweeps").exists()
    assert "must be the job server's" in verb(tmp_path, "list", "--address", "127.0.0.1:6379", code=2)


