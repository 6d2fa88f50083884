"""METHODS: every gradient transform by name. A plugin adds its own entry to this dict."""

from __future__ import annotations

from grokscale.entries import Method
from grokscale.methods import egd, grokfast, none

METHODS: dict[str, Method] = {
    "none": Method("none", "g' = g", "the optimiser alone", none.none, none.DEFAULTS, none.SPACE, neutral={}),
    "grokfast-ema": Method(
        "grokfast-ema", "mu <- alpha mu + (1 - alpha) g;  g' = g + lam mu", "Grokfast, arXiv 2405.20233, Algorithm 2",
        grokfast.ema, grokfast.EMA_DEFAULTS, grokfast.EMA_SPACE, neutral={"lam": 0.0},
    ),
    "grokfast-ma": Method(
        "grokfast-ma", "g' = g + lam mean(last w gradients)", "Grokfast, arXiv 2405.20233, Algorithm 1",
        grokfast.ma, grokfast.MA_DEFAULTS, grokfast.MA_SPACE, neutral={"lam": 0.0},
    ),
    "egd": Method(
        "egd", "G = U S V^T;  G' = U min(1, S/eps) V^T", "EGD, arXiv 2510.04930, eq. (11), Algorithm 1",
        egd.egd, egd.EGD_DEFAULTS, egd.EGD_SPACE, neutral={"switch": -1.0},
    ),
    "egd-colnorm": Method(
        "egd-colnorm", "g_j' = g_j / max(||g_j||, floor) per neuron j", "EGD, arXiv 2510.04930, column-normalised form",
        egd.colnorm, egd.COLNORM_DEFAULTS, egd.COLNORM_SPACE, neutral={"switch": -1.0},
    ),
}
