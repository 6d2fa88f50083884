"""What counts as a speed-up, as pure functions over arrays (evaluation.md sections 2 to 5). numpy and scipy only.

base       times, horizons, t intervals       endpoints  of curves, where nothing groks
speedup    S on one task                      across     over tasks: geometric mean, worst, profile
survival   Kaplan-Meier, log-rank, shares     published  a published value against our seeds
design     power, Holm, the price of tuning

Everywhere: a time T is in steps unless a clock is given, NaN or inf stands for "never", tau is the horizon,
and what lies beyond tau is censored. Ratios say "times fewer": S = 2 is half the steps of the baseline.
scipy.stats takes most of a second to import, so only the log-rank test loads it; reading results does not.
"""

from grokscale.stats.base import (
    LEVEL,
    LOG_SD,
    Clock,
    Floats,
    Interval,
    Times,
    clamped,
    geometric_mean_clamped,
    mean_interval,
    objective,
    paired_difference,
    power_of_two_up,
    welch,
)
from grokscale.stats.design import detectable, expected_best, holm, late_gain
from grokscale.stats.speedup import (
    EXACT,
    SpeedUp,
    correlation,
    label_swap,
    paired_speedup,
    rmst_ratio,
    sign_flip,
    unpaired_speedup,
)
from grokscale.stats.survival import (
    LogRank,
    Survival,
    kaplan_meier,
    logrank,
    median,
    p_sooner,
    rmst,
    wilson,
)

__all__ = [
    "EXACT",
    "LEVEL",
    "LOG_SD",
    "Clock",
    "Floats",
    "Interval",
    "LogRank",
    "SpeedUp",
    "Survival",
    "Times",
    "clamped",
    "correlation",
    "detectable",
    "expected_best",
    "geometric_mean_clamped",
    "holm",
    "kaplan_meier",
    "label_swap",
    "late_gain",
    "logrank",
    "mean_interval",
    "median",
    "objective",
    "p_sooner",
    "paired_difference",
    "paired_speedup",
    "power_of_two_up",
    "rmst",
    "rmst_ratio",
    "sign_flip",
    "unpaired_speedup",
    "welch",
    "wilson",
]
