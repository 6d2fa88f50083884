"""From the store to the answer: what a sweep's replicas say, and what may not be said of them.

sides      one side of a comparison: an arm's confirmed replicas, and what both sides must share
compare    S of every arm over the baselines on every clock, the rows of `speedups`
curves     endpoints of other metrics, a row per endpoint and arm
summary    outcomes, medians and delays, a row per arm
"""

from grokscale.answers.compare import compare, compute, speedups
from grokscale.answers.curves import endpoints
from grokscale.answers.sides import seeds_of
from grokscale.answers.summary import arms

__all__ = ["arms", "compare", "compute", "endpoints", "seeds_of", "speedups"]
