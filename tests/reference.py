"""Slow, obvious twins of everything that grokscale computes for one replica.

Written from the papers' equations with ordinary modules, autograd and `torch.optim`, in float64, one replica,
one step at a time. Nothing here imports grokscale: agreement between the two is evidence because neither was
derived from the other. Initial parameters, splits and batch order are handed in, so that only mathematics is
compared.

Shapes: B batch, L tokens, D width, (fan_in, fan_out) for the two-layer net, (out, in) inside `nn.Linear`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPE = torch.float64

# --------------------------------------------------------------------------------------------------- models


class TwoLayer(nn.Module):
    """f(x) = W2' relu(W1' x + b1), dense input, no output bias; the two-layer net of EGD's experiments."""

    def __init__(self, fan_in: int, width: int, fan_out: int) -> None:
        super().__init__()
        self.W1 = nn.Parameter(torch.empty(fan_in, width, dtype=DTYPE))
        self.b1 = nn.Parameter(torch.empty(width, dtype=DTYPE))
        self.W2 = nn.Parameter(torch.empty(width, fan_out, dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x @ self.W1 + self.b1) @ self.W2

    def orthogonalised(self) -> list[tuple[str, int]]:
        """(name, dimension along which one hidden unit's incoming weights lie)."""
        return [("W1", 0)]

    def decayed_inside(self) -> list[Tensor]:
        return [self.W1, self.W2]


class Block(nn.Module):
    """x <- LN1(x); x <- x + MHA(x, x, x); x <- x + MLP(LN2(x)): the residual stream itself is normalised."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, dtype=DTYPE)
        self.ln_2 = nn.LayerNorm(dim, dtype=DTYPE)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True, dtype=DTYPE)
        self.fc1 = nn.Linear(dim, 4 * dim, dtype=DTYPE)
        self.fc2 = nn.Linear(4 * dim, dim, dtype=DTYPE)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        future = torch.triu(torch.ones(length, length, dtype=torch.bool), diagonal=1)
        x = self.ln_1(x)
        attended, _ = self.attn(x, x, x, attn_mask=future, need_weights=False)
        x = x + attended
        return x + self.fc2(F.gelu(self.fc1(self.ln_2(x))))


class Decoder(nn.Module):
    """The decoder shared by Grokfast and NeuralGrok; every position is computed, the last one is the answer."""

    def __init__(self, vocabulary: int, sequence: int, dim: int = 128, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, dim, dtype=DTYPE)
        self.position = nn.Embedding(sequence, dim, dtype=DTYPE)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(dim, dtype=DTYPE)
        self.head = nn.Linear(dim, vocabulary, bias=False, dtype=DTYPE)

    def all_positions(self, tokens: Tensor) -> Tensor:
        """Logits (B, L, V)."""
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.all_positions(tokens)[:, -1]

    def orthogonalised(self) -> list[tuple[str, int]]:
        return [(f"blocks.{i}.{fc}.weight", 1) for i in range(len(self.blocks)) for fc in ("fc1", "fc2")]

    def decayed_inside(self) -> list[Tensor]:
        raise NotImplementedError("the papers put the decoder's decay into Adam")


# ---------------------------------------------------------------------------------------------------- tasks


def modular_rows(p: int, op: str, include_zero: bool) -> list[tuple[int, int, int]]:
    """(a, b, a op b mod p) for every pair; Grokfast's table leaves b = 0 out, EGD's keeps it."""
    combine: dict[str, Callable[[int, int], int]] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
    }
    return [(a, b, combine[op](a, b) % p) for a, b in product(range(p), range(0 if include_zero else 1, p))]


def pair_input(p: int, pairs: Iterable[tuple[int, int]]) -> Tensor:
    """[onehot(a); onehot(b)], (B, 2p)."""
    rows = []
    for a, b in pairs:
        row = [0.0] * (2 * p)
        row[a] = 1.0
        row[p + b] = 1.0
        rows.append(row)
    return torch.tensor(rows, dtype=DTYPE)


def token_input(p: int, pairs: Iterable[tuple[int, int]]) -> Tensor:
    """[x, op, y, =] with = is p and op is p + 1, (B, 4)."""
    return torch.tensor([[a, p + 1, b, p] for a, b in pairs])


def parity_label(x: Sequence[float], k: int) -> float:
    label = 1.0
    for value in x[:k]:
        label = label * value
    return label


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return -(out - out.exp().sum(1, keepdim=True).log()).gather(1, y[:, None]).mean()


def squared_error(out: Tensor, y: Tensor) -> Tensor:
    return ((out[:, 0] - y) ** 2).mean()


def hinge(out: Tensor, y: Tensor) -> Tensor:
    return torch.clamp(1 - y * out[:, 0], min=0).mean()


def class_accuracy(out: Tensor, y: Tensor) -> float:
    return sum(int(o.argmax()) == int(t) for o, t in zip(out, y, strict=True)) / len(y)


def sign_accuracy(out: Tensor, y: Tensor) -> float:
    return sum(float(o) * float(t) > 0 for o, t in zip(out[:, 0], y, strict=True)) / len(y)


# -------------------------------------------------------------------------------------------------- methods
# A method changes `.grad` in place, after backward and before the optimiser, as the papers' code does.


class Nothing:
    """The plain gradient."""

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        del net, validation_accuracy


@dataclass
class GrokfastMA:
    """g + lam * mean(last `window` gradients), silent until the window is full if `warmup`."""

    window: int = 100
    lam: float = 5.0
    warmup: bool = True
    filter_type: str = "mean"
    queues: dict[str, deque[Tensor]] = field(default_factory=dict)

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            queue = self.queues.setdefault(name, deque(maxlen=self.window))
            queue.append(parameter.grad.clone())
            if self.warmup and len(queue) < self.window:
                continue
            total = torch.stack(list(queue)).sum(0)
            low = total / len(queue) if self.filter_type == "mean" else total
            parameter.grad = parameter.grad + self.lam * low


@dataclass
class GrokfastEMA:
    """mu <- alpha mu + (1 - alpha) g; g + lam * mu; mu starts as the first gradient, or at zero."""

    alpha: float = 0.98
    lam: float = 2.0
    init: str = "first_grad"
    mean: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.clone()
            start = gradient if self.init == "first_grad" else torch.zeros_like(gradient)
            previous = self.mean.get(name, start)
            self.mean[name] = self.alpha * previous + (1 - self.alpha) * gradient
            parameter.grad = gradient + self.lam * self.mean[name]


def egalitarian(gradient: Tensor, eps: float = 1e-6) -> Tensor:
    """U diag(1 / max(s, eps)) U' G with the full singular value decomposition of G (m, n)."""
    u, s, _ = torch.linalg.svd(gradient, full_matrices=False)
    return u @ torch.diag(1 / torch.clamp(s, min=eps)) @ u.T @ gradient


def column_normalised(gradient: Tensor, incoming: int, floor: float = 0.01) -> Tensor:
    """Each unit's gradient over max(its norm, floor); `incoming` is the dimension of the incoming weights."""
    out = gradient.clone()
    for unit in range(gradient.shape[1 - incoming]):
        column = gradient.select(1 - incoming, unit)
        out.select(1 - incoming, unit).copy_(column / max(float(column.norm()), floor))
    return out


@dataclass
class Egalitarian:
    """EGD or its column normalisation on the listed matrices, off once validation accuracy passed `threshold`."""

    kind: str = "egd"  # egd | colnorm
    threshold: float | None = 0.95
    sticky: bool = True
    eps: float = 1e-6
    floor: float = 0.01
    axis: str = "neuron"
    off: bool = False

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        if self.threshold is not None:
            above = validation_accuracy > self.threshold
            self.off = above or (self.sticky and self.off)
        if self.off:
            return
        parameters = dict(net.named_parameters())
        for name, incoming in net.orthogonalised():  # type: ignore[operator]
            gradient = parameters[name].grad
            assert gradient is not None
            if self.kind == "egd":
                parameters[name].grad = egalitarian(gradient, self.eps)
            else:
                dimension = incoming if self.axis == "neuron" else 1 - incoming
                parameters[name].grad = column_normalised(gradient, dimension, self.floor)


class Chain:
    """Several methods, one after the other."""

    def __init__(self, *methods: Callable[[nn.Module, float], None]) -> None:
        self.methods = methods

    def __call__(self, net: nn.Module, validation_accuracy: float) -> None:
        for method in self.methods:
            method(net, validation_accuracy)


METHODS: dict[str, Callable[..., Callable[[nn.Module, float], None]]] = {
    "none": Nothing,
    "grokfast-ma": GrokfastMA,
    "grokfast-ema": GrokfastEMA,
    "egd": lambda **knobs: Egalitarian("egd", **knobs),
    "egd-colnorm": lambda **knobs: Egalitarian("colnorm", **knobs),
}

# ------------------------------------------------------------------------------------------------- the loop


@dataclass
class Optimiser:
    """What torch.optim is asked for. decay: inside the loss | coupled (torch's L2) | decoupled (AdamW)."""

    name: str = "sgd"
    lr: float = 0.1
    wd: float = 0.0
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    decay: str = "inside"
    warmup: int = 0

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        wd = 0.0 if self.decay == "inside" else self.wd
        if self.name == "sgd":
            assert self.decay != "decoupled"
            return torch.optim.SGD(net.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=wd)
        kind = torch.optim.AdamW if self.decay == "decoupled" else torch.optim.Adam
        return kind(net.parameters(), lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=wd)


def warmup_factor(updates: int, warmup: int = 10) -> float:
    """The papers' LambdaLR: updates / 10 up to 10, then 1: the very first step moves nothing."""
    return 1.0 if updates > warmup or warmup == 0 else updates / warmup


@dataclass
class Split:
    x: Tensor
    y: Tensor


@dataclass
class Trace:
    """What the loop saw: the loss of every batch, and loss and accuracy of the splits at every evaluation."""

    batch_loss: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    loss: dict[str, list[float]] = field(default_factory=dict)
    accuracy: dict[str, list[float]] = field(default_factory=dict)


def train(
    net: TwoLayer | Decoder,
    splits: Mapping[str, Split],
    batches: Sequence[Sequence[int]],
    optimiser: Optimiser,
    method: Callable[[nn.Module, float], None],
    loss: Callable[[Tensor, Tensor], Tensor],
    accuracy: Callable[[Tensor, Tensor], float],
    evaluate_at: Iterable[int] = (),
) -> Trace:
    """`len(batches)` steps on `net` in place. `splits` holds train, val and test; `batches` are train rows."""
    steps = set(evaluate_at)
    torch_optimiser = optimiser.build(net)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        torch_optimiser, lambda update: warmup_factor(update, optimiser.warmup)
    )
    trace = Trace(loss={name: [] for name in splits}, accuracy={name: [] for name in splits})
    validation_accuracy = 0.0
    for step, rows in enumerate(batches, start=1):
        index = torch.as_tensor(rows)
        torch_optimiser.zero_grad()
        value = loss(net(splits["train"].x[index]), splits["train"].y[index])
        trace.batch_loss.append(float(value.detach()))
        if optimiser.decay == "inside" and optimiser.wd:
            for matrix in net.decayed_inside():
                value = value + 0.5 * optimiser.wd * (matrix**2).sum()
        value.backward()
        method(net, validation_accuracy)
        torch_optimiser.step()
        schedule.step()
        if step in steps:
            trace.steps.append(step)
            with torch.no_grad():
                for name, split in splits.items():
                    out = net(split.x)
                    trace.loss[name].append(float(loss(out, split.y)))
                    trace.accuracy[name].append(accuracy(out, split.y))
            validation_accuracy = trace.accuracy["val"][-1] if "val" in trace.accuracy else 0.0
    return trace


