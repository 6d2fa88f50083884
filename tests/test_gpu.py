"""What a GPU adds: graphs that change no number, replicas on several devices. Without one, what it falls back to."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from grokscale.train import sharded, train
from grokscale.train.graphs import Graphed
from grokscale.train.pack import METRICS
from tests.trials import GROKS, REGISTRY, trial

EVERY = {"every": 0.02, "min": 10, "examples": 1024}
without = pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED ON A GPU: there is none here")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which can record")
def test_what_cannot_be_recorded_is_called_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def double(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        calls.append(1)
        return 2 * tensors["a"]

    graphed = Graphed(double)
    with caplog.at_level(logging.WARNING, "grokscale"):
        answers = [graphed({"a": torch.full((n,), float(n))}) for n in (1, 2, 2)]
    assert [one.tolist() for one in answers] == [[2.0], [4.0, 4.0], [4.0, 4.0]]
    assert len(calls) == 3
    assert len(caplog.records) == 1 and "no CUDA graph" in caplog.text


@pytest.mark.gpu
@without
@pytest.mark.parametrize("form", ["pairs-mlp2", "tokens-decoder"])
@pytest.mark.parametrize("method", ["none", "egd", "grokfast-ema", "neuralgrok"])
def test_a_graph_changes_no_number(form: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = trial(form, method, every=EVERY)
    *_, recorded = train(spec, [1, 2, 3], horizon=40, registry=REGISTRY, device="cuda")
    gradient = recorded._pack.program.gradient
    assert isinstance(gradient, Graphed) and not gradient.refused
    monkeypatch.setattr(Graphed, "__call__", lambda self, *args: self.function(*args))
    *_, eager = train(spec, [1, 2, 3], horizon=40, registry=REGISTRY, device="cuda")
    for name in METRICS:
        assert np.array_equal(recorded.curves()[name], eager.curves()[name], equal_nan=True), name


@pytest.mark.gpu
@without
def test_a_pack_that_shrinks_is_recorded_anew() -> None:
    """Replicas end one after the other, and each has the bits that it has alone."""
    spec = trial(GROKS, every=EVERY)
    *_, all_ = train(spec, [1, 2, 3, 4, 5], horizon=2000, registry=REGISTRY, device="cuda")
    *_, two = train(spec, [2, 5], horizon=2000, registry=REGISTRY, device="cuda")
    together, apart = ({row["seed"]: row["grok_step"] for row in one.replicas()} for one in (all_, two))
    assert {seed: together[seed] for seed in apart} == apart


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NOT TESTED ON SEVERAL GPUS: there are fewer than two here")
def test_replicas_dealt_out_to_gpus_train_as_on_one() -> None:
    spec, seeds = trial(GROKS, every=EVERY), [1, 2, 3, 4]
    devices = [f"cuda:{i}" for i in range(min(4, torch.cuda.device_count()))]
    *_, one = train(spec, seeds, horizon=200, registry=REGISTRY, device="cuda:0")
    *_, dealt = sharded(spec, seeds, devices=devices, horizon=200, registry=REGISTRY)
    for name, column in one.curves().items():
        assert np.array_equal(column, dealt.curves()[name], equal_nan=True), name
