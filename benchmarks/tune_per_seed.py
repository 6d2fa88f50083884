"""The sweep of `sweeps.against_tune` as Ray Tune documents it: a function that trains one seed, a trial each."""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"

import torch
from ray import tune
from torch import nn

from grokscale.rng import generator
from grokscale.tasks.parity import parity


def train(config: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    train_set, _, test_set = parity(n=60).splits(config["seed"], 0.5)
    model = nn.Sequential(nn.Linear(60, 100), nn.ReLU(), nn.Linear(100, 1, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"], weight_decay=config["wd"])
    x, y = train_set.x.float(), train_set.y.float()
    order = torch.randperm(len(y), generator=generator(config["seed"], "order"))
    for step in range(1, config["steps"] + 1):
        rows = order[torch.arange(32 * (step - 1), 32 * step) % len(y)]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[rows]).squeeze(-1), y[rows]).backward()
        optimizer.step()
        if step % 50 == 0:  # as often as the sweep looks at this horizon, on as many rows
            with torch.no_grad():
                out = model(test_set.x[:1024].float()).squeeze(-1)
                tune.report({"accuracy": float((out * test_set.y[:1024] > 0).float().mean())})


def main() -> None:
    trials, seeds, steps = map(int, sys.argv[1:])
    space = {
        "lr": tune.loguniform(0.002, 0.005), "wd": tune.loguniform(0.001, 0.002),
        "seed": tune.grid_search(list(range(seeds))), "steps": steps,
    }  # fmt: skip
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}), param_space=space,
        tune_config=tune.TuneConfig(metric="accuracy", mode="max", num_samples=trials),
    )  # fmt: skip
    print(tuner.fit().get_best_result().metrics)


if __name__ == "__main__":
    main()
