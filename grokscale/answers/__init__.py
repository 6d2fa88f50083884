"""From the store to the answer: what a sweep's replicas say, and what may not be said of them.

sides      one side of a comparison: an arm's confirmed replicas, and what both sides must share
compare    S of every arm over the baselines on every clock, the rows of `speedups`
curves     endpoints of other metrics, a row per endpoint and arm
papers     published values against our seeds, a row per [[paper]]
tasks      several sweeps as one answer
summary    outcomes, medians and delays, a row per arm
tuning     flags of a search, S against the tuning budget, one-knob slices
"""

from grokscale.answers.compare import compare, compute, rounds, speedups, switched
from grokscale.answers.curves import compute_endpoints, endpoints
from grokscale.answers.papers import verdicts
from grokscale.answers.sides import asked_for, known_to, newest_plan, seeds_of, undetermined
from grokscale.answers.summary import arms
from grokscale.answers.tasks import Across, across
from grokscale.answers.tuning import budget, flags, importances, slices

__all__ = [
    "Across",
    "across",
    "arms",
    "asked_for",
    "budget",
    "compare",
    "compute",
    "compute_endpoints",
    "endpoints",
    "flags",
    "importances",
    "known_to",
    "newest_plan",
    "rounds",
    "seeds_of",
    "slices",
    "speedups",
    "switched",
    "undetermined",
    "verdicts",
]
