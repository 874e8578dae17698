"""Elastic-Cache: refresh when attention drifts, from the layer where it did."""

from dataclasses import dataclass

import torch

from d2cache import ops
from d2cache.attention_watch import AttentionWatch
from d2cache.canvas import Plan, Why
from d2cache.policies.base import CachePolicy
from d2cache.registry import knob
from d2cache.rows import Part


@dataclass
class ElasticCache(AttentionWatch, CachePolicy, key="elastic"):
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
        self.extra, self.canvas = self.begin_watch(model, canvas), canvas

    def plan(self, canvas):
        changed, first = canvas.tokens != self.canvas.tokens, canvas.step == 0
        self.canvas, self.all_layers = canvas, first or self.gamma > 1
        self.next_watch()
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

    def enter(self, i, x, rows):
        self.hidden[i].scatter_(1, rows.index[..., None].expand_as(x), x)
        if i == 0:
            self.parts[:], self.parts[:, 0] = rows.parts(1)[:, None], rows.parts(0)

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
