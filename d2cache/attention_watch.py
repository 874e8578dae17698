"""The test of Elastic-Cache (arXiv 2510.14973): has the attention of a layer drifted since the
previous step? A part of a cache policy, which sets the first group of attributes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Canvas
from d2cache.model import Block, Model, rotate
from d2cache.rows import Rows


class AttentionWatch:
    """Each layer watches one position: the test fails where its attention, averaged over the heads,
    is less similar to that of the previous step than gamma. Queries are made again from the inputs
    of the layers, which are kept."""

    kv: Any  # `policies.base.KV`
    canvas: Canvas
    gamma: float
    window: Tensor  # (B,T) bool: whose attention chooses what is watched
    all_layers: bool  # every layer recomputes everything, whatever the tests say

    hidden: Tensor  # (L,B,T,d): the input of each layer
    output: Tensor  # (B,T,d): of the last one, where graphs run
    seen: Tensor  # (L,B,T): attention of the watched position when it was tested last
    watched: Tensor  # (L,B) int64
    before: tuple[Tensor, Tensor]  # watched and seen, as the previous step left them
    fired: Tensor  # (L,B) bool: the test failed in this step

    def begin_watch(self, model: Model, canvas: Canvas) -> Tensor:
        """Allocate what the tests of a run need; -> their work in one step (B,5), see `Step`."""
        layers = model.config.layers
        shape = (layers, *canvas.tokens.shape)
        self.hidden = self.kv.k.new_zeros(*shape, model.config.width)
        self.output = torch.zeros_like(self.hidden[0])
        wide = torch.promote_types(model.dtype, torch.float32)
        self.seen = torch.zeros(shape, dtype=wide, device=model.device)
        self.watched = torch.zeros_like(canvas.start).expand(shape[:2]).clone()
        self.before = self.watched.clone(), self.seen.clone()
        self.fired = torch.zeros_like(self.watched, dtype=torch.bool)
        self.maps: list[Tensor | None] = [None] * layers
        self.rope = model.rotary((canvas.position - canvas.start[:, None]).clamp_min(0))
        # two queries a layer, without outputs: as much as one row of attention
        own = canvas.own.sum(1)
        return torch.stack([own * 0, own * 0, own * 0 + 1, own * 0, own], dim=1) * layers

    def next_watch(self) -> None:
        """Called before each step: its tests compare with what is known now."""
        for kept, now in zip(self.before, (self.watched, self.seen), strict=True):
            kept.copy_(now)

    def leave(self, x: Tensor, rows: Rows) -> None:
        """Keep the last layer's output x (B,R,d)."""
        self.output.scatter_(1, rows.index[..., None].expand_as(x), x)

    def drifted(self, i: int) -> Tensor:
        """(B,1) bool: rows of the batch in which a layer before layer i fired in this step."""
        return (self.fired[:i].any(0) | self.all_layers)[:, None]

    def restart(self) -> Tensor:
        """() int64: the layer to refresh from, the one after the first that fired; L if none."""
        fired = self.fired.any(1)
        return torch.where(fired.any(), fired.int().argmax() + 1, len(fired))

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
