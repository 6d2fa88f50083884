"""What went wrong with a replica, read from its curve and its measures (methods.md 5.5). numpy only.

A label is a hint at a cause, not an outcome: several may hold, and one that needs a measure is given only where it
was taken. "No acceleration" is no property of a replica: it is an interval in `speedups` that holds 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from grokscale.outcomes import FIT, STABLE, Outcome

Curve = Mapping[str, np.ndarray]
Measures = Mapping[str, tuple[np.ndarray, np.ndarray]]  # column -> (steps, values), both (E,)

DROP = 0.2  # a drop of accuracy from one evaluation to the next that counts
SPIKE = 10.0  # times the least (or the usual) training loss
NEGLIGIBLE = 0.01  # of the first training loss: below it, ten times the least is still next to nothing
ONE_HOT = 0.99  # greatest weight of an amplifier that has collapsed
FLAT = 0.02  # accuracy gained over the second half of a run that counts as none
STEADY = 0.05  # relative spread of a norm that does not shrink
USUAL = 5  # evaluations that say what is usual before a spike


def signatures(curve: Curve, outcome: Outcome, measures: Measures | None = None) -> tuple[str, ...]:
    """The labels of a replica, in alphabetical order.

    curve: step, train_loss, train_acc, val_acc, val_loss, each (E,).  measures: what was taken of it.

    ==================  ==============================================================  ==========================
    oscillating         two drops of val accuracy > .2 after its first crossing         decay or amplification high
    stagnating          unfitted, train accuracy gained < .02 over the second half      gradient too small
    collapsed           greatest amplifier weight `method/p_max` > .99                  amplifier one-hot
    outer-overfit       `outer_loss` falls, val loss rises over the second half         too few rows held back
    unstable            diverged, or train loss > 10 x its least so far                 filter too strong
    never-generalises   memorised; val accuracy gained < .02 over the second half       no decay, too little data
    cannot-settle       `used_norm` within 5 % of constant from grok to 2 x grok        switch-off missing
    slingshot           a spike of the train loss after fitting (see `slingshots`)      adaptive optimiser
    ==================  ==============================================================  ==========================
    """
    taken = dict(measures or {})
    rules: dict[str, Callable[[], bool]] = {
        "oscillating": lambda: _oscillates(curve, outcome),
        "stagnating": lambda: outcome.outcome == "unfitted" and _gain(curve["train_acc"]) < FLAT,
        "collapsed": lambda: any(bool((taken[name][1] > ONE_HOT).any()) for name in taken if _is_p_max(name)),
        "outer-overfit": lambda: "outer_loss" in taken and _overfits(curve, *taken["outer_loss"]),
        "unstable": lambda: outcome.diverged_step is not None or _explodes(curve["train_loss"]),
        "never-generalises": lambda: outcome.outcome == "memorised" and _gain(curve["val_acc"]) < FLAT,
        "cannot-settle": lambda: "used_norm" in taken and _steady(outcome, *taken["used_norm"]),
        "slingshot": lambda: len(slingshots(curve, taken.get("weight_norm"))) > 0,
    }
    return tuple(sorted(label for label, holds in rules.items() if holds()))


def slingshots(curve: Curve, weight_norm: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Steps of the evaluations at which the training loss spiked after fitting.

    A spike: more than 10 x the median of the five evaluations before, and more than 1 % of the first loss. Where the
    weight norm was measured it has to jump too: its step up over the spike is the largest of the last five.
    Source: the slingshot mechanism, arXiv 2206.04817, as norm and loss spikes at the granularity of the evaluations.
    """
    loss, steps = curve["train_loss"], curve["step"]
    fitted = np.flatnonzero(curve["train_acc"] >= FIT)
    if not len(fitted):
        return np.zeros(0, dtype=np.int64)
    found = []
    for i in range(max(USUAL, int(fitted[0]) + 1), len(loss)):
        usual = float(np.median(loss[i - USUAL : i]))
        spike = loss[i] > SPIKE * usual and loss[i] > NEGLIGIBLE * loss[0]
        if spike and (weight_norm is None or _jumps(int(steps[i]), *weight_norm)):
            found.append(int(steps[i]))
    return np.array(found, dtype=np.int64)


def _is_p_max(column: str) -> bool:
    return column.startswith("method/") and column.endswith("p_max")  # with its place in a chain between, or without


def _jumps(step: int, steps: np.ndarray, norms: np.ndarray) -> bool:
    at = int(np.searchsorted(steps, step, "right")) - 1
    if at < 2:
        return False
    rises = np.abs(np.diff(norms[max(0, at - USUAL) : at + 1]))
    return bool(rises[-1] >= rises.max())


def _gain(values: np.ndarray) -> float:
    """What the second half of a run added to its first half's best; infinite for a run too short to tell."""
    middle = len(values) // 2
    return float(values[middle:].max() - values[:middle].max()) if middle >= 2 else np.inf


def _oscillates(curve: Curve, outcome: Outcome) -> bool:
    if outcome.val_first_step is None:
        return False
    accuracy = curve["val_acc"][curve["step"] >= outcome.val_first_step]
    return int((np.diff(accuracy) < -DROP).sum()) >= 2


def _explodes(loss: np.ndarray) -> bool:
    if not len(loss):
        return False
    least = np.minimum.accumulate(loss)
    return bool((loss[1:] > np.maximum(SPIKE * least[:-1], NEGLIGIBLE * loss[0])).any())


def _overfits(curve: Curve, steps: np.ndarray, outer: np.ndarray) -> bool:
    end = int(curve["step"][-1]) if len(curve["step"]) else 0
    late, later = outer[steps >= end / 2], curve["val_loss"][curve["step"] >= end / 2]
    return len(late) >= 3 and len(later) >= 3 and bool(late[-1] < late[0] and later[-1] > later[0])


def _steady(outcome: Outcome, steps: np.ndarray, norms: np.ndarray) -> bool:
    if outcome.grok_step is None:
        return False
    late = norms[(steps >= outcome.grok_step) & (steps <= STABLE * outcome.grok_step)]
    return len(late) >= 3 and bool(late.max() - late.min() <= STEADY * late.mean())
