"""Sweeps on a cluster of hosts, faults at drawn moments of them, and what became of the sweeps."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

from grokscale import service, track
from grokscale.spec import Resolved
from grokscale.store import Store
from tests.faults.breaking import FAULTS, Site, until
from tests.test_sweep import replicas_of, trained_twice, trials_of

SPARE = 6  # submits of a sweep by hand, beyond one for every fault
RESULTS = Path(__file__).parent / "RESULTS.md"
KEPT = Path(__file__).parent / "rounds.jsonl"  # the same, to be counted again
REMARKS = Path(__file__).parent / "remarks.md"  # what a person has to say of them, below the table
TRIED = 3  # faults whose moment has come that are tried, until one finds what it breaks
LAST = 12  # replicas of a sweep, before whose storing every fault has come: those of the confirmation end at once
# Of every hundred faults in the full form. Others than kills last a minute each.
SHARES = {
    "worker SIGKILL": 29, "driver SIGKILL": 20, "raylet SIGKILL": 4, "node killed, a new one joins": 8,
    "head killed and restarted": 3, "partition of 30 s between head and worker": 5, "worker SIGSTOP 20 s": 5,
    "driver SIGSTOP 20 s": 4, "raylet SIGSTOP 20 s": 3, "MLflow down for 60 s": 2,
    "disk full in the store": 4, "store unmounted for 20 s": 3,
    "driver SIGKILL, then two submits race": 6, "another sweep in the same store": 4,
}  # fmt: skip
# These last so long that a sweep goes far meanwhile: the last of its faults. What finds no chance is not counted.
LONG = {name for name in SHARES if any(word in name for word in ("20 s", "30 s", "60 s", "head killed"))}


@dataclass(frozen=True)
class Planned:
    """A fault to come: once so many replicas are stored, and so many seconds later."""

    fault: str
    at: int
    later: float = 0.0


@dataclass
class Moment:
    """A fault that came, or did not (hit).  stored: replicas then.  seconds: to the next one that was stored."""

    fault: str
    hit: bool
    stored: int
    began: float = 0.0
    seconds: float | None = None


@dataclass
class Round:
    """A sweep, or two in one store, and its faults.

    submits: by hand, the first included.  lost, doubled: replicas.  wrong: what else is not as it should be.
    seconds: from the first submit to the answer.  undisturbed: those of a sweep alone, on the same day.
    """

    moments: list[Moment] = field(default_factory=list)
    submits: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0
    undisturbed: float = 0.0

    @property
    def survived(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)

    @property
    def came(self) -> list[Moment]:
        """The faults that found what they break."""
        return [moment for moment in self.moments if moment.hit]

    @property
    def extra(self) -> float:
        """Seconds that each of its faults added, were they all alike: what one of them cost alone nobody can tell."""
        return (self.seconds - self.undisturbed) / max(1, len(self.came))


def dealt(
    count: int, each: int, replicas: int, rng: np.random.Generator, kinds: Sequence[str] = ()
) -> Iterator[list[Planned]]:
    """So many faults in all, `each` for a sweep of so many replicas, at drawn moments.

    The first are one of every kind, so that a campaign that is cut short has tried them all; then as SHARES has them.
    kinds: only these, all as often.
    """
    assert SHARES.keys() >= set(kinds), f"{kinds}: allowed: {list(SHARES)}"
    order: list[str] = []
    while len(order) < count:
        hand = list(kinds) or [name for name, share in SHARES.items() for _ in range(share if order else 1)]
        order += [hand[i] for i in rng.permutation(len(hand))]
    for first in range(0, count, each):
        names = sorted(order[first : min(first + each, count)], key=LONG.__contains__)
        moments = sorted(int(at) for at in rng.integers(0, replicas - LAST, len(names)))
        yield [Planned(name, at, float(rng.uniform(0, 2))) for name, at in zip(names, moments, strict=True)]


def until_done(site: Site, planned: Sequence[Planned] = ()) -> Round:
    """Submit a sweep, and what was begun beside it, until it is done; every fault when its moment has come."""
    one, waiting, began = Round(), list(planned), time.monotonic()
    _drive(site, site.resolved, one, waiting)
    for other in site.beside:
        _drive(site, other, one, [])
    one.moments += [Moment(left.fault, False, left.at) for left in waiting]
    one.seconds = time.monotonic() - began
    return one


def _drive(site: Site, resolved: Resolved, one: Round, waiting: list[Planned]) -> None:
    store, sweep_id = site.store, resolved.sweep_id
    still = lambda: bool(service.driver(store, sweep_id, site.client))  # noqa: E731
    for _ in range(len(waiting) + SPARE):
        service.submit(resolved, store, site.client)
        one.submits += 1
        for _ in service.follow(store, sweep_id, still=still):
            stored = store.replicas().num_rows
            for moment in one.moments:
                if moment.seconds is None and stored > moment.stored:
                    moment.seconds = time.monotonic() - moment.began
            for due in [planned for planned in waiting if planned.at <= stored][:TRIED]:
                if not still():
                    break
                time.sleep(due.later)  # the moment was drawn so
                moment = Moment(due.fault, True, store.replicas().num_rows, time.monotonic())
                if FAULTS[due.fault](site):  # else there was nothing to break: at the next chance
                    one.moments.append(moment)
                    waiting.remove(due)
                    break
        if service.answered(store, resolved):
            return
    raise AssertionError(f"{sweep_id} is not done after {one.submits} submits: "
                         f"{service.last_words(site.client, sweep_id)}")


def judge(site: Site, one: Round, undisturbed: Store) -> Round:
    """Set a sweep that is done beside one that nothing happened to."""
    store = site.store
    want, have = replicas_of(undisturbed), replicas_of(store)
    one.lost = sum(have.get(key) != row for key, row in want.items())
    one.doubled = len(trained_twice(store))
    one.wrong += [f"{len(have.keys() - want.keys())} replicas more than asked"] if have.keys() - want.keys() else []
    for resolved in [site.resolved, *site.beside]:
        trials, wanted = (trials_of(where, resolved.sweep_id) for where in (store, undisturbed))
        if trials != wanted:
            one.wrong.append(f"trials of {resolved.sweep_id} are not those of the undisturbed sweep")
        states = {row["state"] for row in store.trials(sweep_id=resolved.sweep_id).to_pylist()}
        one.wrong += [f"trials are {state}" for state in states - {"ended"}]
        if resolved.experiment.tracking not in (None, "none"):
            one.wrong += _runs(store, resolved)
    hosts = site.hosts
    left = lambda: [pid for n in hosts.nodes for pid in (*hosts.workers(n), *hosts.drivers(n))]  # noqa: E731
    for what, found in (("processes that train", left), ("zombies", hosts.zombies)):
        try:
            until(lambda found=found: not found(), "they end", 60.0)
        except AssertionError:
            one.wrong.append(f"{what} are left: {found()}")
    for folder in ("checkpoints", "claims"):
        kept = sorted(path.name for path in store.folder(folder).iterdir())
        one.wrong += [f"left in {folder}: {kept}"] if kept else []
    return one


def _runs(store: Store, resolved: Resolved) -> list[str]:
    """What is wrong with MLflow's runs of a sweep, after one `sync`."""
    from mlflow import MlflowClient

    uri, sweep_id = str(resolved.experiment.tracking), resolved.sweep_id
    track.sync(store, sweep_id, uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(resolved.experiment.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.sweep_id = '{sweep_id}'", max_results=1000)
    trials = store.trials(sweep_id=sweep_id).num_rows
    wrong = [f"MLflow has {len(found)} runs, not {trials + 1}"] if len(found) != trials + 1 else []
    states = {run.info.status for run in found}
    return wrong + [f"MLflow's runs are {state}" for state in states - {"FINISHED"}]


def keep(rounds: Sequence[Round]) -> None:
    """Write down what became of the sweeps so far, so that another campaign may go on from there."""
    KEPT.write_text("".join(json.dumps(asdict(one)) + "\n" for one in rounds))


def kept() -> list[Round]:
    """The sweeps of a campaign that was cut short."""
    lines = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    return [Round(**{**line, "moments": [Moment(**moment) for moment in line["moments"]]}) for line in lines]


def table(rounds: Sequence[Round]) -> str:
    """The faults as RESULTS.md shows them. What was lost counts for every fault of its sweep."""
    rows = []
    every = [(round_, moment) for round_ in rounds for moment in round_.came]
    for name in [*FAULTS, ""]:
        mine = [(round_, moment) for round_, moment in every if name in ("", moment.fault)]
        if not mine:
            continue
        again = [moment.seconds for _, moment in mine if moment.seconds is not None]
        mid = {id(round_): round_ for round_, _ in mine}.values()
        rows.append(f"| {name or '**all**'} | {len(mine)} | {sum(r.survived for r, _ in mine)} "
                    f"| {sum(r.lost for r in mid)} | {sum(r.doubled for r in mid)} "
                    f"| {_median([r.extra for r in mid])} | {_median(again)} |")  # fmt: skip
    missed = sum(not moment.hit for round_ in rounds for moment in round_.moments)
    alone = [round_.undisturbed for round_ in rounds]
    return "\n".join([
        "# Faults that sweeps went through", "",
        f"`make test-faults` on {date.today()}, {platform.system()} {platform.release()}, {os.cpu_count()} cores: Ray",
        "hosts in network namespaces, sweeps as Ray jobs, faults one after the other at drawn moments of them.", "",
        f"{len(rounds)} sweeps, {len(every)} faults, {sum(r.submits for r in rounds)} submits by hand. Survived: the",
        "sweep of the fault ended with the replicas and trials of an undisturbed one (outcome and all steps, by key),",
        "nothing lost, nothing trained twice to its end, no trial or MLflow run left open, no process, zombie,",
        "checkpoint or claim left over. What was lost in a sweep counts for every kind of fault that it went through.",
        "",
        "| fault | moments tried | survived | replicas lost | replicas doubled | extra time | next replica |",
        "|---|---|---|---|---|---|---|", *rows, "",
        "Times in seconds, on a machine that other work kept busy. Extra time: of a sweep, its time less that of an",
        f"undisturbed one ({min(alone):.0f} to {max(alone):.0f} s), over its faults, as if all took as long; a",
        "kind's is the median over the sweeps that had one, so kinds that came in the same sweeps differ little. Next",
        f"replica: to when it was stored, median over the faults. {missed} faults found nothing to break in time",
        "and are not counted.", "",
        *(f"- NOT SURVIVED: {', '.join(m.fault for m in r.came)}: lost {r.lost}, doubled {r.doubled}, {r.wrong}"
          for r in rounds if not r.survived), "", REMARKS.read_text() if REMARKS.exists() else "",
    ]).rstrip() + "\n"  # fmt: skip


def _median(seconds: Sequence[float]) -> str:
    return f"{np.median(seconds):.0f}" if seconds else "-"
