"""Sparse-dLLM: evict the keys that the current block does not attend to."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from d2cache import ops
from d2cache.canvas import Plan, Why
from d2cache.policies.prefix import BlockPolicy
from d2cache.registry import knob
from d2cache.rows import Part


@dataclass
class SparseCache(BlockPolicy, key="sparse"):
    """Sparse-dLLM (arXiv 2508.02558): reuse K,V that the current block attends to, evict the rest.

    Each block begins with two full passes. In the second, because the first is not stable yet,
    every layer scores the positions outside the block by the product of their key with the block's
    queries (mean over queries and heads, then the largest of three neighbours, as if the block
    were not there) and keeps the share `keep_ratio` with the highest scores. Until the block is
    written, only its rows are recomputed; they attend to themselves and to what was kept. The
    paper evaluates 0.5; its code's default is 0.7. The store itself keeps its size.
    """

    for_blocks = True
    keep_ratio: float = knob(0.5, 0.0, 1.0, "share of K,V outside the block that is kept")

    def begin(self, model, canvas):
        super().begin(model, canvas)
        shape = (len(canvas.tokens), model.config.layers, canvas.tokens.shape[1])
        self.kept = torch.ones(shape, dtype=torch.bool, device=model.device)
        self.age, self.widest = torch.zeros_like(canvas.start), 0.0  # steps since the block began
        # the most rows that a step recomputes, unless it is a full pass
        self.block_length = canvas.block_length
        self.room = min(canvas.block_length + model.config.shift, shape[2] - 1)

    def plan(self, canvas):
        full = super().plan(canvas)
        self.age = torch.where(self.enter_block(canvas), 0, self.age + 1)
        self.canvas, self.small = canvas, ((self.age >= 2) & (not self.whole))[:, None]
        self.widest = max(self.widest, self.keep_ratio)  # what is kept outlives a knob's change
        refresh = torch.where(self.small, canvas.block, full.refresh)
        why = torch.where(self.small, (canvas.block * int(Why.BLOCK)).byte(), full.why)
        self.parts = torch.zeros_like(self.kept, dtype=torch.uint8)
        return Plan(canvas.masked & refresh, refresh, why)

    def attend(self, i, block, q, k, v, rows):
        full = rows.full or rows.index.shape[1] > self.room
        if full:
            self.choose(i, q, k, rows)
        own = self.canvas.own
        sees = own & (self.kept[:, i] | ~self.small)
        self.parts[:, i] = rows.parts(i) + ((own & ~sees) * int(Part.EVICTED)).byte()
        if not full:  # gather what is kept: fewer keys to attend to
            outside = k.shape[2] - self.block_length
            count = int(self.widest * outside) + self.block_length  # kept, with a whole block
            at, sees = ops.indices(sees, count)
            wide = at[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
            k, v = k.gather(2, wide), v.gather(2, wide)
        return block.attend(q, k, v, sees)

    def choose(self, i, q, k, rows):
        """Mark what layer i keeps, for the rows of the batch that are in their second full pass."""
        in_block = self.canvas.block.gather(1, rows.index) & rows.valid
        wide = torch.promote_types(k.dtype, torch.float32)
        mean = (q * in_block[:, None, :, None]).sum(2, dtype=wide) / in_block.sum(1)[:, None, None]
        shared = mean.unflatten(1, (k.shape[1], -1)).mean(2)  # grouped heads share a key
        score = (k * shared[:, :, None]).sum(3).mean(1)
        outside = self.canvas.own & ~self.canvas.block
        packed = outside.int().argsort(dim=1, descending=True, stable=True)  # the block is skipped
        at, count = self.canvas.position, outside.sum(1, keepdim=True)
        score = score.gather(1, packed).masked_fill(at >= count, -torch.inf)
        score = F.max_pool1d(score[:, None], 3, 1, 1)[:, 0].masked_fill(at >= count, -torch.inf)
        order = packed.gather(1, score.sort(dim=1, descending=True, stable=True).indices)
        most, age = (count.double() * self.keep_ratio).long(), self.age[:, None]
        best = torch.zeros_like(outside).scatter(1, order, at < most)
        self.kept[:, i] = torch.where(age == 1, best | self.canvas.block, self.kept[:, i])
