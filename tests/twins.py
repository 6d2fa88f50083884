"""The bridge between grokscale's names and the modules of reference.py: copies of numbers, no mathematics."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from grokscale.tasks.base import Task
from grokscale.transform import Params
from tests import reference as ref

Net = TypeVar("Net", bound=torch.nn.Module)

TWO_LAYER = {"w1": "W1", "b1": "b1", "w2": "W2"}
TOP = {
    "tokens": "token.weight",
    "positions": "position.weight",
    "ln_w": "ln_f.weight",
    "ln_b": "ln_f.bias",
    "head": "head.weight",
}
PER_BLOCK = {
    "ln1_w": "ln_1.weight",
    "ln1_b": "ln_1.bias",
    "ln2_w": "ln_2.weight",
    "ln2_b": "ln_2.bias",
    "qkv_w": "attn.in_proj_weight",
    "qkv_b": "attn.in_proj_bias",
    "out_w": "attn.out_proj.weight",
    "out_b": "attn.out_proj.bias",
    "fc1_w": "fc1.weight",
    "fc1_b": "fc1.bias",
    "fc2_w": "fc2.weight",
    "fc2_b": "fc2.bias",
}


def decoder_names(layers: int) -> dict[str, str]:
    blocks = {f"{ours}_{i}": f"blocks.{i}.{theirs}" for i in range(layers) for ours, theirs in PER_BLOCK.items()}
    return TOP | blocks


def two_layer_twin(params: Params) -> ref.TwoLayer:
    """A reference net that holds copies of grokscale's parameters of one replica."""
    (fan_in, width), (_, fan_out) = params["w1"].shape, params["w2"].shape
    net = ref.TwoLayer(fan_in, width, fan_out)
    return _copied(net, params, TWO_LAYER)


def decoder_twin(params: Params, heads: int) -> ref.Decoder:
    layers = sum(key.startswith("fc1_w_") for key in params)
    vocabulary, dim = params["tokens"].shape
    with torch.random.fork_rng():  # PyTorch draws first weights from the global generator; they are replaced
        net = ref.Decoder(vocabulary, params["positions"].shape[0], dim, heads, layers)
    return _copied(net, params, decoder_names(layers))


def from_twin(net: ref.TwoLayer | ref.Decoder, grads: bool = False) -> Params:
    """The twin's parameters (or gradients) under grokscale's names."""
    names = TWO_LAYER if isinstance(net, ref.TwoLayer) else decoder_names(len(net.blocks))
    theirs = dict(net.named_parameters())
    if set(theirs) != set(names.values()):
        raise AssertionError(f"names differ: {set(theirs) ^ set(names.values())}")
    if grads:
        return {ours: _gradient(theirs[name]) for ours, name in names.items()}
    return {ours: theirs[name].detach().clone() for ours, name in names.items()}


def dense_input(task: Task, x: Tensor) -> Tensor:
    """What the reference net reads: the vectors themselves, or one-hot halves built row by row."""
    if task.inputs.kind == "pair":
        return ref.pair_input(task.inputs.size // 2, [(int(a), int(b)) for a, b in x])
    return x.to(ref.DTYPE) if task.inputs.kind == "vector" else x


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


def _copied(net: Net, params: Params, names: dict[str, str]) -> Net:
    theirs = dict(net.named_parameters())
    assert set(params) == set(names), set(params) ^ set(names)
    with torch.no_grad():
        for ours, name in names.items():
            assert theirs[name].shape == params[ours].shape, name
            theirs[name].copy_(params[ours])
    return net
