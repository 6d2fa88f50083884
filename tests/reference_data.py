"""Slow, obvious twins of what reads data and of the models that learn from it: ordinary modules, loops over edges."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from grokscale.transform import Params


def read_bytes(path: Path, shape: Sequence[int]) -> Tensor:
    """The last bytes of a gzipped IDX file, as many as `shape` holds."""
    raw = gzip.decompress(path.read_bytes())
    return torch.tensor(list(raw[-math.prod(shape) :]), dtype=torch.uint8).view(*shape)


def omnigrok_mse(out: Tensor, y: Tensor) -> Tensor:
    """Mean over rows and outputs against rows of the identity."""
    return nn.functional.mse_loss(out, torch.eye(out.shape[1], dtype=out.dtype)[y.long()])


def words(text: str, stop: frozenset[str]) -> list[str]:
    """Lower case, split at blanks; of each piece what is a letter or an underscore; no stop words."""
    pieces = [re.sub(r"\d", "", re.sub(r"[^\w\s]", "", piece)) for piece in text.lower().split()]
    return [piece for piece in pieces if piece and piece not in stop]


def mlp_twin(params: Params) -> nn.Sequential:
    layers: list[nn.Module] = []
    depth = len(params) // 2
    for i in range(1, depth + 1):
        out, fan_in = params[f"w{i}"].shape
        with torch.random.fork_rng():
            linear = nn.Linear(fan_in, out, dtype=torch.float64)
        linear.weight.data, linear.bias.data = params[f"w{i}"].clone(), params[f"b{i}"].clone()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp_gradients(twin: nn.Sequential) -> Params:
    linears = [layer for layer in twin if isinstance(layer, nn.Linear)]
    out: Params = {}
    for i, layer in enumerate(linears, start=1):
        assert layer.weight.grad is not None and layer.bias.grad is not None
        out |= {f"w{i}": layer.weight.grad, f"b{i}": layer.bias.grad}
    return out


class LstmTwin(nn.Module):
    """nn.Embedding, nn.LSTM, nn.Linear on the output of the last position."""

    NAMES = ("ih_w", "weight_ih"), ("hh_w", "weight_hh"), ("ih_b", "bias_ih"), ("hh_b", "bias_hh")

    def __init__(self, vocabulary: int, dim: int, width: int, layers: int) -> None:
        super().__init__()
        with torch.random.fork_rng():  # the weights that modules draw for themselves are not used
            self.embedding = nn.Embedding(vocabulary, dim)
            self.lstm = nn.LSTM(dim, width, layers, batch_first=True)
            self.fc = nn.Linear(width, 1)
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embedding(ids))[0][:, -1])

    def state(self, params: Params) -> Params:
        """Our parameters by the names of these modules."""
        out = {"embedding.weight": params["tokens"], "fc.weight": params["head"], "fc.bias": params["head_b"]}
        for i in range(self.lstm.num_layers):
            out |= {f"lstm.{theirs}_l{i}": params[f"{ours}_{i}"] for ours, theirs in self.NAMES}
        return out

    def outputs_and_gradients(self, params: Params, ids: Tensor, y: Tensor) -> tuple[Tensor, Params]:
        """(probabilities, gradients by our names) of BCE on sigmoids, as Grokfast's script has it."""
        state = {name: p.clone().requires_grad_() for name, p in self.state(params).items()}
        probabilities = torch.sigmoid(functional_call(self, state, (ids,))).squeeze(-1)
        nn.functional.binary_cross_entropy(probabilities, y.double()).backward()
        gradients = {ours: state[name].grad for ours, name in self._back(params).items()}
        return probabilities.detach(), {k: g for k, g in gradients.items() if g is not None}

    def _back(self, params: Params) -> dict[str, str]:
        names = list(self.state(params))
        ours = list(self.state({k: torch.empty(0) for k in params}))
        assert names == ours
        keys = ["tokens", "head", "head_b"]
        keys += [f"{short}_{i}" for i in range(self.lstm.num_layers) for short, _ in self.NAMES]
        return dict(zip(keys, names, strict=True))


def edges(row: Tensor, features: int, kinds: int) -> list[tuple[int, int, int]]:
    """(kind, from, to) of every directed edge in a padded graph."""
    n = len(row)
    joined = row[:, features:].view(n, kinds, n)
    return [(k, j, i) for i in range(n) for k in range(kinds) for j in range(n) if joined[i, k, j]]


def graph_output(params: Params, row: Tensor, features: int, kinds: int, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """A molecule through NNConv, NNConv, sum, linear, relu, linear: edge by edge, without padding."""
    count = int((row[:, :features].abs().sum(1) > 0).sum())
    bonds = edges(row, features, kinds)
    x = [row[i, :features].double() for i in range(count)]
    for layer, (fan_in, fan_out) in enumerate(sizes):

        def p(name: str, layer: int = layer) -> Tensor:
            return params[f"{name}_{layer}"]

        new = [p("root_w") @ x[i] + p("conv_b") for i in range(count)]
        for kind, j, i in bonds:
            feature = torch.zeros(kinds, dtype=torch.float64)
            feature[kind] = 1
            hidden = torch.relu(p("edge1_w") @ feature + p("edge1_b"))
            theta = (p("edge2_w") @ hidden + p("edge2_b")).view(fan_in, fan_out)
            new[i] = new[i] + x[j] @ theta
        x = [torch.relu(row_) for row_ in new]
    pooled = torch.stack(x).sum(0)
    hidden = torch.relu(params["fc_w"] @ pooled + params["fc_b"])
    return params["head_w"] @ hidden + params["head_b"]
