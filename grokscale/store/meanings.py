"""What the columns of the tables mean: the reference that `grokscale store columns` prints."""

from __future__ import annotations

import pyarrow as pa

from grokscale.errors import InputError, suggest
from grokscale.store.schemas import RULES, SCHEMAS

TABLES = {
    "replicas": "What happened to one seed of one trial.",
    "trials": "What sweeps asked, and what came of it.",
    "curves": "Every evaluation of every replica.",
    "measures": "What probes saw in a replica while it trained.",
    "sweeps": "One run of an experiment each.",
    "plans": "The confirmation of a sweep, as fixed before its first seed ran.",
    "timings": "Seconds per step of a trial alone on a device, by round: trials with the same `at` took turns.",
    "speedups": "The answers of finished sweeps.",
    "endpoints": "What finished sweeps say of other metrics.",
    "importances": "How much each knob mattered in a search.",
}

_SWEEP = {
    "sweep_id": "the sweep: its name and 8 hex digits of what it asks",
    "block": "which confirmation of the sweep, from 0; each has seeds of its own",
    "at": "when the row was written (UTC)",
    "version": "version of grokscale that wrote the row",
}
_TRIAL = {
    "trial_id": "the configuration: 12 hex digits over all that changes its numbers",
    "seed": "the seed: split, initialisation, order and draws",
    "attempt": "one try at a replica, a unique string; ties curves to the replica row that counts",
}

