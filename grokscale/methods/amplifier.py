"""NeuralGrok's amplifier, a ReLU network R -> R, evaluated exactly through its breakpoints (methods.md 1.2.4b).

On an interval in which no unit changes sign such a network is one affine map, so over N entries of a gradient it is
piecewise affine with few pieces: about 10 for [128, 128] at initialisation. The network runs on pieces, not on
entries:

1. Knots, layer by layer. On every piece, every pre-activation is known as an affine map (slope, offset); its root,
   where it falls inside the piece, is a knot. The pieces are split there and the next layer starts from them. Units of
   the first layer turn on or off once, one at every knot, so the second layer's maps are a running sum over pieces
   (`_Units`), and only those of further layers a product for every piece.
2. Values. Each entry looks up its piece; y = slope x + offset.
3. Gradients. With s1 = sum of dL/dy x and s0 = sum of dL/dy over the entries of a piece, (s1, s0) is the gradient with
   respect to the piece's (slope, offset), and goes back through the network with the piece's signs.

All three are exact up to rounding: values are continuous across knots, and dL/dphi does not see a knot move. There is
no bound on the number of knots and no fallback, since the tables are as long as the longest in the pack needs. That
length is decided from values, which `torch.func.vmap` forbids; so the evaluation is a `torch.autograd.Function` whose
own vmap rule sees all lanes at once, and what it does is one operation to who writes a step down (`train.replay`). A
lane's bits do not depend on how long its neighbours' tables are: what a table is used for is elementwise, a look-up, or
a running sum, or a product over blocks of BLOCK pieces, whose shape is always the same.

Legend: L lanes, N entries, P pieces (padded), h units of a layer. Pieces and their sums are float64 throughout.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokscale import data
from grokscale.entries import content_digest
from grokscale.transform import Params

BLOCK = 64  # pieces whose affine maps go through a layer in one product
STRETCH = 16  # pieces of a running sum that are summed first; a share of BLOCK
CELLS = 4096  # of the grid over [min x, max x] that a look-up starts from
CHUNK = 65_536  # entries worked on at a time on a CPU
CLUSTER = 16  # knots in one cell beyond which a binary search is quicker

LAYOUT = "grokscale amplifier 1"  # of a saved file

Layers = list[tuple[Tensor, Tensor]]


def initial(widths: Sequence[int], generator: torch.Generator, like: Tensor) -> Params:
    """PyTorch's default Linear initialisation, U(-1, 1) / sqrt(fan in), of 1 -> widths -> 1; no widths is affine.

    like: a tensor of the dtype and device wanted. Returns {"w1": (h1, 1), "b1": (h1,), ..., "wK": (1, h), "bK": (1,)}.
    """
    phi: Params = {}
    for i, (fan_in, fan_out) in enumerate(zip((1, *widths), (*widths, 1), strict=True), start=1):
        for name, shape in ((f"w{i}", (fan_out, fan_in)), (f"b{i}", (fan_out,))):
            drawn = (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
            phi[name] = drawn.to(like.device, like.dtype)
    return phi


def evaluate(phi: Params, x: Tensor) -> Tensor:
    """The network at every entry: y = phi(x), exactly, differentiable once with respect to phi alone.

    phi: as `initial` makes it.  x: (N,).  Returns (N,). x counts as constant: dy/dx is never formed.
    """
    weights = [phi[f"{kind}{i}"] for i in range(1, len(phi) // 2 + 1) for kind in "wb"]
    y, _, _ = _Evaluate.apply(x.detach().unsqueeze(0), *(w.unsqueeze(0) for w in weights))  # type: ignore[misc]
    return y.squeeze(0)


def knots(phi: Params, low: float, high: float) -> Tensor:
    """The points between low and high at which phi changes its slope, sorted, float64."""
    weights = [phi[f"{kind}{i}"].detach().unsqueeze(0) for i in range(1, len(phi) // 2 + 1) for kind in "wb"]
    ends = torch.tensor([low, high], dtype=torch.float64, device=weights[0].device).unsqueeze(1)
    found = _pieces(ends[0], ends[1], _layers(weights))[0]
    return found[torch.isfinite(found)]


def packed(phi: Params) -> bytes:
    """An amplifier as the content of a file, for `load`. phi: of a state; float64 numbers stay float64."""
    buffer = io.BytesIO()
    torch.save({"layout": LAYOUT, "phi": {k: t.detach().cpu().clone() for k, t in phi.items()}}, buffer)
    return buffer.getvalue()


def load(knob: str) -> Params:
    """The amplifier of a file that `grokscale run --save-learned FILE` wrote.

    knob: "FILE@HASH", FILE in the folder of data files (`data.folder`) or else in the current one, HASH the first
    digits of its sha256. The content thus belongs to the identity of a trial, wherever the folder is.
    Raises ValueError where the file is missing, is another one, or holds none.
    """
    name, _, given = knob.rpartition("@")
    places = [folder / (name or knob) for folder in (data.folder(), Path.cwd())]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        missing = " nor ".join(dict.fromkeys(map(str, places)))
        raise ValueError(f"amplifier must be FILE@HASH of a saved amplifier: there is no file {missing}")
    content = path.read_bytes()
    found = content_digest(content)
    if not name or given != found:
        what = f"not {given!r}" if name else "and it must be named"
        raise ValueError(f"the file of amplifier has the hash {found}, {what}; give '{name or knob}@{found}' for it")
    archive = zipfile.is_zipfile(io.BytesIO(content))  # what torch.load does with another file is anyone's guess
    saved = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu") if archive else None
    if not isinstance(saved, dict) or saved.get("layout") != LAYOUT:
        raise ValueError(f"amplifier {path} is no file of a saved amplifier, or one of another version")
    return saved["phi"]


class _Evaluate(torch.autograd.Function):
    """(x (L, N), weights with a leading L) -> (y (L, N), piece of every entry (L, N), a point of every piece (L, P))"""

    @staticmethod
    def forward(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.grokscale.evaluate(x, weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        x, *weights = inputs
        _, piece, mids = output
        ctx.mark_non_differentiable(piece, mids)
        ctx.save_for_backward(x, piece, mids, *weights)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, piece, mids, *weights = ctx.saved_tensors
        return None, *_Pull.apply(slopes[0], x, piece, mids, *weights)  # type: ignore[misc]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, Any]:
        return _as_lanes(_Evaluate, info.batch_size, in_dims, inputs)


class _Pull(torch.autograd.Function):
    """(dL/dy, x, piece, mids, weights) -> dL/dweights."""

    @staticmethod
    def forward(slope: Tensor, x: Tensor, piece: Tensor, mids: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.ops.grokscale.pull(slope, x, piece, mids, weights))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        pass  # nothing to save: a second derivative is refused by autograd

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, Any]:
        return _as_lanes(_Pull, info.batch_size, in_dims, inputs)


def _as_lanes(function: Any, size: int, in_dims: Sequence[int | None], inputs: Sequence[Tensor]) -> tuple[Any, Any]:
    """A vmapped axis joined with the axis of lanes, which every input and output has in front.

    Of one lane each, as in a pack, without naming the other sizes: the number of pieces is another one at every step.
    """
    stacked = [
        t.unsqueeze(0).expand(size, *t.shape) if d is None else t.movedim(d, 0)
        for t, d in zip(inputs, in_dims, strict=True)
    ]
    lone = stacked[0].shape[1] == 1
    outputs = function.apply(*(t.squeeze(1) if lone else t.flatten(0, 1) for t in stacked))
    outputs = tuple(t.unsqueeze(1) if lone else t.unflatten(0, (size, -1)) for t in outputs)
    return outputs, (0,) * len(outputs)


def _evaluate(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """What `_Evaluate` computes; steps 1 and 2 above."""
    found, mids, slope, offset = _pieces(x.amin(1).double(), x.amax(1).double(), _layers(weights))
    piece = _look_up(x, found.to(x.dtype))
    y, slope, offset = torch.empty_like(x), slope.to(x.dtype), offset.to(x.dtype)
    for here in _slabs(x):
        y[here] = torch.addcmul(_taken(offset, piece, here), _taken(slope, piece, here), x[here])
    return y, piece, mids


def _pull(slope: Tensor, x: Tensor, piece: Tensor, mids: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """What `_Pull` computes; step 3 above."""
    layers, sums, mids = _layers(weights), _sums(slope, x, piece, mids), mids.contiguous()
    total = [torch.zeros_like(w, dtype=torch.float64) for w in weights]
    if len(layers) == 1:
        whole = sums.sum(1)
        return [whole[:, :1].unsqueeze(2).to(weights[0].dtype), whole[:, 1:].to(weights[1].dtype)]
    first = _Units.of(x.amin(1).double(), x.amax(1).double(), *layers[0])
    maps, backs = _parents(first.into(*layers[1]), first.found, mids), []
    for block in range(0, mids.shape[1], BLOCK):
        here = slice(block, block + BLOCK)
        z, forms, signs = maps[:, here], [], []
        for w, b in layers[2:]:
            signs.append(_positive(z, mids[:, here]))
            forms.append(z * signs[-1])
            z = _affine(forms[-1], w, b)
        back = sums[:, here, :, None]
        for i in reversed(range(2, len(layers))):
            total[2 * i] += back.flatten(1, 2).mT @ forms[i - 2].flatten(1, 2)
            total[2 * i + 1] += back[:, :, 1].sum(1)
            back = (back.flatten(1, 2) @ layers[i][0]).view_as(forms[i - 2]) * signs[i - 2]
        backs.append(back)
    back = torch.cat(backs, 1)
    total[3] = back[:, :, 1].sum(1)
    total[0], total[1], total[2] = first.pull(back, mids, layers[1][0])
    total[0] = total[0].unsqueeze(-1)
    return [t.to(w.dtype) for t, w in zip(total, weights, strict=True)]


# A tracer sees one operation each, and not what hangs on values inside.
_LIBRARY = torch.library.Library("grokscale", "DEF")
_LIBRARY.define("evaluate(Tensor x, Tensor[] weights) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define("pull(Tensor slope, Tensor x, Tensor piece, Tensor mids, Tensor[] weights) -> Tensor[]")
_LIBRARY.impl("evaluate", _evaluate, "CompositeExplicitAutograd")
_LIBRARY.impl("pull", _pull, "CompositeExplicitAutograd")


# ------------------------------------------------------------------------------------------ pieces


def _layers(weights: Sequence[Tensor]) -> Layers:
    return [(w.double(), b.double()) for w, b in zip(weights[::2], weights[1::2], strict=True)]


def _identity(points: Tensor) -> Tensor:
    """The map x -> x on every piece: (L, P, 2, 1), slope 1 and offset 0."""
    one = points.new_tensor([1.0, 0.0]).view(1, 1, 2, 1)
    return one.expand(*points.shape, 2, 1)


def _affine(forms: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Affine maps (L, P, 2, in) through a linear layer w (L, out, in), b (L, out): (L, P, 2, out), BLOCK at a time."""
    z = torch.cat([part.flatten(1, 2) @ w.mT for part in forms.split(BLOCK, 1)], 1)
    z = z.unflatten(1, (-1, 2))
    z[:, :, 1] += b.unsqueeze(1)
    return z


