"""Fast-dLLM's prefix cache, and what policies that work block by block share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from d2cache.canvas import Canvas, Plan, Why
from d2cache.policies.base import CachePolicy
from d2cache.registry import knob


class BlockPolicy(CachePolicy):
    """A policy that starts over with every block. Not a method of its own: it has no key."""

    def begin(self, model, canvas):
        super().begin(model, canvas)
        self.opened = torch.full_like(canvas.start, -1)  # (B,) where the last seen block starts

    def block_start(self, canvas: Canvas) -> Tensor:
        """(B,) int64: the first position of each row's current block."""
        return torch.where(canvas.block, canvas.position, canvas.tokens.shape[1]).amin(1)

    def enter_block(self, canvas: Canvas) -> Tensor:
        """(B,) bool: rows whose current block is a new one; it is remembered as seen."""
        first, last = self.block_start(canvas), self.opened
        self.opened = first
        return first != last


@dataclass
class PrefixCache(BlockPolicy, key="prefix"):
    """Fast-dLLM prefix cache (arXiv 2505.22618): reuse everything left of the current block.

    Each block begins with a full pass, which writes its first tokens; until the block is written,
    it and all that follows it are recomputed. A block that the full pass completes gets no other
    pass. Made for blocks: with a single block, only the prompt is reused.

    `as_shipped` matters for models whose logits are shifted (Dream): the public code recomputes
    the rows that predict the window, not the window itself, so the last row keeps its K,V from the
    full pass.
    """

    for_blocks = True
    as_shipped: bool = knob(False, None, None, "with shifted logits, shift the recomputed rows too")

    def begin(self, model, canvas):
        super().begin(model, canvas)
        self.shift = model.config.shift

    def plan(self, canvas):
        full, window = super().plan(canvas), self.window(canvas)
        opens = self.enter_block(canvas)[:, None]
        back = self.shift * self.as_shipped
        near = canvas.block * int(Why.BLOCK) + (window & ~canvas.block) * int(Why.WINDOW)
        why = torch.where(opens, full.why, near.byte().roll(-back, 1))
        refresh = torch.where(opens, full.refresh, window.roll(-back, 1))
        return Plan(canvas.masked & (opens | window), refresh, why)

    def window(self, canvas: Canvas) -> Tensor:
        """(B,T) bool: positions recomputed until the block is written."""
        return canvas.position >= self.block_start(canvas)[:, None]
