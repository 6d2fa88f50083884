"""A finished pack as a part of the store: the engine's rows with where and how they came about, and their labels."""

from __future__ import annotations

import functools
import platform
import subprocess
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grokscale.entries import Registry
from grokscale.outcomes import Outcome
from grokscale.signatures import Measures, signatures
from grokscale.spec import TrialSpec
from grokscale.spec.trial import canonical_json
from grokscale.store import Store
from grokscale.train import Evaluation, timings


def write_part(store: Store, spec: TrialSpec, evaluation: Evaluation, *, device: str = "cpu", wall_s: float,
               attempt: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
    """Append the curves, the measures and then the replicas of a pack that is done; (the replicas' rows as written,
    the name of their file).

    The replicas' file is the commit: without it the others count for nothing, whatever cut the worker off.
    wall_s: seconds that this pack took here.  attempt: unique name of this try, a fresh one by default.
    """
    attempt = attempt or uuid.uuid4().hex
    curves: dict[str, Any] = dict(evaluation.curves())
    count = len(curves["seed"])
    store.append("curves", {"trial_id": np.full(count, spec.trial_id), "attempt": np.full(count, attempt), **curves})
    seen = evaluation.measures()
    if seen["seed"]:
        every = len(seen["seed"])
        store.append("measures", {"trial_id": [spec.trial_id] * every, "attempt": [attempt] * every, **seen})
    about = provenance(spec, device, compiled=any(row["compiled"] for row in evaluation.replicas()))
    about |= {"attempt": attempt, "wall_s": wall_s, "at": datetime.now(UTC)}
    taken = _by_seed(seen)
    rows = [{**about, **row, "signatures": labels(row, curves, taken[row["seed"]])} for row in evaluation.replicas()]
    return rows, store.append("replicas", rows)


def labels(row: Mapping[str, Any], curves: Mapping[str, Any], measures: Measures) -> str:
    """The failure signatures of a replica (methods.md 5.5), as a comma list.

    curves: the engine's columns, of all seeds.  measures: the replica's.
    """
    mine = curves["seed"] == row["seed"]
    outcome = Outcome(*(row[name] for name in Outcome._fields))
    return ",".join(signatures({name: column[mine] for name, column in curves.items()}, outcome, measures))


def _by_seed(columns: Mapping[str, Any]) -> Mapping[int, Measures]:
    """The measures that are numbers, by replica."""
    lists: dict[int, dict[str, tuple[list[int], list[float]]]] = defaultdict(lambda: defaultdict(lambda: ([], [])))
    for seed, step, name, value in zip(*(columns[c] for c in ("seed", "step", "measure", "value")), strict=True):
        if value is not None:
            steps, values = lists[seed][name]
            steps.append(step)
            values.append(value)
    found = {
        seed: {name: (np.array(s), np.array(v)) for name, (s, v) in mine.items()} for seed, mine in lists.items()}
    return defaultdict(dict, found)


def timing_rows(
    specs: Sequence[TrialSpec], *, threads: int, device: str = "cpu", registry: Registry | None = None
) -> list[dict[str, Any]]:
    """Rows of `timings`: solo seconds per step of trials, measured here and now, in turns, on `threads` threads."""
    torch.set_num_threads(threads)
    where = {"device": device_name(device), "threads": threads, "torch": torch.__version__, "host": platform.node()}
    return [
        {"trial_id": spec.trial_id, **where, "seconds_on": on, "seconds_off": off}
        for spec, (on, off) in zip(specs, timings(specs, device=device, registry=registry), strict=True)
    ]


def provenance(spec: TrialSpec, device: str, *, compiled: bool = False) -> dict[str, Any]:
    """The columns of `replicas` that say what ran, on what, with which versions.

    numerics: rows of one class may be compared bit for bit, rows of different classes by distribution only. Packs of
    different sizes agree on a CPU (a test holds that), so the lanes are no part of the class there.
    """
    name, how = device_name(device), "compiled" if compiled else "eager"
    return {
        "task": spec.task["name"],
        "model": spec.model["name"],
        "method": "+".join(part["name"] for part in spec.method),
        "params_json": canonical_json(spec.params()),
        "spec_json": spec.canonical(),
        "device": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "numerics": f"{name}/{spec.precision}/{how}/torch-{torch.__version__}/{torch.get_num_threads()}t",
        "git_sha": git_sha(),
        "version": package_version(),
        "host": platform.node(),
    }


def device_name(device: str) -> str:
    """The model of a device: the GPU's name, or cpu with the vector instructions that torch uses and the processor.

    Two processors with the same instructions round differently: a BLAS has kernels for each maker and family.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu-{torch.backends.cpu.get_cpu_capability()}-{processor()}".lower()


PROCESSOR = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")  # of x86; of ARM


@functools.cache
def processor(described: Path = Path("/proc/cpuinfo")) -> str:
    """Maker, family and model of this machine's processor by the kernel's numbers: "GenuineIntel-6-207".

    described: what the kernel says of the first one, "name : value" to a line; where there is no such file, what
    Python knows: "arm".  A name for sale will not do: virtual machines give one to many processors.
    """
    try:
        lines = described.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return "-".join(facts[name] for name in PROCESSOR if name in facts) or platform.processor() or platform.machine()


@functools.cache
def package_version() -> str:
    """Version of the installed package; "0+unknown" where it runs from a bare folder."""
    try:
        return version("grokscale")
    except PackageNotFoundError:
        return "0+unknown"


@functools.cache
def git_sha() -> str | None:
    """Commit of the checkout that this package runs from, None outside one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