def _positive(z: Tensor, points: Tensor) -> Tensor:
    """1 where a map of z (L, P, 2, h) is positive at the point (L, P) of its piece, else 0: (L, P, 1, h), like z."""
    return (torch.addcmul(z[:, :, 1], z[:, :, 0], points.unsqueeze(-1)) > 0).unsqueeze(2).to(z.dtype)


def _pieces(low: Tensor, high: Tensor, layers: Layers) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Knots (L, P - 1), sorted, infinity where a lane has no more; a point inside, slope and offset (L, P) of the
    pieces of [low, high], both (L,)."""
    first = _Units.of(low, high, *layers[0]) if len(layers) > 1 else None
    found = first.found if first else low.new_full((len(low), BLOCK - 1), math.inf)
    left, right, mids = _edges(found, low, high)
    z = first.into(*layers[1]) if first else _affine(_identity(mids), *layers[0])
    for w, b in layers[2:]:
        roots = (z[:, :, 1] / z[:, :, 0]).neg_()
        inside = (roots > left.unsqueeze(-1)) & (roots < right.unsqueeze(-1))
        coarse, found = found, _merged(found, roots, inside)
        left, right, mids = _edges(found, low, high)
        z = _parents(z, coarse, mids)
        z = _affine(z.mul_(_positive(z, mids)), w, b)
    slope, offset = z.squeeze(-1).unbind(-1)
    return found, mids, slope, offset


class _Units(NamedTuple):
    """The first hidden layer on [low, high]: units that are on all along, or off, or turn at one point, their root.

    From piece to piece one unit turns, so what the next layer makes of them is a running sum over pieces, at a cost of
    pieces x units where a product for every piece costs that times the units of the layer before.

    slope, offset: of the units, (L, h).  turns: which do.  on: which are on at `low`.  roots: where, else infinity.
    found: the roots, sorted, (L, K), K + 1 pieces in whole blocks.  unit: whose they are, 0 where there is none.
    """

    slope: Tensor
    offset: Tensor
    turns: Tensor
    on: Tensor
    roots: Tensor
    found: Tensor
    unit: Tensor

    @staticmethod
    def of(low: Tensor, high: Tensor, w: Tensor, b: Tensor) -> _Units:
        """w: (L, h, 1).  b: (L, h)."""
        slope, low, high = w.squeeze(-1), low.unsqueeze(1), high.unsqueeze(1)
        roots = -b / slope
        turns = (roots > low) & (roots < high)
        roots = torch.where(turns, roots, math.inf)
        on = torch.where(turns, slope < 0, slope * (low + (high - low) / 2) + b > 0)
        found, unit = roots.sort(1)
        room = BLOCK * (int(turns.sum(1).max()) // BLOCK + 1) - 1
        more = (0, max(0, room - found.shape[1]))
        found = torch.nn.functional.pad(found, more, value=math.inf)[:, :room].contiguous()
        return _Units(slope, b, turns, on, roots, found, torch.nn.functional.pad(unit, more)[:, :room])

    def into(self, w: Tensor, b: Tensor) -> Tensor:
        """What a layer w (L, out, h), b (L, out) makes of them on every piece: affine maps (L, K + 1, 2, out)."""
        start = torch.stack([self.slope, self.offset], 1) * self.on.unsqueeze(1) @ w.mT
        start[:, 1] += b
        rise = self.slope.sign() * torch.isfinite(self.roots)  # +1 turns on, -1 off, from left to right
        turn = torch.stack([self.slope * rise, self.offset * rise], -1)
        turn = _rows(turn, self.unit) * torch.isfinite(self.found).unsqueeze(-1)
        maps = start.new_empty(len(w), self.unit.shape[1] + 1, 2, w.shape[1])
        maps[:, 0] = start
        torch.mul(turn.unsqueeze(-1), _rows(w.mT, self.unit).unsqueeze(2), out=maps[:, 1:])
        return _running(maps)

    def pull(self, back: Tensor, mids: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of slope (L, h), offset (L, h) and w (L, out, h).

        back: of what `into` gave, on pieces with these points, (L, P, 2, out); used up.  mids: (L, P), in their order.
        """
        summed = torch.nn.functional.pad(_running(back), (0, 0, 0, 0, 1, 0))  # over the pieces to the left
        whole = summed[:, -1:]
        left = _rows(summed, torch.searchsorted(mids, self.roots))  # of a unit's root; all where it does not turn
        mine = torch.where((self.turns & ~self.on)[:, :, None, None], whole - left, left)
        mine.mul_((self.turns | self.on)[:, :, None, None])  # of the pieces where it is on: (L, h, 2, out)
        slope, offset = (mine * w.mT.unsqueeze(2)).sum(-1).unbind(-1)
        forms = torch.stack([self.slope, self.offset], -1).unsqueeze(-1)
        return slope, offset, mine.mul_(forms).sum(2).mT


