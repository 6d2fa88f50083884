"""What a task's net costs a step, before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from grokscale.entries import Registry, TaskEntry
from grokscale.models import Model
from grokscale.tasks.base import Task, blank


def model_flops(entry: TaskEntry, registry: Registry) -> float:
    """Operations of a task's usual net on its usual batch, loss and gradient: the store's `flops_per_step`.

    Counted on the meta device, where nothing is computed, and without the task's files; or what the net declares.
    """
    task, batch = entry.factory(**entry.defaults), entry.optimiser["batch"]
    net, options = registry.models[entry.model["name"]], {k: v for k, v in entry.model.items() if k != "name"}
    if net.flops is not None:
        return net.flops(task, batch, {**net.defaults, **options})
    if entry.dataset is None:
        x, y = (t[:batch].to("meta") for t in task.splits(0, 0.0).train)
        y = y if task.labels is None else task.labels(y, 1)
    else:
        x, y = blank(task.inputs, batch)
    return counted(task, net.build(task, **options), x, y)


def counted(task: Task, net: Model, x: Tensor, y: Tensor) -> float:
    """Operations of the gradient of a task's loss on a batch (x, y) of the meta device, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(task.loss(net(x), y), list(net.parameters()))
    return float(counter.get_total_flops())
