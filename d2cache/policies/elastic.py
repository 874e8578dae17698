"""Elastic-Cache: refresh when attention drifts, from the layer where it did."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from d2cache import ops
from d2cache.canvas import Plan, Why
from d2cache.policies.base import CachePolicy
from d2cache.registry import knob
from d2cache.rows import Part


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

    def begin(self, model, canvas):
        super().begin(model, canvas)
        shape = (model.config.layers, *canvas.tokens.shape)
        self.hidden = self.kv.k.new_zeros(*shape, model.config.width)  # input of each layer
        wide = torch.promote_types(model.dtype, torch.float32)
        self.seen = torch.zeros(shape, dtype=wide, device=model.device)  # by the watched position
        self.watched = torch.zeros_like(canvas.start).expand(shape[:2]).clone()
        self.rope = model.rotary((canvas.position - canvas.start[:, None]).clamp_min(0))
        self.canvas = canvas

    def plan(self, canvas):
        changed, first = canvas.tokens != self.canvas.tokens, canvas.step == 0
        self.canvas = canvas
        self.drifted = torch.full_like(canvas.own[:, :1], first or self.gamma > 1)
        self.parts = torch.zeros_like(self.seen, dtype=torch.uint8).transpose(0, 1)
        self.window = canvas.masked & (canvas.masked.cumsum(1) <= self.beta)
        why = (self.window * int(Why.WINDOW) + changed * int(Why.WRITTEN)).byte()
        return super().plan(canvas) if first else Plan(self.window, self.window | changed, why)

    def block(self, i, block, x, rows):
        self.hidden[i].scatter_(1, rows.index[..., None].expand_as(x), x)
        own = (self.canvas.own * int(Part.ALL)).byte()
        self.parts[:, i] = torch.where(self.drifted, own, rows.parts(i))
        if refresh := bool(self.drifted.any()):
            x, in_window = self.hidden[i], self.window
            q, *new = block.qkv(x, self.rope)
            write = (self.parts[:, i] > 0)[:, None, :, None]
            self.kv.k[i], self.kv.v[i] = map(torch.where, (write,) * 2, new, self.kv.at(i))
        else:
            q, *_ = self.project(i, block, x, rows)
            in_window = self.window.gather(1, rows.index) & rows.valid
        k, v = self.kv.at(i)
        out, attention = ops.attention_map(q, k, v, rows.keys)
        x = x + block.project_out(out)
        x = x + block.mlp(x)
        if refresh and i + 1 < len(self.hidden):
            self.hidden[i + 1] = torch.where(self.drifted[..., None], x, self.hidden[i + 1])
        self.watch(i, block, k, v, (attention * in_window[..., None]).sum(1), rows.keys)
        return ops.rows_at(x, rows.index) if refresh else x

    def watch(self, i, block, k, v, mass, keys):
        """Test the watched position in live rows, then watch the one with the most mass (B,T)."""
        top = mass.masked_fill(~self.canvas.known, -1).argmax(1)
        both = torch.stack((self.watched[i], top), dim=1)
        rope = tuple(ops.rows_at(t[:, 0], both)[:, None] for t in self.rope)
        q = block.query(ops.rows_at(self.hidden[i], both), rope)
        _, now = ops.attention_map(q, k, v, keys)
        if self.canvas.step:
            near = F.cosine_similarity(now[:, 0], self.seen[i], dim=-1)
            self.drifted = self.drifted | ((near < self.gamma) & self.canvas.live)[:, None]
        self.watched[i], self.seen[i] = top, now[:, 1]
