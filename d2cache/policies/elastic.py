"""Elastic-Cache: refresh when attention drifts, from the layer where it did."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Plan, Why
from d2cache.model import Block, rotate
from d2cache.policies.base import CachePolicy
from d2cache.registry import knob
from d2cache.rows import Part, Rows


@dataclass
class ElasticCache(CachePolicy, key="elastic"):
    """Elastic-Cache (arXiv 2510.14973): reuse all but a window, until attention drifts.

    A step recomputes a window, the `beta` leftmost masked positions, and what the previous step
    wrote. Each layer watches the written position that the window attended to most. If the cosine
    similarity of its attention in the previous step and now is below `gamma`, every later layer
    recomputes all positions from its stored inputs; above 1, all layers always do. Where the paper
    does not say: a full pass comes first, maps are means over heads, only drifts refresh the rest.
    """

    beta: int = knob(32, 1, 1024, "masked positions recomputed per step, from the left")
    gamma: float = knob(0.9, 0.0, 2.0, "attention similarity below which later layers refresh")

    restarts = True

    def begin(self, model, canvas):
        super().begin(model, canvas)
        layers = model.config.layers
        shape = (layers, *canvas.tokens.shape)
        self.hidden = self.kv.k.new_zeros(*shape, model.config.width)  # input of each layer
        self.output = torch.zeros_like(self.hidden[0])  # of the last one, where graphs run
        wide = torch.promote_types(model.dtype, torch.float32)
        self.seen = torch.zeros(shape, dtype=wide, device=model.device)  # by the watched position
        self.watched = torch.zeros_like(canvas.start).expand(shape[:2]).clone()
        self.before = self.watched.clone(), self.seen.clone()  # both as the last step left them
        self.fired = torch.zeros_like(self.watched, dtype=torch.bool)  # (L,B): its test failed
        self.maps = [None] * layers
        self.rope = model.rotary((canvas.position - canvas.start[:, None]).clamp_min(0))
        self.canvas = canvas
        # two queries a layer, without outputs: as much as one row of attention
        own = canvas.own.sum(1)
        self.extra = torch.stack([own * 0, own * 0, own * 0 + 1, own * 0, own], dim=1) * layers

    def plan(self, canvas):
        changed, first = canvas.tokens != self.canvas.tokens, canvas.step == 0
        self.canvas, self.all_layers = canvas, first or self.gamma > 1
        for kept, now in zip(self.before, (self.watched, self.seen), strict=True):
            kept.copy_(now)
        self.parts = torch.zeros_like(self.seen, dtype=torch.uint8).transpose(0, 1)
        self.window = canvas.masked & (canvas.masked.cumsum(1) <= self.beta)
        why = (self.window * int(Why.WINDOW) + changed * int(Why.WRITTEN)).byte()
        return super().plan(canvas) if first else Plan(self.window, self.window | changed, why)

    def block(self, i, block, x, rows):
        if bool(self.drifted(i).any()):
            return self.refresh(i, block, x, rows)
        x = super().block(i, block, x, rows)
        self.watch(i, [block], rows)
        return x

    def drifted(self, i: int) -> Tensor:
        """(B,1) bool: rows of the batch in which a layer before layer i fired in this step."""
        return (self.fired[:i].any(0) | self.all_layers)[:, None]

    def enter(self, i, x, rows):
        self.hidden[i].scatter_(1, rows.index[..., None].expand_as(x), x)
        if i == 0:
            self.parts[:], self.parts[:, 0] = rows.parts(1)[:, None], rows.parts(0)

    def leave(self, x: Tensor, rows: Rows) -> None:
        """Keep the last layer's output x (B,R,d)."""
        self.output.scatter_(1, rows.index[..., None].expand_as(x), x)

    def attend(self, i, block, q, k, v, rows):
        out, self.maps[i] = ops.attention_map(q, k, v, rows.keys)
        return block.project_out(out)

    def refresh(self, i, block, x, rows):
        """Layer i on all positions, which replace what is stored in the rows of the batch that
        drifted: x (B,R,d) -> (B,R,d)."""
        self.enter(i, x, rows)
        drifted, own = self.drifted(i), (self.canvas.own * int(Part.ALL)).byte()
        self.parts[:, i] = torch.where(drifted, own, self.parts[:, i])
        x = self.hidden[i]
        q, *new = block.qkv(x, self.rope)
        write = (self.parts[:, i] > 0)[:, None, :, None]
        self.kv.k[i], self.kv.v[i] = map(torch.where, (write,) * 2, new, self.kv.at(i))
        out, mass = ops.attention_and_mass(
            q, *self.kv.at(i), rows.keys, rows.index, self.in_window(rows)
        )
        x = x + block.project_out(out)
        x = x + block.mlp(x)
        if i + 1 < len(self.hidden):
            self.hidden[i + 1] = torch.where(drifted[..., None], x, self.hidden[i + 1])
        self.test(i, [block], mass[None], rows.keys)
        return ops.rows_at(x, rows.index)

    def in_window(self, rows: Rows) -> Tensor:
        """(B,R) bool: which rows are positions of the window, each once."""
        return self.window.gather(1, rows.index) & rows.valid

    def watch(self, first: int, blocks: list[Block], rows: Rows) -> None:
        """`test` of layers `first` on, after `attend` has left their maps."""
        at = slice(first, first + len(blocks))
        maps, self.maps[at] = self.maps[at], [None] * len(blocks)
        self.test(first, blocks, ops.column_mass(maps, self.in_window(rows)), rows.keys)

    def test(self, first: int, blocks: list[Block], mass: Tensor, keys: Tensor | None) -> None:
        """Test the watched positions of layers `first` on, in live rows; then watch those to which
        the window gave the most, mass (N,B,T)."""
        at = slice(first, first + len(blocks))
        watched, seen = (t[at] for t in self.before)
        top = mass.masked_fill(~self.canvas.known, -1).argmax(-1)
        now = self.attention_of(at, blocks, torch.stack((watched, top), dim=2), keys)
        near = F.cosine_similarity(now[:, :, 0], seen, dim=-1)
        self.fired[at] = (near < self.gamma) & self.canvas.live
        self.watched[at], self.seen[at] = top, now[:, :, 1]

    def attention_of(
        self, at: slice, blocks: list[Block], positions: Tensor, keys: Tensor | None
    ) -> Tensor:
        """Head-averaged attention (N,B,P,T) of stored positions (N,B,P), other ones in each of N
        layers."""
        many, batch, each = positions.shape
        stored, flat = self.hidden[at].flatten(0, 1), positions.flatten(0, 1)
        inputs = ops.rows_at(stored, flat).unflatten(0, (many, batch))
        q = torch.stack([one.query(x, None) for one, x in zip(blocks, inputs, strict=True)])
        places = positions.transpose(0, 1).flatten(1)  # by rows of the batch, as rope is
        rope = [ops.rows_at(t[:, 0], places).unflatten(1, (many, each)) for t in self.rope]
        q = rotate(q.flatten(0, 1), tuple(t.transpose(0, 1).flatten(0, 1)[:, None] for t in rope))
        keys = None if keys is None else keys.expand(many, -1, -1).flatten(0, 1)
        now = ops.attention_weights(q, self.kv.k[at].flatten(0, 1), keys)
        return now.unflatten(0, (many, batch))

    def restart(self) -> Tensor:
        """() int64: the layer to refresh from, the one after the first that fired; L if none."""
        fired = self.fired.any(1)
        return torch.where(fired.any(), fired.int().argmax() + 1, len(fired))