def _running(values: Tensor) -> Tensor:
    """Sums over the pieces so far of values (L, P, ...), in place, P in whole blocks.

    Stretches first, and then one after the other: an order that does not depend on P, on any device, and on a CPU
    several times as fast as `cumsum` along an inner axis.
    """
    stretch = math.gcd(STRETCH, BLOCK)
    parts = values.unflatten(1, (-1, stretch))
    for k in range(1, stretch):
        parts[:, :, k] += parts[:, :, k - 1]
    for k in range(1, parts.shape[1]):
        parts[:, k] += parts[:, k - 1, -1:]
    return values


def _parents(z: Tensor, coarse: Tensor, mids: Tensor) -> Tensor:
    """Maps z (L, P, 2, h) on the pieces between the knots `coarse`, for finer pieces with points `mids`."""
    return _rows(z, torch.searchsorted(coarse, mids))


def _edges(found: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left end, right end and middle of every piece, (L, P); pieces beyond a lane's last are the point `high`."""
    inner = torch.minimum(found, high.unsqueeze(1))
    left, right = torch.cat([low.unsqueeze(1), inner], 1), torch.cat([inner, high.unsqueeze(1)], 1)
    return left, right, left + (right - left) / 2


def _merged(found: Tensor, roots: Tensor, inside: Tensor) -> Tensor:
    """The knots so far (L, K) with the roots (L, P, h) that are inside their piece, in tables of whole blocks."""
    old, new = torch.isfinite(found).sum(1), inside.sum((1, 2))
    count = int((old + new).max())
    merged = found.new_full((len(found), BLOCK * (count // BLOCK + 1) - 1), math.inf)
    merged[:, : found.shape[1]] = found
    lane = inside.nonzero()[:, 0]
    place = torch.arange(len(lane), device=lane.device) - (new.cumsum(0) - new - old)[lane]
    merged[lane, place] = roots[inside]
    return merged.sort(1).values


# ------------------------------------------------------------------------------------------ entries


Slab = tuple[slice, slice]


def _slabs(x: Tensor) -> list[Slab]:
    """Parts of x (L, N) to work on one at a time: what stays in a core's cache, everything on other devices."""
    lanes, entries = x.shape
    if x.device.type != "cpu":
        return [(slice(None), slice(None))]
    return [(slice(i, i + 1), slice(j, j + CHUNK)) for i in range(lanes) for j in range(0, entries, CHUNK)]


def _places(index: Tensor, width: int) -> Tensor:
    """Where an index (l, n) into tables (l, width) points in the flattened tables: (l n,)."""
    if len(index) > 1:
        index = index + torch.arange(0, len(index) * width, width, dtype=index.dtype, device=index.device).unsqueeze(1)
    return index.reshape(-1)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """Whole rows of tables (L, P, ...), index (L, n): (L, n, ...)."""
    rows = table.reshape(table.shape[0] * table.shape[1], -1).index_select(0, _places(index, table.shape[1]))
    return rows.view(*index.shape, *table.shape[2:])


def _taken(table: Tensor, index: Tensor, here: Slab) -> Tensor:
    """The part `here` of table.gather(1, index), index (L, N) int32."""
    rows, part = table[here[0]], index[here]
    return rows.reshape(-1).index_select(0, _places(part, rows.shape[1])).view(part.shape)


def _look_up(x: Tensor, found: Tensor) -> Tensor:
    """The piece of every entry, (L, N) int32: `torch.searchsorted(found, x)` at a quarter of the time.

    A grid over the range says how many knots lie in lower cells, and those of the entry's own cell are compared one by
    one. The map from numbers to cells is monotone in floating point too, so this is exact.
    """
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = CELLS / (high - low).clamp(min=1e-30)

    def cell(values: Tensor, lanes: slice = slice(None)) -> Tensor:
        return (values - low[lanes]).mul_(scale[lanes]).to(torch.int32).clamp_(0, CELLS)

    real = torch.isfinite(found)
    count = torch.zeros(len(x), CELLS + 1, dtype=torch.int32, device=x.device)
    count.scatter_add_(1, cell(torch.where(real, found, low)).long(), real.int())
    most = int(count.max())
    if most > CLUSTER:
        return torch.searchsorted(found, x, out_int32=True)
    lower = count.cumsum(1, dtype=torch.int32) - count
    table = torch.nn.functional.pad(found, (0, 1), value=math.inf)  # nothing is above a lane's last knot
    piece = torch.empty(x.shape, dtype=torch.int32, device=x.device)
    for here in _slabs(x):
        piece[here] = cell(x[here], here[0])
        piece[here] = _taken(lower, piece, here)
        for _ in range(most):
            piece[here] += _taken(table, piece, here).lt_(x[here]).to(torch.int32)
    return piece


def _sums(rise: Tensor, x: Tensor, piece: Tensor, mids: Tensor) -> Tensor:
    """Sums of rise x and of rise, both (L, N), over the entries of each piece: (L, P, 2), in a fixed order anywhere."""
    total = mids.new_zeros(2, *mids.shape)
    for here in _slabs(x):
        index, r = _places(piece[here], mids.shape[1]).long(), rise[here].reshape(-1).double()
        for sums, values in zip(total, (r * x[here].reshape(-1), r), strict=True):
            row = sums[here[0]].view(-1)
            if row.is_cuda:  # scatter_add would add in any order there; this sorts
                row.index_put_((index,), values, accumulate=True)
            else:
                row.scatter_add_(0, index, values)
    return total.permute(1, 2, 0)
