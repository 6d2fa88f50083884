"""The benchmarks' own code at tiny sizes, and what may be a default. Nothing here is timed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, precision, scaling, steps
from benchmarks.measure import table
from grokscale.spec.settings import ALWAYS
from grokscale.spec.tables import Resources
from tests.trials import GROKS, REGISTRY, trial

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"task": {"name": "modular-tokens", "p": 5}, "model": {"dim": 8, "heads": 2}, "optimiser": {"batch": 8}}


# ---------------------------------------------------------------------------------------- precisions


def unproven(defaults: set[str], passed: set[str]) -> set[str]:
    """Options that are a default and have not been shown to grok alike."""
    return defaults - passed - {precision.REFERENCE}


def defaults() -> set[str]:
    """The precisions that come unasked, by the names of the table."""
    tasks = {str(entry.optimiser.get("precision", ALWAYS["precision"])) for entry in REGISTRY.tasks.values()}
    methods = {str(entry.optimiser.get("precision", ALWAYS["precision"])) for entry in REGISTRY.methods.values()}
    return {f"{name}, compiled" if Resources().compile else name for name in tasks | methods | {ALWAYS["precision"]}}


def test_only_a_precision_that_groks_alike_is_a_default() -> None:
    recorded = precision.TABLE.read_text() if precision.TABLE.exists() else ""
    assert unproven(defaults(), precision.passed(recorded)) == set()


def test_what_failed_one_question_or_was_never_asked_is_unproven() -> None:
    rows = [["parity", "bf16", "yes"], ["decoder", "bf16", "no"], ["parity", "tf32", "yes"]]
    filled = [[question, option, *["1"] * (len(precision.HEAD) - 3), passed] for question, option, passed in rows]
    lines = [precision.HEAD, ["---"] * len(precision.HEAD), *filled]
    passed = precision.passed("\n".join("| " + " | ".join(cells) + " |" for cells in lines))
    assert passed == {"tf32"}
    assert unproven({"fp32", "tf32", "bf16", "fp32, compiled"}, passed) == {"bf16", "fp32, compiled"}


def test_grok_steps_are_compared_on_seeds_of_their_own() -> None:
    spec = trial(GROKS)
    question = precision.Question("small", spec, 2000)
    [row] = precision.compared([question], [precision.Option("bf16", "bf16")], seeds=3, lanes=4)
    text = precision.table([row])
    assert (row["result"].n, row["result"].censored_base) == (3, 0)
    assert precision.passed(text) == set()  # so few seeds show nothing, whatever they say
    assert precision.passed(precision.table([{**row, "seeds": 40, "holm": 0.01}])) == set()
    close = replace(row["result"], s=1.0, lo=0.9, hi=1.1)
    assert precision.passed(precision.table([{**row, "result": close, "seeds": 40, "holm": 0.5}])) == {"bf16"}
    wide = replace(row["result"], s=1.0, lo=0.5, hi=2.0)
    assert precision.passed(precision.table([{**row, "result": wide, "seeds": 40, "holm": 0.5}])) == set()


# ---------------------------------------------------------------------------------------- rows


def test_a_window_weighs_what_it_may() -> None:
    row = steps.window(steps.trial(steps.PARITY, "grokfast-ma", window=20), lanes=2)
    assert (row.met, row.measured, row.ours) == (True, "+5.0 %", "521kB")
    assert steps.window(steps.trial(steps.PARITY, "grokfast-ma", window=5), lanes=2).met is False  # and its sum


def test_a_run_that_is_watched_goes_to_the_horizon_or_says_so() -> None:
    assert min(steps.watched(trial(GROKS), 2, 50)) > 0
    with pytest.raises(RuntimeError, match=r"every replica has to run to step 2000"):
        steps.watched(trial(GROKS), 2, 2000)
    [row] = steps.looking({"small": (steps.PARITY, 2, 60)}, rounds=1)
    assert "in steps 25 to 60" in row.what and float(row.measured.removesuffix(" %")) < 100


def test_rows_of_scaling_at_tiny_sizes() -> None:
    proposed = scaling.proposing({12: 1e9})
    assert [(row.what, row.met) for row in proposed] == [
        ("proposing a trial of 2 knobs after 12 trials", True), ("proposing a trial of 4 knobs after 12 trials", True)]
    for row in scaling.filing((8, 20)):
        assert row.measured.startswith("8: ") and ", 20: " in row.measured
    assert scaling.flat("x", (1, 10), (1.0, 2.5)).met is False and scaling.flat("x", (1, 10), (1.0, 1.5)).met


def test_rows_for_a_gpu_run_on_any_device() -> None:
    rows = gpu.against_loop("cpu", tables=SMALL, p=5, lanes=2, seconds=0.01)
    rows += gpu.by_replicas("cpu", tables=SMALL, p=5, sizes=(1, 2), seconds=0.01)
    assert len(rows) == 7 and len(table(rows).splitlines()) == 9
    assert rows[-1].measured.startswith("1: ") and "2: " in rows[-1].measured


def test_launches_are_counted_without_views() -> None:
    with gpu.Launches() as counted:
        one = torch.zeros(2, 3)  # 1
        one.mT.reshape(-1).add_(1)  # a copy, since it is transposed: 2 more
        one.view(6)[1:].mul_(2)  # 1
    assert counted.count == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
def test_without_a_gpu_bench_gpu_says_so_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--write", str(tmp_path / "RESULTS-GPU.md")])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == "" and not list(tmp_path.iterdir())
    assert said.err == "bench-gpu: torch sees no GPU here; nothing was measured, nothing written\n"
