"""A sweep on a cluster of hosts, a fault at some moment of it, and what became of the sweep."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grokscale import service
from grokscale.control import holder
from grokscale.spec import Resolved
from grokscale.store import Store
from tests.hosts import RayHosts
from tests.test_sweep import replicas_of, trained_twice, trials_of

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

SUBMITS = 6  # of one sweep, at most
RESULTS = Path(__file__).parent / "RESULTS.md"
Fault = Callable[[RayHosts, Store, str], bool]


@dataclass(frozen=True)
class Moment:
    """What became of a sweep. at: replicas stored when the fault came.  hit: did the fault find what it breaks?
    submits: by hand, the first included.  lost, doubled: replicas.  left: trials asked that never ended."""

    fault: str
    at: tuple[int, ...]
    hit: bool
    submits: int
    lost: int
    doubled: int
    left: int
    same: bool
    seconds: float

    @property
    def survived(self) -> bool:
        return self.same and not (self.lost or self.doubled or self.left)


def kill_driver(hosts: RayHosts, store: Store, sweep_id: str) -> bool:
    """SIGKILL to the driver, wherever it is in its work."""
    held = holder(store.sweep_dir(sweep_id) / "lock")
    if held is None or not held.pid:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(held.pid, signal.SIGKILL)
        return True
    return False


def kill_worker(hosts: RayHosts, store: Store, sweep_id: str) -> bool:
    """SIGKILL to one process that trains."""
    for n in sorted(hosts.nodes, reverse=True):
        for pid in hosts.workers(n):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
    return False


def replace_node(hosts: RayHosts, store: Store, sweep_id: str) -> bool:
    """A host loses power with all that runs on it; another one, with another address, joins."""
    old = max(hosts.nodes - {1})
    trained = bool(hosts.workers(old))
    hosts.kill(old)
    hosts.start(5 - old)  # 2 and 3 take turns
    return trained


FAULTS: dict[str, Fault] = {
    "driver SIGKILL": kill_driver, "worker SIGKILL": kill_worker, "node killed, a new one joins": replace_node,
}  # fmt: skip


def until_done(
    hosts: RayHosts, client: JobSubmissionClient, resolved: Resolved, store: Store,
    faults: Sequence[tuple[int, Fault]] = (),
) -> tuple[int, bool]:
    """Submit a sweep until it is done, each fault once so many replicas are stored; (submits, did all hit?)."""
    sweep_id, waiting, hit = resolved.sweep_id, list(faults), True
    for submits in range(1, SUBMITS + 1):
        service.submit(resolved, store, client)
        still = lambda: bool(service.driver(store, sweep_id, client))  # noqa: E731
        for _ in service.follow(store, sweep_id, still=still):
            if waiting and store.replicas().num_rows >= waiting[0][0] and still():
                hit = waiting.pop(0)[1](hosts, store, sweep_id) and hit
        if service.answered(store, resolved):
            return submits, hit and not waiting
    raise AssertionError(f"{sweep_id} is not done after {SUBMITS} submits: {service.last_words(client, sweep_id)}")


def tried(
    name: str, hosts: RayHosts, client: JobSubmissionClient, resolved: Resolved, store: Store,
    faults: Sequence[tuple[int, Fault]], undisturbed: Store,
) -> Moment:
    """Run a sweep through faults and set it beside the undisturbed one."""
    began = time.monotonic()
    submits, hit = until_done(hosts, client, resolved, store, faults)
    seconds = time.monotonic() - began
    want, have = replicas_of(undisturbed), replicas_of(store)
    trials: dict[Any, Any] = trials_of(store, resolved.sweep_id)
    same = have == want and trials == trials_of(undisturbed, resolved.sweep_id)
    left = sum(row["state"] != "ended" for row in store.trials(sweep_id=resolved.sweep_id).to_pylist())
    lost = sum(have.get(key) != row for key, row in want.items())
    at = tuple(at for at, _ in faults)
    return Moment(name, at, hit, submits, lost, len(trained_twice(store)), left, same, seconds)


def table(moments: Sequence[Moment], undisturbed_s: float) -> str:
    """The moments as RESULTS.md shows them."""
    rows = [
        "| fault | moments tried | hit | survived | replicas lost | replicas doubled | submits | extra time (s) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(moment.fault for moment in moments):
        mine = [moment for moment in moments if moment.fault == name]
        extra = sorted(moment.seconds - undisturbed_s for moment in mine)[len(mine) // 2]
        rows.append(
            f"| {name} | {len(mine)} | {sum(m.hit for m in mine)} | {sum(m.survived for m in mine)}"
            f" | {sum(m.lost for m in mine)} | {sum(m.doubled for m in mine)} | {sum(m.submits for m in mine)}"
            f" | {extra:.0f} |"
        )
    where = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores"
    return "\n".join([
        "# Faults that a sweep went through", "",
        f"`make test-faults` on {date.today()}, {where}: Ray hosts in network namespaces, for every moment",
        "a sweep of its own as a Ray job. Survived: replicas and trials equal those of the undisturbed sweep, nothing",
        "lost, nothing trained twice to its end, no trial left. Hit: the fault found what it breaks. Submits: by hand,",
        "the first of each included. Extra time: median.",
        f"The undisturbed sweep took {undisturbed_s:.0f} s on the same hosts.", "",
        *rows, "",
    ])  # fmt: skip
