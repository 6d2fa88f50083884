"""Writes the golden curves anew: `python -m tests.golden.regenerate`, or of some methods: `... regenerate egd`.

A change of numerics either passes them or replaces them, raises the VERSION of what it changed, and says why in the
changelog. Recorded on one CPU (AVX-512) and tried with the kernels of others: with those of AVX2 losses agree within
2e-12 relative, with plain ones (`ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE`) within 5e-6, because torch then
draws some first weights one float32 digit differently. Accuracies agree exactly with both.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "plugins"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from grokscale.train import METRICS, train  # noqa: E402
from tests.trials import FORMS, REGISTRY, fits, trial  # noqa: E402
from tests.trials import KNOBS as USUAL  # noqa: E402

GROKFAST = ("grokfast-ema", "grokfast-ma")
EGD = ("egd", "egd-colnorm", "egd-rsvd", "egd-topk", "egd-power")
CONTROLS = ("normgrad", "orthograd", "nap", "elr-rewarm", "ngd-toy")
RIVALS = ("grokalign", "muon", "shampoo", "soap", "ademamix", "grokadamw")
METHODS = ("none", *GROKFAST, *EGD, "neuralgrok", *CONTROLS, *RIVALS)
CASES = [(method, form) for method in METHODS for form in sorted(FORMS) if fits(method, form)]
# More leading directions than one are told apart by less than another CPU's rounding, sooner or later in 200 steps.
KNOBS = {"egd-topk": {"rank": 1}}
STEPS = {"tokens-decoder": 100}  # a step of the decoder takes six times as long
SEEDS = (1, 2)


def path(method: str, form: str) -> Path:
    return FOLDER / f"{method}.{form}.json"


def record(method: str, form: str) -> dict[str, Any]:
    """{"step": [...], seed: {metric: [...]}} of a run of 200 steps, or STEPS of its form, that nothing ends early."""
    knobs = KNOBS.get(method, USUAL.get(method, {}))
    every = {"every": 0.02, "min": 25, "examples": 1024}
    spec = trial(form, [{"name": method, **knobs}], precision="fp64", threshold=1.1, every=every)
    *_, end = train(spec, SEEDS, horizon=STEPS.get(form, 200), registry=REGISTRY)
    curves = end.curves()
    first = curves["seed"] == SEEDS[0]
    out: dict[str, Any] = {"step": curves["step"][first].tolist()}
    for seed in SEEDS:
        rows = curves["seed"] == seed
        out[str(seed)] = {name: [float(f"{v:.12g}") for v in curves[name][rows]] for name in METRICS}
    return out


def main() -> None:
    for method, form in CASES:
        if sys.argv[1:] and method not in sys.argv[1:]:
            continue
        text = json.dumps(record(method, form), indent=1)
        path(method, form).write_text(text + "\n")
        print(path(method, form).name)


if __name__ == "__main__":
    main()
