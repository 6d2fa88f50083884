"""Ranges that methods search and Optuna has no name for."""

from __future__ import annotations

from optuna.distributions import FloatDistribution


class Complement(FloatDistribution):
    """low <= x <= high < 1, searched on the log scale of 1 - x: the decay of a running mean.

    A mean with decay x remembers about 1 / (1 - x) steps, so 0.9, 0.99 and 0.999 are equally far apart. low and high
    are of x itself, as it stands in files and tables; only the search sees 1 - x (`grokscale.search.asked`).

    Raises ValueError unless low < high < 1.
    """

    complement = True

    def __init__(self, low: float, high: float) -> None:
        if not low < high < 1:
            raise ValueError(f"low < high < 1 must hold, got low={low}, high={high}")
        super().__init__(low, high)
