"""d2Cache: two stages choose the rows of the next step."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from d2cache import ops
from d2cache.canvas import Canvas, Plan, Why
from d2cache.policies.base import CachePolicy
from d2cache.registry import knob


@dataclass
class D2Cache(CachePolicy, key="d2"):
    """d2Cache (arXiv 2509.23094): reuse all but likely masks and rows with high attention rollout.

    After one full pass, each step recomputes: the `current_k` masked positions of highest
    confidence x certainty density (stage 1; a position keeps the confidence it had when it was
    last computed; with blocks, the current block comes first, and the search ends with the block
    that holds the k-th mask); what the previous step wrote, once; and the smallest set of other
    rows that holds more than `rollout_p` of their attention-rollout mass (stage 2).

    `as_shipped` reproduces the public code, bugs included: confidence stays that of the first
    pass; the block that bounds the search shrinks as it fills; rollout rows stop before p, not
    beyond it, but at least one is taken; density sees one answer length of known positions on the
    left and repeats the last answer position on the right, in the decoder too; a position that was
    not computed has confidence 1/V and token 0, and may be written.
    """

    current_k: int = knob(32, 1, 1024, "masked positions recomputed per step")
    rollout_p: float = knob(0.1, 0.0, 1.0, "share of rollout mass recomputed; 0 turns stage 2 off")
    sigma: float = knob(10.0, 0.1, 100.0, "width of certainty density, in positions")
    inflate_w: int = knob(0, 0, 64, "recompute gaps between chosen rows at most this far apart")
    as_shipped: bool = knob(False, None, None, "reproduce the public code, bugs included")
    attend_can_wait = True

    def begin(self, model, canvas):
        super().begin(model, canvas)
        self.maps = [None] * model.config.layers
        self.confidence = canvas.masked.to(torch.float32)  # from the last time each was computed
        self.next_plan = replace(super().plan(canvas), as_shipped=self.as_shipped)

    def plan(self, canvas):
        return self.next_plan

    def attend(self, i, block, q, k, v, rows):
        out, self.maps[i] = ops.attention_map(q, k, v, rows.keys)
        return block.project_out(out)

    def observe(self, canvas, step):
        rows, shift = step.rows, step.run.config.shift * self.as_shipped
        maps, self.maps = self.maps, [None] * len(self.maps)  # large, and not needed again
        self.rollout = ops.rollout_mass(maps, rows.index, rows.valid, canvas.tokens.shape[1])
        if step.index == 0 or not self.as_shipped:
            seen = step.confidence > -torch.inf
            self.confidence = torch.where(seen, step.confidence, self.confidence)
        chosen = self.stage_one(canvas, step.before).roll(-shift, 1)
        taken = chosen | step.changed
        pick = ops.nucleus_within if self.as_shipped else ops.nucleus
        last = canvas.position == (canvas.first - 1 if shift else -1)  # counts, not chosen
        influential = ~last & pick(self.rollout, canvas.own & (~taken | last), self.rollout_p)
        filled = ops.fill_gaps(taken | influential, self.inflate_w) & canvas.own
        why = chosen * int(Why.CHOSEN) + step.changed * int(Why.WRITTEN)
        why = why + influential * int(Why.ROLLOUT) + (filled & ~taken & ~influential) * int(Why.GAP)
        predict = canvas.masked & filled.roll(shift, 1)
        self.next_plan = Plan(predict, filled, why.byte(), self.as_shipped)

    def stage_one(self, canvas: Canvas, before: Canvas) -> Tensor:
        """(B,T) bool: masked positions to recompute. before: the canvas before the last write."""
        base = self.confidence * canvas.density(self.sigma, self.as_shipped)
        # as shipped: what was left of the block before the write; a finished row has none left
        inside = before.block & before.masked if self.as_shipped else canvas.block
        size = inside.sum(1, keepdim=True).clamp_min(1) if self.as_shipped else canvas.block_length
        at = canvas.position - canvas.first
        window = ops.search_window(canvas.masked, inside, at, size, self.current_k)
        # float64: adding 1 inside the block must not round small scores together
        return ops.top_k_mask(base.double() + inside, window, self.current_k)