# ------------------------------------------------------------------------------------------------- outcomes


def sustained_crossing(steps: Sequence[int], accuracy: Sequence[float], threshold: float) -> int | None:
    """First evaluation t from which accuracy stays at or above threshold up to 1.1 t, for three at least.

    None where no evaluation is known to be one: the curve dips, ends too early or never gets there.
    """
    for i, start in enumerate(steps):
        window = [j for j in range(i, len(steps)) if steps[j] <= 1.1 * start + 1e-9]
        window = list(range(i, max(i + 3, window[-1] + 1)))
        if window[-1] >= len(steps):
            continue
        if steps[-1] * (1 + 1e-12) < 1.1 * start:
            continue
        if all(accuracy[j] >= threshold for j in window):
            return start
    return None


# ---------------------------------------------------------------------------------------- expected constants


def decoder_size(vocabulary: int, sequence: int, dim: int, layers: int) -> int:
    """Scalars of the decoder, counted by hand."""
    attention = 3 * dim * dim + 3 * dim + dim * dim + dim
    mlp = dim * 4 * dim + 4 * dim + 4 * dim * dim + dim
    norms = 2 * (2 * dim)
    return vocabulary * dim + sequence * dim + layers * (attention + mlp + norms) + 2 * dim + dim * vocabulary


def initial_deviation(fan_in: int) -> float:
    """sqrt(2 / fan_in), the normal initialisation of the two-layer net."""
    return math.sqrt(2 / fan_in)
