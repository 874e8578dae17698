"""Elastic-Cache: refresh when attention drifts, and only from that layer on."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from d2cache import ops
from d2cache.canvas import Part, Plan, Why
from d2cache.policies.base import CachePolicy
from d2cache.registry import knob


@dataclass
class ElasticCache(CachePolicy, key="elastic"):
    """Elastic-Cache (arXiv 2510.14973): recompute deep layers when the attention pattern drifts.

    A step recomputes a window, the `beta` leftmost masked positions, and what the step before
    wrote. Each layer watches the written position that the window attended to most: when the
    cosine between its attention in the step before and now falls below `gamma`, all positions are
    recomputed in every later layer, starting from the kept inputs of that layer. gamma above 1
    refreshes everything at every step.

    Made from the paper's text, for its code was not at hand. Its silence is filled so: the first
    step is a full pass; maps are means over heads; masks right of the window keep what they have
    until it reaches them or a drift renews them. The test reads one number back a layer.
    """

    beta: int = knob(32, 1, 1024, "masked positions recomputed a step, from the left")
    gamma: float = knob(0.9, 0.0, 2.0, "similarity of attention below which later layers refresh")

    def begin(self, model, canvas):
        super().begin(model, canvas)
        c, (b, t) = model.config, canvas.tokens.shape
        self.hidden = self.kv.k.new_zeros(c.layers + 1, b, t, c.width)  # inputs of each layer
        self.watched = torch.zeros(c.layers, b, 1, dtype=torch.int64, device=model.device)
        self.seen = torch.zeros(c.layers, b, 1, t, device=model.device, dtype=model.dtype)
        self.rope = model.rotary((canvas.position - canvas.start[:, None]).clamp_min(0))
        self.before = canvas

    def plan(self, canvas):
        self.canvas, changed = canvas, canvas.tokens != self.before.tokens
        self.before, first = canvas, canvas.step == 0
        self.drifted = torch.full_like(canvas.start, first or self.gamma > 1).bool()
        self.parts = torch.zeros_like(self.seen[:, :, 0].transpose(0, 1), dtype=torch.uint8)
        self.window = canvas.masked & (canvas.masked.cumsum(1) <= self.beta)
        why = self.window * int(Why.WINDOW) + changed * int(Why.WRITTEN)
        return super().plan(canvas) if first else Plan(
            self.window, self.window | changed, why.byte()
        )  # fmt: skip

    def block(self, i, block, x, rows):
        at = rows.index[..., None].expand(-1, -1, x.shape[-1])
        self.hidden[i].scatter_(1, at, x)
        drifted = self.drifted[:, None]
        every = self.canvas.own * int(Part.ALL)
        self.parts[:, i] = torch.where(drifted, every.byte(), rows.parts(i))
        if not drifted.any():
            q, k, v = self.project(i, block, x, rows)
            out, map_ = ops.attention_map(q, k, v, rows.keys)
        else:
            x = self.hidden[i]
            q, k, v = block.qkv(x, self.rope)
            new = (drifted | rows.wanted)[:, None, :, None]
            self.kv.k[i], self.kv.v[i] = (
                torch.where(new, a, b) for a, b in ((k, self.kv.k[i]), (v, self.kv.v[i]))
            )
            k, v = self.kv.k[i], self.kv.v[i]
            out, map_ = ops.attention_map(q, k, v, rows.keys)
            map_ = map_.gather(1, rows.index[..., None].expand(-1, -1, map_.shape[-1]))
        x = x + block.project_out(out)
        x = x + block.mlp(x)
        if drifted.any():
            self.hidden[i + 1] = torch.where(drifted[..., None], x, self.hidden[i + 1])
            x = x.gather(1, at)
        self.watch(i, block, k, v, map_, rows)
        return x

    def watch(self, i, block, k, v, map_, rows):
        """Test the watched position's attention, and choose what to watch until the next step."""
        asks = self.window.gather(1, rows.index) & rows.valid
        mass = (map_ * asks[..., None]).sum(1).masked_fill(~self.canvas.known, -1)
        both = torch.cat((self.watched[i], mass.argmax(1, keepdim=True)), dim=1)
        x = self.hidden[i].gather(1, both[..., None].expand(-1, -1, self.hidden.shape[-1]))
        rope = [t[:, 0].gather(1, both[..., None].expand(-1, -1, t.shape[-1]))[:, None]
                for t in self.rope]  # fmt: skip
        _, now = ops.attention_map(block.query(x, rope), k, v, rows.keys)
        if self.canvas.step:
            near = F.cosine_similarity(now[:, 0].float(), self.seen[i, :, 0].float(), dim=-1)
            self.drifted = self.drifted | (near < self.gamma)
        self.watched[i], self.seen[i] = both[:, 1:], now[:, 1:]
