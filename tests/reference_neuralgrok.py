"""NeuralGrok as its paper and its authors' loop have it: a plain network on every entry, autograd, torch.optim.

The slow twin of grokscale/methods/neuralgrok.py, in float64, one replica, one step at a time. Imports no grokscale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from tests.reference import DTYPE, Optimiser, Split, warmup_factor


def amplifier(widths: Sequence[int], weights: Mapping[str, Tensor]) -> nn.Sequential:
    """Linear(1, h1) ReLU ... Linear(h, 1) with copies of the weights {"w1": ..., "b1": ..., "w2": ...}."""
    layers: list[nn.Module] = []
    sizes = [1, *widths, 1]
    for i in range(len(sizes) - 1):
        with torch.random.fork_rng():  # PyTorch draws from the global generator; the weights are replaced
            linear = nn.Linear(sizes[i], sizes[i + 1], dtype=DTYPE)
        with torch.no_grad():
            linear.weight.copy_(weights[f"w{i + 1}"])
            linear.bias.copy_(weights[f"b{i + 1}"])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def weights_of(network: nn.Sequential) -> dict[str, Tensor]:
    linears = [layer for layer in network if isinstance(layer, nn.Linear)]
    named = {f"w{i}": linear.weight for i, linear in enumerate(linears, start=1)}
    return named | {f"b{i}": linear.bias for i, linear in enumerate(linears, start=1)}


def amplified(gradient: Tensor, network: nn.Module, c: float) -> Tensor:
    """Equation 2: c p g / ||p g|| with p the softmax over all entries of this one tensor."""
    column = gradient.reshape(-1, 1)
    weighted = torch.softmax(network(column), dim=0) * column
    return (c * weighted / weighted.norm()).reshape(gradient.shape)


def transformed(gradients: Mapping[str, Tensor], network: nn.Module, c: float, scope: str) -> dict[str, Tensor]:
    if scope == "tensor":
        return {name: amplified(g, network, c) for name, g in gradients.items()}
    whole = amplified(torch.cat([g.reshape(-1) for g in gradients.values()]), network, c)
    out, start = {}, 0
    for name, g in gradients.items():
        out[name] = whole[start : start + g.numel()].reshape(g.shape)
        start += g.numel()
    return out


def train(
    net: nn.Module,
    network: nn.Sequential,
    inner: Split,
    outer: Split,
    batches: Sequence[Sequence[int]],
    optimiser: Optimiser,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    c: float,
    period: int,
    rate: float,
    meta_wd: float,
    clip: float | None,
    scope: str = "tensor",
    lookahead_from: str = "post",
) -> list[float]:
    """The authors' loop, `len(batches)` steps on net and network in place; the outer losses."""
    base = optimiser.build(net)
    schedule = torch.optim.lr_scheduler.LambdaLR(base, lambda update: warmup_factor(update, optimiser.warmup))
    meta = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=meta_wd)
    outer_losses = []

    def gradients(rows: Tensor) -> dict[str, Tensor]:
        named = dict(net.named_parameters())
        value = loss(net(inner.x[rows]), inner.y[rows])
        return dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))

    for step, numbers in enumerate(batches, start=1):
        rows = torch.as_tensor(numbers)
        raw = gradients(rows)
        start = {name: p.detach().clone() for name, p in net.named_parameters()}
        with torch.no_grad():
            used = transformed(raw, network, c, scope)
        for name, p in net.named_parameters():
            p.grad = used[name].clone()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        base.step()
        schedule.step()
        if step % period:
            continue
        if lookahead_from == "post":
            raw = gradients(rows)
            start = {name: p.detach().clone() for name, p in net.named_parameters()}
        move = transformed(raw, network, c, scope)
        ahead = {name: start[name] - optimiser.lr * move[name] for name in start}
        outer_loss = loss(torch.func.functional_call(net, ahead, (outer.x,)), outer.y)
        outer_losses.append(float(outer_loss.detach()))
        meta.zero_grad()
        outer_loss.backward()
        meta.step()
    return outer_losses
