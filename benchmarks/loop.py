"""The ordinary way to run these experiments, as the authors of Grokfast and NeuralGrok publish it: one model, one seed,
one process; torch modules, torch's Adam, the gradient filter as a function over named parameters.

Their structure (methods.md 3.1, 3.2, 1.1.2) written anew, as the other side of the comparisons.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((len(x), len(x)), -float("inf"), device=x.device, dtype=x.dtype).triu(1)
        x = self.ln_1(x)
        mixed, _ = self.attn(x, x, x, attn_mask=mask, need_weights=False)
        x = x + mixed
        return x + self.mlp(self.ln_2(x))


class Decoder(nn.Module):
    """Sequence first, every position computed, the loss taken at the last one."""

    def __init__(self, vocabulary: int, length: int, dim: int = 128, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids)
        h = h + self.positions(torch.arange(len(ids), device=ids.device).unsqueeze(-1).expand_as(ids))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def ema_filter(model: nn.Module, state: dict[str, Tensor] | None, alpha: float, lam: float) -> dict[str, Tensor]:
    """Grokfast-EMA as a function on `.grad`."""
    if state is None:
        state = {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        assert p.grad is not None
        state[name] = state[name] * alpha + p.grad.detach() * (1 - alpha)
        p.grad = p.grad.detach() + state[name] * lam
    return state


class Loop:
    """Grokfast-EMA on x y mod p with the decoder: `step()` trains by one batch of 512."""

    def __init__(self, p: int = 97, device: str = "cpu", filtered: bool = True) -> None:
        self.device, self.filtered = device, filtered
        source = torch.Generator().manual_seed(0)
        x, y = torch.cartesian_prod(torch.arange(p), torch.arange(1, p)).unbind(1)
        rows = torch.stack([x, torch.full_like(x, p + 1), y, torch.full_like(x, p), x * y % p])
        self.train = rows[:, torch.randperm(rows.shape[1], generator=source)[: rows.shape[1] // 2]].to(device)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = Decoder(p + 2, 5).to(device)
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.005)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda u: u / 10 if u <= 10 else 1)
        self.state: dict[str, Tensor] | None = None
        self.source, self.at = source, 0
        self.order = torch.randperm(self.train.shape[1], generator=source).to(device)

    def step(self) -> None:
        if self.at + 512 > len(self.order):
            self.order, self.at = torch.randperm(len(self.order), generator=self.source).to(self.device), 0
        batch = self.train[:, self.order[self.at : self.at + 512]]
        self.at += 512
        logits = self.model(batch[:-1])
        loss = F.cross_entropy(logits[-1], batch[-1])
        self.model.zero_grad()
        loss.backward()
        if self.filtered:
            self.state = ema_filter(self.model, self.state, 0.98, 2.0)
        self.optimiser.step()
        self.schedule.step()

    def steps(self, n: int) -> None:
        for _ in range(n):
            self.step()
