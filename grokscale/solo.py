"""One configuration in this process, without Ray: the debugger's way in, and a look at a single trial."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from grokscale.entries import Registry
from grokscale.outcomes import again, answers
from grokscale.parts import write_part
from grokscale.report.beside import median
from grokscale.report.words import count, grid, knobs, number
from grokscale.spec import TrialSpec
from grokscale.store import Store
from grokscale.train import Evaluation, Program, packs, train

SAY_S = 1.0  # a line at most this often


def run(
    spec: TrialSpec,
    seeds: Sequence[int],
    *,
    horizon: int,
    until: str = "decided",
    lanes: int = 32,
    threads: int = 1,
    registry: Registry | None = None,
    store: Store | None = None,
    metrics: Sequence[str] = (),
    compiled: bool = False,
    say: Callable[[str], None] = lambda line: None,
    at_end: Callable[[Evaluation], None] | None = None,
) -> list[dict[str, Any]]:
    """Train the replicas `seeds` of a trial here and now; their rows, in the order of the seeds.

    store: where finished packs are appended, as a sweep's worker does it; replicas that it holds already are
    taken from there. None: everything is trained and nothing kept.  metrics: measures to take.
    compiled: as `train`'s.  say: told a line about once a second.
    at_end: given the last evaluation of every pack; everything is trained then, whatever the store holds.
    """
    torch.set_num_threads(threads)
    known = store.answered([spec.trial_id]) if store is not None and at_end is None else {}
    held = {s: row for s in seeds if (row := known.get((spec.trial_id, s)))}
    rows = {seed: row for seed, row in held.items() if answers(row, horizon, until, metrics)}
    if rows:
        say(f"{len(rows)} of {len(seeds)} replicas are in the store already")
    for pack in packs([seed for seed in seeds if seed not in rows], lanes):
        began = time.monotonic()
        more = again([row for seed in pack if (row := held.get(seed))], metrics)
        run = train(spec, pack, horizon=horizon, until=until, registry=registry, metrics=more.metrics,
                    at_least=more.at_least, compiled=compiled)
        for evaluation in told(run, say):
            if not evaluation.done:
                continue
            if at_end is not None:
                at_end(evaluation)
            if store is None:
                rows |= {row["seed"]: row for row in evaluation.replicas()}
            else:
                part, _ = write_part(store, spec, evaluation, wall_s=time.monotonic() - began)
                rows |= {row["seed"]: row for row in part}
    return [rows[seed] for seed in seeds]


def told(evaluations: Iterator[Evaluation], say: Callable[[str], None]) -> Iterator[Evaluation]:
    """The evaluations, with a line to `say` for the last one and for others SAY_S apart."""
    said, before = -math.inf, 0
    for evaluation in evaluations:
        now = time.monotonic()
        if now - said >= SAY_S or evaluation.done:
            # What came before the first line was also setting up: no speed to speak of.
            say(
                line(evaluation, (evaluation.step - before) / (now - said) if before and now > said else None)
            )
            said, before = now, evaluation.step
        yield evaluation


def line(evaluation: Evaluation, rate: float | None) -> str:
    """ "step 1,250  train 1.00  val 0.52  test 0.51 (0.50 to 0.53)  finished 0/3  812 steps/s"."""

    def mean(name: str) -> str:
        values = evaluation.metrics[name][np.isfinite(evaluation.metrics[name])]
        if not len(values):
            return "-"
        spread = (
            f" ({values.min():.2f} to {values.max():.2f})" if name == "test_acc" and len(values) > 1 else ""
        )
        return f"{values.mean():.2f}{spread}"

    accuracies = "  ".join(f"{name} {mean(f'{name}_acc')}" for name in ("train", "val", "test"))
    finished = f"finished {int(evaluation.finished.sum())}/{len(evaluation.seeds)}"
    speed = "" if rate is None else f"  {rate:,.0f} steps/s"
    return f"step {evaluation.step:>9,}  {accuracies}  {finished}{speed}"


def learns(spec: TrialSpec, registry: Registry) -> bool:
    """Is there something that `Evaluation.learned` can give?"""
    return Program(spec, registry, "cpu").transform.learned is not None


def epoch_steps(spec: TrialSpec, registry: Registry) -> int:
    """Steps of one pass over the training rows."""
    program = Program(spec, registry, "cpu")
    full, rest = divmod(len(program.splits(0)[0].train.y), program.batch)
    return max(1, full if program.drop_last or not rest else full + 1)


def table(spec: TrialSpec, rows: Sequence[Mapping[str, Any]], horizon: int, epoch: int) -> str:
    """A line per replica: when it fitted, first crossed, grokked, in steps and epochs; then the medians.

    epoch: steps of one.
    """

    def event(step: float | None) -> list[str]:
        if step is None:
            return ["-", "-"]
        return [number(step), f"{step / epoch:,.1f}" if step < 100 * epoch else number(step / epoch)]

    columns = ("fit_step", "first_step", "grok_step")
    body = [
        [
            str(row["seed"]),
            row["outcome"],
            *(text for name in columns for text in event(row[name])),
            number(row["observed_to"]),
            "-" if row["final_acc"] is None else f"{row['final_acc']:.3f}",
        ]
        for row in rows
    ]
    times = [
        np.array([math.inf if row[name] is None else row[name] for row in rows], dtype=float)
        for name in columns
    ]
    middle = ["median", "", *(text for t in times for text in event(median(t))), "", ""]
    header = ["seed", "outcome", "fit", "epochs", "first", "epochs", "grok", "epochs", "seen to", "test acc"]
    text = grid(header, [*body, middle], "<<>>>>>>>>")
    grokked = sum(row["grok_step"] is not None and row["grok_step"] <= horizon for row in rows)
    method = "+".join(part["name"] for part in spec.method)
    head = [
        f"trial {spec.trial_id}: {method} on {spec.task['name']}, {spec.model['name']}",
        knobs(spec.params()),
        f"grokked {grokked} of {len(rows)} by step {number(horizon)} (test accuracy >= {spec.threshold:g}, "
        f"sustained); an epoch has {number(epoch)} steps",
    ]
    if spec.monitor == "test":
        head.append("monitor = test: methods looked at the test split")
    return "\n".join([*head, "", text]) + "\n"


def timing_line(row: Mapping[str, Any]) -> str:
    """A row of `timings` in words."""
    on, off = (f"{1e3 * row[name]:.3g} ms" for name in ("seconds_on", "seconds_off"))
    method_off = f", {off} with the method off" if off != on else ""
    return f"alone: {on} a step{method_off}, on {row['device']} ({count(row['threads'], 'thread')})\n"