MEANINGS: dict[str, dict[str, str]] = {
    "replicas": {
        **_TRIAL,
        "outcome": "grokked, memorised, unfitted, diverged or capped",
        "fit_step": "first step of sustained train accuracy >= 0.99; null: none",
        "grok_step": "first step of sustained test accuracy >= threshold; null: none",
        "val_grok_step": "the same on validation: all that a search sees",
        "first_step": "first step at or above the threshold on test, sustained or not",
        "val_first_step": "the same on validation",
        "delay": "max(0, grok_step - fit_step), steps",
        "comprehended": "whether grok_step <= 1.1 fit_step: no plateau at all",
        "stable_step": "step from which test accuracy stays at or above the threshold to 2 x grok_step",
        "dips": "how often test accuracy fell below the threshold between grok_step and 2 x grok_step",
        "dip_min": "lowest test accuracy from grok_step to 2 x grok_step",
        "final_acc": "test accuracy of the last evaluation",
        "final_val_acc": "validation accuracy of the last evaluation",
        "diverged_step": "first step with a non-finite number",
        "observed_to": "step up to which the replica was watched",
        "steps": "optimiser steps that were trained",
        "active_steps": "steps in which the method acted, where it can be off",
        "batch": "examples per step",
        "oracle_per_step": "gradient evaluations x examples per step",
        "labels": "labels used, for training and for switching",
        "params": "parameters of the model",
        "threshold": "test accuracy that counts as grokked",
        "monitor": "split that decided when the replica was done",
        "task": "name of the task",
        "model": "name of the model",
        "method": "name of the method, or of the chain",
        "params_json": "knobs: JSON object",
        "spec_json": "the whole trial: JSON object",
        "device": "the GPU's name; of a CPU its vector instructions, maker, family and model",
        "precision": "floating-point format",
        "torch": "version of torch",
        "threads": "intra-op threads",
        "lanes": "replicas that trained together",
        "compiled": "whether the step was compiled",
        "numerics": "rows of one class may be compared bit for bit, others by distribution",
        "git_sha": "commit of the code, where it ran from a repository",
        "version": _SWEEP["version"],
        "host": "machine",
        "wall_s": "seconds of its pack: throughput, not a replica's time",
        "at": _SWEEP["at"],
        "flops_per_step": "floating-point operations of the model per step, forward and backward",
        "method_flops": "those of the method itself per step, while it acts; null where it declares none",
        "measured": "measures that watched it, a comma list",
        "signatures": "what went wrong with it, a comma list of labels",
    },
    "trials": {
        "sweep_id": _SWEEP["sweep_id"],
        "arm": "label of the arm",
        "phase": "search, race or confirm",
        "number": "number of the trial in its arm and phase",
        "trial_id": _TRIAL["trial_id"],
        "seeds": "seeds asked for",
        "params_json": "knobs that were asked: JSON object",
        "cap": "step at which its replicas are cut short",
        "value": "objective: mean log of clamped val_grok_step; null until ended",
        "state": "asked, ended or failed",
        "error": "why it failed",
        "at": _SWEEP["at"],
    },
    "curves": {
        **_TRIAL,
        "step": "optimiser step of the evaluation",
        "train_loss": "loss on the training split",
        "train_acc": "accuracy on the training split, 0 to 1",
        "val_loss": "loss on validation",
        "val_acc": "accuracy on validation",
        "test_loss": "loss on test",
        "test_acc": "accuracy on test",
        "active": "whether the method acted at this step",
        "full": "whether validation or test was looked at in full, not on a sample",
        "val_full": "whether validation was",
        "test_full": "whether test was",
    },
    "measures": {
        **_TRIAL,
        "step": "optimiser step of the look",
        "measure": "name of the measure",
        "value": "what it says, where it is a number",
        "vector": "what it says, where it is several",
    },
    "sweeps": {
        "sweep_id": _SWEEP["sweep_id"],
        "name": "name of the experiment",
        "question": "question of the experiment",
        "baseline": "label of the baseline's arm",
        "horizon": "steps after which a replica of the search is censored",
        "experiment_json": "the experiment file: JSON object",
        "version": _SWEEP["version"],
        "at": _SWEEP["at"],
        "spaces_json": "arm -> searched knob -> range: JSON object",
    },
    "plans": {
        "sweep_id": _SWEEP["sweep_id"],
        "block": _SWEEP["block"],
        "tau": "horizon of the confirmation, steps",
        "winners_json": "arm -> its winner: JSON object",
        "seeds": "fresh seeds, the same for every arm",
        "key": "hash of the settings of search, race and confirmation that it was made for",
        "at": _SWEEP["at"],
        "practice": "arm that stands for the practice baseline",
    },
    "timings": {
        "trial_id": _TRIAL["trial_id"],
        "device": "the GPU's name; of a CPU its vector instructions, maker, family and model",
        "threads": "intra-op threads",
        "seconds_on": "seconds per step with the method acting",
        "seconds_off": "seconds per step without",
        "torch": "version of torch",
        "host": "machine",
        "at": _SWEEP["at"],
    },
    "speedups": {
        "sweep_id": _SWEEP["sweep_id"],
        "block": _SWEEP["block"],
        "arm": "label of the arm",
        "baseline": "label of the arm it is compared with",
        "clock": "steps, oracle, flops or seconds",
        "phase": "confirm; anything else is exploratory",
        "s": "speed-up: geometric mean of baseline / arm over paired seeds, times clamped at the horizon",
        "lo": "lower end of the 95 % interval of s",
        "hi": "upper end",
        "n": "paired seeds",
        "p": "sign-flip permutation test of s = 1",
        "corr": "correlation of the pairs' log times; null where one side does not vary",
        "censored_base": "seeds of the baseline that had not grokked by the horizon",
        "censored_arm": "seeds of the arm that had not",
        "bound": ">= where s is a lower bound, <= where an upper one, else =",
        "horizon": "steps at which times are clamped",
        "s_half": "s with half the horizon",
        "rmst_ratio": "ratio of mean clamped times",
        "rmst_lo": "lower end of its 95 % interval",
        "rmst_hi": "upper end",
        "median_base": "Kaplan-Meier median of the baseline; null where not reached",
        "median_arm": "Kaplan-Meier median of the arm; null where not reached",
        "success_base": "share of the baseline's seeds that grokked",
        "success_arm": "share of the arm's seeds that grokked",
        "p_sooner": "P(the arm groks before the baseline), ties one half",
        "logrank_p": "log-rank test of equal survival; null where nothing grokked",
        "version": _SWEEP["version"],
        "at": _SWEEP["at"],
        "p_holm": "p after Holm over the arms of one baseline and clock",
        "paired": "whether the seeds are pairs: same split, initialisation and order",
    },
    "endpoints": {
        **_SWEEP,
        "endpoint": "name of the [[endpoint]] table",
        "kind": "time_to, best, final, area, distance or sd_ratio",
        "metric": "the metric or measure that it is read from",
        "up": "is greater better?",
        "arm": "label of the arm",
        "baseline": "label of the arm that it is compared with",
        "base": "mean over the baseline's seeds (time_to: geometric; sd_ratio: standard deviation)",
        "mine": "the same over the arm's",
        "scale": "difference (above 0 speaks for the arm) or ratio (above 1 does)",
        "value": "mean paired difference, or ratio",
        "lo": "lower end of its 95 % interval",
        "hi": "upper end",
        "n": "pairs",
        "p": "of the sign-flip test; null for sd_ratio",
        "margin": "the loss that is tolerated; null: none named",
        "noninferior": "is the arm shown to lose less than the margin?",
        "censored_base": "seeds of the baseline that never reached the threshold of a time_to",
        "censored_arm": "seeds of the arm that never did",
        "bound": "=, or >= or <= where one side's censored seeds make a time_to's ratio a bound",
        "base_values": "the baseline's value of every seed, in the plan's order",
        "mine_values": "the arm's",
    },
    "importances": {
        "sweep_id": _SWEEP["sweep_id"],
        "arm": "label of the arm",
        "knob": "searched knob",
        "share": "the knob's share, 0 to 1, in what tells the better half of the trials from all of them",
        "trials": "trials that this comes from, capped ones too",
        "version": _SWEEP["version"],
        "at": _SWEEP["at"],
    },
}


def reference(table: str | None = None) -> str:
    """The columns of a table, or of all: name, type and meaning, a line each; * where a row's identity is.

    Raises InputError for a table that is not there.
    """
    if table is not None and table not in SCHEMAS:
        raise InputError(f"no table '{table}'; {suggest(table, SCHEMAS)}")
    return "\n".join(_lines(name) for name in ([table] if table else SCHEMAS))


def _lines(table: str) -> str:
    lines = [f"{table}: {TABLES.get(table, '')}"]
    for field in SCHEMAS[table]:
        mark = "*" if field.name in RULES[table].keys else " "
        kind = _kind(field.type) + ("?" if field.nullable else "")
        lines.append(f"  {mark} {field.name:<16} {kind:<7} {MEANINGS.get(table, {}).get(field.name, '')}".rstrip())
    return "\n".join(lines) + "\n"


def _kind(kind: pa.DataType) -> str:
    names = {pa.int64(): "int", pa.float64(): "float", pa.string(): "text", pa.bool_(): "bool"}
    if pa.types.is_list(kind):
        return names[kind.value_type] + "s"
    return names.get(kind, "time")
